"""etcdserverpb.Cluster: who the members are. Changing that is not served by this version."""

from typing import TYPE_CHECKING, Any

from kvstore.pb.rpc_pb2 import MemberListRequest, MemberListResponse
from kvstore.pb.rpc_pb2_grpc import ClusterServicer

if TYPE_CHECKING:
    from kvstore.server.server import KvServer


class ClusterService(ClusterServicer):
    def __init__(self, server: "KvServer") -> None:
        self._server = server

    async def MemberList(self, request: MemberListRequest, context: Any) -> MemberListResponse:
        if request.linearizable:
            await self._server.linearizable()
        return MemberListResponse(
            header=self._server.header_message(0),  # headers of this service carry no revision, as etcd's
            members=[member.message() for member in self._server.cluster.members()],
        )
