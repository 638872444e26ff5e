"""A connection's server side: who calls, which method it is, and the streams under way.

    RequestReceived -> Server.method(path) -> method.open(...) -> a ServerStream in `streams`
    DataReceived    -> stream.data(...)
    StreamClosed    -> stream.closed()       once for every stream, whatever ended it

A stream that we end before the client has ended its half stays open: the client may go on sending. It is reset once
our last frame has left, since a reset overtakes what is queued (`linger`).
"""

import asyncio
import re
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Final

from kvstore.errors import INVALID_CLIENT_API_VERSION, Code, KvError
from kvstore.rpc.admission import Admission
from kvstore.rpc.generated import common_name
from kvstore.rpc.nghttp2 import engine, metadata
from kvstore.rpc.nghttp2.authority import AuthorityFilter
from kvstore.rpc.nghttp2.certificates import auth_context
from kvstore.rpc.nghttp2.engine import Headers
from kvstore.rpc.nghttp2.framing import ACCEPTED, DEFLATE, GZIP, IDENTITY
from kvstore.rpc.nghttp2.session import KEEPALIVE, Session

if TYPE_CHECKING:
    from kvstore.rpc.nghttp2.server import Server

RESPONSE: Final = ((b":status", b"200"), (b"content-type", metadata.CONTENT_TYPE))
OK: Final = ((b"grpc-status", b"0"),)
LINGER_SECONDS: Final = 20.0  # for a client to read the end of a stream
API_VERSION: Final = b"client-api-version"  # Go's client tells it with each call
UNKNOWN: Final = "unknown"
PING_STRIKES_MAX: Final = 2  # as gRPC's servers
QUEUE_CHECK_CALLS: Final = 64  # after how many calls a connection's queue is looked at ...
QUEUE_CHECK_FLUSHES: Final = 8  # ... or flushes, each of which may be of many answers
NO_TIMEOUT: Final = -1.0

_VERSION: Final = re.compile(r"\d{1,4}(\.\d{1,4}){1,2}[-+.\w]{0,20}", re.ASCII)
_ENCODINGS: Final = {b"identity": IDENTITY, b"gzip": GZIP, b"deflate": DEFLATE}
_NO_HTTP1: Final = b"HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_MANY: Final = KvError(Code.UNAVAILABLE, "grpc: too many calls at once on this server")
_UNREAD: Final = KvError(Code.RESOURCE_EXHAUSTED, "grpc: the client does not read what it is sent")


class ServerStream(ABC):
    """What stands behind a stream of a client."""

    __slots__ = ()

    @abstractmethod
    def data(self, data: bytes, is_last: bool) -> None: ...

    @abstractmethod
    def closed(self) -> None:
        """The stream is gone. Nothing is called after this."""

    @abstractmethod
    def stop(self, error: KvError) -> None:
        """The server ends it."""

    def drained(self) -> None:  # noqa: B027  # nothing, for those who do not watch
        """What it had queued has been taken by the connection; called if `Session.watch_queue` was."""

    def expire(self) -> None:  # noqa: B027  # nothing, for those without a deadline
        """The client's deadline has passed, or it does not read the end."""


class Method(ABC):
    """What a path stands for."""

    @abstractmethod
    def open(self, session: "ServerSession", stream_id: int, request: "Request") -> ServerStream: ...


class Request:
    """The head of a call."""

    __slots__ = ("deadline", "encoding", "found", "headers")

    def __init__(self, headers: Headers, found: dict[bytes, bytes], deadline: float, encoding: str) -> None:
        self.headers = headers
        self.found = found  # by name; of equal names the last
        self.deadline = deadline  # of the loop's clock; NO_TIMEOUT without one
        self.encoding = encoding


