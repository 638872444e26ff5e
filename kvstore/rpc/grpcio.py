"""The RPC seam over grpc.aio.

grpc.aio makes tasks of its own for each call; what this file adds is no further one. A hot unary call
waits on a future; all calls of a method that one tick of the loop brought go to its handler as one list
(grpc.aio brings few per tick; a front that brings more changes nothing above this seam):

    socket -> grpc-core -> behaviour(request, context) ... behaviour(request, context)
                                    |  call_soon, once                |  await future
                              handler([call, call, ...])  ....  call.reply(bytes)

A bidirectional stream has two tasks: grpc.aio's own reads, one of ours writes. `Stream.send` only
queues; a write ends when HTTP/2 flow control let the message go, so `queued_bytes` is what the reader
has not made room for.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any, final

import grpc
import grpc.aio
import structlog

from kvstore.errors import STOPPED, Code, KvError
from kvstore.rpc.address import can_listen, host_port, is_secure
from kvstore.rpc.base import UNEXPECTED, Call, CallHandler, Gate, RpcServer, Stream, StreamHandlerFactory, deliver
from kvstore.rpc.counts import Counts, MethodCounts
from kvstore.rpc.generated import GenericHandler, MethodHandler, UnknownMethods, WrappingRegistry, abort, common_name
from kvstore.rpc.local import LocalMethods
from kvstore.rpc.options import MESSAGE_BYTES_MAX, ChannelOptions, ServerOptions
from kvstore.rpc.tls import ChannelTls, ServerTls, tls_for

log = structlog.get_logger(__name__)

EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs


def channel(target: str, options: ChannelOptions) -> grpc.aio.Channel:
    """A channel to one member."""
    arguments = [
        ("grpc.max_receive_message_length", options.receive_bytes_max),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.keepalive_time_ms", options.keepalive_time_ms),
        ("grpc.keepalive_timeout_ms", options.keepalive_timeout_ms),
        ("grpc.initial_reconnect_backoff_ms", options.reconnect_backoff_ms_min),
        ("grpc.min_reconnect_backoff_ms", options.reconnect_backoff_ms_max),
        ("grpc.max_reconnect_backoff_ms", options.reconnect_backoff_ms_max),
        # A request that may have been sent is sent again by nobody but the caller.
        ("grpc.enable_retries", 0),
        # Members are addressed directly; an http_proxy of the environment is for the internet.
        ("grpc.enable_http_proxy", 0),
        # Channels that share a connection would also share its fate and its flow control.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return peer_channel(host_port(target), arguments, tls_for(target, options.tls))


def peer_channel(target: str, arguments: list[tuple[str, Any]], tls: ChannelTls | None = None) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(target, options=arguments)
    if tls.server_name is not None:
        arguments = [*arguments, ("grpc.ssl_target_name_override", tls.server_name)]
    return grpc.aio.secure_channel(target, tls.grpc_credentials(), options=arguments)


def peer_server(arguments: list[tuple[str, Any]], tls: ServerTls | None = None) -> grpc.aio.Server:
    server = grpc.aio.server(options=arguments)
    if tls is not None:
        # The transport names an address only; what the port speaks is decided here.
        server.add_insecure_port = partial(_add_secure_port, server, tls)  # type: ignore[method-assign]
    return server


def _add_secure_port(server: grpc.aio.Server, tls: ServerTls, address: str) -> int:
    return server.add_secure_port(address, tls.grpc_credentials())


def server_arguments(options: ServerOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", options.receive_bytes_max),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_concurrent_streams", options.max_concurrent_streams),
        ("grpc.max_metadata_size", options.metadata_bytes_max),
        ("grpc.absolute_max_metadata_size", 2 * options.metadata_bytes_max),
        # Without the second and third, a ping on a connection that has no call counts against 2 hours.
        ("grpc.http2.min_ping_interval_without_data_ms", options.ping_interval_min_ms),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", options.ping_interval_min_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", options.keepalive_time_ms),
        ("grpc.keepalive_timeout_ms", options.keepalive_timeout_ms),
        ("grpc.server_handshake_timeout_ms", options.handshake_timeout_ms),
        ("grpc.server.max_pending_requests", options.pending_calls_max),
        ("grpc.server.max_pending_requests_hard_limit", 2 * options.pending_calls_max),
        ("grpc.so_reuseport", 0),  # two members on one port must fail, not share it
    ]


class CallContext:
    """What grpc knows of a call while it runs. Afterwards its memory is gone: asking then is a crash."""

    __slots__ = ("_context",)

    def __init__(self, context: Any) -> None:
        self._context = context

    def end(self) -> None:
        self._context = None

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return dict(self._context.invocation_metadata() or ()) if self._context else {}

    @property
    def peer(self) -> str:
        return str(self._context.peer()) if self._context else ""

    @property
    def common_name(self) -> str:
        return common_name(self._context.auth_context()) if self._context else ""

    @property
    def time_remaining(self) -> float | None:
        return self._context.time_remaining() if self._context else 0.0


@final
class GrpcioCall(CallContext, Call):
    __slots__ = ("_future", "request")

    def __init__(self, request: bytes, context: Any, future: asyncio.Future[bytes | KvError]) -> None:
        super().__init__(context)
        self.request = request
        self._future = future

    def text(self, name: str) -> str:
        return str(self.metadata.get(name, ""))

    @property
    def cancelled(self) -> bool:
        return self._future.cancelled()

    def reply(self, response: bytes) -> None:
        if not self._future.done():
            self._future.set_result(response)

    def fail(self, error: KvError) -> None:
        # As a result and not as an exception: nobody may be left to look at it.
        if not self._future.done():
            self._future.set_result(error)


@final
class CallCollector:
    """One hot unary method: gathers the calls of a tick."""

    __slots__ = ("_calls", "_counts", "_gate", "_handler", "_loop")

    def __init__(self, handler: CallHandler, gate: Gate, counts: MethodCounts) -> None:
        self._counts = counts
        self._handler = handler
        self._gate = gate
        self._calls: list[Call] = []
        self._loop = asyncio.get_running_loop()

    async def serve(self, request: bytes, context: Any) -> bytes:
        future: asyncio.Future[bytes | KvError] = self._loop.create_future()
        if not self._calls:
            self._loop.call_soon(self._deliver)
        call = GrpcioCall(request, context, future)
        self._calls.append(call)
        code = Code.CANCELLED
        try:
            answer = await future
            code = answer.code if isinstance(answer, KvError) else Code.OK
        finally:
            call.end()
            self._counts.ended(code)
        if isinstance(answer, KvError):
            await abort(context, answer)
        return answer

    def _deliver(self) -> None:
        calls, self._calls = self._calls, []
        deliver(calls, self._handler, self._gate, self._counts)


@final
class GrpcioStream(CallContext, Stream):
    """Both directions of one bidirectional call."""

    def __init__(self, context: Any, factory: StreamHandlerFactory, counts: MethodCounts) -> None:
        super().__init__(context)
        self._counts = counts
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._wakeup = asyncio.Event()
        self._closing = False
        self._error: KvError | None = None
        self._handler = factory(self)

    @property
    def queued_bytes(self) -> int:
        return self._queued_bytes

    def send(self, messages: list[bytes]) -> None:
        if self._closing:
            return
        self._queue.extend(messages)
        self._queued_bytes += sum(map(len, messages))
        self._counts.sent += len(messages)
        self._wakeup.set()

    def close(self, error: KvError | None = None) -> None:
        if self._closing:
            return
        self._closing = True
        self._error = error
        self._wakeup.set()

    async def serve(self) -> None:
        """Run until the service closed the stream and all is written, or the client is gone."""
        reading = asyncio.create_task(self._read())
        context = self._context
        try:
            await self._write()
        finally:
            reading.cancel()
            code = self._error.code if self._error is not None else Code.OK
            self._counts.ended(code if self._closing else Code.CANCELLED)
            self._closing = True
            self._queue.clear()
            self._queued_bytes = 0
            self._handler.closed()
            self.end()
        if self._error is not None:
            await abort(context, self._error)

    async def _read(self) -> None:
        while not self._closing:
            message = await self._context.read()
            if message is EOF:
                self._guarded(self._handler.half_closed)
                return
            self._counts.received += 1
            self._guarded(self._handler.received, [message])

    async def _write(self) -> None:
        while True:
            had_some = bool(self._queue)
            while self._queue:
                message = self._queue.popleft()
                await self._context.write(message)
                self._queued_bytes -= len(message)
            if self._closing:
                return
            self._wakeup.clear()
            if had_some:
                self._guarded(self._handler.drained)
            if not self._queue:
                await self._wakeup.wait()

    def _guarded(self, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            callback(*arguments)
        except Exception:  # top of the handler: its bug must not leave the client waiting
            log.exception("stream handler failed")
            self.close(UNEXPECTED)


@final
class StreamMethod:
    """One hot bidirectional method, and its streams under way."""

    def __init__(self, factory: StreamHandlerFactory, gate: Gate, counts: MethodCounts) -> None:
        self._factory = gate.opening(factory)
        self._counts = counts
        self._gate = gate
        self._streams: set[GrpcioStream] = set()

    async def serve(self, _: AsyncIterator[bytes], context: Any) -> None:
        self._counts.started += 1
        refused = self._gate.refusal()
        if refused is not None:
            self._counts.ended(refused.code)
            await abort(context, refused)
        stream = GrpcioStream(context, self._factory, self._counts)
        self._streams.add(stream)
        try:
            await stream.serve()
        finally:
            self._streams.discard(stream)

    def stop(self) -> None:
        for stream in self._streams:
            stream.close(STOPPED)


@final
class HotMethods(GenericHandler):
    """Hot methods by path."""

    def __init__(self) -> None:
        self.handlers: dict[str, MethodHandler] = {}

    def service(self, details: grpc.HandlerCallDetails) -> "MethodHandler | None":
        return self.handlers.get(details.method)


@final
class GrpcioServer(RpcServer):
    def __init__(self, options: ServerOptions) -> None:
        self._tls = options.tls
        self._server = grpc.aio.server(options=server_arguments(options))
        self._hot = HotMethods()
        self._stream_methods: list[StreamMethod] = []
        self._unknown = UnknownMethods()
        self.counts = Counts(measured=options.measure_calls)
        self.local = LocalMethods(self.counts)
        self._server.add_generic_rpc_handlers((self._hot,))

    def add_calls(self, method: str, handler: CallHandler) -> None:
        gate = Gate(self, method)
        collector = CallCollector(handler, gate, self.counts.new(method))
        self.local.add_calls(method, handler, gate)
        self._add_hot(method, grpc.unary_unary_rpc_method_handler(collector.serve))

    def add_stream(self, method: str, factory: StreamHandlerFactory) -> None:
        gate = Gate(self, method)
        served = StreamMethod(factory, gate, self.counts.new(method, "bidi_stream"))
        self.local.add_stream(method, factory, gate)
        self._stream_methods.append(served)
        self._add_hot(method, grpc.stream_stream_rpc_method_handler(served.serve))

    def _add_hot(self, method: str, handler: MethodHandler) -> None:
        assert method not in self._hot.handlers, f"{method} is served twice"
        self._hot.handlers[method] = handler
        self._unknown.add(method)

    def add_servicer(self, add_to_server: Callable[[Any, Any], None], servicer: object) -> None:
        registry = WrappingRegistry(self._server, self._unknown.services, partial(Gate, self), self.local)
        add_to_server(servicer, registry)

    async def start(self, urls: list[str]) -> list[str]:
        bound = []
        for url in urls:
            address = host_port(url)
            await can_listen(address)
            try:
                if is_secure(url):
                    port = self._server.add_secure_port(address, self._credentials(url))
                else:
                    port = self._server.add_insecure_port(address)
            except RuntimeError as error:
                raise OSError(f"cannot listen on {address}: {error}") from None
            bound.append(f"{url.partition('://')[0]}://{address.rpartition(':')[0]}:{port}")
        self._server.add_generic_rpc_handlers((self._unknown,))
        await self._server.start()
        return bound

    def _credentials(self, url: str) -> Any:
        if self._tls is None:
            raise ValueError(f"{url}: https:// needs a certificate and its key")
        return self._tls.grpc_credentials()

    async def stop(self, grace: float) -> None:
        # Streams have no end of their own: waiting for them would always take the whole grace.
        for served in self._stream_methods:
            served.stop()
        await self._server.stop(grace)
