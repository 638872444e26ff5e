"""World: the cluster of one seed, from its first event to the verdict.

    safety      faults go on; after every turn of a node all that must hold of it is checked
    liveness    faults stop for a random core, the rest stays away: the core must elect a leader, answer
                every request, and agree on log and state
    all         everybody comes back: the whole cluster must agree

A violation is an AssertionError out of `run`, or any other error: nothing of the core may raise.
"""

from collections import Counter
from typing import Final, final

from raft.core import describe
from raft.core.membership import decode_configuration
from raft.core.ports import LogReader, Tracer
from raft.core.raw_node import RawNode
from raft.messages import AppendEntries, Message, ReadIndex, RequestVote
from raft.testing.sim.checker import SimChecker, is_quorum
from raft.testing.sim.clock import SECOND, SimClock
from raft.testing.sim.history import READ, WRITE, History, Operation
from raft.testing.sim.machine import encode_command
from raft.testing.sim.marks import Marks
from raft.testing.sim.members import Members
from raft.testing.sim.nemesis import Fault, Nemesis
from raft.testing.sim.network import SimNetwork
from raft.testing.sim.options import Options
from raft.testing.sim.process import PROPOSAL_BYTES_MAX, Process
from raft.testing.sim.rng import SimRng
from raft.testing.sim.trace import Trace
from raft.testing.sim.workload import PERIOD, Request
from raft.types import NO_NODE, Configuration, Index, NodeId, Role, Term

TIMEOUTS_TO_LEADER: Final = 20  # election timeouts in which a core must have a leader
TIMEOUTS_TO_AGREE: Final = 20  # ... and, from then on, answers and equal states
_OWN_REGISTERS: Final = 2**31
_HASH_MASK: Final = 2**64 - 1


