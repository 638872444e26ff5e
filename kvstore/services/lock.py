"""v3lockpb.Lock: mutual exclusion for programs that have nothing but gRPC (etcd server/etcdserver/api/v3lock)."""

from typing import Any, Final, final

from kvstore.errors import Code, KvError
from kvstore.pb.rpc_pb2 import DeleteRangeRequest
from kvstore.pb.v3lock_pb2 import LockRequest, LockResponse, UnlockRequest, UnlockResponse
from kvstore.pb.v3lock_pb2_grpc import LockServicer
from kvstore.rpc.local import LocalMethods
from kvstore.services.inner import InnerClient
from kvstore.services.waiters import Queue, Waiters

SESSION_EXPIRED: Final = KvError(Code.UNKNOWN, "mutex: session is expired")


@final
class LockService(LockServicer):
    def __init__(self, methods: LocalMethods, waiters: Waiters) -> None:
        self._methods = methods
        self._waiters = waiters

    async def Lock(self, request: LockRequest, context: Any) -> LockResponse:
        """Returns when the caller has it, which may be never. Who has it already, by the same lease, gets it again."""
        queue = Queue(self._waiters, InnerClient(self._methods, context), request.name)
        with self._waiters.one_more():
            claim, joined = await queue.join(request.lease, b"")
            holder = joined.responses[1].response_range.kvs
            if not holder or holder[0].create_revision == claim.revision:
                return LockResponse(header=joined.header, key=claim.key)
            await queue.wait_first(claim)
            # The lease may have ended meanwhile: then nobody is left to wait for, and the lock is not ours.
            own = await claim.get()
        if not own.kvs:
            raise SESSION_EXPIRED.fresh()
        return LockResponse(header=own.header, key=claim.key)

    async def Unlock(self, request: UnlockRequest, context: Any) -> UnlockResponse:
        deleted = await InnerClient(self._methods, context).delete_range(DeleteRangeRequest(key=request.key))
        return UnlockResponse(header=deleted.header)
