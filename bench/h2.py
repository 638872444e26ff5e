"""The cheap end of a gRPC connection for the load generator: small unary calls, as little work as Python allows.

A general client spends more per call than the servers under test do, and on a small machine it would be what is
measured. This one knows in advance what it will send: the header block of a method is encoded once, without
compression state, and a request is two frames around the message's bytes. Of an answer it reads the frame headers
and the status. The peer is told to keep no header table, so equal trailers are equal bytes: nghttp2 decodes a block
that has not been seen, afterwards it is known. Measured against one etcd, this costs about half of the CPU that
`bench.channel` needs for a call (docs/BENCHMARK.md).

It stays inside of the peer's flow control by its size: calls in flight times their bytes per connection is far below
the 64 KiB that HTTP/2 starts with, and it asserts so. Larger requests and streams go through `bench.channel`.
"""

import asyncio
import functools
import ssl
import struct
from collections.abc import Callable
from typing import Final, cast

from kvstore.rpc.nghttp2 import engine

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
WINDOW_START = 65535  # of the connection, whatever the settings say (RFC 9113 section 6.9.2)
WINDOW_BIG = 2**30
FRAME_MAX = 16_384  # that any peer takes
FRAME = struct.Struct(">HBBBI")
DATA_HEAD = struct.Struct(">HBBBIBI")  # a frame's and a message's header
MESSAGE_HEADER: Final = 5  # bytes in front of each message: a flag and the length
STATUS_OK, STATUS_UNKNOWN, STATUS_UNAVAILABLE = 0, 2, 14  # gRPC's codes

Done = Callable[[int, bytes], None]  # status, response


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return FRAME.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def text(value: str) -> bytes:
    """A string of HPACK, not Huffman-coded; below 127 bytes."""
    assert len(value) < 127
    return bytes([len(value)]) + value.encode()


def header_block(scheme: str, authority: str, path: str) -> bytes:
    """Headers of a gRPC call as HPACK (RFC 7541): indexed where the static table has them, else literal, not stored."""
    return b"".join(
        [
            b"\x83",  # :method POST
            b"\x87" if scheme == "https" else b"\x86",  # :scheme
            b"\x04" + text(path),
            b"\x01" + text(authority),
            b"\x0f\x10" + text("application/grpc"),  # content-type is name 31: 15 + 16
            b"\x00" + text("te") + text("trailers"),
        ]
    )


@functools.lru_cache(maxsize=1024)
def status_in(block: bytes) -> int:
    """The grpc-status of the header block that ends an answer: trailers, or headers when there is nothing else."""
    headers = frame(HEADERS, END_HEADERS, 1, b"\x88")  # :status 200
    last = frame(HEADERS, END_HEADERS | END_STREAM, 1, block)
    for answer in (headers + last, last):
        status = _decoded(answer)
        if status is not None:
            return status
    return STATUS_UNKNOWN


def _decoded(answer: bytes) -> int | None:
    decoder = engine.client_connection(
        header_bytes_max=1 << 16, stream_window=WINDOW_START, connection_window=WINDOW_START
    )
    request = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")]
    engine.open_stream(decoder, request)
    decoder.data_to_send()
    decoder.receive_data(frame(SETTINGS, 0, 0) + answer)
    found = None
    for event in decoder.events():
        if isinstance(event, engine.ResponseReceived | engine.TrailersReceived):
            found = status_of(event.headers, found)
    return found


def status_of(headers: engine.Headers, default: int | None = None) -> int | None:
    """grpc-status among headers or trailers."""
    return next((int(value) for name, value in headers if name == b"grpc-status"), default)


