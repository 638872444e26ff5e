"""Settings of one node. Frozen, checked once, each with its unit and its reason."""

from dataclasses import dataclass

from raft.errors import ConfigError
from raft.types import NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the core needs to know. Times are in ticks; the driver decides how long a tick is."""

    node_id: NodeId
    election_ticks: int = 10  # a follower waits n..2n-1 ticks without a leader before it campaigns
    heartbeat_ticks: int = 1
    pre_vote: bool = True  # ask before disturbing the term (thesis 9.6)
    check_quorum: bool = True  # a leader that hears no quorum for an election timeout steps down (6.2)
    lease_reads: bool = False  # answer reads without a round while a lease holds (6.4.1): it rests on clocks (reads.py)
    lease_read_drift: float = 0.1  # how much faster than the leader's any other member's clock may run
    append_bytes_max: int = 1024 * 1024  # entries in one AppendEntries; a single larger entry still goes
    inflight_appends_max: int = 256  # per follower, in replicate state; bounds memory, not correctness
    inflight_bytes_max: int = 32 * 1024 * 1024  # per follower
    uncommitted_bytes_max: int = 64 * 1024 * 1024  # a leader that cannot commit refuses proposals beyond this
    apply_bytes_max: int = 4 * 1024 * 1024  # committed entries handed over and not yet applied

    def __post_init__(self) -> None:
        if self.node_id <= 0:
            raise ConfigError("node_id must be positive")
        if not 0 < self.heartbeat_ticks < self.election_ticks:
            raise ConfigError("need 0 < heartbeat_ticks < election_ticks")
        if not 0 <= self.lease_read_drift < 1:
            raise ConfigError("lease_read_drift must be at least 0 and below 1")
        if self.lease_reads and not (self.check_quorum and self.pre_vote):
            raise ConfigError("lease_reads needs check_quorum and pre_vote")
        for name in (
            "append_bytes_max",
            "inflight_appends_max",
            "inflight_bytes_max",
            "uncommitted_bytes_max",
            "apply_bytes_max",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be positive")
