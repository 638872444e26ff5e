"""Peers that are not polite: frames by hand on a socket, and libnghttp2's client without a front around it."""

import asyncio
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import ngh2

from tests.kvstore.rpc.ends import SECONDS

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY_FLAG = 1, 1, 4, 8, 32
NO_ERROR, PROTOCOL, INTERNAL, FLOW_CONTROL, SETTINGS_TIMEOUT, STREAM_CLOSED, FRAME_SIZE = range(7)
REFUSED, CANCEL, COMPRESSION, CONNECT, ENHANCE_YOUR_CALM = range(7, 12)

REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/t.T/Echo"),
    (b":authority", b"localhost"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]
CHAT = [(name, b"/t.T/Chat" if name == b":path" else value) for name, value in REQUEST]


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream_id: int
    payload: bytes


def frame(kind: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"", length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack("!I", size)[1:] + struct.pack("!BBI", kind, flags, stream_id) + payload


def block(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """HPACK, each a literal without indexing."""
    return b"".join([b"\x00" + _string(name) + _string(value) for name, value in headers])


def _string(raw: bytes) -> bytes:
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    length, rest = len(raw) - 127, b""
    while length >= 128:
        rest += bytes([length % 128 + 128])
        length //= 128
    return b"\x7f" + rest + bytes([length]) + raw


def headers(stream_id: int, pairs: Iterable[tuple[bytes, bytes]] = REQUEST, flags: int = END_HEADERS) -> bytes:
    return frame(HEADERS, flags, stream_id, block(pairs))


def message(body: bytes, compressed: int = 0) -> bytes:
    return bytes([compressed]) + len(body).to_bytes(4, "big") + body


def data(stream_id: int, body: bytes, flags: int = END_STREAM) -> bytes:
    return frame(DATA, flags, stream_id, body)


def call(stream_id: int, body: bytes = b"hello") -> bytes:
    """A whole unary call."""
    return headers(stream_id) + data(stream_id, message(body))


class Socket:
    """Frames by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int, hello: bytes = PREFACE + frame(SETTINGS)) -> Self:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(hello)
        return cls(reader, writer)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.transport.abort()

    def send(self, *frames: bytes) -> None:
        self._writer.write(b"".join(frames))

    def send_end(self) -> None:
        self._writer.write_eof()

    async def read(self) -> Frame | None:
        """The next frame; None when the connection has ended."""
        try:
            async with asyncio.timeout(SECONDS):
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return Frame(head[3], head[4], int.from_bytes(head[5:], "big"), payload)

    async def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        while (found := await self.read()) is not None:
            if wanted(found):
                return found
        raise AssertionError("the connection ended")

    async def verdict(self) -> tuple[str, int]:
        """How the server takes it: ("goaway", code), ("reset", code), ("closed", 0), or ("fine", 0).

        Fine is when two PINGs were answered, one after the other: an answer may overtake what came before it once.
        """
        answers = 0
        self.send(frame(PING, 0, 0, b"verdict!"))
        while (found := await self.read()) is not None:
            if found.kind == GOAWAY:
                return "goaway", int.from_bytes(found.payload[4:8], "big")
            if found.kind == RST:
                return "reset", int.from_bytes(found.payload, "big")
            if found.kind == PING and found.flags & ACK and found.payload == b"verdict!":
                answers += 1
                if answers == 2:
                    return "fine", 0
                self.send(frame(PING, 0, 0, b"verdict!"))
        return "closed", 0


class Client:
    """libnghttp2's client: every frame it gets is an event here, and nothing happens by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, config: ngh2.Configuration) -> None:
        self._reader = reader
        self._writer = writer
        self.connection = ngh2.Connection(ngh2.Role.CLIENT, config)
        self.events: list[ngh2.Event] = []
        self.is_closed = False

    @classmethod
    async def open(
        cls, port: int, settings: dict[int, int] | None = None, config: ngh2.Configuration | None = None
    ) -> Self:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        client = cls(reader, writer, config or ngh2.Configuration())
        client.connection.initiate_connection(settings or {})
        client.flush()
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.transport.abort()

    def flush(self) -> None:
        while chunk := self.connection.data_to_send():
            self._writer.write(chunk)

    async def drain(self) -> None:
        self.flush()
        await self._writer.drain()

    async def until(self, condition: Callable[[], object]) -> None:
        """Read until it holds; an end of the connection ends it too."""
        async with asyncio.timeout(SECONDS):
            while not condition():
                self.flush()
                try:
                    received = await self._reader.read(1 << 20)
                except ConnectionError:
                    received = b""
                if not received:
                    self.is_closed = True
                    break
                self.connection.receive_data(received)
                self.events += self.connection.events()
        self.flush()

    def ask(self, body: bytes, pairs: list[tuple[bytes, bytes]] | None = None, *, end: bool = True) -> int:
        stream_id = self.connection.send_request(pairs or REQUEST)
        self.connection.send_data(stream_id, message(body), end_stream=end)
        return stream_id

    def of(self, kind: type[ngh2.Event], stream_id: int | None = None) -> list[ngh2.Event]:
        return [
            event
            for event in self.events
            if type(event) is kind and (stream_id is None or getattr(event, "stream_id", None) == stream_id)
        ]

    def body(self, stream_id: int) -> bytes:
        return b"".join([event.data for event in self.of(ngh2.DataReceived, stream_id)])  # type: ignore[attr-defined]

    def head(self, stream_id: int) -> dict[bytes, bytes]:
        """Of the response and its trailers."""
        found: dict[bytes, bytes] = {}
        for event in [*self.of(ngh2.ResponseReceived, stream_id), *self.of(ngh2.TrailersReceived, stream_id)]:
            found.update(event.headers)  # type: ignore[attr-defined]
        return found

    def has_ended(self, stream_id: int) -> bool:
        return bool(self.of(ngh2.StreamClosed, stream_id)) or b"grpc-status" in self.head(stream_id)
