"""What a session knows of a call: one stream, from its headers to its status.

A stream waits for a connection, may be given a second one when the first refused it unprocessed, and ends once:
by the peer's status, by a reset or a lost connection, by its deadline, or by its caller.

Who waits does so by a future of its own, in a list that is woken as a whole: callers may wait for the same stream
from several tasks, and one of them being cancelled is no news for the others.
"""

import asyncio
import functools
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, final

import grpc
import grpc.aio
import structlog

from kvstore.errors import Code, KvError
from kvstore.rpc.nghttp2 import framing, metadata
from kvstore.rpc.nghttp2.client_status import DEADLINE, NO_MESSAGE, STATUS, TWO_MESSAGES, Ending
from kvstore.rpc.nghttp2.engine import ErrorCode, Headers
from kvstore.rpc.nghttp2.framing import DEFLATE, GZIP, HEAD_BYTES, IDENTITY, Deframer

if TYPE_CHECKING:
    from kvstore.rpc.nghttp2.client_connector import Connector
    from kvstore.rpc.nghttp2.client_session import ClientSession

log = structlog.get_logger(__name__)

FINISHED: Final = "RPC already finished."
LOCALLY_CANCELLED: Final = "Locally cancelled by application!"
QUEUED_BYTES_MAX: Final = 64 * 1024  # of a stream's messages, not taken by flow control: a write waits
TAKEN_BYTES_MAX: Final = 64 * 1024  # read by the caller and not yet acknowledged to the peer

_WBITS: Final = {GZIP: 16 + zlib.MAX_WBITS, DEFLATE: zlib.MAX_WBITS}

# Callers nearly always use the same few.
encode_timeout: Final = functools.lru_cache(maxsize=256)(metadata.encode_timeout)


@final
class Method:
    """What all calls of a method have in common. head: the request headers that are always the same."""

    __slots__ = ("connector", "deserialize", "head", "path", "serialize")

    def __init__(
        self,
        connector: "Connector",
        path: str,
        serialize: Callable[[Any], bytes] | None,
        deserialize: Callable[[bytes], Any] | None,
    ) -> None:
        self.connector = connector
        self.path = path
        self.serialize = serialize
        self.deserialize = deserialize
        self.head: Headers = connector.request_head(path)


