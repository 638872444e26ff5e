"""Process: one node of the simulation, a RawNode and the driver around it.

The driver does what raft/node.py does, in the same order, with virtual time instead of asyncio:

    turn    messages that came in -> the tick that is due -> proposals -> one read round
            send Ready.messages -> answer reads -> [the time of an fsync] -> save -> RawNode.saved ->
            send messages_after_save, forwards -> [the time of an apply] -> RawNode.applied

    a snapshot that has arrived, once nothing waits to be applied: InstallSnapshot -> Ready.snapshot ->
            [time] -> the state machine has it -> [time] -> the log is reset -> [time] -> save -> saved

One Ready is in flight, and one apply. A crash may come at any time in between. A turn ends with the
checks of the node that took it. An eager driver (half of the seeds) does what RawNode allows and node.py does
not: it takes in what arrives while a save is under way.
"""

from collections import deque
from typing import TYPE_CHECKING, Final, final

from raft.core import describe, invariants, reads
from raft.core.invariants import Moment
from raft.core.raw_node import RawNode
from raft.errors import ProposalDropped, StorageError, TooManyProposals
from raft.messages import Forward, Message
from raft.ready import Ready
from raft.testing.sim.disk import SimDisk, make_disk
from raft.testing.sim.history import Operation
from raft.testing.sim.machine import Registers, operation_of
from raft.testing.sim.snapshots import Receiving, Sending
from raft.types import (
    NO_NODE,
    Configuration,
    ConfigurationChange,
    Entry,
    EntryKind,
    HardState,
    Index,
    NodeId,
    Role,
    SnapshotMeta,
)

if TYPE_CHECKING:
    from raft.testing.sim.world import World

READ_RETRY_HEARTBEATS: Final = 5
PROPOSAL_BYTES_MAX: Final = 4096  # taken in one turn


