"""The RPC seam: what services see of a gRPC front, so that one front can take another's place.

Hot services (KV, Watch, peers) work on bytes and on lists: all unary requests of one method that a tick
of the loop brought arrive as one list of `Call`s, and a `Call` is answered at any later time by a plain
method call, so no request needs an asyncio task of its own. All other services are written once against
the surface of the code that grpcio-tools generates (`async def Status(self, request, context)`).

Identity (de)serialisers are used for hot methods: `Call.request` is what came off the wire.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, final

import structlog

from kvstore.errors import NO_LEADER, PERMISSION_DENIED, Code, KvError

if TYPE_CHECKING:
    from kvstore.measure import Histogram
    from kvstore.rpc.counts import Counts, MethodCounts
    from kvstore.rpc.local import LocalMethods

log = structlog.get_logger(__name__)

# What a client sees of a bug of ours; the traceback is in the log.
UNEXPECTED: Final = KvError(Code.INTERNAL, "etcdserver: internal error; see the member's log")


class Caller(Protocol):
    """What tells who somebody is."""

    def text(self, name: str) -> str: ...
    @property
    def common_name(self) -> str: ...


class Call(ABC):
    """One unary request in flight. Exactly one of `reply` and `fail` has an effect, and only the first."""

    request: bytes

    @property
    @abstractmethod
    def metadata(self) -> Mapping[str, str | bytes]:
        """What the client sent beside the message; keys in lower case."""

    @abstractmethod
    def text(self, name: str) -> str:
        """One value of the metadata, not of a -bin name; "" when it is not there. Cheaper than `metadata`."""

    @property
    @abstractmethod
    def peer(self) -> str: ...

    @property
    def common_name(self) -> str:
        """Of the client's certificate, where the port has verified one; else ""."""
        return ""

    @property
    @abstractmethod
    def time_remaining(self) -> float | None:
        """Seconds until the client's deadline; None without one."""

    @property
    @abstractmethod
    def cancelled(self) -> bool:
        """The client is gone: an answer would reach nobody."""

    @abstractmethod
    def reply(self, response: bytes) -> None: ...

    @abstractmethod
    def fail(self, error: KvError) -> None: ...


@final
class MeasuredCall(Call):
    """One whose time until the answer is measured."""

    __slots__ = ("_began", "_call", "_seconds", "request")

    def __init__(self, call: Call, seconds: "Histogram") -> None:
        self.request = call.request
        self._call = call
        self._seconds: Histogram | None = seconds  # None: answered
        self._began = seconds.now()

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return self._call.metadata

    def text(self, name: str) -> str:
        return self._call.text(name)

    @property
    def peer(self) -> str:
        return self._call.peer

    @property
    def common_name(self) -> str:
        return self._call.common_name

    @property
    def time_remaining(self) -> float | None:
        return self._call.time_remaining

    @property
    def cancelled(self) -> bool:
        return self._call.cancelled

    def reply(self, response: bytes) -> None:
        self._answered()
        self._call.reply(response)

    def fail(self, error: KvError) -> None:
        self._answered()
        self._call.fail(error)

    def _answered(self) -> None:
        seconds, self._seconds = self._seconds, None
        if seconds is not None:
            seconds.observe(seconds.now() - self._began)


CallHandler = Callable[[list[Call]], None]


def deliver(calls: list[Call], handler: CallHandler, gate: "Gate", counts: "MethodCounts") -> None:
    """One method's calls of a tick to its handler, on either front."""
    counts.started += len(calls)
    if counts.seconds is not None:
        calls = [MeasuredCall(call, counts.seconds) for call in calls]
    refused = gate.refusal()
    if refused is not None:
        for call in calls:
            call.fail(refused)
        return
    if gate.server.is_leaderless():
        calls = [call for call in calls if not _is_refused_for_it(call)]
    guard = gate.server.guard
    if guard is not None and guard.is_on:
        calls = guard.admit(gate.method, calls, handler)
    handle(calls, handler)


def wants_leader(caller: "Caller") -> bool:
    """It would rather ask another member than wait at one that has no leader."""
    return caller.text("hasleader") == "true"


def _is_refused_for_it(call: Call) -> bool:
    wants = wants_leader(call)
    if wants:
        call.fail(NO_LEADER)
    return wants


def handle(calls: list[Call], handler: CallHandler) -> None:
    try:
        handler(calls)
    except Exception:  # top of the handler: its bug must not leave the callers waiting
        log.exception("call handler failed")
        for call in calls:
            call.fail(UNEXPECTED)