class Connection(asyncio.Protocol):
    """`call(path, message, done)`: done(status, response) when the answer is complete. One write a tick.

    When the connection is lost, every open call ends as UNAVAILABLE.
    """

    def __init__(self, scheme: str, authority: str) -> None:
        self._scheme = scheme
        self._authority = authority
        self._blocks: dict[str, bytes] = {}
        self._stream = 1
        self._calls: dict[int, Done] = {}
        self._answers: dict[int, bytes | bytearray] = {}  # open streams of which data came, with the message's header
        self._out: list[bytes] = []
        self._buffer = b""
        self._send_window = WINDOW_START
        self._received = 0  # bytes of DATA since the last window update
        self._loop = asyncio.get_running_loop()
        self._lost = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without being a subclass
        # No header table: then equal headers are equal bytes. No push. Windows that never stop the server.
        settings = struct.pack(">HIHIHI", 1, 0, 2, 0, 4, WINDOW_BIG)
        update = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW_BIG))
        self._transport.write(PREFACE + frame(SETTINGS, 0, 0, settings) + update)

    def connection_lost(self, error: Exception | None) -> None:
        self._answers.clear()
        for stream in list(self._calls):
            self._finish(stream, STATUS_UNAVAILABLE)
        if not self._lost.done():
            self._lost.set_result(None)

    def call(self, path: str, message: bytes, done: Done) -> None:
        if self._lost.done():
            self._loop.call_soon(done, STATUS_UNAVAILABLE, b"")
            return
        block = self._blocks.get(path)
        if block is None:
            block = self._blocks[path] = header_block(self._scheme, self._authority, path)
        stream = self._stream
        self._stream += 2
        size = len(message) + MESSAGE_HEADER
        assert size <= FRAME_MAX, "a request is one frame here: bench.channel takes larger ones"
        self._send_window -= size
        assert self._send_window >= 0, "more in flight on one connection than its window: use more connections"
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += [
            FRAME.pack(len(block) >> 8, len(block) & 0xFF, HEADERS, END_HEADERS, stream),
            block,
            DATA_HEAD.pack(size >> 8, size & 0xFF, DATA, END_STREAM, stream, 0, size - MESSAGE_HEADER),
            message,
        ]
        self._calls[stream] = done

    async def close(self) -> None:
        self._transport.abort()  # a polite end of TLS waits for the peer's
        await self._lost

    def _flush(self) -> None:
        self._transport.write(b"".join(self._out))
        self._out.clear()

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        place, end = 0, len(data)
        while end - place >= 9:
            high, low, kind, flags, stream = FRAME.unpack_from(data, place)
            start = place + 9
            stop = start + (high << 8 | low)
            if stop > end:
                break
            place = stop
            if kind == HEADERS:
                if flags & END_STREAM:
                    self._finish(stream, status_in(data[start:stop]))
            elif kind == DATA:
                self._data(stream, flags, data[start:stop])
            else:
                self._control(kind, flags, stream, data[start:stop])
        self._buffer = data[place:]

    def _data(self, stream: int, flags: int, payload: bytes) -> None:
        before = self._answers.get(stream)
        if before is None:
            self._answers[stream] = payload
        elif isinstance(before, bytearray):
            before += payload
        else:
            self._answers[stream] = bytearray(before + payload)  # large: what follows is appended in place
        self._received += len(payload)
        if self._received > WINDOW_BIG // 2:
            self._transport.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received)))
            self._received = 0
        if flags & END_STREAM:
            self._finish(stream, STATUS_UNKNOWN)  # no trailers

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE and stream == 0:
            self._send_window += int.from_bytes(payload, "big")
        elif kind in {SETTINGS, PING} and not flags & ACK:
            self._transport.write(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == RST_STREAM:
            self._finish(stream, STATUS_UNAVAILABLE)
        elif kind == GOAWAY:
            self._transport.close()

    def _finish(self, stream: int, status: int) -> None:
        done = self._calls.pop(stream, None)
        if done is not None:
            answer = self._answers.pop(stream, b"")[MESSAGE_HEADER:]
            done(status, answer if isinstance(answer, bytes) else bytes(answer))


async def dial(url: str, context: ssl.SSLContext | None = None) -> Connection:
    """A connection to http://host:port, or to https:// with a context."""
    scheme, _, authority = url.partition("://")
    host, _, port = authority.rpartition(":")
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: Connection(scheme, authority), host, int(port), ssl=context if scheme == "https" else None
    )
    return connection
