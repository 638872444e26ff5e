"""The client's side of one HTTP/2 connection: its streams, and what the peer says about them.

Receive windows are opened by hand, as messages are read: the library's binding loses bytes of the connection's
window when a stream is reset in the middle of a frame. So what is owed to the peer is counted here, and when all of
it is paid and the window is small all the same, the connection takes no more calls and another one is made.
"""

import asyncio
from typing import TYPE_CHECKING, Final, final

import grpc

from kvstore.errors import KvError
from kvstore.rpc.nghttp2 import engine, metadata
from kvstore.rpc.nghttp2.client_status import NO_TRAILERS, STATUS, Ending, of_head, of_reset, of_trailers
from kvstore.rpc.nghttp2.client_stream import QUEUED_BYTES_MAX, Stream
from kvstore.rpc.nghttp2.engine import (
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    GoAwayReceived,
    Headers,
    PingAcknowledged,
    ResponseReceived,
    SettingsReceived,
    StreamClosed,
    TrailersReceived,
)
from kvstore.rpc.nghttp2.framing import DEFLATE, GZIP, IDENTITY
from kvstore.rpc.nghttp2.session import Session

if TYPE_CHECKING:
    from kvstore.rpc.nghttp2.client_connector import Connector

HEADER_LIST_SETTING: Final = 6  # SETTINGS_MAX_HEADER_LIST_SIZE
HEADER_BYTES_MAX: Final = 1024 * 1024  # more would end the connection
FRAME_BYTES: Final = 16 * 1024  # of a frame that has come in part: it counts against the window and is not seen yet
_ENCODINGS: Final = {b"identity": IDENTITY, b"gzip": GZIP, b"deflate": DEFLATE}


