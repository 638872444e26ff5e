"""Node: the asyncio driver, and the only loop around a RawNode.

One turn of the loop:

    feed    messages that came in -> ticks that are due -> changes of members -> one batch of proposals ->
            one read round
    handle  send Ready.messages (commit_news.py) -> answer confirmed reads -> save (one write, one fsync) ->
            RawNode.saved -> send messages_after_save -> committed entries to the apply task

One Ready is in flight at a time: whatever arrives during the fsync becomes the next batch. Messages
that promise nothing about our disk leave before it, so that the followers' fsyncs run beside ours
(thesis 10.2.1). RawNode is touched by this task only.

Stalls. While a save hangs nothing is fed, so no heartbeat leaves: a leader whose disk hangs loses its
followers, as it should. The same holds for a loop that stalls. Afterwards:

- a follower steps the messages that waited before it ticks, and ticks once for the whole stall: what
  its leader said meanwhile may still lie in a socket, and time in which we could not listen says
  nothing about the leader;
- a leader that was away for an election timeout or longer first lives through that time in ticks, before
  it reads anything, so that CheckQuorum finds nobody and it steps down: its followers may have elected
  another, and acknowledgements as old as the stall must not pass for a quorum of today.

Snapshots. Those that members need are sent by tasks beside this loop (raft/sending.py), and one that arrives
is taken in beside it (raft/receiving.py). Only its installation is a step of the loop: once nothing waits to be
applied, the core is told; then the state machine installs it, and the log starts anew behind it.

What ends a node: `stop()`, or an error of save or apply. After an error it sends, applies and answers
nothing more, `wait_failed()` returns, and everybody who waits gets Stopped.
"""

import asyncio
import logging
from collections.abc import Callable
from math import ceil
from typing import Final

from raft.apply import CommittedQueue, StateMachine
from raft.changes import Changes, Configurations
from raft.codec import size_of
from raft.commit_news import CommitNews
from raft.compaction import Compactions
from raft.core.ports import Tracer
from raft.core.raw_node import RawNode, Status
from raft.errors import ProposalDropped, Stopped, TooManyProposals
from raft.failpoints import fail_async
from raft.messages import Forward, Message
from raft.node_config import NodeConfig
from raft.proposals import ProposalQueue, ProposalSource
from raft.ready import Ready
from raft.receiving import Receiving
from raft.runtime import Runtime
from raft.sending import Sending
from raft.snapshot import repair_log
from raft.storage.base import Loaded, LogStorage
from raft.ticking import advance_election, live_through_stall
from raft.transport.base import Transport
from raft.types import NO_NODE, ConfigurationChange, HardState, Index, NodeId, Role, Term
from raft.waiters import AppliedWaiters, LeaderWatch, ReadWaiters

__all__ = ["Node", "NodeConfig", "ProposalQueue", "ProposalSource", "StateMachine", "Status"]

logger = logging.getLogger("raft.node")

READ_RETRY_HEARTBEATS: Final = 5  # a read round unanswered for so long is asked again ...
READ_RETRY_SECONDS: Final = 0.1  # ... but not more often than this


