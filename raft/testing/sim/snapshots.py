"""Snapshots on their way from one process to another, beside the messages: what raft/sending.py and
raft/receiving.py do, with virtual time and chunks that are counted instead of bytes that are sent.

    sender      Ready.snapshots_to_send -> waits -> taken -> header, chunk ... chunk, end -> until it says so
    receiver    begin (resumes what it has) ------------------> write ... finish -> Process installs it

A transfer is a script: between any two of its steps either side may crash, be paused or move on, the link
may be cut, clogged or break. All that a sender knows of it is lost with its process.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from raft.core.progress import ProgressState
from raft.core.raw_node import RawNode
from raft.messages import InstallSnapshot
from raft.testing.sim.clock import Script
from raft.testing.sim.disk import Incoming
from raft.testing.sim.machine import Registers
from raft.types import Index, NodeId, Role, SnapshotMeta, Term

if TYPE_CHECKING:
    from raft.testing.sim.process import Process


@dataclass(slots=True)
class Whole:
    """A snapshot that has arrived and is not installed yet."""

    message: InstallSnapshot
    machine: Registers
    settled: bool = False  # it is installed, or was not wanted
    installed: bool = False


@final
class Sending:
    """A process's own. One transfer at a time; they share one copy of the state."""

    def __init__(self, process: "Process") -> None:
        self._process = process
        self._term: Term = 0  # in which we send
        self._waiting: dict[NodeId, None] = {}
        self._transfer: Transfer | None = None
        self._kept: Registers | None = None
        self._wanted = False  # a transfer of it did not succeed
        self._ended: list[NodeId] = []

    @property
    def pinned(self) -> Index | None:
        return None if self._kept is None else self._kept.applied_index

    def ask(self, peers: list[NodeId]) -> None:
        for peer in peers:
            self._waiting[peer] = None

    def turn(self, raw: RawNode) -> None:
        if not (self._waiting or self._transfer or self._kept or self._ended):
            self._term = raw.term
            return
        if raw.role is not Role.LEADER or raw.term != self._term:
            self._transfer = self._kept = None
            self._ended.clear()
            if raw.role is not Role.LEADER:
                self._waiting.clear()
            self._term = raw.term
        for peer in self._ended:
            raw.snapshot_failed(peer)
        self._ended.clear()
        kept = self._kept
        if kept is not None and self._transfer is None:
            compacted = kept.applied_index < raw.raft.log.first_index - 1
            if compacted:
                self._process.world.marks.hit("snapshot_outdated")
            if compacted or not (self._wanted or self._waiting):
                self._kept = None
        if self._waiting and self._transfer is None:
            peer = next(iter(self._waiting))
            del self._waiting[peer]
            self._transfer = Transfer(self._process, peer, raw.term)
            self._process.world.clock.play(self._transfer.run())

    def take(self) -> Registers:
        if self._kept is None:
            self._process.world.marks.hit("snapshot_taken")
            machine, raw = self._process.machine, self._process.raw
            assert raw is not None, "only a leader sends snapshots"
            told = raw.configuration_at(machine.applied_index)
            assert told == (machine.configuration, machine.context), (
                f"{told} at {machine.applied_index} was not applied"
            )
            self._kept = machine.copy()
        return self._kept

    def is_current(self, transfer: "Transfer") -> bool:
        return self._transfer is transfer

    def end(self, peer: NodeId, wanted: bool) -> None:
        self._transfer = None
        self._wanted = wanted
        self._ended.append(peer)


