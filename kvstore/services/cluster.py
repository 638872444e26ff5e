"""etcdserverpb.Cluster: who the members are, and changing it. Headers of this service carry no revision, as etcd's."""

from typing import TYPE_CHECKING, Any

from kvstore.errors import MEMBER_NOT_FOUND, KvError
from kvstore.pb.command_pb2 import MemberChange
from kvstore.pb.peer_pb2 import ChangeMembersResponse
from kvstore.pb.rpc_pb2 import (
    Member,
    MemberAddRequest,
    MemberAddResponse,
    MemberListRequest,
    MemberListResponse,
    MemberPromoteRequest,
    MemberPromoteResponse,
    MemberRemoveRequest,
    MemberRemoveResponse,
    MemberUpdateRequest,
    MemberUpdateResponse,
)
from kvstore.pb.rpc_pb2_grpc import ClusterServicer
from kvstore.server.membership import good_peer_urls
from kvstore.services.permissions import check, identify

if TYPE_CHECKING:
    from kvstore.server.server import KvServer


class ClusterService(ClusterServicer):
    def __init__(self, server: "KvServer") -> None:
        self._server = server

    async def MemberList(self, request: MemberListRequest, context: Any) -> MemberListResponse:
        if request.linearizable:
            await self._server.linearizable()
        return MemberListResponse(
            header=self._server.header_message(0),
            members=[member.message() for member in self._server.cluster.members()],
        )

    async def MemberAdd(self, request: MemberAddRequest, context: Any) -> MemberAddResponse:
        urls = good_peer_urls(request.peerURLs)
        await self._check(context)
        done = await self._change(MemberChange.ADD, Member(peerURLs=urls, isLearner=request.isLearner))
        return MemberAddResponse(header=self._server.header_message(0), member=done.member, members=done.members)

    async def MemberRemove(self, request: MemberRemoveRequest, context: Any) -> MemberRemoveResponse:
        await self._check(context)
        done = await self._change(MemberChange.REMOVE, Member(ID=request.ID))
        return MemberRemoveResponse(header=self._server.header_message(0), members=done.members)

    async def MemberUpdate(self, request: MemberUpdateRequest, context: Any) -> MemberUpdateResponse:
        await self._check(context)
        try:
            urls = good_peer_urls(request.peerURLs)
        except KvError:
            await self._server.linearizable()
            if request.ID not in {member.id for member in self._server.cluster.members()}:
                raise MEMBER_NOT_FOUND.fresh() from None  # etcd says this first
            raise
        done = await self._change(MemberChange.UPDATE, Member(ID=request.ID, peerURLs=urls))
        return MemberUpdateResponse(header=self._server.header_message(0), members=done.members)

    async def MemberPromote(self, request: MemberPromoteRequest, context: Any) -> MemberPromoteResponse:
        await self._check(context)
        done = await self._change(MemberChange.PROMOTE, Member(ID=request.ID))
        return MemberPromoteResponse(header=self._server.header_message(0), members=done.members)

    async def _check(self, context: Any) -> None:
        """A member that is behind must not let in somebody who was root when it stood there."""
        if self._server.auth.is_on:
            await self._server.linearizable()
            check(self._server.auth.table.refuse_root(identify(self._server, context)))

    async def _change(self, op: MemberChange.Op.ValueType, member: Member) -> ChangeMembersResponse:
        return await self._server.membership.change(MemberChange(op=op, member=member))
