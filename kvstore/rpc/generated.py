"""Generated servicers on any server with grpc.aio's surface, with parsing and errors in our hands.

Every error leaves through `abort`: a KvError becomes its status, with its exact text. Generated code is wrapped once,
at registration, so that malformed bytes are an answer (INTERNAL, as Go's servers say it) and not a traceback, and a
method that nobody implemented says so.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, final

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from kvstore.errors import MALFORMED, NO_LEADER, Code, KvError, unimplemented
from kvstore.rpc.base import UNEXPECTED, Gate, wants_leader
from kvstore.rpc.counts import Counts
from kvstore.rpc.local import LocalMethods

log = structlog.get_logger(__name__)

MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

if TYPE_CHECKING:
    GenericHandler = grpc.GenericRpcHandler[Any, Any]
else:
    GenericHandler = grpc.GenericRpcHandler  # generic in the stubs only

STATUS = {Code(status.value[0]): status for status in grpc.StatusCode}


async def abort(context: Any, error: KvError) -> NoReturn:
    """The one place where an error becomes a status."""
    await context.abort(STATUS[error.code], error.message)
    raise AssertionError("abort returned")


@final
class GeneratedMethod:
    """One method of a generated servicer, with parsing and errors in our hands."""

    def __init__(self, gate: Gate, handler: Any, counts: Counts) -> None:
        self._path = gate.method
        self._counts = counts.new(gate.method, _kind(handler))
        self._gate = gate
        self._parse = handler.request_deserializer
        self._serialize = handler.response_serializer
        self._behaviour = handler.unary_unary or handler.unary_stream or handler.stream_stream or handler.stream_unary
        # Generated base classes are plain functions that raise; what is implemented is a coroutine function.
        self._implemented = inspect.iscoroutinefunction(self._behaviour) or inspect.isasyncgenfunction(self._behaviour)

    def wrapped(self, handler: Any) -> MethodHandler:
        if not self._implemented:
            make = grpc.unary_unary_rpc_method_handler
            if handler.request_streaming or handler.response_streaming:
                make = grpc.stream_stream_rpc_method_handler
            return make(self._unimplemented)
        if handler.request_streaming:
            assert handler.response_streaming, f"{self._path}: no service of ours has a client stream"
            return grpc.stream_stream_rpc_method_handler(self._stream_stream)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._unary_stream)
        return grpc.unary_unary_rpc_method_handler(self._unary_unary)

    async def _unary_unary(self, request: bytes, context: Any) -> bytes:
        if self._counts.seconds is None:
            return await self._answer(request, context)
        with self._counts.seconds.time():
            return await self._answer(request, context)

    async def _answer(self, request: bytes, context: Any) -> bytes:
        self._counts.started += 1
        try:
            await self._check(request, context)
            answer: bytes = self._serialize(await self._behaviour(self._parse(request), context))
        except Exception as error:  # top of the handler
            await self._failed(context, error)
        except BaseException:
            self._counts.ended(Code.CANCELLED)
            raise
        self._counts.ended()
        return answer

    async def _unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        self._counts.started += 1
        self._counts.received += 1
        try:
            await self._check(request, context)
            async with aclosing(self._behaviour(self._parse(request), context)) as answers:
                async for answer in answers:
                    self._counts.sent += 1
                    yield self._serialize(answer)
        except Exception as error:  # top of the handler
            await self._failed(context, error)
        except BaseException:
            self._counts.ended(Code.CANCELLED)
            raise
        self._counts.ended()

    async def _stream_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self._counts.started += 1
        try:
            await self._check(b"", context)
            async with aclosing(self._behaviour(self._parsed(requests), context)) as answers:
                async for answer in answers:
                    self._counts.sent += 1
                    yield self._serialize(answer)
        except Exception as error:  # top of the handler
            await self._failed(context, error)
        except BaseException:
            self._counts.ended(Code.CANCELLED)
            raise
        self._counts.ended()

    async def _check(self, request: bytes, context: Any) -> None:
        refused = self._gate.refusal()
        if refused is not None:
            raise refused.fresh()
        if self._gate.server.is_leaderless() and wants_leader(ContextCaller(context)):
            raise NO_LEADER.fresh()
        guard = self._gate.server.guard
        if guard is not None and guard.is_on:
            await guard.check(self._path, ContextCaller(context), request)

    async def _parsed(self, requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for request in requests:
            self._counts.received += 1
            yield self._parse(request)

    async def _unimplemented(self, _: Any, context: Any) -> NoReturn:
        self._counts.started += 1
        self._counts.ended(Code.UNIMPLEMENTED)
        await abort(context, unimplemented(self._path))

    async def _failed(self, context: Any, error: Exception) -> NoReturn:
        if isinstance(error, grpc.aio.AbortError):
            self._counts.ended(_code_of(context))
            raise error
        if isinstance(error, DecodeError):
            error = MALFORMED
        if not isinstance(error, KvError):
            log.error("servicer failed", method=self._path, exc_info=error)
            error = UNEXPECTED
        self._counts.ended(error.code)
        await abort(context, error)


def _kind(handler: Any) -> str:
    """As metrics of gRPC name it."""
    if handler.request_streaming:
        return "bidi_stream" if handler.response_streaming else "client_stream"
    return "server_stream" if handler.response_streaming else "unary"


def _code_of(context: Any) -> Code:
    """What a servicer has ended its own call with."""
    code = context.code() if hasattr(context, "code") else None
    return Code(code.value[0]) if isinstance(code, grpc.StatusCode) else Code.UNKNOWN


@final
class ContextCaller:
    """Who calls, of a ServicerContext of either front."""

    __slots__ = ("_context",)

    def __init__(self, context: Any) -> None:
        self._context = context

    def text(self, name: str) -> str:
        for key, value in self._context.invocation_metadata() or ():
            if key == name:
                return value if isinstance(value, str) else ""
        return ""

    @property
    def common_name(self) -> str:
        return common_name(self._context.auth_context())


def common_name(auth_context: Mapping[str, Any]) -> str:
    """Of gRPC's view of the client's certificate, which is a verified one. Of several the last, as Go's parser."""
    names = list(auth_context.get("x509_common_name") or ())
    return names[-1].decode("utf-8", "replace") if names else ""


