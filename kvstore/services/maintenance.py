"""etcdserverpb.Maintenance: about this member, answered by it alone and without a quorum."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from kvstore.errors import NO_LEADER
from kvstore.measure import HASHES, HASHES_BY_REVISION
from kvstore.mvcc.hash import hash_kv
from kvstore.pb.rpc_pb2 import (
    AlarmRequest,
    AlarmResponse,
    DefragmentRequest,
    DefragmentResponse,
    DowngradeRequest,
    DowngradeResponse,
    HashKVRequest,
    HashKVResponse,
    HashRequest,
    HashResponse,
    MoveLeaderRequest,
    MoveLeaderResponse,
    ResponseHeader,
    SnapshotRequest,
    SnapshotResponse,
    StatusRequest,
    StatusResponse,
)
from kvstore.pb.rpc_pb2_grpc import MaintenanceServicer
from kvstore.server.alarms import text_of
from kvstore.snapshot.save import blobs
from kvstore.version import ETCD_VERSION, STORAGE_VERSION

if TYPE_CHECKING:
    from kvstore.server.server import KvServer


class MaintenanceService(MaintenanceServicer):
    def __init__(self, server: "KvServer") -> None:
        self._server = server

    def _header(self) -> ResponseHeader:
        return self._server.header_message(self._server.store.current_revision)

    async def Status(self, request: StatusRequest, context: Any) -> StatusResponse:
        server = self._server
        raft = server.status()
        total, in_use = server.store.size_bytes()
        leaderless = [] if server.has_leader else [NO_LEADER.message]
        return StatusResponse(
            header=self._header(),
            version=ETCD_VERSION,
            dbSize=total,
            leader=server.leader_id,
            raftIndex=raft.commit,
            raftTerm=raft.term,
            raftAppliedIndex=server.store.applied_index,
            errors=[*leaderless, *map(text_of, server.alarms.active)],
            dbSizeInUse=in_use,
            isLearner=server.is_learner,
            storageVersion=server.versions.cluster,
            downgradeInfo=server.versions.downgrade_info,
            dbSizeQuota=server.quota.flag,
        )

    async def HashKV(self, request: HashKVRequest, context: Any) -> HashKVResponse:
        with self._server.store.view() as view:
            with HASHES_BY_REVISION.time():
                value, compact_revision, revision = await hash_kv(view, request.revision)
            header = self._server.header_message(view.current_revision)
        return HashKVResponse(header=header, hash=value, compact_revision=compact_revision, hash_revision=revision)

    async def Hash(self, request: HashRequest, context: Any) -> HashResponse:
        """etcd hashes its file; what can be compared between members here is the keys."""
        with self._server.store.view() as view:
            with HASHES.time():
                value, _, _ = await hash_kv(view, 0)
            header = self._server.header_message(view.current_revision)
        return HashResponse(header=header, hash=value)

    async def Alarm(self, request: AlarmRequest, context: Any) -> AlarmResponse:
        response = await self._server.alarms.answer(request)
        response.header.CopyFrom(self._header())
        return response

    async def Defragment(self, request: DefragmentRequest, context: Any) -> DefragmentResponse:
        """As etcd's, the answer has no header."""
        await self._server.defragmenter.run()
        return DefragmentResponse()

    async def Downgrade(self, request: DowngradeRequest, context: Any) -> DowngradeResponse:
        response = await self._server.versions.downgrade(request)
        response.header.CopyFrom(self._header())
        return response

    async def MoveLeader(self, request: MoveLeaderRequest, context: Any) -> MoveLeaderResponse:
        await self._server.move_leader(request.targetID)
        return MoveLeaderResponse()

    async def Snapshot(self, request: SnapshotRequest, context: Any) -> AsyncIterator[SnapshotResponse]:
        async with self._server.snapshot_files.file() as file:
            async for blob, remaining in blobs(file):
                yield SnapshotResponse(
                    remaining_bytes=remaining, blob=blob, version=STORAGE_VERSION
                )  # as etcd, no header
