"""One file per gRPC service; each handler is check, call, header.

Generated base classes stand in for services of later versions: the front answers UNIMPLEMENTED for them.
"""

from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from kvstore.rpc.base import RpcServer
    from kvstore.server.server import KvServer
    from kvstore.services.kv import KvService
    from kvstore.services.watch import WatchService


@final
class Services:
    """What `register` made: the services with tasks of their own."""

    def __init__(self, kv: "KvService", watch: "WatchService") -> None:
        self._kv = kv
        self._watch = watch

    def start(self) -> None:
        self._watch.start()

    async def stop(self) -> None:
        """Call after the front has stopped."""
        await self._watch.stop()
        await self._kv.stop()


def register(rpc: "RpcServer", server: "KvServer") -> Services:
    """Add every service to a front that has not started."""
    from kvstore.pb import history_pb2_grpc, rpc_pb2_grpc, v3election_pb2_grpc, v3lock_pb2_grpc
    from kvstore.services.cluster import ClusterService
    from kvstore.services.history import HistoryService
    from kvstore.services.kv import KvService
    from kvstore.services.maintenance import MaintenanceService
    from kvstore.services.watch import WatchService

    kv = KvService(server)
    kv.register(rpc)
    watch = WatchService(server)
    watch.register(rpc)
    rpc.add_servicer(rpc_pb2_grpc.add_ClusterServicer_to_server, _make(ClusterService, server))
    rpc.add_servicer(rpc_pb2_grpc.add_MaintenanceServicer_to_server, _make(MaintenanceService, server))
    rpc.add_servicer(history_pb2_grpc.add_HistoryServicer_to_server, _make(HistoryService, server))
    rpc.add_servicer(rpc_pb2_grpc.add_LeaseServicer_to_server, _make(rpc_pb2_grpc.LeaseServicer))
    rpc.add_servicer(rpc_pb2_grpc.add_AuthServicer_to_server, _make(rpc_pb2_grpc.AuthServicer))
    rpc.add_servicer(v3lock_pb2_grpc.add_LockServicer_to_server, _make(v3lock_pb2_grpc.LockServicer))
    rpc.add_servicer(v3election_pb2_grpc.add_ElectionServicer_to_server, _make(v3election_pb2_grpc.ElectionServicer))
    return Services(kv, watch)


def _make(servicer: Any, *arguments: object) -> Any:
    """For type checkers generated bases are abstract; here a method that is not overridden is UNIMPLEMENTED."""
    return servicer(*arguments)
