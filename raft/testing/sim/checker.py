"""SimChecker: the cluster's invariants, and those that need the simulator's view.

To Figure 3.2 and its companions (raft/core/invariants.py) come: equal state hashes at equal indexes on
all nodes, across restarts and replay; nothing is compacted that a member still needs; bounds on what a
node holds in memory.
"""

from typing import final

from raft.core.invariants import ClusterChecker
from raft.core.ports import LogReader
from raft.core.state import READ_ROUNDS_MAX, READS_WAITING_MAX, Raft, is_voter
from raft.messages import AppendEntries
from raft.testing.sim.machine import Registers
from raft.types import Index, NodeId


@final
class SimChecker(ClusterChecker):
    def __init__(self, proposal_bytes_max: int) -> None:
        super().__init__()
        self._proposal_bytes_max = proposal_bytes_max
        self._hashes: dict[Index, int] = {}

    def applied_state(self, node_id: NodeId, machine: Registers) -> None:
        """After each entry that a state machine applies."""
        index = machine.applied_index
        first = self._hashes.setdefault(index, machine.state_hash)
        assert first == machine.state_hash, (
            f"apply is not deterministic: n{node_id:x} at {index} has {machine.state_hash:08x}, others {first:08x}"
        )

    def elected(self, r: Raft) -> None:
        assert is_voter(r, r.node_id), f"n{r.node_id:x} leads term {r.term} and is not a voter"

    def compacts(self, node_id: NodeId, index: Index, disks: dict[NodeId, LogReader]) -> None:
        """A log is compacted up to `index`: every member must have all of it."""
        for member, disk in disks.items():
            assert disk.last_index >= index, (
                f"n{node_id:x} compacts ..{index}, the log of n{member:x} ends at {disk.last_index}"
            )

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
