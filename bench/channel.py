"""A gRPC connection of the load generator over nghttp2: unary calls of any size, and streams; flow control both ways.

The counterpart of `bench.h2`, which is cheaper and can only do small unary calls. nghttp2 keeps the windows: what the
peer's do not allow yet is queued, and ours open again as data are taken, which is at once.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, cast

from bench.h2 import MESSAGE_HEADER, STATUS_UNAVAILABLE, STATUS_UNKNOWN, Done, status_of
from kvstore.rpc.nghttp2 import engine

WINDOW_BYTES: Final = 4 << 20  # of a stream and of the connection; the peer may send so much ahead
CANCEL: Final = 8  # HTTP/2's error code
HEADER_BYTES_MAX: Final = 1 << 16

Received = Callable[[bytes], None]
Ended = Callable[[int], None]


class CallFailedError(Exception):
    """A call whose status is not OK."""

    def __init__(self, path: str, status: int) -> None:
        super().__init__(f"{path}: gRPC status {status}")
        self.status = status


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


class Messages:
    """Cuts a stream of bytes into messages."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        if not self._buffer and int.from_bytes(data[1:MESSAGE_HEADER], "big") == len(data) - MESSAGE_HEADER:
            return [data[MESSAGE_HEADER:]]  # nearly always: one message, whole
        self._buffer += data
        found, place, buffer = [], 0, self._buffer
        while len(buffer) - place >= MESSAGE_HEADER:
            start = place + MESSAGE_HEADER
            end = start + int.from_bytes(buffer[place + 1 : start], "big")
            if end > len(buffer):
                break
            found.append(bytes(buffer[start:end]))
            place = end
        del buffer[:place]
        return found


class Stream:
    """One open call. `received(message)` for each message, `ended(status)` once, unless it is cancelled before."""

    __slots__ = ("_channel", "_id", "_messages", "ended", "received", "status")

    def __init__(self, channel: "Channel", number: int, received: Received, ended: Ended) -> None:
        self._channel = channel
        self._id = number
        self.received = received
        self._messages = Messages()
        self.ended = ended
        self.status: int | None = None

    def send(self, message: bytes, *, last: bool = False) -> None:
        self._channel.send(self._id, framed(message), last)

    def cancel(self) -> None:
        self._channel.cancel(self._id)

    def data(self, data: bytes) -> None:
        for message in self._messages.feed(data):
            self.received(message)


class Channel(asyncio.Protocol):
    """`call` and `ask` for unary calls, `stream` for the others. What one tick sends leaves in one write.

    When the connection is lost, every open call ends as UNAVAILABLE.
    """

    def __init__(self, scheme: str, authority: str) -> None:
        self._scheme = scheme.encode()
        self._authority = authority.encode()
        self._headers: dict[str, list[tuple[bytes, bytes]]] = {}
        self._streams: dict[int, Stream] = {}
        self._h2 = engine.client_connection(
            header_bytes_max=HEADER_BYTES_MAX, stream_window=WINDOW_BYTES, connection_window=WINDOW_BYTES
        )
        self._loop = asyncio.get_running_loop()
        self._lost = self._loop.create_future()
        self._flush_due = False
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without being a subclass
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._lost.done():
            self._lost.set_result(None)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.ended(STATUS_UNAVAILABLE)

    def call(self, path: str, message: bytes, done: Done) -> None:
        """One request, one answer: done(status, response)."""
        found: list[bytes] = []
        try:
            stream = self.stream(path, found.append, lambda status: done(status, found[0] if found else b""))
        except CallFailedError as error:
            self._loop.call_soon(done, error.status, b"")
            return
        stream.send(message, last=True)

    async def ask(self, path: str, message: bytes = b"", seconds: float = 30.0) -> bytes:
        """The response; raises CallFailedError, and TimeoutError."""
        answer: asyncio.Future[tuple[int, bytes]] = self._loop.create_future()

        def done(status: int, response: bytes) -> None:
            if not answer.done():  # it is when nobody waits any more
                answer.set_result((status, response))

        self.call(path, message, done)
        status, response = await asyncio.wait_for(answer, seconds)
        if status:
            raise CallFailedError(path, status)
        return response

    def stream(self, path: str, received: Received, ended: Ended) -> Stream:
        if self._lost.done():
            raise CallFailedError(path, STATUS_UNAVAILABLE)
        headers = self._headers.get(path)
        if headers is None:
            headers = self._headers[path] = [
                (b":method", b"POST"),
                (b":scheme", self._scheme),
                (b":path", path.encode()),
                (b":authority", self._authority),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
            ]
        number = engine.open_stream(self._h2, headers)
        if not number:
            raise CallFailedError(path, STATUS_UNAVAILABLE)
        stream = self._streams[number] = Stream(self, number, received, ended)
        self._changed()
        return stream

    def send(self, number: int, data: bytes, last: bool) -> None:
        """Bytes of a stream, which may have ended already."""
        if number in self._streams:
            (engine.message if last else engine.data)(self._h2, number, data)
            self._changed()

    def cancel(self, number: int) -> None:
        if self._streams.pop(number, None) is not None:
            engine.reset(self._h2, number, CANCEL)
            self._changed()

    @property
    def lost(self) -> bool:
        return self._lost.done()

    async def close(self) -> None:
        self._transport.abort()  # a polite end of TLS waits for the peer's
        await self._lost

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def _changed(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        while True:
            for event in self._h2.events():
                self._event(event)
            # Sending has events too: a stream that nghttp2 itself refuses is closed when its reset leaves.
            if self._paused or not (data := self._h2.data_to_send()):
                return
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        try:
            self._h2.receive_data(data)
        except engine.NGH2Error:
            self._transport.abort()
            return
        self._flush()

    def _event(self, event: engine.Event) -> None:
        if isinstance(event, engine.DataReceived):
            engine.acknowledge(self._h2, event.stream_id, len(event.data))
            if (stream := self._streams.get(event.stream_id)) is not None and event.data:
                stream.data(event.data)
        elif isinstance(event, engine.ResponseReceived | engine.TrailersReceived):
            if (stream := self._streams.get(event.stream_id)) is not None:
                stream.status = status_of(event.headers, stream.status)
        elif isinstance(event, engine.StreamClosed):
            if (stream := self._streams.pop(event.stream_id, None)) is not None:
                stream.ended(STATUS_UNKNOWN if stream.status is None else stream.status)
        elif isinstance(event, engine.GoAwayReceived | engine.ConnectionClosed):
            self._transport.close()


async def dial(url: str, context: ssl.SSLContext | None = None) -> Channel:
    """A channel to http://host:port, or to https:// with a context."""
    scheme, _, authority = url.partition("://")
    host, _, port = authority.rpartition(":")
    _, channel = await asyncio.get_running_loop().create_connection(
        lambda: Channel(scheme, authority), host, int(port), ssl=context if scheme == "https" else None
    )
    return channel
