"""Cluster: several RawNodes in one thread, with a network and disks that do what the test says.

Nothing happens by itself. `tick` lets time pass for a node, `work` does what its Ready asks for,
`deliver` hands over messages; `settle` does all of it until nothing is left to do. A Ready can be
stopped half-way, between sending and saving, and the node crashed there: what was not saved is lost.
Snapshots travel beside the messages: `transfers` holds those under way.
After each step the invariants of the node and of the whole cluster are checked.

    cluster = Cluster(size=3)
    cluster.campaign(1)
    cluster.settle()
    cluster.propose(1, [b"x"])
    cluster.settle()
    assert cluster.state(3) == [b"x"]
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import final

from raft.config import Config
from raft.core import election, invariants
from raft.core.invariants import ClusterChecker, Moment
from raft.core.ports import LogReader, Rng, Tracer
from raft.core.raw_node import RawNode
from raft.messages import InstallSnapshot, Message
from raft.ready import Ready
from raft.storage.memory import MemoryStorage
from raft.types import Configuration, ConfigurationChange, Entry, EntryKind, Index, NodeId, Role

SETTLE_STEPS_MAX = 10_000  # more means that the nodes talk for ever


@final
class SplitMixRng(Rng):
    """splitmix64: small, and the same on every version of Python."""

    def __init__(self, seed: int) -> None:
        self._state = seed & (2**64 - 1)

    def below(self, bound: int) -> int:
        self._state = (self._state + 0x9E3779B97F4A7C15) & (2**64 - 1)
        value = self._state
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        return (value ^ (value >> 31)) % bound

    def chance(self, percent: int) -> bool:
        return self.below(100) < percent


@final
class Member:
    """One node with its disk and its state machine. `raw` is None while it is down."""

    def __init__(self, config: Config, storage: MemoryStorage) -> None:
        self.config = config
        self.storage = storage
        self.raw: RawNode | None = None
        self.in_flight: Ready | None = None  # sent but not saved
        self.applied: list[Entry] = []  # the state machine: every COMMAND entry since the log began
        self.applied_index: Index = 0
        self.flushed_index: Index = 0  # what of it survives a crash
        self.reads: dict[int, Index] = {}  # confirmed rounds: context -> index
        self.arrived: dict[Index, list[Entry]] = {}  # snapshots that are here, by index
        self.moment: Moment | None = None


@final
class Transfer:
    """A snapshot under way: what the receiver's driver will tell its core, and the state machine's content."""

    def __init__(self, message: InstallSnapshot, applied: list[Entry]) -> None:
        self.message = message
        self.applied = applied


class Cluster:
    def __init__(
        self,
        size: int = 3,
        *,
        configuration: Configuration | None = None,
        config: Config | None = None,
        seed: int = 1,
        tracer: Tracer | None = None,
    ) -> None:
        self.configuration = configuration or Configuration(tuple(range(1, size + 1)))
        self.tracer = tracer
        self.rng = SplitMixRng(seed)
        self.network: list[Message] = []  # under way, oldest first
        self.transfers: list[Transfer] = []  # likewise
        self.cut: set[tuple[NodeId, NodeId]] = set()  # (sender, to): what is sent there is lost
        self.checker = ClusterChecker()
        self.on_message: Callable[[Message, bool], None] | None = None  # each one sent, and whether it is lost
        self.on_save: Callable[[NodeId, Ready], None] | None = None
        self.config = config or Config(node_id=1)
        self.members: dict[NodeId, Member] = {}
        self.disks: dict[NodeId, LogReader] = {}
        for node_id in self.configuration.members():
            self.add(node_id, self.configuration)

    # What happens to a node.

    def node(self, node_id: NodeId) -> RawNode:
        raw = self.members[node_id].raw
        assert raw is not None, f"n{node_id:x} is down"
        return raw

    def up(self) -> list[NodeId]:
        return [node_id for node_id, member in self.members.items() if member.raw is not None]

    def add(self, node_id: NodeId, configuration: Configuration | None = None) -> None:
        """Start a node with an empty disk: a founder of `configuration`, or one that waits to be made a member."""
        storage = MemoryStorage(configuration or Configuration(()))
        self.members[node_id] = Member(replace(self.config, node_id=node_id), storage)
        self.disks[node_id] = storage
        self.restart(node_id)

    def leader(self) -> NodeId:
        """The leader of the newest term, or 0."""
        leading = [(self.node(n).term, n) for n in self.up() if self.node(n).role is Role.LEADER]
        return max(leading)[1] if leading else 0

    def tick(self, node_id: NodeId, ticks: int = 1) -> None:
        for _ in range(ticks):
            self.node(node_id).tick()
            self._check(node_id)

    def campaign(self, node_id: NodeId) -> None:
        """Its election timeout passes."""
        election.start(self.node(node_id).raft)
        self._check(node_id)

    def propose(self, node_id: NodeId, data: list[bytes]) -> None:
        self.node(node_id).propose(data)
        self._check(node_id)

    def change(self, node_id: NodeId, change: ConfigurationChange) -> Index:
        """Ask `node_id` for a change of members; those who join must have been added before messages reach them."""
        index = self.node(node_id).propose_configuration(change)
        self._check(node_id)
        return index

    def read(self, node_id: NodeId) -> int | None:
        context = self.node(node_id).read_index()
        self._check(node_id)
        return context

    def transfer(self, node_id: NodeId, to: NodeId) -> None:
        self.node(node_id).transfer_leadership(to)
        self._check(node_id)

    def step(self, message: Message) -> None:
        """`message` arrives. Lost when its receiver is down."""
        if message.to in self.members and self.members[message.to].raw is not None:
            self.node(message.to).step(message)
            self._check(message.to)

    def crash(self, node_id: NodeId) -> None:
        """What is not saved is lost; messages under way are not."""
        member = self.members[node_id]
        member.raw = None
        member.in_flight = None
        member.reads.clear()
        member.arrived.clear()

    def restart(self, node_id: NodeId) -> None:
        member = self.members[node_id]
        assert member.raw is None, f"n{node_id:x} is up"
        loaded = member.storage.load()
        member.applied_index = member.flushed_index
        member.applied = [entry for entry in member.applied if entry.index <= member.flushed_index]
        rng = SplitMixRng(self.rng.below(2**62))
        member.raw = RawNode(member.config, member.storage, loaded, member.applied_index, rng, self.tracer)
        member.moment = None
        self.checker.restarted(node_id, member.raw.commit_index)
        # Transfers end with the process that sends them.
        self.transfers = [transfer for transfer in self.transfers if transfer.message.sender != node_id]
        self._check(node_id)

    def compact(self, node_id: NodeId, index: Index | None = None) -> Index:
        """Flush the state machine and drop the log up to `index`, or to what every member has. Returns how far."""
        member = self.members[node_id]
        raw = self.node(node_id)
        if member.in_flight is not None and member.in_flight.snapshot is not None:
            return raw.status().first_index - 1  # the log is about to be replaced
        member.flushed_index = member.applied_index
        index = min(member.flushed_index, raw.status().replicated_index if index is None else index)
        if index >= member.storage.first_index:
            member.storage.compact(index, *raw.configuration_at(index))
        return index

    # The driver.

    def work(self, node_id: NodeId) -> bool:
        """Do one whole Ready, or the rest of one. Returns whether there was one."""
        if self.members[node_id].in_flight is None and not self.begin(node_id):
            return False
        self.save(node_id)
        return True

    def begin(self, node_id: NodeId) -> bool:
        """The first half of a Ready: what may leave before the save does."""
        member = self.members[node_id]
        if member.raw is None or member.in_flight is not None or not member.raw.has_ready():
            return False
        member.in_flight = member.raw.ready()
        self._check(node_id)
        self._send(member.in_flight.messages)
        for to in member.in_flight.snapshots_to_send:
            self._send_snapshot(node_id, to)
        for read in member.in_flight.reads:
            member.reads[read.context] = read.index
        return True

    def save(self, node_id: NodeId) -> None:
        """The second half: save, and all that had to wait for it."""
        member = self.members[node_id]
        ready = member.in_flight
        assert ready is not None, f"n{node_id:x} has nothing to save"
        assert member.raw is not None, f"n{node_id:x} is down"
        member.in_flight = None
        if self.on_save is not None:
            self.on_save(node_id, ready)
        if ready.snapshot is not None:
            snapshot = ready.snapshot
            self.checker.installed(node_id, snapshot)
            member.applied = member.arrived.pop(snapshot.index)
            member.applied_index = member.flushed_index = snapshot.index
            member.storage.reset(snapshot.index, snapshot.term, snapshot.configuration, snapshot.context)
        member.storage.save(ready.hard_state, ready.entries, ready.must_sync)
        member.raw.saved(ready)
        self._check(node_id)
        self._send(ready.messages_after_save)
        for entry in ready.committed:
            assert entry.index == member.applied_index + 1, f"n{node_id:x} applies {entry} after {member.applied_index}"
            self.checker.applied(node_id, entry)
            member.applied_index = entry.index
            if entry.kind is EntryKind.COMMAND:
                member.applied.append(entry)
        if ready.committed:
            member.raw.applied(member.applied_index)
            self._check(node_id)

    def deliver(self, position: int = 0) -> None:
        """The message at `position` of the network arrives."""
        self.step(self.network.pop(position))

    def arrive(self, position: int = 0, broken: bool = False) -> None:
        """A transfer ends: the snapshot is there, verified, or the sender learns that it is not."""
        transfer = self.transfers.pop(position)
        message = transfer.message
        member = self.members.get(message.to)
        lost = broken or (message.sender, message.to) in self.cut
        if member is None or member.raw is None or lost:
            sender = self.members[message.sender].raw
            if sender is not None:
                sender.snapshot_failed(message.to)
                self._check(message.sender)
            return
        member.arrived.setdefault(message.index, transfer.applied)
        self.step(message)

    def settle(self) -> None:
        """Readys and messages, in order, until nothing is left to do. No time passes."""
        for _ in range(SETTLE_STEPS_MAX):
            worked = False
            for node_id in self.members:
                worked = self.work(node_id) or worked
            while self.network:
                worked = True
                self.deliver()
            while self.transfers:
                worked = True
                self.arrive()
            if not worked:
                return
        raise AssertionError(f"not settled after {SETTLE_STEPS_MAX} rounds")

    def advance(self, ticks: int) -> None:
        """Time passes for all; after each tick everything settles."""
        for _ in range(ticks):
            for node_id in self.up():
                self.tick(node_id)
            self.settle()

    # The network.

    def partition(self, *groups: Iterable[NodeId]) -> None:
        """Only members of the same group hear each other; who is in no group is alone."""
        side = {node_id: number for number, group in enumerate(groups) for node_id in group}
        self.cut = {
            (sender, to)
            for sender in self.members
            for to in self.members
            if sender != to and (sender not in side or side.get(sender) != side.get(to))
        }

    def heal(self) -> None:
        self.cut.clear()

    # What came of it.

    def state(self, node_id: NodeId) -> list[bytes]:
        """The commands that the state machine of a node has applied."""
        return [entry.data for entry in self.members[node_id].applied]

    def _send(self, messages: list[Message]) -> None:
        for message in messages:
            disk = self.members[message.sender].storage
            self.checker.promised(message, disk.load().hard_state, disk)
            lost = (message.sender, message.to) in self.cut
            if self.on_message is not None:
                self.on_message(message, lost)
            if not lost:
                self.network.append(message)

    def _send_snapshot(self, node_id: NodeId, to: NodeId) -> None:
        """Of the state machine as it is now."""
        member = self.members[node_id]
        raw = self.node(node_id)
        index = member.applied_index
        configuration, context = raw.configuration_at(index)
        term = raw.raft.log.term_at(index)
        message = InstallSnapshot(to, node_id, raw.term, index, term, configuration, context)
        if self.on_message is not None:
            self.on_message(message, (node_id, to) in self.cut)
        self.transfers.append(Transfer(message, list(member.applied)))

    def _check(self, node_id: NodeId) -> None:
        member = self.members[node_id]
        assert member.raw is not None
        r = member.raw.raft
        invariants.check(r)
        member.moment = invariants.observe(r) if member.moment is None else invariants.check_delta(member.moment, r)
        self.checker.check(r, self.disks)