@final
class ClientSession(Session):
    def __init__(self, connector: "Connector") -> None:
        options = connector.options
        connection = engine.client_connection(
            header_bytes_max=options.metadata_bytes_max,
            stream_window=options.stream_window_bytes,
            connection_window=options.connection_window_bytes,
        )
        super().__init__(
            connector.flusher, connection, connector.keepalive_seconds, options.keepalive_timeout_ms / 1000
        )
        self.ready: asyncio.Future[None] = self._loop.create_future()  # the server has spoken; or OSError
        self.streams: dict[int, Stream] = {}
        self.blocked: dict[Stream, None] = {}  # whose writers wait
        self.outstanding = 0  # bytes received and not given back
        self.is_draining = False  # no new calls
        self._connector = connector
        self._options = options
        self._started: set[int] = set()  # streams of which messages were sent that are kept nowhere
        self._has_reset = False
        self._window_min = options.connection_window_bytes // 2 - FRAME_BYTES
        self._peer_header_bytes_max = HEADER_BYTES_MAX
        self._farewell = ""  # of the peer's GOAWAY
        # Most answers begin and end alike: those that are equal to the last good ones need no second look.
        self._plain_head: Headers = ()
        self._plain_end: Headers = ()
        self._plain_ending: Ending = NO_TRAILERS
        self.handlers = {
            ResponseReceived: self._on_response,  # type: ignore[dict-item]
            DataReceived: self._on_data,  # type: ignore[dict-item]
            TrailersReceived: self._on_trailers,  # type: ignore[dict-item]
            StreamClosed: self._on_closed,  # type: ignore[dict-item]
            SettingsReceived: self._on_settings,  # type: ignore[dict-item]
            GoAwayReceived: self._on_goaway,  # type: ignore[dict-item]
            PingAcknowledged: self._on_pong,  # type: ignore[dict-item]
            ConnectionClosed: self._on_connection_closed,  # type: ignore[dict-item]
        }

    # For streams

    def open(self, stream: Stream) -> bool:
        """False when this connection takes no more."""
        head = stream.request_headers()
        if stream.extra and metadata.size_of(head) > self._peer_header_bytes_max:
            size, most = metadata.size_of(head), self._peer_header_bytes_max
            text = f"to-be-sent initial metadata size exceeds peer limit ({size} vs. {most})"
            stream.end(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
            return True
        stream_id = engine.open_stream(self.connection, head)
        if not stream_id:
            return False
        self.streams[stream_id] = stream
        stream.session = self
        stream.stream_id = stream_id
        body = stream.body
        if body is not None:
            stream.is_half_closed = True
            engine.message(self.connection, stream_id, body)
        elif stream.is_half_closed:
            engine.end(self.connection, stream_id)
        if not self.is_touched:
            self.flusher.touch(self)
        return True

    def send(self, stream: Stream, body: bytes) -> bool:
        self._started.add(stream.stream_id)
        if not engine.data(self.connection, stream.stream_id, body):
            return False
        self.touch()
        return True

    def has_sent(self, stream: Stream) -> bool:
        return stream.stream_id in self._started

    def is_full(self, stream: Stream) -> bool:
        return not self.is_closed and self.connection.queued_body_size(stream.stream_id) > QUEUED_BYTES_MAX

    def half_close(self, stream: Stream) -> None:
        engine.end(self.connection, stream.stream_id)
        self.touch()

    def reset(self, stream: Stream, code: int) -> None:
        """What may still come of it is given back as it comes."""
        if self.streams.pop(stream.stream_id, None) is None:
            return
        self._forget(stream)
        self._has_reset = True
        engine.reset(self.connection, stream.stream_id, code)
        self.touch()

    def give_back(self, size: int, stream_id: int) -> None:
        self.outstanding -= size
        if not self.is_closed:
            engine.acknowledge(self.connection, stream_id, size)
            self.touch()

    # For the connector

    def drain(self) -> None:
        """No new calls; the connection ends with the last one under way."""
        self.is_draining = True
        if not self.streams:
            self.close("drained")

    def flushed(self) -> None:
        if self.is_closed:
            return
        self.dispatch()
        if self.blocked:
            for stream in [stream for stream in self.blocked if not self.is_full(stream)]:
                del self.blocked[stream]
                stream.wake()
        if self._has_reset and not self.outstanding and not self.is_draining and not self.is_closed:
            self._check_window()

    def is_in_use(self) -> bool:
        return bool(self.streams) or self._options.keepalive_without_calls

    def lost(self, reason: str) -> None:
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(reason))
            self.ready.exception()  # nobody may be waiting any more
        streams, self.streams = self.streams, {}
        self.blocked.clear()
        text = f"Socket closed: {self._farewell or reason}"
        self._connector.lost(self)
        for stream in streams.values():
            stream.end(grpc.StatusCode.UNAVAILABLE, text)

    # What comes

    def _on_response(self, event: ResponseReceived) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        headers = event.headers
        if event.end_stream:
            ending = of_trailers(headers) or of_head(headers) or NO_TRAILERS
            self._finish(stream, ending, headers)
        elif headers == self._plain_head:
            stream.on_head(headers, IDENTITY)
        else:
            self._look_at_head(stream, headers)

    def _look_at_head(self, stream: Stream, headers: Headers) -> None:
        bad = of_head(headers)
        size = metadata.size_of(headers)
        encoding = _ENCODINGS.get(dict(headers).get(b"grpc-encoding", b"identity"))
        if bad is not None:
            stream.abandon(*bad)
        elif size > self._options.metadata_bytes_max:
            stream.abandon(*self._too_large(size))
        elif encoding is None:
            stream.abandon(grpc.StatusCode.INTERNAL, "the server compresses in a way that was not offered")
        else:
            if encoding == IDENTITY:
                self._plain_head = headers
            stream.on_head(headers, encoding)

    def _too_large(self, size: int) -> Ending:
        text = f"received metadata size exceeds limit ({size} vs. {self._options.metadata_bytes_max})"
        return grpc.StatusCode.RESOURCE_EXHAUSTED, text

    def _on_data(self, event: DataReceived) -> None:
        data = event.data
        size = len(data)
        stream = self.streams.get(event.stream_id)
        self.outstanding += size
        if stream is None:
            self.give_back(size, event.stream_id)
            return
        try:
            free = stream.on_data(data)
        except KvError as error:
            self.give_back(size, event.stream_id)
            stream.fail(error)
            return
        if free:
            self.outstanding -= free
            engine.acknowledge(self.connection, event.stream_id, free)

    def _on_trailers(self, event: TrailersReceived) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        headers = event.headers
        if headers != self._plain_end:
            ending = of_trailers(headers) or NO_TRAILERS
            size = metadata.size_of(headers)
            if size > self._options.metadata_bytes_max:
                ending, headers = self._too_large(size), ()
            else:
                self._plain_end = headers
                self._plain_ending = ending
        else:
            ending = self._plain_ending
        self._finish(stream, ending, headers)

    def _finish(self, stream: Stream, ending: Ending, headers: Headers) -> None:
        """The peer has said the last word. It hears no more of us either."""
        if not stream.is_half_closed or self.connection.queued_body_size(stream.stream_id):
            self.reset(stream, ErrorCode.NO_ERROR)
        else:
            del self.streams[stream.stream_id]
        deframer = stream.deframer
        if ending[0] is grpc.StatusCode.OK and deframer is not None and not deframer.is_between_messages:
            ending = (grpc.StatusCode.INTERNAL, "the server ended the call within a message")
        stream.on_trailers(ending, headers)

    def _on_closed(self, event: StreamClosed) -> None:
        stream = self.streams.pop(event.stream_id, None)
        if stream is not None:
            self._closed(stream, event)
        if self.is_draining and not self.streams:
            self.close("drained")

    def _closed(self, stream: Stream, event: StreamClosed) -> None:
        """Without a status."""
        if event.error_code == ErrorCode.REFUSED_STREAM and self._can_send(event) and stream.may_retry:
            self._retry(stream)
            return
        self._forget(stream)
        code, details = of_reset(event.error_code) if event.error_code else NO_TRAILERS
        if event.local_error is not None:
            details = str(event.local_error)
            if "header" in details and "exceeds" in details:
                code = grpc.StatusCode.RESOURCE_EXHAUSTED
        if code is grpc.StatusCode.CANCELLED and stream.grain and stream.deadline <= self._loop.time():
            code, details = STATUS[4], "Deadline Exceeded"
        stream.end(code, details)

    @staticmethod
    def _can_send(event: StreamClosed) -> bool:
        return event.local_error is None or isinstance(event.local_error, engine.ConnectionClosingError)

    def _retry(self, stream: Stream) -> None:
        self._forget(stream)
        stream.session = None
        stream.has_retried = stream.has_waited = True
        if stream.body is not None:
            stream.is_half_closed = False
        self._connector.start(stream)

    def _forget(self, stream: Stream) -> None:
        self.blocked.pop(stream, None)
        self._started.discard(stream.stream_id)

    def _on_settings(self, event: SettingsReceived) -> None:
        limit = event.settings.get(HEADER_LIST_SETTING, HEADER_BYTES_MAX)
        self._peer_header_bytes_max = min(limit, HEADER_BYTES_MAX)
        if not self.ready.done():
            self.ready.set_result(None)

    def _on_goaway(self, event: GoAwayReceived) -> None:
        if event.error_code:
            text = event.debug_data.decode("utf-8", "replace")
            self._farewell = f"GOAWAY received; Error code: {event.error_code}; Debug Text: {text}"
        self._connector.said_goodbye(self, event)
        refused = [stream_id for stream_id in self.streams if stream_id > event.last_stream_id]
        for stream_id in refused:
            stream = self.streams.pop(stream_id)
            engine.reset(self.connection, stream_id, ErrorCode.CANCEL)
            if stream.may_retry:
                self._retry(stream)
            else:
                self._forget(stream)
                stream.end(grpc.StatusCode.UNAVAILABLE, self._farewell or "the server goes away: not processed")
        self.drain()

    def _on_pong(self, event: PingAcknowledged) -> None:
        self.pong(event.opaque_data)

    def _on_connection_closed(self, event: ConnectionClosed) -> None:
        self.fail(self._farewell or f"HTTP/2 error {event.error_code}")

    def _check_window(self) -> None:
        if self.connection.local_window_size < self._window_min:
            self._connector.replace(self)
            self.drain()