class ServerSession(Session):
    def __init__(self, server: "Server") -> None:
        options = server.options
        connection = engine.server_connection(
            streams_max=options.max_concurrent_streams,
            header_bytes_max=options.metadata_bytes_max,
            stream_window=options.stream_window_bytes,
            connection_window=options.connection_window_bytes,
        )
        super().__init__(
            server.flusher, connection, options.keepalive_time_ms / 1000, options.keepalive_timeout_ms / 1000
        )
        self.server = server
        self.streams: dict[int, ServerStream] = {}
        self._waiting: dict[int, ServerStream] = {}  # for their queue to be taken
        self._ended: dict[int, None] = {}  # by us, since the last flush
        self._lingering: dict[int, None] = {}  # likewise, before it
        self._filter: AuthorityFilter | None = AuthorityFilter()
        self._headers: Headers = ()  # of the last call, without a deadline; what follows from them:
        self._method: Method
        self._head: Request
        self._calls = 0
        self.streams_begun = 0  # of the calls
        self._flushes = 0
        self._strikes = 0
        self._pinged = 0.0
        self._is_draining = False
        self.handlers = {
            engine.RequestReceived: self._request,  # type: ignore[dict-item]
            engine.DataReceived: self._data,  # type: ignore[dict-item]
            engine.StreamClosed: self._stream_closed,  # type: ignore[dict-item]
            engine.TrailersReceived: self._trailers,  # type: ignore[dict-item]
            engine.PingReceived: self._ping,  # type: ignore[dict-item]
            engine.PingAcknowledged: self._pong,  # type: ignore[dict-item]
        }

    def data_received(self, data: bytes) -> None:
        if self._filter is not None:
            data = self._filter.feed(data)
            if not self._filter.is_needed:
                self._filter = None
        super().data_received(data)

    # Events

    def _request(self, event: engine.RequestReceived) -> None:
        headers, stream_id = event.headers, event.stream_id
        # A client sends the same headers again and again; to compare them costs a tenth of reading them.
        if headers != self._headers and not self._read_head(headers, stream_id, event.end_stream):
            return
        error = self._overload()
        if error is not None:
            self._refuse(stream_id, (*RESPONSE, *metadata.status_headers(error)), event.end_stream)
            return
        stream = self._method.open(self, stream_id, self._head)
        self.streams[stream_id] = stream
        if event.end_stream:
            stream.data(b"", True)

    def _read_head(self, headers: Headers, stream_id: int, has_ended: bool) -> bool:
        """Sets `_method` and `_head`. False when the call is answered."""
        found = dict(headers)
        pages = self.server.pages
        if pages is not None and not found.get(b"content-type", b"").startswith(metadata.CONTENT_TYPE) and self.is_tls:
            if metadata.size_of(headers) > self.server.options.metadata_bytes_max:
                self._refuse(stream_id, ((b":status", b"431"),), has_ended)
                return False
            self._method, self._headers = pages, ()
            self._head = Request(headers, found, NO_TIMEOUT, IDENTITY)
            return True
        refused = self._refusal(headers, found)
        deadline = NO_TIMEOUT
        raw = found.get(b"grpc-timeout")
        if refused is None and raw is not None:
            try:
                deadline = self._loop.time() + metadata.decode_timeout(raw)
            except KvError as error:
                refused = (*RESPONSE, *metadata.status_headers(error))
        if refused is not None:
            self._refuse(stream_id, refused, has_ended)
            return False
        self._method = self.server.method(found[b":path"])
        self._head = Request(headers, found, deadline, _ENCODINGS[found.get(b"grpc-encoding", b"identity")])
        # A deadline is of one call only.
        self._headers = headers if raw is None else ()
        return True

    def _data(self, event: engine.DataReceived) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            stream.data(event.data, event.end_stream)

    def _trailers(self, event: engine.TrailersReceived) -> None:
        """gRPC has none from a client; they end its half all the same."""
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            stream.data(b"", True)

    def _stream_closed(self, event: engine.StreamClosed) -> None:
        stream = self.streams.pop(event.stream_id, None)
        if self._waiting:
            self._waiting.pop(event.stream_id, None)
        if stream is not None:
            stream.closed()
            if self._is_draining and not self.streams:
                self.server.idle()

    def _ping(self, event: engine.PingReceived) -> None:
        """libnghttp2 has queued the answer. A client that pings for no reason is told to go away (grpc A8)."""
        now = self._loop.time()
        if self.has_sent_frames or now - self._pinged >= self.server.options.ping_interval_min_ms / 1000:
            self._strikes = 0
        else:
            self._strikes += 1
        self.has_sent_frames = False
        self._pinged = now
        if self._strikes > PING_STRIKES_MAX:
            self.connection.send_goaway(engine.ErrorCode.ENHANCE_YOUR_CALM, debug_data=b"too_many_pings")
            self.flush()
            self.close("too many pings")

    def _pong(self, event: engine.PingAcknowledged) -> None:
        self.pong(event.opaque_data)
        if self._is_draining and event.opaque_data != KEEPALIVE:
            # What the client sent before it heard the notice has come.
            self.connection.send_goaway()
            self.touch()

    # Refusals

    def _refusal(self, headers: Headers, found: dict[bytes, bytes]) -> Headers | None:
        """The whole answer to a call that reaches no method."""
        options = self.server.options
        if sum(map(len, found.values())) > options.metadata_bytes_max // 2:
            size = metadata.size_of(headers)
            if size > options.metadata_bytes_max:
                text = f"grpc: received metadata size exceeds hard limit ({size} vs. {options.metadata_bytes_max})"
                return (*RESPONSE, *metadata.status_headers(KvError(Code.RESOURCE_EXHAUSTED, text)))
        if found.get(b":method") != b"POST":
            return ((b":status", b"405"), (b"allow", b"POST"))
        if not found.get(b"content-type", b"").startswith(metadata.CONTENT_TYPE):
            return ((b":status", b"415"),)
        encoding = found.get(b"grpc-encoding", b"identity")
        if encoding not in _ENCODINGS:
            text = f"grpc: Decompressor is not installed for grpc-encoding {encoding.decode('latin-1')!r}"
            status = metadata.status_headers(KvError(Code.UNIMPLEMENTED, text))
            return (*RESPONSE, *status, (b"grpc-accept-encoding", ACCEPTED))
        try:
            found.get(API_VERSION, b"").decode()
        except UnicodeDecodeError:  # of which older etcds die
            return (*RESPONSE, *metadata.status_headers(INVALID_CLIENT_API_VERSION))
        return None

    def _overload(self) -> KvError | None:
        server = self.server
        if server.calls_open >= server.options.pending_calls_max:
            return _TOO_MANY
        self._calls += 1
        is_due = self._calls % QUEUE_CHECK_CALLS == 0 or self.is_paused
        return _UNREAD if is_due and self._is_unread(server.options.connection_queue_bytes_max) else None

    def _is_unread(self, bytes_max: int) -> bool:
        """Whether more waits for the client to read it; with twice as much, the connection is ended."""
        queued = self.connection.queued_body_size()
        if queued > 2 * bytes_max:
            self._loop.call_soon(self.abort, "the client does not read what it is sent")
        return queued > bytes_max

    def _refuse(self, stream_id: int, head: Headers, has_ended: bool) -> None:
        if engine.headers_only(self.connection, stream_id, head) and not has_ended:
            self.linger(stream_id)

    @property
    def is_tls(self) -> bool:
        return self._transport is not None and self._transport.get_extra_info("ssl_object") is not None

    # For streams

    @cached_property
    def common_name(self) -> str:
        return common_name(auth_context(self._transport))

    def watch_queue(self, stream_id: int, stream: ServerStream) -> None:
        """Call its `drained` once nothing is queued."""
        self._waiting[stream_id] = stream

    def linger(self, stream_id: int) -> None:
        """We have ended it, the client has not: reset it when our last frame is on the wire."""
        self._ended[stream_id] = None

    def flushed(self) -> None:
        self._flushes += 1
        if self._flushes % QUEUE_CHECK_FLUSHES == 0:
            # Calls that were taken while nothing was queued are answered now.
            self._is_unread(self.server.options.connection_queue_bytes_max)
        connection = self.connection
        if self._waiting:
            for stream_id, stream in list(self._waiting.items()):
                if not connection.queued_body_size(stream_id):
                    self._waiting.pop(stream_id, None)
                    stream.drained()
        if (self._ended or self._lingering) and not self.is_paused:
            for stream_id in list(self._lingering):
                if not connection.queued_body_size(stream_id):
                    engine.reset(connection, stream_id, engine.ErrorCode.NO_ERROR)
                    del self._lingering[stream_id]
                    self.touch()
            if self._ended:
                self._lingering.update(self._ended)
                self._ended.clear()
                self.touch()

    # The end

    def drain(self) -> None:
        """Take no new calls: a notice now, and the last word when the client has heard it (RFC 9113 section 6.8)."""
        if self._is_draining or self.is_closed:
            return
        self._is_draining = True
        try:
            self.connection.send_shutdown_notice()
            self.connection.ping(b"drained\0")
        except engine.NGH2Error:
            return
        self.touch()

    def versions(self) -> list[tuple[tuple[str, str], int]]:
        """Calls so far, by type and by what the last one told of the version of its client's API."""
        if not self._calls:
            return []
        told = self._head.found.get(API_VERSION, b"").decode("latin-1")
        version = told if _VERSION.fullmatch(told) else UNKNOWN
        streams = self.streams_begun
        return [(("unary", version), self._calls - streams), (("stream", version), streams)]

    def lost(self, reason: str) -> None:
        self.server.forget(self)
        streams, self.streams = self.streams, {}
        self._waiting.clear()
        for stream in streams.values():
            stream.closed()


