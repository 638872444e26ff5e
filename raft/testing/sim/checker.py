"""SimChecker: the cluster's invariants, and those that need the simulator's view.

To Figure 3.2 and its companions (raft/core/invariants.py) come: equal state hashes at equal indexes on
all nodes, across restarts, replay and snapshots; elections by quorums of the leader's own configuration, and
quorums of adjacent configurations overlap; nothing is compacted that the state has not; bounds on what a node
holds in memory.
"""

from itertools import pairwise
from typing import final

from raft.core.invariants import ClusterChecker
from raft.core.membership import decode_configuration
from raft.core.state import READ_ROUNDS_MAX, READS_WAITING_MAX, Raft
from raft.messages import AppendEntries
from raft.testing.sim.machine import Registers
from raft.types import Configuration, Entry, EntryKind, Index, NodeId


def _voters(configuration: Configuration) -> tuple[NodeId, ...]:
    return configuration.voters + configuration.voters_outgoing


def is_quorum(configuration: Configuration, nodes: set[NodeId]) -> bool:
    """Counted here once more, on purpose: raft/core/quorum.py is what is being checked."""
    for voters in (configuration.voters, configuration.voters_outgoing):
        if voters and 2 * len(nodes.intersection(voters)) <= len(voters):
            return False
    return True


def _overlap(a: Configuration, b: Configuration) -> bool:
    """No quorum of `a` leaves a quorum of `b` among the others: all subsets are tried."""
    nodes = sorted({*_voters(a), *_voters(b)})
    for bits in range(2 ** len(nodes)):
        side = {node for i, node in enumerate(nodes) if bits >> i & 1}
        if is_quorum(a, side) and is_quorum(b, set(nodes) - side):
            return False
    return True


@final
class SimChecker(ClusterChecker):
    def __init__(self, proposal_bytes_max: int, configuration: Configuration) -> None:
        super().__init__()
        self._proposal_bytes_max = proposal_bytes_max
        self._hashes: dict[Index, int] = {}
        self._overlapping: set[tuple[Configuration, Configuration]] = set()
        self.configuration: tuple[Index, Configuration] = (0, configuration)  # the newest that anybody has applied

    def applied_state(self, node_id: NodeId, machine: Registers) -> None:
        """After each entry that a state machine applies."""
        index = machine.applied_index
        first = self._hashes.setdefault(index, machine.state_hash)
        assert first == machine.state_hash, (
            f"apply is not deterministic: n{node_id:x} at {index} has {machine.state_hash:08x}, others {first:08x}"
        )

    def applied(self, node_id: NodeId, entry: Entry) -> None:
        super().applied(node_id, entry)
        if entry.kind is EntryKind.CONFIGURATION and entry.index > self.configuration[0]:
            self.configuration = (entry.index, decode_configuration(entry.data)[0])

    def elected(self, r: Raft) -> None:
        """A leader has votes of a quorum of the configuration of its own log; whoever else voted does not count."""
        voters = [voter for _, configuration, _ in r.configurations[-2:] for voter in _voters(configuration)]
        assert r.node_id in voters, f"n{r.node_id:x} leads term {r.term} and was never a voter"
        granted = [n for (n, term), candidate in self._votes.items() if (term, candidate) == (r.term, r.node_id)]
        assert is_quorum(r.configuration, {*granted, r.node_id}), (
            f"n{r.node_id:x} leads term {r.term} with votes of {granted}, in {r.configuration}"
        )

    def configured(self, r: Raft) -> None:
        """Quorums of configurations that follow each other overlap (thesis 4.3)."""
        if len(r.configurations) == 1:
            return
        for (_, before, _), (_, after, _) in pairwise(r.configurations):
            if before.voters and (before, after) not in self._overlapping:
                assert _overlap(before, after), f"n{r.node_id:x}: {before} and {after} can decide apart"
                self._overlapping.add((before, after))

    def compacts(self, node_id: NodeId, index: Index, flushed: Registers) -> None:
        """A log is compacted up to `index`: the state that survives a crash must have all of it."""
        assert flushed.applied_index >= index, f"n{node_id:x} compacts ..{index}, its state has {flushed.applied_index}"

    def bounds(self, r: Raft) -> None:
        config = r.config
        assert r.uncommitted_bytes <= config.uncommitted_bytes_max + self._proposal_bytes_max, (
            f"n{r.node_id:x}: {r.uncommitted_bytes} bytes are uncommitted"
        )
        assert r.log.applying_bytes <= 2 * config.apply_bytes_max + self._proposal_bytes_max, (
            f"n{r.node_id:x}: {r.log.applying_bytes} bytes are handed out and not applied"
        )
        assert len(r.reads_waiting) <= READS_WAITING_MAX, f"n{r.node_id:x}: too many reads wait"
        assert len(r.read_rounds) <= READ_ROUNDS_MAX, f"n{r.node_id:x}: too many read rounds"

    def append_bounds(self, message: AppendEntries, bytes_max: int) -> None:
        if len(message.entries) > 1:
            size = sum([len(entry.data) for entry in message.entries])
            assert size <= bytes_max, f"n{message.sender:x} sends {size} bytes at once"
