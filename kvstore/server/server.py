"""KvServer: one member, as its services see it.

It joins the parts and is none of them: the raft node, the batcher in front of it, the applier behind it,
the read barrier, the store. Services call `propose`, `linearizable` and `header`, and read the store.

    propose -> Batcher -> Node -> (log, followers) -> Machine -> Applier -> events to the hub
                  ^                                                  |----> results to the batcher
                  +---------------------------------------------------
Background work: one coarse timer for all deadlines, the publication of this member's name and URLs through
the log, and the housekeeper, which flushes the store now and then and compacts the log behind it.

Failure is one road: whatever must end the process (disk, apply, a refusing peer) arrives in `wait_failed`.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, final

import structlog

from kvstore.config import ServerConfig
from kvstore.errors import (
    BAD_LEADER_TRANSFEREE,
    NOT_LEADER,
    TIMEOUT,
    TIMEOUT_CONNECTION_LOST,
    TIMEOUT_LEADER_FAIL,
    KvError,
)
from kvstore.mvcc.compaction import Compactor
from kvstore.mvcc.encoding import field, varint
from kvstore.mvcc.events import RevisionEvents
from kvstore.mvcc.watch import WatchHub, WatchLimits
from kvstore.pb import rpc_pb2
from kvstore.pb.command_pb2 import MemberPublish
from kvstore.server.batcher import Batcher
from kvstore.server.bootstrap import OpenMember
from kvstore.server.deadlines import SLOT_SECONDS
from kvstore.server.entry_clock import EntryClock
from kvstore.server.machine import Housekeeper, Machine
from kvstore.server.proposal import Proposal
from kvstore.server.reads import ReadBarrier
from kvstore.state.applier import AppliedResult, Applier, Result
from kvstore.state.cluster import OTHER_INSTANCE
from kvstore.state.command import Op
from raft.config import Config
from raft.errors import PeerRefused, Stopped
from raft.node import Node, NodeConfig, Status
from raft.transport.grpc import GrpcTransport, PeerIdentity
from raft.types import NO_NODE, Role

log = structlog.get_logger(__name__)

PUBLISH_RETRY_SECONDS: Final = 0.5
LOST_DATA: Final = (
    "this member has started from another data directory before: what it had acknowledged is lost, so it must stay "
    "out; put the old data directory back"
)


@final
class KvServer:
    """Made on the loop; `start`, then services may be registered, `stop` at the end."""

    def __init__(self, config: ServerConfig, member: OpenMember, transport: GrpcTransport) -> None:
        self.config = config
        self.member_id = member.identity.member_id
        self.cluster_id = member.identity.cluster_id
        self.identity = member.identity
        self.store = member.store
        self.cluster = member.cluster
        limits = WatchLimits(
            response_bytes_max=config.max_request_bytes, progress_seconds=config.watch_progress_notify_interval
        )
        self.hub = WatchHub(member.store, limits, self.header)
        self._names = {one.id: one.name for one in member.cluster.members()}  # membership does not change yet
        self.transport = transport
        self.on_leader_change: list[Callable[[], None]] = []  # called after `leader_id` has changed
        self._hard_commit = member.loaded.hard_state.commit

        boot = member.identity.boot
        clock = EntryClock(time.time_ns, time.monotonic_ns)
        self._batcher = Batcher(
            self.member_id,
            boot,
            request_bytes_max=config.max_request_bytes,
            timeout=config.request_timeout,
            term=lambda: self.node.status().term,
            unapplied=lambda: self.node.status().last_index - self.store.applied_index,
            stamp=lambda: clock.stamp(self.node.status().term, self.store.last_entry_time),
            timeout_error=self._timeout_error,
        )
        self.compactor = Compactor(member.store)
        self._housekeeper = Housekeeper(member.store, self.compactor, config.snapshot_count)
        self.node = Node(
            NodeConfig(
                core=Config(
                    node_id=self.member_id,
                    election_ticks=config.election_timeout // config.heartbeat_interval,
                    pre_vote=config.pre_vote,
                ),
                tick_seconds=config.heartbeat_interval / 1000,
                initial_election_tick_advance=config.initial_election_tick_advance,
                sync="thread" if config.sync == "thread" else "inline",
            ),
            member.storage,
            Machine(Applier(member.store, self.member_id, boot, self), self._housekeeper),
            transport,
            proposals=self._batcher,
            loaded=member.loaded,
        )
        self.node.on_change.append(self._changed)
        transport.check_peer = self.check_peer
        transport.on_refused = self.refused
        transport.set_peers({one.id: list(one.peer_urls) for one in member.cluster.members()})
        self._barrier = ReadBarrier(self.node, config.request_timeout, self._timeout_error)
        self._role = Role.FOLLOWER
        self._term = member.loaded.hard_state.term
        self._leader_id = NO_NODE
        self._leader_since = 0.0  # monotonic; when the leader known now became known
        self._connected: frozenset[int] = frozenset()
        self._refusals: set[str] = set()  # peers that refused us, by id
        self._beat: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._head = b"\x08" + varint(self.cluster_id) + b"\x10" + varint(self.member_id)
        self._header: tuple[int, int, bytes] = (0, 0, b"")
        self.published = asyncio.Event()

    # What services use

    @property
    def leader_id(self) -> int:
        """0 when none is known."""
        return self._leader_id

    @property
    def has_leader(self) -> bool:
        return self._leader_id != NO_NODE

    @property
    def raft_term(self) -> int:
        return self._term

    def status(self) -> Status:
        return self.node.status()

    def header(self, revision: int) -> bytes:
        """An answer's field 1, ready to be followed by its body."""
        cached_revision, cached_term, encoded = self._header
        if cached_revision != revision or cached_term != self._term or not encoded:
            encoded = field(b"\x0a", self._head + b"\x18" + varint(revision) + b"\x20" + varint(self._term))
            self._header = (revision, self._term, encoded)
        return encoded

    def header_message(self, revision: int) -> rpc_pb2.ResponseHeader:
        return rpc_pb2.ResponseHeader(
            cluster_id=self.cluster_id, member_id=self.member_id, revision=revision, raft_term=self._term
        )

    def propose(self, proposals: list[Proposal]) -> None:
        """Never raises: every `done` is called once, on the loop, maybe before this returns."""
        self._batcher.add(proposals, time.monotonic())
        self.node.wake()

    async def propose_one(
        self,
        op: Op,
        raw: bytes,
        user: str = "",
        auth_revision: int = 0,
        request_id: str = "",
        timeout: float | None = None,
    ) -> AppliedResult:
        """Raises KvError."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.propose([Proposal(op, raw, _Answer(answer), user, auth_revision, request_id, timeout)])
        result = await answer
        if isinstance(result, KvError):
            raise result
        return result

    def when_linearizable(self, done: Callable[[KvError | None], None]) -> None:
        """`done(None)` once the local state holds everything that was acknowledged before this call."""
        self._barrier.add(done, time.monotonic())

    async def linearizable(self) -> None:
        """The same for a task. Raises KvError."""
        answer: asyncio.Future[KvError | None] = asyncio.get_running_loop().create_future()
        self.when_linearizable(_Answer(answer))
        error = await answer
        if error is not None:
            raise error

    async def move_leader(self, to: int) -> None:
        """Hand leadership to member `to`. Raises KvError."""
        if self._leader_id != self.member_id:
            raise NOT_LEADER
        if to == self.member_id:
            return
        if to not in self._names:
            raise BAD_LEADER_TRANSFEREE
        if not await self.node.transfer_leadership(to):
            raise TIMEOUT

    # Life

    async def start(self) -> None:
        """Take part, and return once everything that was known to be committed is applied again."""
        await self.node.start()
        self._spawn(self._watch_node())
        self._spawn(self._barrier.run())
        self._spawn(self._housekeeper.run(self.node))
        self._spawn(self._housekeeper.run_compaction())
        self._on_beat()
        await self.node.wait_applied(self._hard_commit)
        self._spawn(self._publish())

    async def hand_over(self) -> None:
        """Let another member lead, if this one does and there is another that can be reached."""
        if self._leader_id == self.member_id and self.transport.connected():
            log.info("handing leadership over")
            if not await self.node.transfer_leadership():
                log.warning("no other member took over")

    async def stop(self) -> None:
        """Answer those who wait, end the node, make the state durable. The caller closes the store."""
        self._batcher.stop()
        self._barrier.stop()
        if self._beat is not None:
            self._beat.cancel()
        await self.node.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._failed.done():
            await self.store.flush()

    async def wait_failed(self) -> BaseException:
        """Why the process has to end."""
        return await asyncio.shield(self._failed)

    def fail(self, error: BaseException) -> None:
        """The process has to end. The first reason counts."""
        if not self._failed.done():
            self._failed.set_result(error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """No background task may end with an error in silence."""
        if not task.cancelled():
            error = task.exception()
            if error is not None and not isinstance(error, Stopped):
                self.fail(error)

    async def _watch_node(self) -> None:
        self.fail(await self.node.wait_failed())

    def _on_beat(self) -> None:
        now = time.monotonic()
        self._batcher.expire(now)
        self._barrier.expire(now)
        connected = self.transport.connected()
        if connected != self._connected:
            for peer in sorted(connected - self._connected):
                log.info("peer connected", peer=self._name_of(peer))
                self._refusals.discard(f"{peer:x}")
            for peer in sorted(self._connected - connected):
                log.warning("peer disconnected", peer=self._name_of(peer))
            self._connected = connected
        self._beat = asyncio.get_running_loop().call_later(SLOT_SECONDS, self._on_beat)

    def _name_of(self, member_id: int) -> str:
        return self._names.get(member_id) or f"{member_id:x}"

    async def _publish(self) -> None:
        """Tell the cluster our name, client URLs and instance; again and again, until it is applied."""
        publish = MemberPublish(
            member=self.member_id,
            name=self.config.name,
            client_urls=self.config.advertise_client_urls,
            instance=self.identity.instance,
        )
        while True:
            try:
                await self.propose_one(Op.MEMBER_PUBLISH, publish.SerializeToString())
                break
            except KvError as error:
                if error == OTHER_INSTANCE:
                    self.fail(PeerRefused(LOST_DATA))
                    return
                log.warning("could not reach a quorum yet", reason=error.message)
                await asyncio.sleep(PUBLISH_RETRY_SECONDS)
        self.published.set()

    # What the transport asks and tells

    def check_peer(self, peer: PeerIdentity) -> str | None:
        """Why `peer`, which is of this cluster, may not talk to us."""
        member = self.cluster.member(peer.node_id)
        if member is None:
            return f"{peer.node_id:x} is not a member of this cluster"
        return LOST_DATA if member.instance not in (0, peer.instance) else None

    def refused(self, error: PeerRefused) -> None:
        """A peer does not talk to us. Fatal when we have lost our data, or when nobody is left to lead or follow."""
        self._refusals.add(str(error).partition(" ")[0])
        if LOST_DATA in str(error) or len(self._names) - len(self._refusals) <= len(self._names) // 2:
            self.fail(error)

    # ApplySinks: what the applier tells

    def events(self, batch: list[RevisionEvents]) -> None:
        self.hub.notify(batch)

    def results(self, results: list[tuple[int, Result]]) -> None:
        self._batcher.results(results)

    def applied(self, index: int, term: int) -> None:
        self._batcher.applied(term)
        self._housekeeper.visible()

    # What the node tells

    def _changed(self, status: Status) -> None:
        self._term = status.term
        if status.role is not self._role:
            if status.role is Role.LEADER:
                log.info("became leader", term=status.term)
            elif self._role is Role.LEADER:
                log.warning("lost leadership", term=status.term)
            elif status.role is Role.CANDIDATE:
                log.info("campaigning", term=status.term)
            self._role = status.role
        if status.leader_id != self._leader_id:
            before, self._leader_id = self._leader_id, status.leader_id
            if status.leader_id == NO_NODE:
                log.warning("lost leader", leader=self._name_of(before), term=status.term)
            else:
                self._leader_since = time.monotonic()
                if status.leader_id != self.member_id:
                    log.info("found leader", leader=self._name_of(status.leader_id), term=status.term)
            for listener in list(self.on_leader_change):
                listener()

    def _timeout_error(self, since: float) -> KvError:
        """What a timeout most likely came from, told as etcd tells it."""
        elections = 2 * self.config.election_timeout / 1000
        if self._leader_since - elections < since < self._leader_since:
            return TIMEOUT_LEADER_FAIL
        connected = self.transport.connected()
        if self._leader_id == self.member_id:
            alone = len(connected) + 1 <= len(self._names) // 2
            return TIMEOUT_CONNECTION_LOST if alone else TIMEOUT
        if self._leader_id != NO_NODE and self._leader_id not in connected:
            return TIMEOUT_CONNECTION_LOST
        return TIMEOUT


@final
class _Answer:
    """Sets a future, unless its owner has given up."""

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self._future = future

    def __call__(self, result: object) -> None:
        if not self._future.done():
            self._future.set_result(result)