@final
class WrappingRegistry:
    """Stands in for the server where generated `add_*Servicer_to_server` registers its handlers."""

    def __init__(self, server: Any, services: set[str], gate: Callable[[str], Gate], local: LocalMethods) -> None:
        self._server = server
        self._services = services
        self._local = local
        self._gate = gate

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Generated code registers each method twice; the other way names its methods."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        methods = {}
        for name, handler in handlers.items():
            path = f"/{service}/{name}"
            methods[name] = GeneratedMethod(self._gate(path), handler, self._local.counts).wrapped(handler)
            self._local.add_generated(path, methods[name])
        self._services.add(service)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))


def one_stream(service: str, method: str, parse: Callable[[bytes], Any]) -> Callable[[Any, Any], None]:
    """For `RpcServer.add_servicer`: one method with streamed answers, which are bytes, of a service whose others are
    hot."""

    def add(servicer: Any, server: Any) -> None:
        handler = grpc.unary_stream_rpc_method_handler(getattr(servicer, method), parse, bytes)
        server.add_registered_method_handlers(service, {method: handler})

    return add


@final
class UnknownMethods(GenericHandler):
    """Asked last. Says what Go's servers say, which tells a wrong method from a wrong service."""

    def __init__(self) -> None:
        self.services: set[str] = set()

    def add(self, path: str) -> None:
        self.services.add(path.lstrip("/").partition("/")[0])

    def service(self, details: grpc.HandlerCallDetails) -> MethodHandler:
        service, _, method = details.method.lstrip("/").rpartition("/")
        text = (
            f"unknown method {method} for service {service}"
            if service in self.services
            else f"unknown service {service}"
        )

        async def refuse(_: Any, context: Any) -> NoReturn:
            await abort(context, KvError(Code.UNIMPLEMENTED, text))

        return grpc.stream_stream_rpc_method_handler(refuse)
