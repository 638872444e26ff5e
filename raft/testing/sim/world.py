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
from raft.core.ports import LogReader, Tracer
from raft.core.raw_node import RawNode
from raft.messages import AppendEntries, Message, ReadIndex, RequestVote
from raft.testing.sim.checker import SimChecker
from raft.testing.sim.clock import SECOND, SimClock
from raft.testing.sim.history import READ, WRITE, History, Operation
from raft.testing.sim.machine import encode_command
from raft.testing.sim.marks import Marks
from raft.testing.sim.nemesis import Fault, Nemesis
from raft.testing.sim.network import SimNetwork
from raft.testing.sim.options import Options
from raft.testing.sim.process import PROPOSAL_BYTES_MAX, Process
from raft.testing.sim.rng import SimRng
from raft.testing.sim.trace import Trace
from raft.testing.sim.workload import Request
from raft.types import NO_NODE, Index, NodeId, Role, Term

TIMEOUTS_TO_LEADER: Final = 20  # election timeouts in which a core must have a leader
TIMEOUTS_TO_AGREE: Final = 20  # ... and, from then on, answers and equal states
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
        self.checker = SimChecker(PROPOSAL_BYTES_MAX)
        self.tracer = FactTracer(self)
        self.hash = options.seed  # of all that happened
        self.leader_id: NodeId = NO_NODE  # who became leader last
        self.network = SimNetwork(options, self.clock, self.injected, self._deliver)
        self._timing = options.stream("timing")
        self._calm = False
        self._requests = len(requests)
        self._transfer: tuple[NodeId, Term] = (NO_NODE, 0)  # the last one begun: target, term
        self.processes = {node_id: Process(self, node_id) for node_id in options.nodes}
        self.disks: dict[NodeId, LogReader] = {n: process.disk.durable for n, process in self.processes.items()}
        for process in self.processes.values():
            process.start()
        self._nemesis = Nemesis(self, faults)
        for request in requests:
            self.clock.at(request.at, self._ask, request)

    def run(self, safety_only: bool = False) -> None:
        self.clock.run(self.options.safety)
        if safety_only:
            return
        rng = SimRng(self.options.seed, "core")
        configuration = self.options.configuration
        majority = self.options.voters // 2 + 1
        voters = rng.sample(configuration.voters, rng.between(majority, self.options.voters))
        learners = [learner for learner in configuration.learners if rng.chance(0.5)]
        self._recover(sorted(voters + learners), crash_others=rng.chance(0.5))
        self._recover(self.options.nodes, crash_others=False)
        self.history.check()

    # Events

    def _deliver(self, message: Message) -> None:
        process = self.processes[message.to]
        if process.raw is not None:
            if self.trace is not None:
                self.note(process, "recv", f"{describe.body(message)} from n{message.sender:x}")
            process.receive(message)

    def _ask(self, request: Request) -> None:
        process = self.processes[request.node_id]
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

    def restart(self, process: Process) -> None:
        if process.raw is None:
            process.start()
            self.note(process, "start", f"life {process.boot}")

    def disk_failed(self, process: Process) -> None:
        """Its fsync failed: nothing but death is safe."""
        self.marks.hit("disk_failed")
        self.note(process, "disk", "failed: the node dies")
        process.crash(power=self._timing.chance(0.5))
        self.clock.after(self.options.election_timeout // 2, self.restart, process)

    def compact(self, process: Process, share: float, crash: bool) -> None:
        """Flush the state machine and forget a share of what every member has."""
        raw = process.raw
        if raw is None or process.paused or process.saving is not None:
            return
        process.disk.flushed = process.machine.copy()
        index = min(raw.raft.replicated_index, process.machine.applied_index, raw.applied_index)
        first_index = process.disk.storage.first_index
        index = first_index + int(share * (index - first_index))
        if index <= first_index:
            return
        self.checker.compacts(process.node_id, index, self.disks)
        self.note(process, "compact", f"..{index}")
        if not process.disk.compact(index, crash):
            process.gone()
            self.clock.after(self.options.election_timeout // 2, self.restart, process)

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
        hard_state = disk.load().hard_state
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
        self._nemesis.stop()
        self._calm = True
        others = [node_id for node_id in self.options.nodes if node_id not in core]
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
            self._requests += 1
            self._ask(Request(0, self._requests, process.node_id, READ, 0, None))
            self._write_until_done(process)
        self._await(TIMEOUTS_TO_AGREE, "no agreement", _Agree(processes))

    def _write_until_done(self, process: Process) -> None:
        """A forwarded proposal is sent once and may be lost with its leader: a client would try again."""
        for _ in range(TIMEOUTS_TO_AGREE):
            self._requests += 1
            number = self._requests
            self._ask(Request(0, number, process.node_id, WRITE, 0, None))
            deadline = self.clock.now + 2 * self.options.election_timeout
            while self.clock.now < deadline:
                if number in process.machine.results:
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
    """The newest leader among them is the one whom all of them follow."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes

    def holds(self) -> bool:
        followed = {process.raw.leader_id for process in self._processes if process.raw is not None}
        leading = [p for p in self._processes if p.raw is not None and p.raw.role is Role.LEADER]
        return len(leading) == 1 and followed == {leading[0].node_id}


@final
class _Agree:
    """Every read is answered, logs and states are equal."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes

    def holds(self) -> bool:
        found = set()
        for process in self._processes:
            if process.raw is None or process.reads_arrived or process.reads_asked or process.reads_confirmed:
                return False
            log = process.raw.raft.log
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