@final
class Process:
    """`raw` is None while it is down."""

    def __init__(self, world: "World", node_id: NodeId, configuration: Configuration) -> None:
        """`configuration`: of a new cluster; without voters, of a process that joins one."""
        options = world.options
        self.node_id = node_id
        self.world = world
        self.config = options.config(node_id)
        self.disk: SimDisk = make_disk(options, configuration, options.stream(f"disk {node_id}"), world.marks)
        self.raw: RawNode | None = None
        self.boot = 0  # how often it has started: what was meant for an earlier life is ignored
        self.paused = False
        self.removed = False  # it knows that it is no member any more, and has stopped for good
        self.clock_rate = 1.0
        self.machine = Registers(configuration)
        self.moment: Moment | None = None
        self.applied_max = 0  # of all its lives
        self.rng = options.stream(f"process {node_id}")
        self._tick = options.tick
        self._read_retry_ticks = max(READ_RETRY_HEARTBEATS * options.heartbeat_ticks, 100_000 // options.tick)
        self._local = (0, 0)  # virtual time and the node's own time at the same moment
        self._forget()

    def _forget(self) -> None:
        """All that a process holds in memory only."""
        self.inbox: list[Message] = []
        self.saving: Ready | None = None
        self.saving_state: HardState | None = None
        self.sending = Sending(self)
        self.receiving = Receiving(self)
        self.unsaved: HardState | None = None  # a moved commit index: goes with the next fsync
        self.apply_queue: list[Entry] = []
        self.applying: list[Entry] = []
        self.own: deque[bytes] = deque()  # proposals of clients here
        self.received: deque[bytes] = deque()  # ... of other nodes: never forwarded again
        self.forwards: list[Message] = []
        self.transfers: list[NodeId] = []
        self.changes: list[ConfigurationChange] = []
        self.unreachable: set[NodeId] = set()  # whose streams were reset and refused
        self.was_member = False
        self.settled: Index = -1  # of the configuration that was looked at for ourselves
        self.waiting: dict[int, Operation] = {}  # writes whose command is under way, by number
        self.reads_arrived: list[Operation] = []
        self.reads_asked: list[tuple[int, Operation]] = []  # context, read
        self.reads_confirmed: list[Operation] = []  # index known, not yet applied
        self.asked_tick = 0
        self.ticks = 0
        self.ticked = 0  # own time of the last tick
        self.moment = None

    # Life

    def start(self) -> None:
        assert self.raw is None
        self._forget()
        self.boot += 1
        self.machine = self.disk.flushed.copy()
        if self.machine.applied_index < self.applied_max:
            self.world.marks.hit("applied_again")
        loaded = self.disk.load()
        applied_index, storage = self.machine.applied_index, self.disk.storage
        assert applied_index >= storage.first_index - 1, f"n{self.node_id:x}: the log is ahead of the state"
        assert storage.term_at(applied_index) == self.machine.applied_term, (
            f"n{self.node_id:x}: the log has another history than the state at {applied_index}"
        )
        self.raw = RawNode(
            self.config, self.disk.storage, loaded, self.machine.applied_index, self.rng, self.world.tracer
        )
        self.world.checker.restarted(self.node_id, self.raw.commit_index)
        self.ticked = self.local_now()
        self.world.clock.after(int(self._tick / self.clock_rate), self._on_timer, self.boot)
        self.turn()

    def crash(self, power: bool) -> None:
        """What is not on the disk is gone, messages under way are not."""
        raw = self.raw
        if raw is None:
            return
        if raw.raft.vote not in (NO_NODE, raw.raft.saved_state.vote):
            self.world.marks.hit("vote_lost_in_crash")
        disk, saving = self.disk, self.saving
        if saving is not None and saving.snapshot is not None:
            self.world.marks.hit("crash_in_install")
        if saving is not None and saving.snapshot is not None and self.receiving.resetting:
            disk.crash_in_reset(saving.snapshot, power)
        else:
            disk.crash(self.saving_state, saving.entries if saving is not None else [], power)
        if power and disk.incoming is not None:
            disk.incoming.chunks = self.rng.below(disk.incoming.chunks + 1)
        self.gone()

    def gone(self) -> None:
        """The process has ended."""
        self.raw = None
        self.paused = False
        for operation in [*self.waiting.values(), *self.reads_arrived, *self.reads_confirmed]:
            self.world.history.lost(operation)
        for _, operation in self.reads_asked:
            self.world.history.lost(operation)
        self._forget()

    def pause(self) -> None:
        if self.raw is not None:
            if self.raw.role is Role.LEADER:
                self.world.marks.hit("paused_leader")
            self.paused = True

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            self.turn()

    def local_now(self) -> int:
        virtual, own = self._local
        return own + int((self.world.clock.now - virtual) * self.clock_rate)

    def set_clock_rate(self, rate: float) -> None:
        self._local = (self.world.clock.now, self.local_now())
        self.clock_rate = rate

    @property
    def is_replacing(self) -> bool:
        """Whether the save under way replaces entries of the log."""
        entries = self.saving.entries if self.saving is not None else []
        return bool(entries) and entries[0].index <= self.disk.storage.last_index

    def campaigns(self) -> bool:
        """Else what it asks of voters is of a campaign that is over: it would not count their answers."""
        return self.raw is not None and self.raw.role in {Role.CANDIDATE, Role.PRE_CANDIDATE}

    # What comes in

    def receive(self, message: Message) -> None:
        if self.raw is not None:
            self.inbox.append(message)
            self.turn()

    def write(self, operation: Operation, data: bytes) -> None:
        self.waiting[operation.number] = operation
        self.own.append(data)
        self.turn()

    def read(self, operation: Operation) -> None:
        self.reads_arrived.append(operation)
        self.turn()

    def transfer(self, to: NodeId) -> None:
        self.transfers.append(to)
        self.turn()

    def change(self, change: ConfigurationChange) -> None:
        self.changes.append(change)
        self.turn()

    def stream_reset(self, node_id: NodeId) -> None:
        """The stream to `node_id` was reset, and a new one refused."""
        self.unreachable.add(node_id)
        self.turn()

    def _on_timer(self, boot: int) -> None:
        if boot == self.boot and self.raw is not None:
            self.world.clock.after(int(self._tick / self.clock_rate), self._on_timer, boot)
            self.turn()

    # The loop

    def turn(self) -> None:
        """All that can be done now. While a save is under way that is little: it ends in a turn."""
        raw = self.raw
        if raw is None or self.paused:
            return
        if self.saving is not None:
            if self.world.options.eager:
                self._feed(raw)
                self.world.after_turn(self, raw)
            return
        while True:
            self._feed(raw)
            installing = not self.applying and not self.apply_queue and self.receiving.feed(raw)
            ready = raw.ready() if raw.has_ready() else None
            if installing and (ready is None or ready.snapshot is None):
                self.receiving.settle(installed=False)
            if ready is None:
                break
            self._begin(ready)
            if self.saving is not None:
                break
            self._finish(raw, ready)
        self.sending.turn(raw)
        self._send_forwards(raw)
        self.world.after_turn(self, raw)
        self._look_for_ourselves(raw)

    def _look_for_ourselves(self, raw: RawNode) -> None:
        """Whoever was a member and is none in the newest configuration, nor in what it has applied, was removed."""
        configurations = raw.raft.configurations
        newest = configurations[-1][0]
        applied_index = self.machine.applied_index
        if newest == self.settled:
            return
        applied = [self.node_id in members.members() for index, members, _ in configurations if index <= applied_index]
        self.was_member = self.was_member or any(applied)
        if newest <= applied_index:
            self.settled = newest
        if self.was_member and self.node_id not in configurations[-1][1].members() and applied and not applied[-1]:
            self.settled = newest
            self.world.leaves(self)

    def _feed(self, raw: RawNode) -> None:
        due = (self.local_now() - self.ticked) // self._tick
        if due >= self.config.election_ticks:
            self._live_through_stall(raw)
        if self.inbox:
            inbox, self.inbox = self.inbox, []
            for message in inbox:
                self._step(raw, message)
        if raw.applied_index < self.machine.applied_index and not self.receiving.installs:
            raw.applied(self.machine.applied_index)
        if due > 0:
            self.ticked += due * self._tick
            self.ticks += 1
            raw.tick(due)
        self._tell(raw)
        if self.own or self.received:
            self._take_proposals(raw)
        if self.reads_asked:
            if self.ticks - self.asked_tick >= self._read_retry_ticks:
                self.world.marks.hit("read_asked_again")
                self._ask_round(raw)
        elif self.reads_arrived:
            self._ask_round(raw)

    def _tell(self, raw: RawNode) -> None:
        """What operators and the transport want the core to know."""
        if raw.leader_id in self.unreachable:
            self.world.marks.hit("leader_unreachable")
            raw.leader_unreachable()
        self.unreachable.clear()
        if self.transfers:
            for to in self.transfers:
                raw.transfer_leadership(to)
            self.transfers.clear()
        for change in self.changes:
            self._propose_change(raw, change)
        self.changes.clear()

    def _live_through_stall(self, raw: RawNode) -> None:
        """A leader that was away for so long must not take old acknowledgements for a quorum of today."""
        for _ in range(2 * self.config.election_ticks):
            if raw.role is not Role.LEADER:
                return
            raw.tick(0)
            if raw.role is not Role.LEADER:
                self.world.marks.hit("stall_deposed")

    def _propose_change(self, raw: RawNode, change: ConfigurationChange) -> None:
        try:
            raw.propose_configuration(change)
        except ProposalDropped as error:
            self.world.members.refused(self, error)

    def _step(self, raw: RawNode, message: Message) -> None:
        if isinstance(message, Forward):
            if raw.role is Role.LEADER:
                self.received.extend(message.data)
            else:
                self.world.marks.hit("refused_forward")
            return
        self.world.before_step(raw, message)
        raw.step(message)

    def _take_proposals(self, raw: RawNode) -> None:
        leading = raw.role is Role.LEADER
        if not leading:
            self.received.clear()  # forwarded once already
        queues = (self.received, self.own) if leading else (self.own,)
        if raw.leader_id == NO_NODE or raw.raft.log.applying_bytes >= self.config.apply_bytes_max:
            return
        data: list[bytes] = []
        size = 0
        for queue in queues:
            while queue and (not data or size + len(queue[0]) <= PROPOSAL_BYTES_MAX):
                size += len(queue[0])
                data.append(queue.popleft())
        if not data:
            return
        if not leading:
            self.forwards.append(Forward(raw.leader_id, self.node_id, raw.term, data))
            return
        try:
            raw.propose(data)
        except ProposalDropped as error:
            if isinstance(error, TooManyProposals):
                self.world.marks.hit("refused_too_many")
            # Nothing of it was appended. The client hears so, and nothing waits for ever.
            for item in data:
                refused = self.waiting.pop(operation_of(item), None)
                if refused is not None:
                    self.world.history.refused(refused)

    def _ask_round(self, raw: RawNode) -> None:
        context = raw.read_index()
        if context is None:
            return
        if len(self.reads_arrived) > 1:
            self.world.marks.hit("read_shared")
        self.world.read_asked(raw)
        if raw.role is Role.LEADER and reads.holds_lease(raw.raft):
            self.world.marks.hit("lease_read")
        for operation in self.reads_arrived:
            self.reads_asked.append((context, operation))
        self.reads_arrived = []
        self.asked_tick = self.ticks

    # A Ready

    def _begin(self, ready: Ready) -> None:
        world = self.world
        world.send(self, ready.messages)
        if ready.reads:
            self._confirm_reads(ready)
        self.sending.ask(ready.snapshots_to_send)
        if ready.snapshot is not None:
            self.saving = ready
            self.unsaved = None
            world.clock.after(world.sync_time(self), self.receiving.on_installed, self.boot)
        elif ready.must_sync:
            self.saving = ready
            self.saving_state = ready.hard_state or self.unsaved
            self.unsaved = None
            world.clock.after(world.sync_time(self), self.on_saved, self.boot)
        elif ready.hard_state is not None:
            self.unsaved = ready.hard_state

    def on_saved(self, boot: int) -> None:
        raw, ready = self.raw, self.saving
        if boot != self.boot or raw is None or ready is None:
            return
        if self.paused:
            self.world.clock.after(1000, self.on_saved, boot)  # the disk is done, the process does not look
            return
        try:
            self.disk.save(self.saving_state, ready.entries)
        except StorageError:
            self.world.disk_failed(self)
            return
        if self.world.trace is not None:
            state = "" if self.saving_state is None else f"{self.saving_state} "
            self.world.note(self, "saved", state + describe.entries(ready.entries))
        self.saving = self.saving_state = None
        self._finish(raw, ready)
        if ready.snapshot is not None:
            self.receiving.settle(installed=True)
            self._answer_reads()
        self.turn()

    def _finish(self, raw: RawNode, ready: Ready) -> None:
        raw.saved(ready)
        self.world.send(self, ready.messages_after_save)
        if ready.committed:
            self.apply_queue += ready.committed
            if not self.applying:
                self._begin_apply()

    def install(self, machine: Registers, snapshot: SnapshotMeta) -> None:
        """The state machine takes over a snapshot: from here on a crash leaves it."""
        world = self.world
        self.machine = machine.copy()
        self.machine.installed = snapshot
        self.disk.flushed = self.machine.copy()
        self.applied_max = max(self.applied_max, snapshot.index)
        world.marks.hit("snapshot_installed")
        world.note(self, "installed", repr(snapshot))
        world.checker.installed(self.node_id, snapshot)
        world.checker.applied_state(self.node_id, self.machine)
        for number in [number for number in self.waiting if number in self.machine.results]:
            world.history.lost(self.waiting.pop(number))  # applied, but where nobody can say

    def _send_forwards(self, raw: RawNode) -> None:
        if self.forwards and self.saving is None and raw.raft.saved_state.term == raw.term:  # they name a term
            self.world.send(self, self.forwards)
            self.forwards = []

    # The state machine

    def _begin_apply(self) -> None:
        self.applying, self.apply_queue = self.apply_queue, []
        self.world.clock.after(self.world.apply_time(), self._on_applied, self.boot)

    def _on_applied(self, boot: int) -> None:
        raw = self.raw
        if boot != self.boot or raw is None:
            return
        entries, self.applying = self.applying, []
        machine, checker = self.machine, self.world.checker
        duplicates = machine.duplicates
        for entry in entries:
            machine.apply(entry)
            checker.applied(self.node_id, entry)
            checker.applied_state(self.node_id, machine)
            if self.waiting and entry.data and entry.kind is EntryKind.COMMAND:
                operation = self.waiting.pop(operation_of(entry.data), None)
                if operation is not None:
                    self.world.history.written(operation, entry.index, machine.results[operation.number])
        if machine.duplicates > duplicates:
            self.world.marks.hit("duplicate_command")
        self.applied_max = max(self.applied_max, machine.applied_index)
        if self.reads_confirmed:
            self._answer_reads()
        if self.apply_queue:
            self._begin_apply()
        self.turn()

    # Reads

    def _confirm_reads(self, ready: Ready) -> None:
        world = self.world
        for read in ready.reads:
            if not self.reads_asked:
                world.marks.hit("read_answered_late")
            for context, operation in self.reads_asked:
                if context <= read.context:
                    world.history.confirmed(operation, read.index)
                    self.reads_confirmed.append(operation)
                    if world.leader_id != self.node_id:
                        world.marks.hit("read_by_follower")
            self.reads_asked = [asked for asked in self.reads_asked if asked[0] > read.context]
        self._answer_reads()

    def _answer_reads(self) -> None:
        applied_index = self.machine.applied_index
        ready = [operation for operation in self.reads_confirmed if operation.index <= applied_index]
        for operation in ready:
            self.world.history.answered(operation, self.machine.values.get(operation.register, 0))
        self.reads_confirmed = [operation for operation in self.reads_confirmed if operation.index > applied_index]

    def check(self, raw: RawNode) -> None:
        """What always holds of one node."""
        r = raw.raft
        invariants.check(r)
        self.moment = invariants.observe(r) if self.moment is None else invariants.check_delta(self.moment, r)