class Stream(ABC):
    __slots__ = (
        "body",
        "callbacks",
        "code",
        "compression",
        "deadline",
        "deframer",
        "details",
        "encoding",
        "extra",
        "grain",
        "has_retried",
        "has_waited",
        "head",
        "head_waiters",
        "is_half_closed",
        "is_locally_cancelled",
        "is_over",
        "is_refused_while_failing",
        "method",
        "poller",
        "session",
        "stream_id",
        "timeout",
        "trailers",
        "waiters",
    )

    def __init__(
        self, method: Method, timeout: float | None, extra: Headers, wait_for_ready: bool, compression: str
    ) -> None:
        """extra: the caller's metadata, encoded; wait_for_ready: a failed attempt to connect is no end of it."""
        self.method = method
        self.timeout = timeout
        self.extra = extra
        self.is_refused_while_failing = not wait_for_ready
        self.compression = compression
        self.body: bytes | None = None  # the framed request of a call that has only one
        self.session: ClientSession | None = None
        self.stream_id = 0
        self.grain = 0  # of its deadline; 0: it has none
        self.deadline = 0.0
        self.head: Headers | None = None  # of the response
        self.trailers: Headers = ()
        self.code: grpc.StatusCode | None = None  # once it has ended for its caller
        self.details = ""
        self.is_over = False  # nothing more is sent or received
        self.is_half_closed = False
        self.is_locally_cancelled = False
        self.has_waited = False
        self.has_retried = False
        self.encoding = IDENTITY
        self.deframer: Deframer | None = None
        self.waiters: list[asyncio.Future[None]] | None = None
        self.head_waiters: list[asyncio.Future[None]] | None = None
        self.callbacks: list[Callable[[], None]] | None = None
        self.poller: asyncio.Task[None] | None = None  # sends what the caller's iterator yields

    # For the caller's side

    def start(self) -> None:
        connector = self.method.connector
        timeout = self.timeout
        if timeout is not None:
            if timeout <= 0:
                self.end(*DEADLINE)
                return
            self.deadline = connector.loop.time() + timeout
            self.grain = connector.deadlines.add(self, self.deadline)
        connector.start(self)

    def waiter(self) -> "asyncio.Future[None]":
        """Done at the next news: it is on a connection, a message has come, there is room to write, it has ended."""
        future = self.method.connector.loop.create_future()
        if self.waiters is None:
            self.waiters = [future]
        else:
            self.waiters.append(future)
        return future

    def head_waiter(self) -> "asyncio.Future[None]":
        future = self.method.connector.loop.create_future()
        self.head_waiters = [*(self.head_waiters or ()), future]
        return future

    def cancel(self, details: str = LOCALLY_CANCELLED) -> bool:
        if self.code is not None:
            return False
        self.is_locally_cancelled = True
        self.abandon(grpc.StatusCode.CANCELLED, details)
        return True

    def error(self) -> BaseException:
        """What a caller gets that waits for a call that has ended badly."""
        if self.is_locally_cancelled:
            return asyncio.CancelledError()
        assert self.code is not None
        return grpc.aio.AioRpcError(
            self.code, self.initial_metadata(), self.trailing_metadata(), self.details, self.debug_string()
        )

    def initial_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata(*metadata.decode(self.head or ()))

    def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata(*metadata.decode(self.trailers))

    def debug_string(self) -> str:
        assert self.code is not None
        whose = "received from peer" if self.trailers else "of the channel"
        return f'UNKNOWN:Error {whose} {{grpc_status:{self.code.value[0]}, grpc_message:"{self.details}"}}'

    def framed(self, request: Any) -> bytes | None:
        """None when the serializer would not take it: then the call has ended."""
        serialize = self.method.serialize
        if serialize is not None:
            try:
                request = serialize(request)
            except Exception:
                log.exception("request serializer failed", method=self.method.path)
                self.abandon(grpc.StatusCode.INTERNAL, "Exception serializing request!")
                return None
        if self.compression == IDENTITY:
            return framing.frame(request)
        deflater = zlib.compressobj(wbits=_WBITS[self.compression])
        packed = deflater.compress(request) + deflater.flush()
        return b"\1" + len(packed).to_bytes(4, "big") + packed

    async def write(self, request: Any) -> None:
        """Returns when little is queued. Raises what has ended the call."""
        while self.session is None and not self.is_over:
            await self.waiter()
        if self.is_over:
            raise self._write_error()
        body = self.framed(request)
        session = self.session
        if body is None or session is None:
            raise self._write_error()
        if not session.send(self, body):
            return  # the peer has ended the stream; reading tells how
        while not self.is_over and session.is_full(self):
            session.blocked[self] = None
            await self.waiter()
        if self.is_over and self.code is not grpc.StatusCode.OK and self.code is not None:
            raise self.error()

    def _write_error(self) -> BaseException:
        if self.code is None or self.code is grpc.StatusCode.OK:
            return asyncio.InvalidStateError(FINISHED)
        return self.error()

    def half_close(self) -> None:
        if not self.is_half_closed:
            self.is_half_closed = True
            if self.session is not None and not self.is_over:
                self.session.half_close(self)

    # For the session

    def request_headers(self) -> Headers:
        timeout = self.timeout
        if timeout is None:
            return [*self.method.head, *self.extra] if self.extra else self.method.head
        if self.has_waited:
            left = max(self.deadline - self.method.connector.loop.time(), 0.001)
            encoded = metadata.encode_timeout(left)
        else:
            encoded = encode_timeout(timeout)
        return [*self.method.head, (b"grpc-timeout", encoded), *self.extra]

    @property
    def may_retry(self) -> bool:
        """Nothing of it is known to the caller, and all of it can be sent again."""
        return not self.has_retried and self.head is None and (self.body is not None or not self.is_started)

    @property
    def is_started(self) -> bool:
        """Messages were sent that are kept nowhere."""
        return self.body is None and self.session is not None and self.session.has_sent(self)

    def on_head(self, headers: Headers, encoding: str) -> None:
        self.head = headers
        self.encoding = encoding
        if self.head_waiters is not None:
            _wake(self.head_waiters)

    @abstractmethod
    def on_data(self, data: bytes) -> int:
        """Returns how many bytes of it can be given back to the peer at once. Raises KvError."""

    @abstractmethod
    def on_trailers(self, ending: Ending, headers: Headers) -> None:
        """The peer has ended it."""

    def messages(self, data: bytes) -> list[bytes]:
        deframer = self.deframer
        if deframer is None:
            deframer = self.deframer = Deframer(self.method.connector.options.receive_bytes_max, self.encoding)
        return deframer.feed(data)

    def wake(self) -> None:
        waiters = self.waiters
        if waiters is not None:
            self.waiters = None
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    # Its end

    def expire(self) -> None:
        self.abandon(*DEADLINE)

    def fail(self, error: KvError) -> None:
        self.abandon(STATUS[error.code], error.message)

    def abandon(self, code: grpc.StatusCode, details: str) -> None:
        """End it from here."""
        if self.code is not None:
            return
        if self.session is not None:
            self.session.reset(self, ErrorCode.CANCEL)
        else:
            self.method.connector.waiting.pop(self, None)
        self.end(code, details)

    def end(self, code: grpc.StatusCode, details: str, trailers: Headers = ()) -> None:
        """For its caller: only the first has an effect."""
        if self.code is not None:
            return
        self.code = code
        self.details = details
        self.trailers = trailers
        self.over()
        if self.head_waiters is not None:
            _wake(self.head_waiters)
        self.wake()
        callbacks = self.callbacks
        if callbacks is not None:
            self.callbacks = None
            for callback in callbacks:
                callback()

    def over(self) -> None:
        self.is_over = True
        if self.grain:
            self.method.connector.deadlines.remove(self, self.grain)
            self.grain = 0
        poller = self.poller
        if poller is not None:
            self.poller = None
            poller.cancel()


