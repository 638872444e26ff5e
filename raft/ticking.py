"""Ticks that no clock has brought: after a stall, and at the start."""

from raft.config import Config
from raft.core.raw_node import RawNode
from raft.types import NO_NODE, NodeId, Role


def live_through_stall(raw: RawNode, core: Config) -> None:
    """A leader checks for a quorum once per election timeout; the second check sees nothing but the stall."""
    for _ in range(2 * core.election_ticks):
        if raw.role is not Role.LEADER:
            return
        raw.tick(0)


def advance_election(raw: RawNode, core: Config, reached: frozenset[NodeId]) -> bool:
    """At the start nobody is known to lead: wait for a heartbeat, but not for a whole election timeout.

    Only once a quorum can be reached, as etcd does: earlier, a campaign would be heard by nobody. A single voter
    has nobody to wait for. Returns whether that is over.
    """
    if raw.leader_id != NO_NODE or raw.role is not Role.FOLLOWER:
        return True
    others = [voter for voter in raw.configuration.voters if voter != core.node_id]
    if sum([other in reached for other in others]) < (len(others) + 1) // 2:
        return False
    ticks = core.election_ticks - 1 - core.heartbeat_ticks if others else 2 * core.election_ticks
    while ticks > 0 and raw.role is Role.FOLLOWER:
        raw.tick(0)
        ticks -= 1
    return True