class Node:
    """One member. Made outside the loop, used on one loop."""

    def __init__(
        self,
        config: NodeConfig,
        storage: LogStorage,
        state_machine: StateMachine,
        transport: Transport,
        *,
        proposals: ProposalSource | None = None,
        runtime: Runtime | None = None,
        tracer: Tracer | None = None,
        loaded: Loaded | None = None,
    ) -> None:
        """`loaded`: what storage.load() returned, when the caller has called it already (to bootstrap)."""
        self.on_change: list[Callable[[Status], None]] = []  # called when role, term or leader have changed
        self._changes = Changes(config.core.node_id)
        # Called at start, and whenever what the log says has changed: oldest first, the last is in force.
        self.on_configuration: list[Callable[[Configurations], None]] = self._changes.on_configuration
        self.on_removed: list[Callable[[], None]] = self._changes.on_removed  # called once we are no member any more
        self._config = config
        self._storage = storage
        self._state_machine = state_machine
        self._transport = transport
        self._proposals: ProposalSource = ProposalQueue() if proposals is None else proposals
        self._runtime = Runtime() if runtime is None else runtime
        self._tracer = tracer
        self._loaded = loaded

        self._raw: RawNode | None = None
        self._committed = CommittedQueue()
        self._applied: Index = 0
        self._unsaved: HardState | None = None  # a moved commit index: goes with the next fsync
        self._inbox: list[Message] = []
        self._inbox_bytes = 0
        self._reads = ReadWaiters()
        self._applied_waiters = AppliedWaiters()
        self._transfers: list[NodeId] = []
        self._forwards: list[Message] = []
        self._commit_news = CommitNews(self.wake)
        self._compactions = Compactions(config, storage)
        self._sending = Sending(config, state_machine, transport, self._runtime, self.wake)
        self._receiving = Receiving(config.core.node_id, state_machine, self._runtime, self._receive, self.wake)
        self._unreachable: set[NodeId] = set()

        self._tick_ns = int(config.tick_seconds * 1_000_000_000)
        self._read_retry_ticks = max(
            READ_RETRY_HEARTBEATS * config.core.heartbeat_ticks, ceil(READ_RETRY_SECONDS / config.tick_seconds)
        )
        self._ticks = 0  # ticks so far
        self.late_heartbeats = 0  # of a leader: more than twice as late as they should be
        self._tick_due_ns = 0  # when the next one is
        self._fast_forward = config.initial_election_tick_advance
        self._seen: tuple[Role, Term, NodeId] = (Role.FOLLOWER, 0, NO_NODE)  # what on_change was told last

        self._woken = False
        self._waiter: asyncio.Future[None] | None = None  # the driver sleeps on it
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._ended: asyncio.Future[BaseException | None] | None = None  # the error, or None after stop()

    # Life

    async def start(self) -> None:
        """Read the log, then take part. Raises StorageError, and OSError when an address is taken; then it is over."""
        assert self._raw is None, "a node starts once"
        loop = asyncio.get_running_loop()
        config = self._config
        loaded = self._loaded
        if loaded is None:
            loaded = await self._runtime.run(self._storage.load)
        installed = self._state_machine.installed
        if installed is not None:
            loaded = await self._runtime.run(repair_log, self._storage, loaded, installed)
        self._applied = self._state_machine.applied_index
        if self._ended is None:
            self._ended = loop.create_future()
        self._raw = RawNode(config.core, self._storage, loaded, self._applied, self._runtime.rng, self._tracer)
        self._receiving.start(self._raw)
        self._changes.tell(self._raw, self._applied)
        self._transport.on_unreachable = self._on_unreachable
        self._transport.snapshot_bytes_per_second = config.snapshot_bytes_per_second
        try:
            await self._transport.start(self._receive, self._receiving)
        except BaseException:
            self._stopping = True
            self._storage.close()
            raise
        self._tick_due_ns = self._runtime.clock() + self._tick_ns
        self._tasks = [loop.create_task(self._drive()), loop.create_task(self._apply())]
        self._on_timer()

    async def stop(self) -> None:
        """Finish the turn and the apply under way, then stop the transport and close the storage. Idempotent."""
        if self._raw is None:
            return
        self._end(None)
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        await asyncio.gather(*tasks)
        if self._unsaved is not None and self._ended is not None and self._ended.result() is None:
            self._storage.save(self._unsaved, [], False)
        self._storage.close()
        self._runtime.close()

    async def wait_failed(self) -> BaseException:
        """The error that ended this node: the process must exit. Raises Stopped after a plain stop()."""
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        error = await asyncio.shield(self._ended)
        if error is None:
            raise Stopped("the node was stopped")
        return error

    def _end(self, error: BaseException | None) -> None:
        """From here on nothing is sent, applied or answered."""
        assert self._ended is not None
        if not self._ended.done():
            self._ended.set_result(error)
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        stopped = Stopped("the node was stopped" if error is None else f"the node died: {error}")
        self._reads.fail(stopped)
        self._applied_waiters.fail(stopped)
        self._changes.fail(stopped)
        self._compactions.fail(stopped)
        self._receiving.stop(str(stopped))
        self._committed.close()
        self.wake()

    def _running(self) -> RawNode:
        if self._raw is None or self._stopping:
            raise Stopped("the node does not run")
        return self._raw

    # What users of the node call

    def wake(self) -> None:
        """Something waits in the ProposalSource."""
        self._woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def propose(self, data: bytes) -> None:
        """Queue one command in the default queue; the state machine shows whether it was committed.

        Raises Stopped, TooManyProposals.
        """
        self._running()
        assert isinstance(self._proposals, ProposalQueue), "proposals come from the source that was given"
        if not self._proposals.put(data):
            raise TooManyProposals("the queue is full")
        self.wake()

    async def read_index(self) -> Index:
        """An index that holds everything committed before this call (thesis 6.4): once it is applied here, a
        read of the local state is linearizable.

        Waits for as long as no quorum answers: the caller brings the timeout. Raises Stopped.
        """
        self._running()
        self.wake()
        return await self._reads.wait()

    async def wait_applied(self, index: Index) -> None:
        """Until the state machine has applied `index`. Raises Stopped."""
        self._running()
        if index > self._applied:
            await self._applied_waiters.wait(index)

    async def transfer_leadership(self, to: NodeId = NO_NODE) -> bool:
        """Hand over (thesis 3.10) to `to`, or to the most up to date voter. True once another node leads.

        False when this node does not lead, or when nobody took over within an election timeout.
        """
        raw = self._running()
        if raw.role is not Role.LEADER:
            return False
        watch = LeaderWatch(self._config.core.node_id)
        self.on_change.append(watch)
        self._transfers.append(to)
        self.wake()
        try:
            async with asyncio.timeout(self._config.core.election_ticks * self._config.tick_seconds):
                await watch.changed.wait()
        except TimeoutError:
            return False
        finally:
            self.on_change.remove(watch)
        return True

    async def change_configuration(self, change: ConfigurationChange) -> None:
        """Change the members (thesis 4). Returns once the new configuration alone decides, committed and applied.

        Waits for as long as no quorum answers: the caller brings the timeout, and the change may still happen after
        it. Raises NotLeader (also when a new leader has overwritten it), ChangeRefused, Stopped.
        """
        self._running()
        self.wake()
        await self._changes.wait(change)

    async def compact(self, index: Index) -> None:
        """Forget the log up to `index`, as far as the state machine has it: from here on its state must survive a
        crash. Kept are NodeConfig.catch_up_bytes, unless every member has them, and what follows a snapshot that is
        being sent.

        Between two turns, in a thread. Raises Stopped; an error of the storage ends the node.
        """
        self._running()
        self.wake()
        await self._compactions.wait(index)

    @property
    def term(self) -> Term:
        """Raises Stopped."""
        return self._running().term

    @property
    def last_index(self) -> Index:
        """Of the log. Raises Stopped."""
        return self._running().last_index

    def status(self) -> Status:
        """A snapshot of the core's state. Raises Stopped before start()."""
        if self._raw is None:
            raise Stopped("the node does not run")
        return self._raw.status()

    # The loop

    async def _drive(self) -> None:
        raw = self._running()
        try:
            while not self._stopping:
                self._feed(raw)
                installing = self._feed_snapshot(raw)
                ready = raw.ready() if raw.has_ready() else None
                if ready is not None:
                    await self._handle(raw, ready)
                if installing and not self._stopping:
                    await self._receiving.settle(ready is not None and ready.snapshot is not None)
                self._sending.turn(raw, [] if ready is None else ready.snapshots_to_send)
                news = self._commit_news.due(self._committed.idle, self._ticks)
                if news:
                    self._transport.send(news)
                if self._forwards:  # after the save: they name a term
                    self._transport.send(self._forwards)
                    self._forwards = []
                if self._compactions:
                    await self._compactions.run(raw, self._runtime, self._applied, self._sending.pinned)
                self._tell(raw)
                await self._next_turn(raw)
        except Exception as error:
            logger.critical("node %x dies: %r", self._config.core.node_id, error)
            self._end(error)
        await self._sending.stop()
        await self._transport.stop()

    async def _next_turn(self, raw: RawNode) -> None:
        """Let the loop run: once if there is work already, else until there is some."""
        if self._woken or raw.has_ready():
            await asyncio.sleep(0)
        else:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        self._woken = False

    def _feed(self, raw: RawNode) -> None:
        """Everything that came in while the last fsync ran."""
        due = (self._runtime.clock() - self._tick_due_ns) // self._tick_ns + 1
        if due >= self._config.core.election_ticks:
            live_through_stall(raw, self._config.core)
        if self._inbox:
            inbox, self._inbox, self._inbox_bytes = self._inbox, [], 0
            for message in inbox:
                if isinstance(message, Forward):
                    if raw.role is Role.LEADER:
                        self._proposals.receive(message.sender, message.data)
                        self._commit_news.forwarded(message.sender, self._ticks)
                else:
                    raw.step(message)
        if raw.applied_index < self._applied:
            raw.applied(self._applied)
        if due > 0:
            self._tick(raw, due)
        if raw.leader_id in self._unreachable:
            raw.leader_unreachable()
        self._unreachable.clear()
        for to in self._transfers:
            raw.transfer_leadership(to)
        self._transfers.clear()
        self._changes.propose(raw)
        self._take_proposals(raw)
        if self._reads.wants_round(self._ticks, self._read_retry_ticks):
            context = raw.read_index()
            if context is not None:
                self._reads.began(context, self._ticks)

    def _feed_snapshot(self, raw: RawNode) -> bool:
        """Tell the core of a snapshot that has arrived, unless something waits to be applied before it."""
        whole = self._receiving.whole
        if whole is None or not self._committed.idle:
            return False
        raw.step(whole.message)
        return True

    def _tick(self, raw: RawNode, passed: int) -> None:
        """One tick, also for a stall of many."""
        self._tick_due_ns += passed * self._tick_ns
        if not self._config.core.lease_reads:  # a bit early or late: whose ticks fall together split their votes
            self._tick_due_ns += self._runtime.rng.below(self._tick_ns // 2) - self._tick_ns // 4
        self._ticks += 1
        self.late_heartbeats += passed > 2 * self._config.core.heartbeat_ticks and raw.role is Role.LEADER
        raw.tick(passed)
        if self._fast_forward:
            self._fast_forward = not advance_election(raw, self._config.core, self._transport.connected())

    def _take_proposals(self, raw: RawNode) -> None:
        """One batch: appended when we lead, else forwarded once. Nothing while nobody who leads can be reached,
        nor while our own state machine is behind: what waits in the source is bounded there."""
        leading = raw.role is Role.LEADER
        leader_id = raw.leader_id
        if leader_id == NO_NODE or self._committed.bytes_ahead >= self._config.core.apply_bytes_max:
            return
        if not leading and leader_id not in self._transport.connected():
            return
        data = self._proposals.take(self._config.proposal_bytes_max, leading)
        if not data:
            return
        if leading:
            try:
                raw.propose(data)
            except ProposalDropped as error:
                # Not at once again: whatever changes the answer (a message, a tick) brings a turn of its own.
                self._proposals.returned(data, error)
                return
        else:
            self._forwards.append(Forward(leader_id, self._config.core.node_id, raw.term, data))
        if self._proposals.has_more:
            self.wake()  # it gets a turn of its own

    async def _handle(self, raw: RawNode, ready: Ready) -> None:
        messages = self._commit_news.hold(ready.messages, self._ticks)
        if messages:
            if raw.role is Role.LEADER:
                await fail_async("raftBeforeLeaderSend")
            self._transport.send(messages)
        if ready.reads:
            await fail_async("raftBeforeReads")
            self._reads.resolve(ready.reads)
        if ready.snapshot is not None:
            await self._receiving.install(ready.snapshot, self._storage)
            self._unsaved = None
            self._applied = ready.snapshot.index
            self._applied_waiters.resolve(self._applied)
        if ready.must_sync:
            await fail_async("raftBeforeSave")
            await self._save(ready, bool(messages))
            await fail_async("raftAfterSave")
        elif ready.hard_state is not None:
            self._unsaved = ready.hard_state
        if self._stopping:
            return
        raw.saved(ready)
        if ready.messages_after_save:
            await fail_async("raftBeforeFollowerSend")
            self._transport.send(ready.messages_after_save)
        if ready.committed:
            self._committed.put(ready.committed)

    async def _save(self, ready: Ready, has_sent: bool) -> None:
        hard_state = ready.hard_state or self._unsaved
        self._unsaved = None
        if self._config.sync == "thread":
            await self._runtime.run(self._storage.save, hard_state, ready.entries, True)
            return
        if has_sent:
            # One turn of the loop, so that messages are with the kernel before the fsync stops us.
            await asyncio.sleep(0)
        self._storage.save(hard_state, ready.entries, True)

    def _tell(self, raw: RawNode) -> None:
        seen = (raw.role, raw.term, raw.leader_id)
        if seen != self._seen:
            self._seen = seen
            status = raw.status()
            for listener in list(self.on_change):
                listener(status)
        self._changes.tell(raw, self._applied)

    async def _apply(self) -> None:
        """The apply task: the state machine at its own pace."""
        try:
            while entries := await self._committed.take():
                await fail_async("raftBeforeApply")
                await self._state_machine.apply(entries)
                await fail_async("raftAfterApply")
                self._committed.done(entries)
                self._applied = self._state_machine.applied_index
                last = entries[-1].index
                assert self._applied >= last, f"the state machine is at {self._applied} after applying {last}"
                self._applied_waiters.resolve(self._applied)
                self.wake()  # the core wants to know
        except Exception as error:
            logger.critical("node %x dies while applying: %r", self._config.core.node_id, error)
            self._end(error)

    # What comes in

    def _receive(self, messages: list[Message]) -> None:
        size = sum([size_of(message) for message in messages])
        if self._stopping or self._inbox_bytes + size > self._config.inbox_bytes_max:
            return
        self._inbox += messages
        self._inbox_bytes += size
        self.wake()

    def _on_unreachable(self, node_id: NodeId) -> None:
        self._unreachable.add(node_id)
        self.wake()

    def _on_timer(self) -> None:
        left = (self._tick_due_ns - self._runtime.clock()) / 1_000_000_000
        if left <= 0:
            self.wake()
            left = self._config.tick_seconds / 4  # by then the turn has ticked
        self._timer = asyncio.get_running_loop().call_later(max(left, 0.001), self._on_timer)
