"""The member's own services, called for somebody whose call this member is answering.

Lock and Election are recipes on keys, leases and watches. They do here what a client would do over the wire, in the
name of the outer call, by the ordinary methods of the front (kvstore/rpc/local.py). So the checks, limits, barriers and
permissions of a plain put or watch are theirs too, and no second way leads to the store.

Errors leave as etcd's in-process client gives them: the text stays, the code becomes Unknown.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, final

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
from kvstore.rpc.generated import ContextCaller
from kvstore.rpc.local import Origin

if TYPE_CHECKING:
    from kvstore.rpc.local import LocalMethods

LEADER_WANTED: Final = "hasleader"  # asks for an end of the outer call's stream, which an inner one is not


def unknown(error: KvError) -> KvError:
    """As etcd's recipes tell it: Go's client errors carry no gRPC status."""
    return KvError(Code.UNKNOWN, error.message)


def origin_of(context: Any) -> Origin:
    """Who asked, as the inner calls tell it. context: a ServicerContext of any front.

    Without the outer call's deadline: its end cancels whoever waits here, and what is tidied up then is not late.
    """
    metadata = {str(key).lower(): value for key, value in context.invocation_metadata() or ()}
    metadata.pop(LEADER_WANTED, None)
    return Origin(metadata, context.peer(), common_name=ContextCaller(context).common_name)


@final
class InnerClient:
    """Requests in the name of one caller. All raise KvError with code Unknown."""

    def __init__(self, methods: "LocalMethods", context: Any) -> None:
        self._methods = methods
        self._origin = origin_of(context)  # the one place where inner requests get their identity

    async def txn(self, request: TxnRequest) -> TxnResponse:
        return TxnResponse.FromString(await self._call("/etcdserverpb.KV/Txn", request))

    async def range(self, request: RangeRequest) -> RangeResponse:
        return RangeResponse.FromString(await self._call("/etcdserverpb.KV/Range", request))

    async def delete_range(self, request: DeleteRangeRequest) -> DeleteRangeResponse:
        return DeleteRangeResponse.FromString(await self._call("/etcdserverpb.KV/DeleteRange", request))

    async def lease_grant(self, request: LeaseGrantRequest) -> LeaseGrantResponse:
        return LeaseGrantResponse.FromString(await self._call("/etcdserverpb.Lease/LeaseGrant", request))

    async def _call(self, path: str, request: Any) -> bytes:
        try:
            return await self._methods.call(path, request.SerializeToString(), self._origin)
        except KvError as error:
            raise unknown(error) from None

    async def watch(self, request: WatchCreateRequest) -> AsyncGenerator[WatchResponse, None]:
        """The responses with events. It ends when what comes next is compacted: read again. Close it."""
        create = WatchRequest(create_request=request).SerializeToString()
        try:
            async with aclosing(
                self._methods.stream("/etcdserverpb.Watch/Watch", _once(create), self._origin)
            ) as answers:
                async for answer in answers:
                    response = WatchResponse.FromString(answer)
                    if response.compact_revision or response.cancel_reason == COMPACTED.message:
                        return
                    if response.canceled:
                        raise KvError(Code.UNKNOWN, response.cancel_reason or "etcdserver: watch canceled")
                    if response.events:
                        yield response
        except KvError as error:
            raise unknown(error) from None


async def _once(request: bytes) -> AsyncIterator[bytes]:
    yield request
