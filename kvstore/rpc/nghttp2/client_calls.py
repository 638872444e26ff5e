"""grpc.aio's call objects: what a caller holds of a stream.

A call whose responses are a stream is cancelled when its caller drops it: leaving `async for` early is the ordinary
way to stop reading. So the session knows the stream only, and not the call.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable
from typing import Any, Final, Generic, NoReturn, TypeAlias, TypeVar, final

import grpc
import grpc.aio
import structlog

from kvstore.rpc.nghttp2.client_stream import FINISHED, ResponseStream, Stream, UnaryResponse

log = structlog.get_logger(__name__)

Requests: TypeAlias = AsyncIterable[Any] | Iterable[Any]
S = TypeVar("S", bound=Stream)

EOF: Final[Any] = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs
MIXED: Final = "The iterator and read/write APIs may not be mixed on a single RPC."
HALF_CLOSED: Final = 'RPC is half closed after calling "done_writing".'
DROPPED: Final = "Cancelled upon garbage collection!"


class Call(Generic[S]):
    """What all calls have."""

    # All that any call needs: classes with slots of their own could not be mixed.
    __slots__ = ("__weakref__", "_is_fed", "_is_iterated", "_stream")

    _is_fed: bool  # of a request stream: by an iterator
    _is_iterated: bool | None  # of a response stream; None: nothing was read yet

    def __init__(self, stream: S) -> None:
        self._stream = stream

    def cancel(self) -> bool:
        return self._stream.cancel()

    def cancelled(self) -> bool:
        return self._stream.code is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        return self._stream.code is not None

    def time_remaining(self) -> float | None:
        stream = self._stream
        if stream.timeout is None:
            return None
        return max(stream.deadline - stream.method.connector.loop.time(), 0.0)

    def add_done_callback(self, callback: "Callable[[Any], None]") -> None:
        stream = self._stream
        if stream.code is not None:
            callback(self)
        else:
            stream.callbacks = [*(stream.callbacks or ()), lambda: callback(self)]

    async def initial_metadata(self) -> grpc.aio.Metadata:
        stream = self._stream
        while stream.head is None and stream.code is None:
            await stream.head_waiter()
        return stream.initial_metadata()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return (await self._ended()).trailing_metadata()

    async def code(self) -> grpc.StatusCode:
        code = (await self._ended()).code
        assert code is not None
        return code

    async def details(self) -> str:
        return (await self._ended()).details

    async def debug_error_string(self) -> str:
        stream = await self._ended()
        return "" if stream.code is grpc.StatusCode.OK else stream.debug_string()

    async def wait_for_connection(self) -> None:
        stream = self._stream
        while stream.session is None and stream.code is None:
            await stream.waiter()
        if stream.code is not None and stream.code is not grpc.StatusCode.OK:
            raise stream.error()

    async def _ended(self) -> S:
        stream = self._stream
        while stream.code is None:
            await stream.waiter()
        return stream

    def __repr__(self) -> str:
        stream = self._stream
        if stream.code is None:
            return f"<{type(self).__name__} of {stream.method.path}, under way>"
        return f"<{type(self).__name__} of {stream.method.path}: {stream.code}, {stream.details!r}>"


class _Writing(Call[S]):
    """Its requests are a stream: from an iterator, or by `write`."""

    __slots__ = ()

    def __init__(self, stream: S, requests: Requests | None) -> None:
        super().__init__(stream)
        self._is_fed = requests is not None
        if requests is not None and stream.code is None:
            stream.poller = stream.method.connector.loop.create_task(_send_all(stream, requests))

    async def write(self, request: Any) -> None:
        self._refuse_mixed()
        stream = self._stream
        if stream.code is not None:
            raise asyncio.InvalidStateError(FINISHED)
        if stream.is_half_closed:
            raise asyncio.InvalidStateError(HALF_CLOSED)
        try:
            await stream.write(request)
        except asyncio.CancelledError:
            stream.cancel()
            raise

    @property
    def is_writable(self) -> bool:
        """Whether `write_nowait` would send."""
        stream = self._stream
        session = stream.session
        return session is not None and not stream.is_over and not stream.is_half_closed and not session.is_full(stream)

    def write_nowait(self, request: Any) -> None:
        """Beyond grpc.aio, for who has a message in hand and no task to spare: it is with the socket on return."""
        stream = self._stream
        session = stream.session
        body = stream.framed(request)
        if session is not None and body is not None and session.send(stream, body):
            session.flush()

    async def done_writing(self) -> None:
        self._refuse_mixed()
        self._stream.half_close()

    def _refuse_mixed(self) -> None:
        if self._is_fed:
            raise grpc.aio.UsageError(MIXED)


async def _send_all(stream: Stream, requests: Requests) -> None:
    """What an iterator yields. Its exception ends the call."""
    try:
        if isinstance(requests, AsyncIterable):
            async for request in requests:
                await stream.write(request)
        else:
            for request in requests:
                await stream.write(request)
    except (Exception, asyncio.CancelledError):
        stream.poller = None
        if not stream.is_over:
            log.debug("request iterator failed", method=stream.method.path, exc_info=True)
            stream.cancel()
    else:
        stream.poller = None
        stream.half_close()


class _Awaiting(Call[UnaryResponse]):
    """It has one response: awaiting the call gives it."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, Any]:
        stream = self._stream
        while stream.code is None:
            try:
                yield from stream.waiter()
            except asyncio.CancelledError:
                stream.cancel()
                raise
        if stream.code is grpc.StatusCode.OK:
            return stream.response
        raise stream.error()