@final
class Transfer:
    """One attempt."""

    def __init__(self, sender: "Process", to: NodeId, term: Term) -> None:
        self._sender = sender
        self._sending = sender.sending
        self._boot = sender.boot
        self._world = sender.world
        self._to = to
        self._term = term

    def run(self) -> Script[None]:
        world, sender = self._world, self._sender
        yield world.apply_time()
        if not self._lives():
            return
        kept = self._sending.take()
        whole = None
        receiver = world.processes.get(self._to)
        if receiver is not None:
            world.note(sender, "snapshot", f"{kept.snapshot()} to n{self._to:x}")
            whole = yield from self._stream(receiver, kept)
        if self._lives():
            if whole is not None:
                yield from self._until_it_says_so()
            elif receiver is not None:
                world.injected["snapshot cut off"] += 1
        if self._lives():
            self._sending.end(self._to, wanted=whole is None)
            sender.turn()

    def _stream(self, receiver: "Process", kept: Registers) -> Script[Whole | None]:
        """Returns None when it came to nothing."""
        world = self._world
        if not (yield from self._passes()) or receiver.raw is None:
            return None
        boot = receiver.boot
        arrival = receiver.receiving.begin(kept.snapshot(), self._sender.node_id, self._term)
        while arrival is not None and arrival.chunks < world.options.snapshot_chunks:
            passes = yield from self._passes()
            if not passes or not self._lives() or receiver.boot != boot or receiver.receiving.arrival is not arrival:
                return None
            if not receiver.paused:
                arrival.chunks += 1
        if arrival is None:
            return None
        whole = receiver.receiving.finish(kept, self._sender.node_id, self._term)
        while not whole.settled:
            yield world.options.tick
            if receiver.boot != boot or receiver.raw is None:
                return None
        return whole if whole.installed else None

    def _passes(self) -> Script[bool]:
        """The time of something small there and back; False when the stream broke."""
        world = self._world
        network = world.network
        yield network.time_for((self._sender.node_id, self._to)) + world.options.chunk_time
        while self._sender.paused and self._lives():
            yield world.options.tick
        if network.is_cut((self._sender.node_id, self._to)) or network.is_cut((self._to, self._sender.node_id)):
            yield world.options.election_timeout  # until somebody notices
            return False
        return not network.breaks()

    def _until_it_says_so(self) -> Script[None]:
        for _ in range(self._world.options.election_ticks):
            raw = self._sender.raw
            peer = raw.raft.progress.get(self._to) if raw is not None else None
            if peer is None or peer.state is not ProgressState.SNAPSHOT:
                return
            yield self._world.options.tick
            if not self._lives():
                return

    def _lives(self) -> bool:
        sender = self._sender
        return sender.boot == self._boot and sender.raw is not None and self._sending.is_current(self)


@final
class Receiving:
    """A process's own. `whole` is what has arrived; the installation is a Ready of the process."""

    def __init__(self, process: "Process") -> None:
        self.whole: Whole | None = None
        self.arrival: Incoming | None = None  # the transfer that is heard
        self.resetting = False  # the state machine has it, the log not yet
        self._process = process

    @property
    def installs(self) -> bool:
        """The state machine may be ahead of what the core knows."""
        saving = self._process.saving
        return saving is not None and saving.snapshot is not None

    def begin(self, snapshot: SnapshotMeta, sender: NodeId, term: Term) -> Incoming | None:
        """A transfer begins: what is here already, or None when it is refused."""
        process = self._process
        raw, disk, marks = process.raw, process.disk, process.world.marks
        self.arrival = None
        if raw is None or process.paused or term < raw.term or self.whole is not None:
            return None
        if snapshot.index <= raw.commit_index:
            marks.hit("snapshot_not_needed")
            process.receive(_message(process.node_id, snapshot, sender, term))
            return None
        chunks = 0
        if disk.incoming is not None and disk.incoming.snapshot == snapshot and disk.incoming.chunks:
            marks.hit("snapshot_resumed")
            chunks = disk.incoming.chunks
        self.arrival = disk.incoming = Incoming(snapshot, chunks)
        return self.arrival

    def finish(self, machine: Registers, sender: NodeId, term: Term) -> Whole:
        self.arrival = None
        whole = self.whole = Whole(_message(self._process.node_id, machine.snapshot(), sender, term), machine)
        self._process.turn()
        return whole

    def feed(self, raw: RawNode) -> bool:
        if self.whole is None:
            return False
        raw.step(self.whole.message)
        return True

    def settle(self, installed: bool) -> None:
        whole, self.whole = self.whole, None
        assert whole is not None, "no snapshot has arrived"
        self._process.disk.incoming = None
        whole.settled, whole.installed = True, installed

    def on_installed(self, boot: int) -> None:
        """The state machine has it, durably and in one step; the log is still the old one."""
        process, whole = self._process, self.whole
        if boot != process.boot or process.saving is None or whole is None:
            return
        world, snapshot = process.world, process.saving.snapshot
        if process.paused:
            world.clock.after(1000, self.on_installed, boot)
            return
        assert snapshot == whole.machine.snapshot(), f"{snapshot} is not what arrived"
        if snapshot.index < process.disk.storage.last_index:
            world.marks.hit("snapshot_discards_log")
        process.install(whole.machine, snapshot)
        self.resetting = True
        world.clock.after(world.sync_time(process), self._on_reset, boot)

    def _on_reset(self, boot: int) -> None:
        process = self._process
        ready = process.saving
        if boot != process.boot or ready is None or ready.snapshot is None:
            return
        process.disk.reset(ready.snapshot)
        self.resetting = False
        process.saving_state = ready.hard_state
        process.world.clock.after(process.world.sync_time(process), process.on_saved, boot)


def _message(to: NodeId, snapshot: SnapshotMeta, sender: NodeId, term: Term) -> InstallSnapshot:
    return InstallSnapshot(to, sender, term, snapshot.index, snapshot.term, snapshot.configuration, snapshot.context)