@final
class World:
    def __init__(self, options: Options, faults: list[Fault], requests: list[Request], trace: Trace | None) -> None:
        self.options = options
        self.clock = SimClock()
        self.marks = Marks()
        self.trace = trace
        self.injected: Counter[str] = Counter()
        self.history = History()
        self.checker = SimChecker(PROPOSAL_BYTES_MAX, options.configuration)
        self.tracer = FactTracer(self)
        self.hash = options.seed  # of all that happened
        self.leader_id: NodeId = NO_NODE  # who became leader last
        self.network = SimNetwork(options, self.clock, self.injected, self._deliver)
        self._timing = options.stream("timing")
        self.quiet_until = 0  # clients ask nothing
        self._calm = False
        self._requests = max([request.number for request in requests], default=0)
        self._transfer: tuple[NodeId, Term] = (NO_NODE, 0)  # the last one begun: target, term
        self.processes: dict[NodeId, Process] = {}
        self.members = Members(self)
        self.disks: dict[NodeId, LogReader] = {}
        for node_id in options.nodes:
            self._add(node_id, options.configuration)
        for process in self.processes.values():
            process.start()
        self._nemesis = Nemesis(self, faults)
        for request in requests:
            self.clock.at(request.at, self._on_request, request)

    def run(self, safety_only: bool = False) -> None:
        self.clock.run(self.options.safety)
        if safety_only:
            return
        self._nemesis.stop()
        rng = SimRng(self.options.seed, "core")
        self._recover(self._core(rng), crash_others=rng.chance(0.5))
        self._recover(list(self.processes), crash_others=False)
        self.history.check()

    def _core(self, rng: SimRng) -> list[NodeId]:
        """Some members that hold a quorum of every configuration that may be in force, and a few more."""
        nodes = [process.node_id for process in self.processes.values() if not process.removed]
        core: set[NodeId] = set()
        configurations = self._configurations()
        for node_id in rng.sample(nodes, len(nodes)):
            if all(is_quorum(configuration, core) for configuration in configurations) and rng.chance(0.7):
                break
            core.add(node_id)
        return sorted(core)

    def _configurations(self) -> list[Configuration]:
        """The newest that anybody has applied, and whatever stands behind it in any log."""
        applied_index, configuration = self.checker.configuration
        found = [configuration]
        for process in self.processes.values():
            entries = process.disk.durable.load().configuration_entries
            found += [decode_configuration(entry.data)[0] for entry in entries if entry.index > applied_index]
            if process.raw is not None:
                found += [made for index, made, _ in process.raw.configurations if index > applied_index]
        return found

    # Events

    def _deliver(self, message: Message) -> None:
        process = self.processes[message.to]
        if process.raw is not None:
            self.members.heard(process.raw.raft, message)
            if self.trace is not None:
                self.note(process, "recv", f"{describe.body(message)} from n{message.sender:x}")
            process.receive(message)

    def _on_request(self, request: Request) -> None:
        if self.clock.now >= self.quiet_until:
            self._ask(request)

    def _ask(self, request: Request) -> None:
        process = self.processes[request.node_id]
        if process.removed:
            there = [other for other in self.processes.values() if not other.removed]
            process = there[request.number % len(there)]
        if process.raw is None:
            self.injected["nobody there"] += 1
            return
        operation = Operation(request.number, request.kind, request.register, request.number, request.expected)
        self.history.begin(operation, self.checker.commit_index)
        if self.trace is not None:
            self.note(process, "ask", repr(operation))
        if request.kind == READ:
            process.read(operation)
        else:
            size = self.options.payload
            process.write(
                operation,
                encode_command(request.number, request.register, request.number, request.expected, size),
            )

    def ask(self, process: Process, kind: str) -> int:
        """A request beside the drawn ones, of registers of its own, new ones every few seconds. Returns its number."""
        self._requests += 1
        register = _OWN_REGISTERS + self.clock.now // PERIOD
        self._ask(Request(0, self._requests, process.node_id, kind, register, None))
        return self._requests

    def restart(self, process: Process) -> None:
        if process.raw is None and not process.removed:
            process.start()
            self.note(process, "start", f"life {process.boot}")

    def disk_failed(self, process: Process) -> None:
        """Its fsync failed: nothing but death is safe."""
        self.marks.hit("disk_failed")
        self.note(process, "disk", "failed: the node dies")
        process.crash(power=self._timing.chance(0.5))
        self.clock.after(self.options.election_timeout // 2, self.restart, process)

    def compact(self, process: Process, share: float, crash: bool, window: int | None) -> None:
        """Flush the state machine and forget a share of what may go. `window`: entries that stay; None: whatever a
        member lacks."""
        raw = process.raw
        if raw is None or process.paused or process.saving is not None:
            return
        process.disk.flushed = process.machine.copy()
        index = self._compactable(process, raw, window)
        first_index = process.disk.storage.first_index
        index = first_index + int(share * (index - first_index))
        if index <= first_index:
            return
        self.checker.compacts(process.node_id, index, process.disk.flushed)
        self.note(process, "compact", f"..{index}")
        if not process.disk.compact(index, *raw.configuration_at(index), crash):
            process.gone()
            self.clock.after(self.options.election_timeout // 2, self.restart, process)

    def _compactable(self, process: Process, raw: RawNode, window: int | None) -> Index:
        """As raft/compaction.py has it."""
        applied_index = min(process.machine.applied_index, raw.applied_index)
        index = min(raw.raft.replicated_index, applied_index)
        if window is not None:
            index = max(index, min(applied_index, raw.raft.log.stable_index - window))
        pinned = process.sending.pinned
        if self.options.pinned and pinned is not None and pinned < index:
            return pinned
        return index

    # Members

    def _add(self, node_id: NodeId, configuration: Configuration) -> Process:
        process = self.processes[node_id] = Process(self, node_id, configuration)
        self.disks[node_id] = process.disk.durable
        return process

    def join(self, node_id: NodeId) -> Process:
        """A process for a new member: its log is empty, it does not run yet."""
        return self._add(node_id, Configuration(()))

    def leaves(self, process: Process) -> None:
        """It has learned that it is no member any more: it stops soon, or goes on as if nothing were."""
        self.marks.hit("removed_told")
        self.note(process, "removed", "goes on" if self._goes_on else "stops soon")
        if not self._goes_on:
            self.clock.after(self.apply_time() + self.options.round_trip, self._retire, (process, process.boot))

    @property
    def _goes_on(self) -> bool:
        return self.options.zombies and not self._calm

    def _retire(self, argument: tuple[Process, int]) -> None:
        process, boot = argument
        if process.boot == boot and process.raw is not None:
            process.crash(power=False)
            process.removed = True

    def streams_reset(self, dead: Process) -> None:
        """The process has died and the machine has not: whoever can reach it hears so at once."""
        if not self.options.streams_reset:
            return
        for process in self.processes.values():
            link = (process.node_id, dead.node_id)
            if process is not dead and not self.network.is_cut(link) and not self.network.is_cut(link[::-1]):
                self.clock.after(self.network.time_for(link), self._reset_seen, (process, process.boot, dead))

    def _reset_seen(self, argument: tuple[Process, int, Process]) -> None:
        process, boot, dead = argument
        if process.boot == boot and process.raw is not None and dead.raw is None:
            process.stream_reset(dead.node_id)

    # What processes ask of the world

    def sync_time(self, process: Process) -> int:
        delay = self.options.sync_delay
        time = (delay >> 1) + int(self._timing.random() * delay)
        if process.disk.slow_until > self.clock.now:
            time += int(self._timing.random() * (process.disk.slow_until - self.clock.now))
        return time

    def apply_time(self) -> int:
        if self._calm:
            return 0  # how long a backlog takes says nothing of Raft
        return int(self._timing.random() * 2 * self.options.apply_delay)

    def send(self, process: Process, messages: list[Message]) -> None:
        if not messages:
            return
        checker, disk = self.checker, process.disk.durable
        hard_state = disk.hard_state
        for message in messages:
            if not isinstance(message, RequestVote) or process.campaigns():
                checker.promised(message, hard_state, disk)
            if isinstance(message, AppendEntries) and message.entries:
                checker.append_bounds(message, self.options.append_bytes_max)
                if process.raw is not None and message.entries[-1].index < process.raw.raft.log.last_index:
                    self.marks.hit("append_cut")
        self.network.send(messages)

    def before_step(self, raw: RawNode, message: Message) -> None:
        if message.term > raw.term + 1:
            self.marks.hit("term_jump")
        if isinstance(message, AppendEntries):
            if message.prev_index < raw.commit_index:
                self.marks.hit("late_append")
        elif isinstance(message, ReadIndex) and raw.role is Role.LEADER:
            self.read_asked(raw)

    def read_asked(self, raw: RawNode) -> None:
        if raw.role is Role.LEADER and raw.commit_index < raw.raft.noop_index:
            self.marks.hit("read_waited_for_noop")

    def after_turn(self, process: Process, raw: RawNode) -> None:
        r = raw.raft
        log = r.log
        before = process.moment
        process.check(raw)
        self.checker.check(r, self.disks)
        self.checker.configured(r)
        self.checker.bounds(r)
        now = (
            self.hash,
            self.clock.now,
            r.node_id,
            r.term,
            r.role,
            log.commit_index,
            log.last_index,
            log.applied_index,
        )
        self.hash = hash(now) & _HASH_MASK
        marks = self.marks
        if r.role is Role.LEADER:
            if log.commit_index > log.stable_index:
                marks.hit("committed_before_own_disk")
            if before is not None and before.commit_index < r.noop_index - 1 and log.commit_index >= r.noop_index:
                marks.hit("older_terms_committed")
            full = self.options.inflight_appends_max
            if full < 8 and any(peer.inflight_count >= full for peer in r.progress.values()):
                marks.hit("inflight_full")
        if log.applying_index < log.commit_index and log.applying_bytes >= r.config.apply_bytes_max:
            marks.hit("apply_backlog")
        if before is not None and before.role is not r.role and r.role is Role.FOLLOWER:
            if before.role is Role.PRE_CANDIDATE:
                marks.hit("pre_vote_refused")
            elif before.role is Role.CANDIDATE:
                marks.hit("election_lost")
            elif before.term < r.term:
                marks.hit("deposed")

    def fact(self, node_id: NodeId, term: Term, fact: str) -> None:
        """The core has traced a change of state."""
        self.marks.fact(fact)
        process = self.processes[node_id]
        if fact == "became leader":
            self._became_leader(node_id, term)
        elif fact.startswith("truncates "):
            first = int(fact.removeprefix("truncates ").split("..")[0])
            if process.raw is not None and process.raw.raft.log.stable_index >= first:
                self.marks.hit("truncated_stable")
            if process.saving is not None and process.saving.entries and process.saving.entries[-1].index >= first:
                self.marks.hit("truncated_in_save")
        elif fact.startswith("enters "):
            self.members.entered(process)
        elif fact.startswith("transfers leadership to n"):
            self._transfer = (int(fact.removeprefix("transfers leadership to n"), 16), term)
        if self.trace is not None:
            self.note(process, "core", f"t{term} {fact}")

    def _became_leader(self, node_id: NodeId, term: Term) -> None:
        self.leader_id = node_id
        raw = self.processes[node_id].raw
        if raw is not None:
            self.checker.elected(raw.raft)
        if self._transfer == (node_id, term - 1):
            self.marks.hit("transfer_done")
        for other in self.processes.values():
            if other.node_id != node_id and other.raw is not None and other.raw.role is Role.LEADER:
                self.marks.hit("two_leaders")

    def note(self, process: Process | None, event: str, detail: str) -> None:
        if self.trace is not None:
            node_id = process.node_id if process is not None else NO_NODE
            r = process.raw.raft if process is not None and process.raw is not None else None
            self.trace.line(self.clock.now, node_id, r, event, detail)

    # Liveness

    def _recover(self, core: list[NodeId], crash_others: bool) -> None:
        """Faults stop for `core`; whoever is not in it stays away."""
        self._calm = True
        for process in self.processes.values():
            if process.was_member and process.node_id not in self.checker.configuration[1].members():
                self._retire((process, process.boot))  # the operator stops whoever goes on
        core = [node_id for node_id in core if not self.processes[node_id].removed]
        others = [node_id for node_id in self.processes if node_id not in core]
        self.note(None, "core", f"{core} must live; {others} are {'down' if crash_others else 'cut off'}")
        self.network.calm(others)
        for process in self.processes.values():
            process.disk.slow_until = 0
            process.disk.fail_next = False
            if process.node_id in others and crash_others:
                process.crash(power=True)
            elif process.node_id in core:
                process.resume()
                self.restart(process)
        processes = [self.processes[node_id] for node_id in core]
        self._await(TIMEOUTS_TO_LEADER, "no leader", _HasLeader(processes))
        for process in processes:
            if self._is_member(process):
                self.ask(process, READ)
                self._write_until_done(process)
        self._await(TIMEOUTS_TO_AGREE, "no agreement", _Agree(processes))

    def _is_member(self, process: Process) -> bool:
        """Of the newest configuration of whoever led last."""
        leader = self.processes[self.leader_id]
        configuration = self.checker.configuration[1] if leader.raw is None else leader.raw.configuration
        return not process.removed and process.node_id in configuration.members()

    def _write_until_done(self, process: Process) -> None:
        """A forwarded proposal is sent once and may be lost with its leader: a client would try again."""
        for _ in range(TIMEOUTS_TO_AGREE):
            number = self.ask(process, WRITE)
            deadline = self.clock.now + 2 * self.options.election_timeout
            while self.clock.now < deadline:
                if number in process.machine.results or not self._is_member(process):
                    return
                self.clock.run(self.clock.now + self.options.tick)
        raise AssertionError(f"liveness: a write through n{process.node_id:x} is never applied{self._state()}")

    def _await(self, timeouts: int, what: str, condition: "_HasLeader | _Agree") -> None:
        deadline = self.clock.now + timeouts * int(self.options.election_timeout * (1 + self.options.clock_error))
        while not condition.holds():
            assert self.clock.now < deadline, f"liveness: {what} after {timeouts} election timeouts{self._state()}"
            self.clock.run(self.clock.now + self.options.tick)

    def _state(self) -> str:
        lines = []
        for process in self.processes.values():
            raw = process.raw
            if raw is None:
                lines.append(f"n{process.node_id:x} is down")
                continue
            status = raw.status()
            lines.append(
                f"n{process.node_id:x}@{status.term} {describe.ROLES[status.role]} leader=n{status.leader_id:x}"
                f" applied={process.machine.applied_index} commit={status.commit} last={status.last_index}"
                f" saving={process.saving is not None} reads={len(process.reads_asked) + len(process.reads_arrived)}"
            )
        return "".join([f"\n    {line}" for line in lines])

    @property
    def commit_index(self) -> Index:
        return self.checker.commit_index

    @property
    def seconds(self) -> float:
        return self.clock.now / SECOND


@final
class _HasLeader:
    """One of them leads, and all of them that are its members follow it."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes

    def holds(self) -> bool:
        running = [process.raw for process in self._processes if process.raw is not None]
        leading = [raw for raw in running if raw.role is Role.LEADER]
        if len(leading) != 1:
            return False
        [leader] = leading
        members = leader.configuration.members()
        return all(raw.leader_id == leader.leader_id for raw in running if raw.raft.node_id in members)


@final
class _Agree:
    """No change of members is under way, every read is answered, logs and states are equal."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes

    def holds(self) -> bool:
        leading = [p.raw for p in self._processes if p.raw is not None and p.raw.role is Role.LEADER]
        members = leading[0].configuration.members() if leading else ()
        found = set()
        for process in self._processes:
            if process.removed or process.node_id not in members:
                continue
            raw = process.raw
            if raw is None:
                return False
            if process.reads_arrived or process.reads_asked or process.reads_confirmed or raw.pending_change:
                return False
            log = raw.raft.log
            machine = process.machine
            if not log.last_index == log.stable_index == log.commit_index == machine.applied_index:
                return False
            found.add((log.last_index, log.last_term, machine.state_hash))
        return len(found) == 1


@final
class FactTracer(Tracer):
    """Hands the core's facts to the world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def emit(self, node_id: NodeId, term: Term, fact: str) -> None:
        self._world.fact(node_id, term, fact)
