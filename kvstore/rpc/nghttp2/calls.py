"""Hot methods: unary calls that come as lists, and streams that are objects instead of coroutines. No task for any.

All calls of a method that one tick of the loop brought, on whatever connections, go to its handler as one list; what
it answers at once leaves at the end of the same tick.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, final

import structlog

from kvstore.errors import Code, KvError
from kvstore.rpc.base import UNEXPECTED, Call, CallHandler, Gate, Stream, StreamHandlerFactory, deliver
from kvstore.rpc.counts import MethodCounts
from kvstore.rpc.nghttp2 import engine, metadata
from kvstore.rpc.nghttp2.framing import HEAD_BYTES, Deframer, frame
from kvstore.rpc.nghttp2.serving import LINGER_SECONDS, NO_TIMEOUT, OK, RESPONSE, Method, Request, ServerStream

if TYPE_CHECKING:
    from kvstore.rpc.nghttp2.server import Server
    from kvstore.rpc.nghttp2.serving import ServerSession

log = structlog.get_logger(__name__)

DEADLINE_EXCEEDED = KvError(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
NO_MESSAGE = KvError(Code.INTERNAL, "grpc: the client ended the call without a message")
CUT_MESSAGE = KvError(Code.INTERNAL, "grpc: the client ended the call in the middle of a message")
SECOND_MESSAGE = KvError(Code.INTERNAL, "grpc: the client sent a second message in a unary call")
_NO_METADATA: Mapping[str, str | bytes] = {}
_JOINED_BYTES = 16 * 1024  # messages below it are joined before they are sent, larger ones are not copied


@final
class UnaryCall(ServerStream, Call):
    __slots__ = (
        "_cancelled",
        "_deframer",
        "_grain",
        "_half_closed",
        "_head",
        "_method",
        "_session",
        "_stream_id",
        "request",
    )

    def __init__(self, method: "CallsMethod", session: "ServerSession", stream_id: int, head: Request) -> None:
        self._method = method
        self._session: ServerSession | None = session  # None: answered, or gone
        self._stream_id = stream_id
        self._head = head
        self._deframer: Deframer | None = None
        self._half_closed = False
        self._cancelled = False
        self._grain = 0
        server = session.server
        server.calls_open += 1
        if head.deadline != NO_TIMEOUT:
            self._grain = server.deadlines.add(self, head.deadline)

    # ServerStream

    def data(self, data: bytes, is_last: bool) -> None:
        if is_last and self._deframer is None:
            size = len(data) - HEAD_BYTES
            # Nearly every request is one frame of data with one message that is not compressed.
            if (
                size >= 0
                and data[0] == 0
                and int.from_bytes(data[1:HEAD_BYTES], "big") == size <= self._method.bytes_max
            ):
                self._half_closed = True
                self.request = data[HEAD_BYTES:]
                self._method.add(self)
                return
        self._data(data, is_last)

    def _data(self, data: bytes, is_last: bool) -> None:
        if self._session is None:
            return  # answered already: the client may go on sending
        deframer = self._deframer
        if deframer is None:
            deframer = self._deframer = Deframer(self._method.bytes_max, self._head.encoding)
        self._half_closed = is_last
        try:
            messages = deframer.feed(data)
        except KvError as error:
            self._reject(error)
            return
        if messages:
            if hasattr(self, "request") or len(messages) > 1:
                self._reject(SECOND_MESSAGE)
                return
            self.request = messages[0]
        if is_last:
            if not deframer.is_between_messages:
                self._reject(CUT_MESSAGE)
            elif not hasattr(self, "request"):
                self._reject(NO_MESSAGE)
            else:
                self._method.add(self)

    def closed(self) -> None:
        if self._session is not None:
            self._cancelled = True
            self._count_if_early()
            self._method.counts.ended(Code.CANCELLED)
            self._leave()

    def stop(self, error: KvError) -> None:
        if self._session is not None:
            self._cancelled = True
            self._count_if_early()
            self.fail(error)

    def _reject(self, error: KvError) -> None:
        """What came is no request."""
        self._method.counts.started += 1
        self.fail(error)

    def _count_if_early(self) -> None:
        """Calls are counted when they are delivered; this one ends before."""
        if not self._half_closed:
            self._method.counts.started += 1

    @property
    def is_under_way(self) -> bool:
        return self._session is not None and self._half_closed

    def is_of(self, method: "CallsMethod") -> bool:
        return self._method is method

    def expire(self) -> None:
        self.stop(DEADLINE_EXCEEDED)

    # Call

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return dict(metadata.decode(self._head.headers)) if self._session is not None else _NO_METADATA

    def text(self, name: str) -> str:
        return self._head.found.get(name.encode(), b"").decode("latin-1")

    @property
    def peer(self) -> str:
        return self._session.peer if self._session is not None else ""

    @property
    def common_name(self) -> str:
        return self._session.common_name if self._session is not None else ""

    @property
    def time_remaining(self) -> float | None:
        if self._session is None:
            return 0.0
        deadline = self._head.deadline
        return None if deadline == NO_TIMEOUT else max(0.0, deadline - self._session.server.loop.time())

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def reply(self, response: bytes) -> None:
        session = self._session
        if session is not None:
            self._leave()
            engine.unary_response(session.connection, self._stream_id, RESPONSE, frame(response), OK)
            session.has_sent_frames = True
            session.touch()

    def fail(self, error: KvError) -> None:
        session = self._session
        if session is not None:
            self._method.counts.ended(error.code)
            self._leave()
            head = (*RESPONSE, *metadata.status_headers(error))
            if engine.headers_only(session.connection, self._stream_id, head) and not self._half_closed:
                session.linger(self._stream_id)
            session.has_sent_frames = True
            session.touch()

    def _leave(self) -> None:
        session = self._session
        assert session is not None
        self._session = None
        server = session.server
        server.calls_open -= 1
        if self._grain:
            server.deadlines.remove(self, self._grain)


@final
class CallsMethod(Method):
    """One hot unary method: gathers the calls of a tick."""

    def __init__(
        self,
        server: "Server",
        handler: CallHandler,
        gate: Gate,
        counts: MethodCounts,
    ) -> None:
        self.bytes_max = server.options.receive_bytes_max
        self.counts = counts
        counts.open = self._under_way
        self._server = server
        self._handler = handler
        self._gate = gate
        self._calls: list[Call] = []

    def open(self, session: "ServerSession", stream_id: int, request: Request) -> ServerStream:
        return UnaryCall(self, session, stream_id, request)

    def add(self, call: UnaryCall) -> None:
        if not self._calls:
            self._server.deliver(self)
        self._calls.append(call)

    def run(self) -> None:
        calls, self._calls = self._calls, []
        deliver(calls, self._handler, self._gate, self.counts)

    def _under_way(self) -> int:
        """A walk over all streams: for a scrape, which is rare, so that no call has to count itself."""
        return sum(
            isinstance(stream, UnaryCall) and stream.is_under_way and stream.is_of(self)
            for session in self._server.sessions
            for stream in session.streams.values()
        ) - len(self._calls)


@final
class HotStream(ServerStream, Stream):
    __slots__ = (
        "_counts",
        "_deframer",
        "_grain",
        "_half_closed",
        "_handler",
        "_has_head",
        "_head",
        "_is_ended",
        "_session",
        "_stream_id",
    )

    def __init__(self, method: "StreamMethod", session: "ServerSession", stream_id: int, head: Request) -> None:
        self._session: ServerSession | None = session  # None: gone
        self._counts = method.counts
        self._counts.started += 1
        self._stream_id = stream_id
        self._head = head
        self._deframer = Deframer(method.bytes_max, head.encoding)
        self._has_head = False
        self._is_ended = False  # by us
        self._half_closed = False
        self._grain = 0
        if head.deadline != NO_TIMEOUT:
            self._grain = session.server.deadlines.add(self, head.deadline)
        self._handler = method.factory(self)

    # ServerStream

    def data(self, data: bytes, is_last: bool) -> None:
        if self._is_ended:
            return
        self._half_closed = is_last
        try:
            messages = self._deframer.feed(data) if data else []
            if messages:
                self._counts.received += len(messages)
                self._handler.received(messages)
            if is_last and not self._is_ended:
                if self._deframer.is_between_messages:
                    self._handler.half_closed()
                else:
                    self.close(CUT_MESSAGE)
        except KvError as error:
            self.close(error)
        except Exception:  # top of the handler: its bug must not leave the client waiting
            log.exception("stream handler failed")
            self.close(UNEXPECTED)

    def drained(self) -> None:
        if self._is_ended:
            return
        try:
            self._handler.drained()
        except Exception:  # top of the handler
            log.exception("stream handler failed")
            self.close(UNEXPECTED)

    def closed(self) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        if not self._is_ended:
            self._counts.ended(Code.CANCELLED)
        self._is_ended = True
        if self._grain:
            session.server.deadlines.remove(self, self._grain)
        try:
            self._handler.closed()
        except Exception:  # top of the handler
            log.exception("stream handler failed")

    def stop(self, error: KvError) -> None:
        self.close(error)

    def expire(self) -> None:
        session = self._session
        if session is None:
            return
        self._grain = 0
        if not self._is_ended:
            self.close(DEADLINE_EXCEEDED)
        else:  # it has not read the end
            engine.reset(session.connection, self._stream_id, engine.ErrorCode.CANCEL)
            session.touch()

    # Stream

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return dict(metadata.decode(self._head.headers)) if self._session is not None else _NO_METADATA

    @property
    def peer(self) -> str:
        return self._session.peer if self._session is not None else ""

    @property
    def common_name(self) -> str:
        return self._session.common_name if self._session is not None else ""

    def text(self, name: str) -> str:
        return self._head.found.get(name.encode(), b"").decode("latin-1")

    @property
    def queued_bytes(self) -> int:
        session = self._session
        return session.connection.queued_body_size(self._stream_id) if session is not None else 0

    def send(self, messages: list[bytes]) -> None:
        session = self._session
        if session is None or self._is_ended or not messages:
            return
        self._counts.sent += len(messages)
        connection, stream_id = session.connection, self._stream_id
        if not self._has_head:
            self._has_head = True
            engine.response_head(connection, stream_id, RESPONSE)
        if len(messages) == 1 and len(messages[0]) < _JOINED_BYTES:
            engine.data(connection, stream_id, frame(messages[0]))
        else:
            self._send_many(messages)
        session.has_sent_frames = True
        session.watch_queue(stream_id, self)
        session.touch()

    def _send_many(self, messages: list[bytes]) -> None:
        session = self._session
        assert session is not None
        connection, stream_id = session.connection, self._stream_id
        parts: list[bytes] = []
        size = 0
        for message in messages:
            parts += (b"\0", len(message).to_bytes(4, "big"))
            if len(message) >= _JOINED_BYTES:
                engine.data(connection, stream_id, b"".join(parts))
                engine.data(connection, stream_id, message)
                parts, size = [], 0
                continue
            parts.append(message)
            size += len(message)
            if size >= _JOINED_BYTES:
                engine.data(connection, stream_id, b"".join(parts))
                parts, size = [], 0
        if parts:
            engine.data(connection, stream_id, b"".join(parts))
        if connection.queued_body_size(stream_id) > session.server.options.stream_queue_bytes_max:
            engine.reset(connection, stream_id, engine.ErrorCode.ENHANCE_YOUR_CALM)

    def close(self, error: KvError | None = None) -> None:
        session = self._session
        if session is None or self._is_ended:
            return
        self._is_ended = True
        self._counts.ended(error.code if error is not None else Code.OK)
        server, stream_id = session.server, self._stream_id
        status = OK if error is None else tuple(metadata.status_headers(error))
        if self._has_head:
            engine.trailers(session.connection, stream_id, status)
        else:
            engine.headers_only(session.connection, stream_id, (*RESPONSE, *status))
        if not self._half_closed:
            session.linger(stream_id)
        if self._grain:
            server.deadlines.remove(self, self._grain)
        self._grain = server.deadlines.add(self, server.loop.time() + LINGER_SECONDS)
        session.has_sent_frames = True
        session.touch()


@final
class StreamMethod(Method):
    """One hot bidirectional method."""

    def __init__(
        self,
        server: "Server",
        factory: StreamHandlerFactory,
        gate: Gate,
        counts: MethodCounts,
    ) -> None:
        self.bytes_max = server.options.receive_bytes_max
        self.counts = counts
        self.factory = gate.opening(factory)
        self._gate = gate

    def open(self, session: "ServerSession", stream_id: int, request: Request) -> ServerStream:
        session.streams_begun += 1
        refused = self._gate.refusal()
        if refused is not None:
            self.counts.started += 1
            self.counts.ended(refused.code)
            return Refused(session, stream_id, refused)
        return HotStream(self, session, stream_id, request)


@final
class Refused(ServerStream):
    """A call that was answered at once."""

    __slots__ = ()

    def __init__(self, session: "ServerSession", stream_id: int, error: KvError) -> None:
        if engine.headers_only(session.connection, stream_id, (*RESPONSE, *metadata.status_headers(error))):
            session.linger(stream_id)  # whether the client has ended its half or not: a reset then meets nobody

    def data(self, data: bytes, is_last: bool) -> None:
        pass

    def closed(self) -> None:
        pass

    def stop(self, error: KvError) -> None:
        pass
