"""Between clients and members: connections that delay, lose and break.

A request is lost on its way, or its answer is: both look the same to the client, whose deadline passes. Calls of a
member that dies end as Unavailable, as a reset connection does. All calls that arrive in one tick of a member's loop
come as one list, as at the real front.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, final

from kvstore.errors import Code, KvError
from kvstore.rpc.base import Call, CallHandler, RpcServer, Stream, StreamHandler, StreamHandlerFactory
from kvstore.rpc.local import LocalMethods
from tests.sim.member.loop import SECOND, Process

if TYPE_CHECKING:
    from tests.sim.member.world import World

RESET: Final = KvError(Code.UNAVAILABLE, "connection reset")
DEADLINE: Final = KvError(Code.DEADLINE_EXCEEDED, "deadline exceeded")
_NOTHING: Final[Mapping[str, str | bytes]] = {}


@final
class SimCall(Call):
    def __init__(self, link: "Link", method: str, request: bytes, metadata: Mapping[str, str | bytes]) -> None:
        self.request = request
        self.method = method
        self.answers = 0  # given by the member
        self.done: asyncio.Future[bytes] = link.world.loop.create_future()
        self._link = link
        self._metadata = metadata

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return self._metadata

    def text(self, name: str) -> str:
        return str(self._metadata.get(name, ""))

    @property
    def peer(self) -> str:
        return "sim"

    @property
    def time_remaining(self) -> float | None:
        return None

    @property
    def cancelled(self) -> bool:
        return self.done.done()

    def reply(self, response: bytes) -> None:
        self._answered(response)

    def fail(self, error: KvError) -> None:
        self._answered(error)

    def _answered(self, answer: bytes | KvError) -> None:
        self.answers += 1
        if self.answers > 1:
            self._link.world.complain(f"{self.method} was answered twice")
        self._link.calls.pop(self, None)
        self._link.to_client(self.set, answer)

    def set(self, answer: bytes | KvError) -> None:
        """At the client."""
        if not self.done.done():
            if isinstance(answer, bytes):
                self.done.set_result(answer)
            else:
                self.done.set_exception(KvError(answer.code, answer.message))


@final
class Link:
    """The connections of all clients to one life of a member."""

    def __init__(self, world: "World", process: Process) -> None:
        self.world = world
        self.process = process
        self.calls: dict[SimCall, None] = {}  # that the member has got and not answered
        self.streams: dict[SimStream, None] = {}
        self._rng = world.options.stream(f"front {process.name}")
        self._arrived: dict[str, list[Call]] = {}
        self.rpc: SimRpc | None = None  # None until the member serves clients

    def _delay(self) -> int:
        options = self.world.options
        return int(options.client_delay * (0.5 + self._rng.random()))

    def lost(self) -> bool:
        loss = 0.0 if self.world.calm else self.world.options.client_loss
        if loss and self._rng.random() < loss:
            self.world.injected["client message lost"] += 1
            return True
        return False

    def to_client(self, callback: Callable[..., None], *arguments: Any, reliable: bool = False) -> None:
        loop = self.world.loop
        if not self.process.alive or (not reliable and self.lost()):
            return
        left = max(loop.now, self.process.busy_until)
        loop.at(left + self._delay(), callback, *arguments, context=loop.root.context)

    def to_member(self, callback: Callable[..., None], *arguments: Any, reliable: bool = False) -> None:
        loop = self.world.loop
        if not reliable and self.lost():
            return
        at = loop.now + self._delay()
        grain = self.world.options.client_grain
        loop.at(-(-at // grain) * grain, callback, *arguments, context=loop.root.context)

    async def call(self, method: str, request: bytes, timeout: float, metadata: Mapping[str, str] = _NOTHING) -> bytes:
        """By a client. Raises KvError."""
        call = SimCall(self, method, request, metadata)
        self.to_member(self._arrive, call)
        timer = self.world.loop.at(self.world.loop.now + int(timeout * SECOND), call.set, DEADLINE)
        try:
            return await call.done
        finally:
            timer.cancel()

    def _arrive(self, call: SimCall) -> None:
        if not self.process.alive or self.rpc is None:
            self.world.loop.at(self.world.loop.now + self._delay(), call.set, RESET)
            return
        if not self._arrived:
            self.process.call_soon(self._hand_over)
        self._arrived.setdefault(call.method, []).append(call)

    def _hand_over(self) -> None:
        arrived, self._arrived = self._arrived, {}
        for method, calls in arrived.items():
            for call in calls:
                self.calls[call] = None  # type: ignore[index]
            if self.rpc is not None:
                self.rpc.handle(method, calls)
            else:  # it is being stopped
                for call in calls:
                    call.fail(RESET)

    def open(self, method: str, metadata: Mapping[str, str], receive: Callable[[list[bytes]], None]) -> "SimStream":
        """By a client: a stream whose messages come to `receive`, and None at its end."""
        stream = SimStream(self, metadata, receive)
        self.streams[stream] = None
        if self.rpc is None or not self.process.alive:
            stream.break_off()
        else:
            self.to_member(self._open, method, stream, reliable=True)
        return stream

    def _open(self, method: str, stream: "SimStream") -> None:
        if self.process.alive:
            self.process.call_soon(self._make_handler, method, stream)

    def _make_handler(self, method: str, stream: "SimStream") -> None:
        if self.rpc is not None:
            stream.attach(self.rpc.factories[method](stream))
        else:
            stream.break_off()

    def died(self) -> None:
        """The member was killed: its kernel resets what is open."""
        loop = self.world.loop
        arrived = [call for calls in self._arrived.values() for call in calls]
        for call in [*self.calls, *arrived]:
            loop.at(loop.now + self._delay(), call.set, RESET)  # type: ignore[attr-defined]
        for stream in list(self.streams):
            stream.break_off()
        self.calls.clear()


@final
class SimStream(Stream):
    """One stream; `queued_bytes` are those that the client has not read yet."""

    def __init__(self, link: Link, metadata: Mapping[str, str], receive: Callable[[list[bytes]], None]) -> None:
        self.ended: asyncio.Future[KvError | None] = link.world.loop.create_future()  # for the client
        self.read_delay = 0  # nanoseconds that the client takes for a message
        self._link = link
        self._metadata = metadata
        self._receive = receive
        self._handler: StreamHandler | None = None
        self._early: list[bytes] = []
        self._queued: list[bytes] = []  # not yet read by the client
        self._queued_bytes = 0
        self._reading = False
        self._closing: KvError | bool | None = False
        self._closed = False  # for the member

    # The member's side

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return self._metadata

    @property
    def peer(self) -> str:
        return "sim"

    @property
    def queued_bytes(self) -> int:
        return self._queued_bytes

    def send(self, messages: list[bytes]) -> None:
        if self._closed or self._closing is not False:
            return
        self._queued += messages
        self._queued_bytes += sum(map(len, messages))
        self._read_later()

    def close(self, error: KvError | None = None) -> None:
        if self._closing is False:
            self._closing = error
            self._read_later()

    def attach(self, handler: StreamHandler) -> None:
        self._handler = handler
        if self._closed:
            handler.closed()
        elif self._early:
            early, self._early = self._early, []
            handler.received(early)

    def _read_later(self) -> None:
        if not self._reading:
            self._reading = True
            self._link.to_client(self._read, reliable=True)

    # The client's side

    def _read(self) -> None:
        """One message, then a pause of the reader."""
        loop = self._link.world.loop
        self._reading = False
        if self.ended.done():
            return
        if self._queued:
            count = 1 if self.read_delay else len(self._queued)
            messages, self._queued = self._queued[:count], self._queued[count:]
            self._queued_bytes -= sum(map(len, messages))
            self._receive(messages)
        if self._queued:
            self._reading = True
            loop.at(loop.now + self.read_delay, self._read)
        elif self._closing is not False:
            self._end(self._closing)  # type: ignore[arg-type]
        elif self._handler is not None and self._link.process.alive:
            self._link.process.call_soon(self._drained)

    def _drained(self) -> None:
        if not self._closed and self._handler is not None:
            self._handler.drained()

    def write(self, message: bytes) -> None:
        if not self.ended.done():
            self._link.to_member(self._written, message, reliable=True)

    def _written(self, message: bytes) -> None:
        if self._link.process.alive and not self._closed:
            self._link.process.call_soon(self._received, message)

    def _received(self, message: bytes) -> None:
        if self._closed:
            return
        if self._handler is None:
            self._early.append(message)
        else:
            self._handler.received([message])

    def cancel(self) -> None:
        """By the client."""
        self._end(None)

    def break_off(self) -> None:
        loop = self._link.world.loop
        loop.at(loop.now + int(self._link.world.options.client_delay), self._end, RESET, context=loop.root.context)

    def _end(self, error: KvError | None) -> None:
        self._link.streams.pop(self, None)
        if not self.ended.done():
            self.ended.set_result(error)
        if not self._closed and self._link.process.alive:
            self._link.process.call_soon(self._close_handler)

    def _close_handler(self) -> None:
        if not self._closed:
            self._closed = True
            if self._handler is not None:
                self._handler.closed()


@final
class SimRpc(RpcServer):
    """The front of one life of a member."""

    def __init__(self, world: "World") -> None:
        self.factories: dict[str, StreamHandlerFactory] = {}
        self.local = LocalMethods()  # nobody locks here
        self._world = world
        self._calls: dict[str, CallHandler] = {}
        self._methods: dict[str, Any] = {}  # of generated servicers: grpc's RpcMethodHandler
        self._tasks: dict[asyncio.Task[None], None] = {}

    def add_calls(self, method: str, handler: CallHandler) -> None:
        self._calls[method] = handler

    def add_stream(self, method: str, factory: StreamHandlerFactory) -> None:
        self.factories[method] = factory

    def add_servicer(self, add_to_server: Callable[[Any, Any], None], servicer: object) -> None:
        add_to_server(servicer, self)

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Generated code registers the same methods by name below."""

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Any]) -> None:
        for name, method in methods.items():
            self._methods[f"/{service}/{name}"] = method

    def handle(self, method: str, calls: list[Call]) -> None:
        if method in self._calls:
            self._calls[method](calls)
            return
        for call in calls:
            task = self._world.loop.create_task(self._serve(self._methods[method], call))
            self._tasks[task] = None
            task.add_done_callback(self._tasks.pop)

    async def _serve(self, method: Any, call: Call) -> None:
        try:
            request = method.request_deserializer(call.request)
            if method.response_streaming:
                parts = [method.response_serializer(one) async for one in method.unary_stream(request, None)]
                # Each part with its length: the client takes them apart again.
                call.reply(b"".join([len(part).to_bytes(4, "big") + part for part in parts]))
            else:
                response = await method.unary_unary(request, None)
                call.reply(method.response_serializer(response))
        except KvError as error:
            call.fail(error.with_traceback(None))

    async def start(self, urls: list[str]) -> list[str]:
        return urls

    async def stop(self, grace: float) -> None:
        pass