class Stream(ABC):
    """One bidirectional stream of messages, as a service sees it."""

    @property
    @abstractmethod
    def metadata(self) -> Mapping[str, str | bytes]: ...

    def text(self, name: str) -> str:
        """As Call's."""
        value = self.metadata.get(name, "")
        return value if isinstance(value, str) else ""

    @property
    def common_name(self) -> str:
        """As Call's."""
        return ""

    @property
    @abstractmethod
    def peer(self) -> str: ...

    @property
    @abstractmethod
    def queued_bytes(self) -> int:
        """Given to `send` and not yet taken by the transport: the measure of a slow reader."""

    @abstractmethod
    def send(self, messages: list[bytes]) -> None:
        """Queue messages in order. Never blocks; the caller watches `queued_bytes`."""

    @abstractmethod
    def close(self, error: KvError | None = None) -> None:
        """End the stream after what is queued; with an error, its status is the error's."""


class StreamHandler(Protocol):
    """What a service makes for each stream."""

    def received(self, messages: list[bytes]) -> None:
        """Messages that one read brought, in order."""

    def drained(self) -> None:
        """`queued_bytes` has come down to 0 after it was above."""

    def half_closed(self) -> None:
        """The client will send no more; it may still read."""

    def closed(self) -> None:
        """The stream is gone, whatever the reason. Nothing is called after this."""


StreamHandlerFactory = Callable[[Stream], StreamHandler]


class Guard(Protocol):
    """Decides who may call what. Asked while it is on, for the methods of one server."""

    @property
    def is_on(self) -> bool: ...

    def admit(self, method: str, calls: list[Call], handler: CallHandler) -> list[Call]:
        """Those that may go on now. The others it fails, or hands to the handler later."""

    async def check(self, method: str, caller: Caller, request: bytes) -> None:
        """The same for a call of generated code. Raises KvError."""

    def open(self, stream: Stream, factory: StreamHandlerFactory) -> StreamHandler: ...


class Gate:
    """The way in to one method."""

    __slots__ = ("_is_declared", "method", "server")

    def __init__(self, server: "RpcServer", method: str) -> None:
        self.server = server
        self.method = method
        # Nobody has said who may call it: nobody may (RELIABILITY 4b).
        self._is_declared = server.declares(method)

    def refusal(self) -> KvError | None:
        return self.server.refusal(self.method) if self._is_declared else PERMISSION_DENIED

    def opening(self, factory: StreamHandlerFactory) -> StreamHandlerFactory:
        """The factory behind the guard."""

        def open_(stream: Stream) -> StreamHandler:
            guard = self.server.guard
            return guard.open(stream, factory) if guard is not None and guard.is_on else factory(stream)

        return open_


class Http1(Protocol):
    """Takes connections whose first bytes are not HTTP/2's."""

    @property
    def app(self) -> Any:
        """The ASGI application behind it."""

    def take(self, transport: asyncio.Transport, received: bytes) -> None:
        """The connection is yours, and this is what has come on it."""

    async def stop(self, grace: float) -> None: ...


class RpcServer(ABC):
    """A gRPC server of some front. Handlers are added before `start`."""

    # What is served, for callers inside of this process.
    local: "LocalMethods"

    # What has been served, by clients of the network and of this process.
    counts: "Counts"

    # Asked for each list of calls, each stream and each call of generated code, by the method's full path: why it is
    # not served now.
    refusal: Callable[[str], KvError | None] = staticmethod(lambda method: None)

    # Whether callers that want a leader are refused now: asked like `refusal`, except for hot streams.
    is_leaderless: Callable[[], bool] = staticmethod(lambda: False)

    # Whether it is known who may call a method. Set before any is added.
    declares: Callable[[str], bool] = staticmethod(lambda method: True)

    # Who decides about callers; None: nobody is asked who it is. Set before `start`.
    guard: Guard | None = None

    # Who serves HTTP/1.1 on the same ports, where the front can tell it from HTTP/2. Set before `start`.
    http1: "Http1 | None" = None

    @abstractmethod
    def add_calls(self, method: str, handler: CallHandler) -> None:
        """Serve a hot unary method, named by its full path: "/etcdserverpb.KV/Put"."""

    @abstractmethod
    def add_stream(self, method: str, factory: StreamHandlerFactory) -> None:
        """Serve a hot bidirectional method."""

    @abstractmethod
    def add_servicer(self, add_to_server: Callable[[Any, Any], None], servicer: object) -> None:
        """Serve generated code: `add_servicer(rpc_pb2_grpc.add_ClusterServicer_to_server, servicer)`."""

    @abstractmethod
    async def start(self, urls: list[str]) -> list[str]:
        """Listen on http:// URLs. Returns them with their real ports. Raises OSError when one is taken."""

    @abstractmethod
    async def stop(self, grace: float) -> None:
        """Take no new calls, end streams (STOPPED), give calls under way `grace` seconds."""