def _wake(waiters: "list[asyncio.Future[None]]") -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


@final
class UnaryResponse(Stream):
    """A stream whose caller waits for one message and the status. What comes is acknowledged at once."""

    __slots__ = ("message", "response")

    def __init__(
        self, method: Method, timeout: float | None, extra: Headers, wait_for_ready: bool, compression: str
    ) -> None:
        super().__init__(method, timeout, extra, wait_for_ready, compression)
        self.message: bytes | None = None
        self.response: Any = None

    def on_data(self, data: bytes) -> int:
        size = len(data)
        if self.message is None and self.deframer is None and size >= HEAD_BYTES and not data[0]:
            # Nearly all responses are one message in one frame.
            announced = int.from_bytes(data[1:HEAD_BYTES], "big")
            if announced == size - HEAD_BYTES and announced <= self.method.connector.options.receive_bytes_max:
                self.message = data[HEAD_BYTES:]
                return size
        for message in self.messages(data):
            if self.message is not None:
                raise KvError(Code(TWO_MESSAGES[0].value[0]), TWO_MESSAGES[1])
            self.message = message
        return size

    def on_trailers(self, ending: Ending, headers: Headers) -> None:
        code, details = ending
        if code is grpc.StatusCode.OK:
            message = self.message
            if message is None:
                self.end(*NO_MESSAGE, headers)
                return
            deserialize = self.method.deserialize
            if deserialize is None:
                self.response = message
            else:
                try:
                    self.response = deserialize(message)
                except Exception:
                    log.exception("response deserializer failed", method=self.method.path)
                    code, details = grpc.StatusCode.INTERNAL, "Exception deserializing response!"
        self.end(code, details, headers)


@final
class ResponseStream(Stream):
    """A stream whose caller reads messages. They count against the peer's window until they are read.

    Of a message that is not complete, the bytes are given back at once while the reader has nothing else to read:
    a message larger than the window could not arrive otherwise. Behind unread messages they count with the rest.
    """

    __slots__ = ("held", "inbox", "last", "taken")

    def __init__(
        self, method: Method, timeout: float | None, extra: Headers, wait_for_ready: bool, compression: str
    ) -> None:
        super().__init__(method, timeout, extra, wait_for_ready, compression)
        self.inbox: deque[tuple[bytes, int]] = deque()  # messages, and the bytes that each gives back
        self.held = 0  # bytes of the message under way that were not given back
        self.taken = 0  # bytes of messages that were read, likewise
        self.last: tuple[Ending, Headers] | None = None  # the peer's status, while messages before it are unread

    def on_data(self, data: bytes) -> int:
        size = len(data)
        messages = self.messages(data)
        if not messages:
            if not self.inbox:
                return size
            self.held += size
            return 0
        owed = self.held + size
        self.held = 0
        inbox = self.inbox
        for message in messages[:-1]:
            inbox.append((message, 0))
        inbox.append((messages[-1], owed))
        self.wake()
        return 0

    def on_trailers(self, ending: Ending, headers: Headers) -> None:
        if not self.inbox:
            self.end(*ending, headers)
            return
        self.last = (ending, headers)
        self.over()
        self.wake()  # writers

    def take(self) -> bytes:
        """The oldest message; there is one."""
        message, size = self.inbox.popleft()
        self.taken += size
        if not self.inbox:
            self.taken += self.held
            self.held = 0
            self._give_back()
            if self.last is not None:
                ending, headers = self.last
                self.end(*ending, headers)
        elif self.taken >= TAKEN_BYTES_MAX:
            self._give_back()
        return message

    def end(self, code: grpc.StatusCode, details: str, trailers: Headers = ()) -> None:
        if self.code is None and (self.inbox or self.held or self.taken):
            self.taken += self.held + sum([size for _, size in self.inbox])
            self.held = 0
            self.inbox.clear()
            self._give_back()
        super().end(code, details, trailers)

    def _give_back(self) -> None:
        taken, self.taken = self.taken, 0
        if taken and self.session is not None:
            self.session.give_back(taken, self.stream_id)
