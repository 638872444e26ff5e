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
from kvstore.failpoints import fail, fail_async
from kvstore.mvcc.compaction import Compactor
from kvstore.mvcc.encoding import varint
from kvstore.mvcc.events import RevisionEvents
from kvstore.mvcc.watch import WatchHub, WatchLimits
from kvstore.pb import rpc_pb2
from kvstore.pb.command_pb2 import MemberPublish
from kvstore.server import auto_compaction
from kvstore.server.alarms import Alarms
from kvstore.server.auth import Auth
from kvstore.server.batcher import Batcher
from kvstore.server.bootstrap import OpenMember
from kvstore.server.company import Company
from kvstore.server.corruption import Corruption
from kvstore.server.deadlines import SLOT_SECONDS
from kvstore.server.defragment import Defragmenter
from kvstore.server.entry_clock import EntryClock
from kvstore.server.leader_calls import GrpcLeaderCalls, LeaderCalls, Method
from kvstore.server.lease import Leases
from kvstore.server.machine import Housekeeper, Machine
from kvstore.server.membership import Membership
from kvstore.server.peers import LOST_DATA, REMOVED, Peers
from kvstore.server.proposal import Answer, Proposal
from kvstore.server.quota import Quota
from kvstore.server.reads import ReadBarrier
from kvstore.server.snapshots import Snapshots
from kvstore.server.versions import ClusterVersions
from kvstore.snapshot.save import SnapshotFiles
from kvstore.state.applier import AppliedResult, Applier, Result
from kvstore.state.cluster import OTHER_INSTANCE
from kvstore.state.command import Op
from raft.config import Config
from raft.core.membership import decode_configuration
from raft.core.ports import Tracer
from raft.errors import PeerRefused, Stopped
from raft.node import Node, NodeConfig, Status
from raft.runtime import Runtime
from raft.transport.grpc import GrpcTransport, PeerIdentity
from raft.types import NO_NODE, Role

log = structlog.get_logger(__name__)

PUBLISH_RETRY_SECONDS: Final = 0.5
REMOVED_GRACE_SECONDS: Final = 1.0  # from our removal to our end: who asked for it is answered, others take over


def node_config(member_id: int, config: ServerConfig) -> NodeConfig:
    return NodeConfig(
        core=Config(
            node_id=member_id,
            election_ticks=config.election_timeout // config.heartbeat_interval,
            pre_vote=config.pre_vote,
        ),
        tick_seconds=config.heartbeat_interval / 1000,
        initial_election_tick_advance=config.initial_election_tick_advance,
        sync="thread" if config.sync == "thread" else "inline",
        snapshot_bytes_per_second=config.snapshot_bytes_per_second,
        catch_up_bytes=config.snapshot_catchup_bytes,
        catch_up_entries=config.snapshot_catchup_entries,
    )


