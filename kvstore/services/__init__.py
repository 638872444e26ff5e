"""One file per gRPC service; each handler is check, call, header.

Generated base classes stand in for services of later versions: the front answers UNIMPLEMENTED for them.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, final

from kvstore.auth.methods import METHODS
from kvstore.errors import NOT_SUPPORTED_FOR_LEARNER, KvError

if TYPE_CHECKING:
    from kvstore.rpc.base import RpcServer
    from kvstore.server.server import KvServer
    from kvstore.services.kv import KvService
    from kvstore.services.lease import LeaseService
    from kvstore.services.waiters import Waiters
    from kvstore.services.watch import WatchService


@final
class Services:
    """What `register` made: the services with tasks of their own."""

    def __init__(self, kv: "KvService", watch: "WatchService", lease: "LeaseService", waiters: "Waiters") -> None:
        self._waiters = waiters
        self._kv = kv
        self._watch = watch
        self._lease = lease

    def start(self) -> None:
        self._watch.start()
        self._lease.start()

    async def stop(self) -> None:
        """Call after the front has stopped."""
        await self._waiters.stop()
        await self._watch.stop()
        await self._lease.stop()
        await self._kv.stop()


def register(rpc: "RpcServer", server: "KvServer") -> Services:
    """Add every service to a front that has not started."""
    from kvstore.pb import history_pb2_grpc, rpc_pb2_grpc, v3election_pb2_grpc, v3lock_pb2_grpc
    from kvstore.services import health
    from kvstore.services.auth import AuthService
    from kvstore.services.cluster import ClusterService
    from kvstore.services.election import ElectionService
    from kvstore.services.history import HistoryService
    from kvstore.services.kv import KvService
    from kvstore.services.lease import LeaseService
    from kvstore.services.lock import LockService
    from kvstore.services.maintenance import MaintenanceService
    from kvstore.services.waiters import Waiters
    from kvstore.services.watch import WatchService

    rpc.refusal = partial(_refusal, server)
    rpc.is_leaderless = lambda: not server.has_leader
    rpc.declares = METHODS.__contains__
    rpc.guard = server.auth
    kv = KvService(server)
    kv.register(rpc)
    watch = WatchService(server)
    watch.register(rpc)
    lease = LeaseService(server)
    lease.register(rpc)
    rpc.add_servicer(rpc_pb2_grpc.add_ClusterServicer_to_server, _make(ClusterService, server))
    rpc.add_servicer(rpc_pb2_grpc.add_MaintenanceServicer_to_server, _make(MaintenanceService, server))
    rpc.add_servicer(history_pb2_grpc.add_HistoryServicer_to_server, _make(HistoryService, server))
    rpc.add_servicer(rpc_pb2_grpc.add_AuthServicer_to_server, _make(AuthService, server))
    waiters = Waiters()
    rpc.add_servicer(v3lock_pb2_grpc.add_LockServicer_to_server, _make(LockService, rpc.local, waiters))
    rpc.add_servicer(v3election_pb2_grpc.add_ElectionServicer_to_server, _make(ElectionService, rpc.local, waiters))
    health.register(rpc)
    if server.config.enable_grpc_reflection:
        from kvstore.services import reflection

        reflection.register(rpc)
    return Services(kv, watch, lease, waiters)


# What a learner answers: what may be stale, and what is about itself. Range looks at the request too.
LEARNER_METHODS = frozenset(
    ("/etcdserverpb.KV/Range", "/etcdserverpb.Maintenance/Status", "/etcdserverpb.Maintenance/Snapshot")
)


def _refusal(server: "KvServer", method: str) -> KvError | None:
    return NOT_SUPPORTED_FOR_LEARNER if server.is_learner and method not in LEARNER_METHODS else None


def _make(servicer: Any, *arguments: object) -> Any:
    """For type checkers generated bases are abstract; here a method that is not overridden is UNIMPLEMENTED."""
    return servicer(*arguments)
