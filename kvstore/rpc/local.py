"""Calls of this process to the methods that a front serves, without a connection between.

The JSON gateway (kvstore/gateway) is who calls. What it reaches are the very handlers that gRPC's clients reach, of
all three kinds: lists of calls, hot streams, generated code. So each front registers what it serves here too.

    answer = await methods.call("/etcdserverpb.KV/Put", request, Origin(...))
    async for answer in methods.stream("/etcdserverpb.Watch/Watch", requests, Origin(...)): ...

Whoever stops waiting, by cancelling or by closing the generator, cancels the call.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, final

import structlog

from kvstore.errors import Code, KvError
from kvstore.rpc.base import UNEXPECTED, Call, CallHandler, Gate, Stream, StreamHandlerFactory, deliver
from kvstore.rpc.counts import Counts, MethodCounts

log = structlog.get_logger(__name__)

DEADLINE_EXCEEDED: Final = KvError(Code.DEADLINE_EXCEEDED, "context deadline exceeded")


@dataclass(frozen=True, slots=True)
class Origin:
    """Who calls. metadata: keys in lower case, as gRPC's. seconds: until the caller gives up; None: never.

    common_name: of a certificate by which gRPC's front knows the caller. The gateway gives none: what stands at its
    other end may be a proxy's (CVE-2018-16886)."""

    metadata: Mapping[str, str | bytes] = field(default_factory=dict, repr=False)  # may hold a token
    peer: str = ""
    seconds: float | None = None
    common_name: str = ""


class _Clock:
    """What remains of the caller's time."""

    def __init__(self, origin: Origin) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = None if origin.seconds is None else self._loop.time() + origin.seconds

    @property
    def remaining(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - self._loop.time())