class _Reading(Call[ResponseStream]):
    """Its responses are a stream: by `async for`, or by `read`."""

    __slots__ = ()

    def __init__(self, stream: ResponseStream) -> None:
        super().__init__(stream)
        self._is_iterated = None

    def __del__(self) -> None:
        stream = getattr(self, "_stream", None)
        if stream is not None and stream.code is None and not stream.method.connector.loop.is_closed():
            stream.cancel(DROPPED)

    def __aiter__(self) -> AsyncIterator[Any]:
        self._style(True)
        return _Responses(self)

    async def read(self) -> Any:
        if self._stream.code is None:
            self._style(False)
        return await self.next()

    async def next(self) -> Any:
        """The next response, or EOF after a good end."""
        stream = self._stream
        while not stream.inbox:
            if stream.code is not None:
                if stream.code is grpc.StatusCode.OK:
                    return EOF
                raise stream.error()
            try:
                await stream.waiter()
            except asyncio.CancelledError:
                stream.cancel()
                raise
        message = stream.take()
        deserialize = stream.method.deserialize
        if deserialize is None:
            return message
        try:
            return deserialize(message)
        except Exception:
            self._refuse(stream)

    def _refuse(self, stream: ResponseStream) -> NoReturn:
        log.exception("response deserializer failed", method=stream.method.path)
        text = "Exception deserializing response!"
        if stream.code is None:
            stream.abandon(grpc.StatusCode.INTERNAL, text)
        else:
            stream.code, stream.details = grpc.StatusCode.INTERNAL, text
        raise stream.error()

    def _style(self, is_iterated: bool) -> None:
        if self._is_iterated is None:
            self._is_iterated = is_iterated
        elif self._is_iterated is not is_iterated:
            raise grpc.aio.UsageError(MIXED)


@final
class _Responses(AsyncIterator[Any]):
    __slots__ = ("_call",)

    def __init__(self, call: _Reading) -> None:
        self._call = call

    async def __anext__(self) -> Any:
        message = await self._call.next()
        if message is EOF:
            raise StopAsyncIteration
        return message


@final
class UnaryUnaryCall(_Awaiting):
    __slots__ = ()


@final
class UnaryStreamCall(_Reading):
    __slots__ = ()


@final
class StreamUnaryCall(_Writing[UnaryResponse], _Awaiting):
    __slots__ = ()


@final
class StreamStreamCall(_Writing[ResponseStream], _Reading):
    __slots__ = ()
