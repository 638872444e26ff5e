"""One member without raft: a real store and applier, every service, a real socket."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kvstore.auth.settings import AuthSettings
from kvstore.errors import TIMEOUT_CONNECTION_LOST, KvError
from kvstore.mvcc.compaction import Compactor
from kvstore.mvcc.events import RevisionEvents
from kvstore.mvcc.store import MvccStore
from kvstore.mvcc.watch import WatchHub, WatchLimits
from kvstore.pb import rpc_pb2 as pb
from kvstore.rpc import make_server
from kvstore.server.alarms import Alarms
from kvstore.server.auth import Auth
from kvstore.server.defragment import Defragmenter
from kvstore.server.leader_calls import LeaderCalls, Method
from kvstore.server.lease import Leases
from kvstore.server.proposal import Proposal
from kvstore.server.quota import Quota
from kvstore.server.versions import ClusterVersions
from kvstore.services import register
from kvstore.state.applier import AppliedResult, Applier, Result
from kvstore.state.cluster import Member
from kvstore.state.command import Op, encode_batch, encode_request
from tests.kvstore.state.support import Entry

AUTH = AuthSettings(bcrypt_cost=4)


class LocalCalls(LeaderCalls):
    """To a leader that is this member, or not there."""

    async def ask(self, member: int, method: str, request: bytes, timeout: float) -> bytes:
        raise TIMEOUT_CONNECTION_LOST.fresh()

    async def close(self) -> None:
        pass


class FakeServer:
    """KvServer as services see it. Proposals are applied in the next tick, all that wait as one entry."""

    member_id, cluster_id, raft_term = 0xA1, 0xC1, 5

    def __init__(
        self,
        path: Path,
        election_timeout: int = 1000,
        progress_seconds: float = 600.0,
        auth: AuthSettings = AUTH,
        quota_backend_bytes: int = 0,
    ) -> None:
        self.config: Any = SimpleNamespace(
            max_txn_ops=128,
            election_timeout=election_timeout,
            heartbeat_interval=election_timeout // 10,
            request_timeout=5.0,
            lease_checkpoint=False,
            enable_grpc_reflection=False,
            quota_backend_bytes=quota_backend_bytes,
            max_request_bytes=1536 * 1024,
        )
        self.store = MvccStore.open(path)
        self.hub = WatchHub(self.store, WatchLimits(progress_seconds=progress_seconds), self.header)
        self.compactor = Compactor(self.store)
        self.leader_id = self.member_id
        self.read_error: KvError | None = None
        self.write_error: KvError | None = None
        self.barriers = 0
        self.entries = 0
        self.moved_to: list[int] = []
        self.proposed: list[Proposal] = []
        self.clock = 1000.0  # for leases only
        self.leader_methods: dict[str, Method] = {}
        self.leader_calls: LeaderCalls = LocalCalls(self)
        self.leases = Leases(self)
        rows = self.store.engine.batch()
        rows.put(b"cversion", b"3.6.0")
        self.store.write(rows)
        self.versions = ClusterVersions(self)  # type: ignore[arg-type]
        self.alarms = Alarms(self)  # type: ignore[arg-type]
        self.quota = Quota(self)  # type: ignore[arg-type]
        self.defragmenter = Defragmenter(self)  # type: ignore[arg-type]
        self.leases.role_changed(True, self.raft_term)
        self.auth = Auth(self, auth)
        self._applier = Applier(
            self.store, self.member_id, 1, self, lease_sink=self.leases.changed, token_sink=self.auth.changed
        )
        self._waiting: list[Proposal] = []
        self._asked: dict[int, Proposal] = {}
        self._sequence = 0
        self._applied = asyncio.Event()
        self.node = self
        self._applying: asyncio.Task[None] | None = None
        self.cluster = SimpleNamespace(
            members=lambda: [Member(id=self.member_id, peer_urls=("http://p:1",), name="m1", client_urls=(self.url,))]
        )
        self.url = "http://c:1"

    is_learner = False

    @property
    def has_leader(self) -> bool:
        return self.leader_id != 0

    def now(self) -> float:
        return self.clock

    def check_peer(self, peer: object) -> str | None:
        return None

    def fail(self, error: BaseException) -> None:
        raise error

    def status(self) -> Any:
        return SimpleNamespace(commit=self.store.applied_index, term=self.raft_term)

    def header_message(self, revision: int) -> pb.ResponseHeader:
        return pb.ResponseHeader(
            cluster_id=self.cluster_id, member_id=self.member_id, revision=revision, raft_term=self.raft_term
        )

    def header(self, revision: int) -> bytes:
        return pb.PutResponse(header=self.header_message(revision)).SerializeToString()

    def propose(self, proposals: list[Proposal]) -> None:
        self.proposed += proposals
        for proposal in proposals:
            if self.write_error is not None:
                proposal.done(self.write_error)
            else:
                self._waiting.append(proposal)
        if self._waiting and (self._applying is None or self._applying.done()):
            self._applying = asyncio.create_task(self._apply())

    def wall_clock(self) -> int:
        return int(self.clock * 1e9)

    async def wait_applied(self, index: int) -> None:
        while self.store.applied_index < index:
            self._applied.clear()
            await self._applied.wait()

    async def propose_one(
        self, op: Op, raw: bytes, user: str = "", auth_revision: int = 0, request_id: str = ""
    ) -> AppliedResult:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.propose([Proposal(op, raw, future.set_result, user, auth_revision, request_id)])
        result = await future
        if isinstance(result, KvError):
            raise result
        return result

    async def _apply(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            wrapped = []
            for proposal in batch:
                self._sequence += 1
                self._asked[self._sequence] = proposal
                wrapped.append(
                    encode_request(
                        proposal.op,
                        proposal.raw,
                        self.member_id,
                        1,
                        self._sequence,
                        proposal.user,
                        proposal.auth_revision,
                        proposal.request_id,
                    )
                )
            self.entries += 1
            index = self.store.applied_index + 1
            await self._applier.apply([Entry(index, encode_batch(1_000_000_000 + index, wrapped), self.raft_term)])
            if self.compactor.pending:
                await self.compactor.run()

    def when_linearizable(self, done: Callable[[KvError | None], None], reads: int = 1) -> None:
        self.barriers += 1
        asyncio.get_running_loop().call_soon(done, self.read_error)

    async def linearizable(self) -> None:
        self.barriers += 1
        if self.read_error is not None:
            raise self.read_error

    async def move_leader(self, to: int) -> None:
        self.moved_to.append(to)

    def members(self) -> None:
        self.alarms.refresh()
        self.versions.refresh()

    def events(self, batch: list[RevisionEvents]) -> None:
        self.hub.notify(batch)

    def results(self, results: list[tuple[int, Result]]) -> None:
        for sequence, result in results:
            self._asked.pop(sequence).done(result)

    def applied(self, index: int, term: int) -> None:
        self.quota.applied()
        self._applied.set()


class RunningMember:
    """`async with RunningMember(path) as member`: member.server, member.url."""

    def __init__(self, path: Path, front: str | None = None, **options: Any) -> None:
        self.server = FakeServer(path, **options)
        self.url = ""
        self._front = front

    async def __aenter__(self) -> "RunningMember":
        self._rpc = make_server(front=self._front)
        self.local = self._rpc.local
        self._services = register(self._rpc, self.server)  # type: ignore[arg-type]
        self._services.start()
        await self.server.leases.load()
        self._tasks = [
            asyncio.create_task(work) for work in (self.server.leases.run_keep_alives(), self.server.leases.run_time())
        ]
        [self.url] = await self._rpc.start(["http://127.0.0.1:0"])
        self.server.url = self.url
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._rpc.stop(0)
        await self._services.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.server.leases.stop()
        await self.server.auth.stop()
        self.server.store.close()