@final
class KvServer:
    """Made on the loop; `start`, then services may be registered, `stop` at the end."""

    def __init__(
        self,
        config: ServerConfig,
        member: OpenMember,
        transport: GrpcTransport,
        runtime: Runtime | None = None,
        wall_clock: Callable[[], int] = time.time_ns,
        tracer: Tracer | None = None,
        make_leader_calls: "Callable[[KvServer], LeaderCalls] | None" = None,
    ) -> None:
        """runtime, wall_clock: all time and chance of this member, for tests that decide them.

        make_leader_calls: another way to the leader than the peers' port.
        """
        runtime = Runtime() if runtime is None else runtime
        self._clock = runtime.clock
        self.config = config
        self.member_id = member.identity.member_id
        self.cluster_id = member.identity.cluster_id
        self.identity = member.identity
        self.store = member.store
        self.log = member.storage
        self.cluster = member.cluster
        self.hub = WatchHub(member.store, _watch_limits(config), self.header)
        self.wall_clock = wall_clock  # nanoseconds since 1970
        self.transport = transport
        self.leader_methods: dict[str, Method] = {}
        self._is_removed = False
        self.peers = Peers(self, member.told)
        self.leader_calls = self._peer_calls() if make_leader_calls is None else make_leader_calls(self)
        self.membership = Membership(self)
        self.leases = Leases(self)
        self.alarms = Alarms(self)
        self.versions = ClusterVersions(self)
        self.quota = Quota(self)
        self.defragmenter = Defragmenter(self)
        self.corruption = Corruption(self)
        self.auth = Auth(self, config.auth)
        self.on_leader_change: list[Callable[[], None]] = []  # called after `leader_id` has changed
        self.leader_changes = 0  # leaders that came to be known
        self._hard_commit = member.loaded.hard_state.commit

        self._batcher = self._make_batcher()
        self.compactor = Compactor(member.store)
        self.housekeeper = Housekeeper(member.store, self.compactor, config.snapshot_count)
        self.snapshots = Snapshots(member.store, member.folders, self.cluster_id)
        self.snapshot_files = SnapshotFiles(member.store, member.cluster, member.folders.path)
        self.node = Node(
            node_config(self.member_id, config),
            member.storage,
            self._make_machine(),
            transport,
            proposals=self._batcher,
            runtime=runtime,
            tracer=tracer,
            loaded=member.loaded,
        )
        self._listen()
        self.reads = ReadBarrier(self.node, config.request_timeout, self._timeout_error)
        self._role = Role.FOLLOWER
        self._term = member.loaded.hard_state.term
        self._leader_id = NO_NODE
        self._leader_since = 0.0  # of `now`; when the leader known now became known
        self._connected: frozenset[int] = frozenset()
        self._beat: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._head = b"\x08" + varint(self.cluster_id) + b"\x10" + varint(self.member_id) + b"\x18"
        self._header: tuple[int, int, bytes] = (0, 0, b"")
        self.published = asyncio.Event()

    def _make_batcher(self) -> Batcher:
        clock = EntryClock(self.wall_clock, self._clock)
        return Batcher(
            self.member_id,
            self.identity.boot,
            request_bytes_max=self.config.max_request_bytes,
            timeout=self.config.request_timeout,
            term=lambda: self.node.term,
            unapplied=lambda: self.node.last_index - self.store.applied_index,
            stamp=lambda: clock.stamp(self.node.term, self.store.last_entry_time),
            timeout_error=self._timeout_error,
            company=Company(asyncio.get_running_loop().call_later, lambda: self.node.wake()),  # noqa: PLW0108 -- made later
        )

    def _make_machine(self) -> Machine:
        told = (self.leases.changed, self.auth.changed)
        applier = Applier(self.store, self.member_id, self.identity.boot, self, read_configuration, *told)
        return Machine(applier, self.housekeeper, self.snapshots)

    def _listen(self) -> None:
        """Whoever tells us something, tells it from now on."""
        self.leader_methods |= {"ChangeMembers": self.membership.answer, "Members": self.peers.answer}
        self.store.on_swap.append(self._swapped)
        self.node.on_change.append(self._changed)
        self.node.on_configuration.append(self.peers.on_configuration)
        self.node.on_removed.append(self.removed)
        self.transport.check_peer = self.check_peer
        self.transport.on_refused = self.peers.refused

    def _peer_calls(self) -> LeaderCalls:
        calls = GrpcLeaderCalls(self, self.transport.identity, self.peers.urls_of, self.transport.channel_factory)
        self.transport.services.append(calls.register)
        return calls

    def now(self) -> float:
        """Monotonic seconds."""
        return self._clock() / 1e9

    # What services use

    @property
    def leader_id(self) -> int:
        """0 when none is known."""
        return self._leader_id

    @property
    def has_leader(self) -> bool:
        return self._leader_id != NO_NODE

    @property
    def leads(self) -> bool:
        return self._leader_id == self.member_id

    @property
    def raft_term(self) -> int:
        return self._term

    def status(self) -> Status:
        return self.node.status()

    @property
    def waiting_requests(self) -> int:
        """Of our own clients, without an answer."""
        return self._batcher.waiting

    @property
    def failed_requests(self) -> int:
        return self._batcher.failed

    def header(self, revision: int) -> bytes:
        """An answer's field 1, ready to be followed by its body."""
        cached_revision, cached_term, encoded = self._header
        if cached_revision != revision or cached_term != self._term or not encoded:
            head, number, term = self._head, varint(revision), varint(self._term)
            size = len(head) + len(number) + len(term) + 1
            encoded = b"\x0a%b%b%b\x20%b" % (varint(size), head, number, term)
            self._header = (revision, self._term, encoded)
        return encoded

    def header_message(self, revision: int) -> rpc_pb2.ResponseHeader:
        return rpc_pb2.ResponseHeader(
            cluster_id=self.cluster_id, member_id=self.member_id, revision=revision, raft_term=self._term
        )

    def propose(self, proposals: list[Proposal]) -> None:
        """Never raises: every `done` is called once, on the loop, maybe before this returns."""
        if self._batcher.add(proposals, self.now()):
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
        self.propose([Proposal(op, raw, Answer(answer), user, auth_revision, request_id, timeout)])
        result = await answer
        if isinstance(result, KvError):
            raise result.fresh()
        return result

    def when_linearizable(self, done: Callable[[KvError | None], None], reads: int = 1) -> None:
        """`done(None)` once the local state holds everything that was acknowledged before this call.

        reads: how many wait for it."""
        self.reads.add(done, self.now(), reads)

    async def linearizable(self) -> None:
        """The same for a task. Raises KvError."""
        answer: asyncio.Future[KvError | None] = asyncio.get_running_loop().create_future()
        self.when_linearizable(Answer(answer))
        error = await answer
        if error is not None:
            raise error.fresh()

    @property
    def is_learner(self) -> bool:
        own = self.peers.member(self.member_id)  # also while it is behind its own addition
        return own is not None and own.is_learner

    async def move_leader(self, to: int) -> None:
        """Hand leadership to member `to`. Raises KvError."""
        if self._leader_id != self.member_id:
            raise NOT_LEADER.fresh()
        if to == self.member_id:
            return
        if to not in [voter.id for voter in self.peers.voters()]:
            raise BAD_LEADER_TRANSFEREE.fresh()
        if not await self.node.transfer_leadership(to):
            raise TIMEOUT.fresh()

    # Life

    async def start(self) -> None:
        """Take part, and return once everything that was known to be committed is applied again."""
        await fail_async("startBeforeReplay")
        await self.leases.load()
        await self.node.start()
        self._spawn(self._watch_node())
        self._spawn(self.leases.run_keep_alives())
        self._spawn(self.leases.run_time())
        self._spawn(self.reads.run())
        self._spawn(self.peers.run())
        self._spawn(self.versions.run())
        self._spawn(self.housekeeper.run(self.node))
        self._spawn(self.housekeeper.run_compaction())
        compacts = auto_compaction.policy(self.config, self.now())
        if compacts is not None:
            self._spawn(auto_compaction.run(self, compacts))
        self._on_beat()
        await self.node.wait_applied(self._hard_commit)
        self.auth.forget()  # a restart ends tokens, also those that were applied again
        await self.corruption.start(self._spawn)
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
        self.reads.stop()
        self.leases.stop()
        await self.auth.stop()
        if self._beat is not None:
            self._beat.cancel()
        await self.node.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.membership.stop()
        await self.leader_calls.close()
        await self.snapshots.stop()
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
        now = self.now()
        self._batcher.expire(now)
        self.reads.expire(now)
        self.peers.expire(now)
        connected = self.transport.connected()
        if connected != self._connected:
            for peer in sorted(connected - self._connected):
                log.info("peer connected", peer=self.peers.name_of(peer))
            for peer in sorted(self._connected - connected):
                log.warning("peer disconnected", peer=self.peers.name_of(peer))
                self.peers.traffic.disconnects[peer] += 1
            self._connected = connected
            self.peers.note_connected(connected, now)
        self._beat = asyncio.get_running_loop().call_later(SLOT_SECONDS, self._on_beat)

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
        return self.peers.check(peer)

    def removed(self) -> None:
        """A configuration without us is in force for ever: end, but see REMOVED_GRACE_SECONDS."""
        if self._is_removed:
            return
        self._is_removed = True
        log.warning("this member is removed from the cluster")
        asyncio.get_running_loop().call_later(REMOVED_GRACE_SECONDS, self.fail, PeerRefused(REMOVED))

    # ApplySinks: what the applier tells

    def members(self) -> None:
        self.peers.refresh()
        self.alarms.refresh()
        self.versions.refresh()

    def events(self, batch: list[RevisionEvents]) -> None:
        fail("watchBeforeNotify")
        self.hub.notify(batch)

    def results(self, results: list[tuple[int, Result]]) -> None:
        self._batcher.results(results)

    def applied(self, index: int, term: int) -> None:
        self._batcher.applied(term)
        self.housekeeper.visible()
        self.quota.applied()

    def _swapped(self) -> None:
        """The state is that of a snapshot: entries were passed over, maybe with requests of ours in them."""
        self.members()
        self._batcher.jumped(self.store.seen.get(self.member_id, (0, 0)))
        self._batcher.applied(self.store.applied_term)

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
        self.leases.role_changed(status.role is Role.LEADER, status.term)
        if status.leader_id != self._leader_id:
            before, self._leader_id = self._leader_id, status.leader_id
            if status.leader_id == NO_NODE:
                log.warning("lost leader", leader=self.peers.name_of(before), term=status.term)
            else:
                self.leader_changes += 1
                self._leader_since = self.now()
                if status.leader_id != self.member_id:
                    log.info("found leader", leader=self.peers.name_of(status.leader_id), term=status.term)
            for listener in list(self.on_leader_change):
                listener()

    def _timeout_error(self, since: float) -> KvError:
        """What a timeout most likely came from, told as etcd tells it."""
        elections = 2 * self.config.election_timeout / 1000
        if self._leader_since - elections < since < self._leader_since:
            return TIMEOUT_LEADER_FAIL
        connected = self.transport.connected()
        if self._leader_id == self.member_id:
            alone = len(connected) + 1 <= len(self.peers.table()) // 2
            return TIMEOUT_CONNECTION_LOST if alone else TIMEOUT
        if self._leader_id != NO_NODE and self._leader_id not in connected:
            return TIMEOUT_CONNECTION_LOST
        return TIMEOUT


def _watch_limits(config: ServerConfig) -> WatchLimits:
    return WatchLimits(
        response_bytes_max=config.max_request_bytes, progress_seconds=config.watch_progress_notify_interval
    )


def read_configuration(data: bytes) -> tuple[bool, bytes]:
    """A configuration entry's data, as the applier reads it: joint or not, and its context."""
    configuration, context = decode_configuration(data)
    return bool(configuration.voters_outgoing), context