class Acceptor(asyncio.Protocol):
    """A socket that has said nothing yet: HTTP/2 begins with a preface, HTTP/1.1 with anything else."""

    def __init__(self, server: "Server", admission: Admission | None = None) -> None:
        self._server = server
        self._admission = admission
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._checking: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is one without being a subclass
        if not self._server.admit(self):
            transport.abort()  # type: ignore[attr-defined]
            return
        if self._admission is not None and not self._admission.admits(transport):
            self.close()
            return
        timeout = self._server.options.handshake_timeout_ms / 1000
        self._timer = self._loop.call_later(timeout, self.close)
        if self._admission is not None and self._admission.of_its_address:
            transport.pause_reading()  # type: ignore[attr-defined]
            self._checking = self._loop.create_task(self._check_address(self._admission))

    async def _check_address(self, admission: Admission) -> None:
        assert self._transport is not None
        if await admission.admits_address(self._transport):
            self._transport.resume_reading()
        else:
            self.close()

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._received += data
        received = self._received
        if engine.PREFACE.startswith(received[: len(engine.PREFACE)]):
            if len(received) < len(engine.PREFACE):
                return
            self._http2(received)
        else:
            self._http1(received)

    def _http2(self, received: bytes) -> None:
        transport = self._transport
        assert transport is not None
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            transport.abort()  # RFC 9113 section 3.2: over TLS, HTTP/2 is what was agreed on
            return
        self._leave()
        session = ServerSession(self._server)
        self._server.sessions[session] = None
        transport.set_protocol(session)
        session.connection_made(transport)
        session.data_received(received)

    def _http1(self, received: bytes) -> None:
        assert self._transport is not None
        self._leave()
        http1 = self._server.http1
        if http1 is None:
            self._transport.write(
                b"HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            )
            self._transport.close()
            return
        http1.take(self._transport, received)

    def _leave(self) -> None:
        self._server.acceptors.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._checking is not None:
            self._checking.cancel()

    def connection_lost(self, error: Exception | None) -> None:
        self._leave()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