@final
class LocalCall(Call):
    def __init__(self, request: bytes, origin: Origin) -> None:
        self.request = request
        self._origin = origin
        self._clock = _Clock(origin)
        self.answer: asyncio.Future[bytes | KvError] = asyncio.get_running_loop().create_future()

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return self._origin.metadata

    def text(self, name: str) -> str:
        value = self._origin.metadata.get(name, "")
        return value if isinstance(value, str) else ""

    @property
    def peer(self) -> str:
        return self._origin.peer

    @property
    def common_name(self) -> str:
        return self._origin.common_name

    @property
    def time_remaining(self) -> float | None:
        return self._clock.remaining

    @property
    def cancelled(self) -> bool:
        return self.answer.cancelled()

    def reply(self, response: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result(response)

    def fail(self, error: KvError) -> None:
        # As a result and not as an exception: nobody may be left to look at it.
        if not self.answer.done():
            self.answer.set_result(error)


@final
class LocalStream(Stream):
    def __init__(self, origin: Origin, factory: StreamHandlerFactory, counts: MethodCounts) -> None:
        self._origin = origin
        self._counts = counts
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._changed = asyncio.Event()
        self._is_ended = False
        self._error: KvError | None = None
        self._handler = factory(self)

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return self._origin.metadata

    @property
    def peer(self) -> str:
        return self._origin.peer

    @property
    def common_name(self) -> str:
        return self._origin.common_name

    @property
    def queued_bytes(self) -> int:
        return self._queued_bytes

    def send(self, messages: list[bytes]) -> None:
        if not self._is_ended:
            self._queue.extend(messages)
            self._queued_bytes += sum(map(len, messages))
            self._counts.sent += len(messages)
            self._changed.set()

    def close(self, error: KvError | None = None) -> None:
        if not self._is_ended:
            self._is_ended = True
            self._error = error
            self._changed.set()

    async def answers(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """A message counts as queued until the caller comes back for the next one."""
        reading = asyncio.create_task(self._read(requests))
        try:
            while True:
                while self._queue:
                    message = self._queue.popleft()
                    yield message
                    self._queued_bytes -= len(message)
                    if not self._queue and not self._is_ended:
                        self._guarded(self._handler.drained)
                if self._is_ended:
                    break
                self._changed.clear()
                if not self._queue:
                    await self._changed.wait()
        finally:
            reading.cancel()
            code = self._error.code if self._error is not None else Code.OK
            self._counts.ended(code if self._is_ended else Code.CANCELLED)
            self._is_ended = True
            self._handler.closed()
        if self._error is not None:
            raise self._error

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        try:
            async for request in requests:
                if self._is_ended:
                    return
                self._counts.received += 1
                self._guarded(self._handler.received, [request])
            self._guarded(self._handler.half_closed)
        except KvError as error:
            self.close(error)

    def _guarded(self, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            callback(*arguments)
        except Exception:  # top of the handler: its bug must not leave the caller waiting
            log.exception("stream handler failed")
            self.close(UNEXPECTED)


@final
class LocalContext:
    """grpc.aio's ServicerContext, as far as servicers may ask it."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._clock = _Clock(origin)

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return tuple(self._origin.metadata.items())

    def peer(self) -> str:
        return self._origin.peer

    def peer_identities(self) -> None:
        return None

    def peer_identity_key(self) -> None:
        return None

    def auth_context(self) -> Mapping[str, Any]:
        name = self._origin.common_name
        return {"x509_common_name": [name.encode()]} if name else {}

    def time_remaining(self) -> float | None:
        return self._clock.remaining

    def cancelled(self) -> bool:
        return False  # whoever goes away cancels the handler

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """JSON has no place for it."""

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Likewise."""

    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        raise KvError(Code(code.value[0]), details)


class _Method:
    """What a path stands for; each kind overrides what it can."""

    async def call(self, request: bytes, origin: Origin) -> bytes:
        raise AssertionError("a stream was called as if it were none")

    def stream(self, requests: AsyncIterator[bytes], origin: Origin) -> AsyncGenerator[bytes, None]:
        raise AssertionError("a unary method was called as a stream")


@final
class _Calls(_Method):
    def __init__(self, handler: CallHandler, gate: Gate, counts: MethodCounts) -> None:
        self._handler = handler
        self._gate = gate
        self._counts = counts

    async def call(self, request: bytes, origin: Origin) -> bytes:
        call = LocalCall(request, origin)
        deliver([call], self._handler, self._gate, self._counts)
        code = Code.CANCELLED
        try:
            answer = await call.answer
            code = answer.code if isinstance(answer, KvError) else Code.OK
        finally:
            self._counts.ended(code)
        if isinstance(answer, KvError):
            raise answer.fresh()
        return answer


@final
class _Streams(_Method):
    def __init__(self, factory: StreamHandlerFactory, gate: Gate, counts: MethodCounts) -> None:
        self._factory = factory
        self._gate = gate
        self._counts = counts

    def stream(self, requests: AsyncIterator[bytes], origin: Origin) -> AsyncGenerator[bytes, None]:
        self._counts.started += 1
        refused = self._gate.refusal()
        if refused is not None:
            self._counts.ended(refused.code)
            raise refused.fresh()
        return LocalStream(origin, self._factory, self._counts).answers(requests)


@final
class _Generated(_Method):
    """A handler of bytes, as rpc/generated.py wraps what grpcio-tools generated."""

    def __init__(self, handler: Any) -> None:
        self._handler = handler

    async def call(self, request: bytes, origin: Origin) -> bytes:
        handler = self._handler
        if handler.unary_unary is None:
            raise AssertionError("a stream was called as if it were none")
        answer: bytes = await handler.unary_unary(request, LocalContext(origin))
        return answer

    async def stream(self, requests: AsyncIterator[bytes], origin: Origin) -> AsyncGenerator[bytes, None]:
        context = LocalContext(origin)
        if self._handler.unary_stream is not None:
            answers = self._handler.unary_stream(await anext(requests, b""), context)
        else:
            answers = self._handler.stream_stream(requests, context)
        if not hasattr(answers, "aclose"):  # it answers with an error and nothing else
            await answers
            return
        async with aclosing(answers):
            async for answer in answers:
                yield answer


@final
class LocalMethods:
    """Every method of one front, by path."""

    def __init__(self, counts: Counts | None = None) -> None:
        """counts: where calls are counted, beside those of the network."""
        self._methods: dict[str, _Method] = {}
        self.counts = counts or Counts()

    def add_calls(self, path: str, handler: CallHandler, gate: Gate) -> None:
        self._methods[path] = _Calls(handler, gate, self.counts.new(path))

    def add_stream(self, path: str, factory: StreamHandlerFactory, gate: Gate) -> None:
        self._methods[path] = _Streams(factory, gate, self.counts.new(path, "bidi_stream"))

    def add_generated(self, path: str, handler: Any) -> None:
        self._methods[path] = _Generated(handler)

    def paths(self) -> list[str]:
        return sorted(self._methods)

    async def call(self, path: str, request: bytes, origin: Origin) -> bytes:
        """Raises KvError."""
        try:
            async with asyncio.timeout(origin.seconds):
                return await self._found(path).call(request, origin)
        except TimeoutError:
            raise DEADLINE_EXCEEDED.fresh() from None

    async def stream(self, path: str, requests: AsyncIterator[bytes], origin: Origin) -> AsyncGenerator[bytes, None]:
        """To be closed (contextlib.aclosing) by whoever leaves it before its end. Raises KvError."""
        async with aclosing(self._found(path).stream(requests, origin)) as answers:
            clock = _Clock(origin)
            while True:
                try:
                    async with asyncio.timeout(clock.remaining):
                        answer = await anext(answers, None)
                except TimeoutError:
                    raise DEADLINE_EXCEEDED.fresh() from None
                if answer is None:
                    return
                yield answer

    def _found(self, path: str) -> _Method:
        method = self._methods.get(path)
        if method is None:
            raise KvError(Code.UNIMPLEMENTED, f"unknown service {path.lstrip('/').partition('/')[0]}")
        return method
