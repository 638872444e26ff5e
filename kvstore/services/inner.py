"""The member's own services, called in process for somebody whose call this member is answering.

Lock and Election are recipes on keys, leases and watches. They do here what a client would do over the wire: their
inner requests are `Call`s and `Stream`s of the ordinary services, made in the name of the outer call. So the checks,
limits, barriers and permissions of a plain put or watch are theirs too, and no second way leads to the store.

    Lock(request, context) --> Inner.of(context) --> InnerClient.txn    --> InnerCall   --> KvService.txn([call])
                                                     InnerClient.watch  --> InnerStream --> WatchService.open(stream)

Errors leave as etcd's in-process client gives them: the text stays, the code becomes Unknown.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, final

from kvstore.errors import COMPACTED, Code, KvError
from kvstore.pb.rpc_pb2 import (
    DeleteRangeRequest,
    DeleteRangeResponse,
    LeaseGrantRequest,
    LeaseGrantResponse,
    RangeRequest,
    RangeResponse,
    TxnRequest,
    TxnResponse,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
)
from kvstore.rpc.base import Call, CallHandler, Stream

if TYPE_CHECKING:
    from kvstore.rpc.base import StreamHandler
    from kvstore.services.kv import KvService
    from kvstore.services.lease import LeaseService
    from kvstore.services.watch import WatchService

LEADER_WANTED = "hasleader"  # asks for an end of the outer call's stream, which an inner one is not


def unknown(error: KvError) -> KvError:
    """As etcd's recipes tell it: Go's client errors carry no gRPC status."""
    return KvError(Code.UNKNOWN, error.message)


@final
class Caller:
    """Who asked, as the inner calls tell it: what came with the outer call beside its message."""

    def __init__(self, context: Any) -> None:
        """context: a ServicerContext of either front."""
        pairs = {str(key).lower(): value for key, value in context.invocation_metadata() or ()}
        pairs.pop(LEADER_WANTED, None)
        self.metadata: Mapping[str, str | bytes] = pairs
        self.peer: str = context.peer()


@final
class InnerCall(Call):
    """One unary request to a service of this member."""

    def __init__(self, request: bytes, caller: Caller) -> None:
        self.request = request
        self._caller = caller
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return self._caller.metadata

    def text(self, name: str) -> str:
        value = self._caller.metadata.get(name, "")
        return value if isinstance(value, str) else ""

    @property
    def peer(self) -> str:
        return self._caller.peer

    @property
    def time_remaining(self) -> float | None:
        return None  # the outer call's end cancels whoever waits here

    @property
    def cancelled(self) -> bool:
        return self.answer.cancelled()

    def reply(self, response: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result(response)

    def fail(self, error: KvError) -> None:
        if not self.answer.done():
            self.answer.set_exception(unknown(error))


@final
class InnerStream(Stream):
    """One watch stream of this member. What waits to be read is counted, so the hub treats a slow reader as any."""

    def __init__(self, caller: Caller, open_: "Callable[[Stream], StreamHandler]") -> None:
        self._caller = caller
        self._messages: deque[bytes] = deque()
        self._queued_bytes = 0
        self._arrived = asyncio.Event()
        self._error: KvError | None = None
        self._is_closed = False
        self._handler = open_(self)

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return self._caller.metadata

    @property
    def peer(self) -> str:
        return self._caller.peer

    @property
    def queued_bytes(self) -> int:
        return self._queued_bytes

    def send(self, messages: list[bytes]) -> None:
        self._messages.extend(messages)
        self._queued_bytes += sum(map(len, messages))
        self._arrived.set()

    def close(self, error: KvError | None = None) -> None:
        self._error = error
        self._is_closed = True
        self._arrived.set()

    def ask(self, request: WatchRequest) -> None:
        self._handler.received([request.SerializeToString()])

    async def responses(self) -> AsyncIterator[WatchResponse]:
        """Until the server ends it. Raises KvError."""
        while True:
            while self._messages:
                message = self._messages.popleft()
                self._queued_bytes -= len(message)
                if not self._messages:
                    self._handler.drained()
                yield WatchResponse.FromString(message)
            if self._is_closed:
                if self._error is not None:
                    raise unknown(self._error)
                return
            self._arrived.clear()
            await self._arrived.wait()

    def leave(self) -> None:
        """Nobody reads it any more."""
        self._handler.closed()


@final
class Inner:
    """Makes an InnerClient for each call."""

    def __init__(self, kv: "KvService", lease: "LeaseService", watch: "WatchService") -> None:
        self.kv = kv
        self.lease = lease
        self.watch = watch

    def of(self, context: Any) -> "InnerClient":
        return InnerClient(self, Caller(context))


@final
class InnerClient:
    """Requests in the name of one caller. All raise KvError with code Unknown."""

    def __init__(self, services: Inner, caller: Caller) -> None:
        self._services = services
        self._caller = caller  # the one place where an inner request gets its identity

    async def txn(self, request: TxnRequest) -> TxnResponse:
        return TxnResponse.FromString(await self._call(self._services.kv.txn, request))

    async def range(self, request: RangeRequest) -> RangeResponse:
        return RangeResponse.FromString(await self._call(self._services.kv.range, request))

    async def delete_range(self, request: DeleteRangeRequest) -> DeleteRangeResponse:
        return DeleteRangeResponse.FromString(await self._call(self._services.kv.delete_range, request))

    async def lease_grant(self, request: LeaseGrantRequest) -> LeaseGrantResponse:
        return LeaseGrantResponse.FromString(await self._call(self._services.lease.grant, request))

    async def _call(self, handler: CallHandler, request: Any) -> bytes:
        call = InnerCall(request.SerializeToString(), self._caller)
        handler([call])
        return await call.answer

    @asynccontextmanager
    async def watch(self, request: WatchCreateRequest) -> AsyncIterator[AsyncIterator[WatchResponse]]:
        """The responses with events. They end when what comes next is compacted: read again; other ends raise."""
        stream = InnerStream(self._caller, self._services.watch.open)
        try:
            stream.ask(WatchRequest(create_request=request))
            yield _events(stream)
        finally:
            stream.leave()


async def _events(stream: InnerStream) -> AsyncIterator[WatchResponse]:
    async for response in stream.responses():
        if response.canceled:
            if response.compact_revision or response.cancel_reason == COMPACTED.message:
                return
            raise KvError(Code.UNKNOWN, response.cancel_reason or "etcdserver: watch canceled")
        if response.events:
            yield response
