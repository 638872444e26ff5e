"""Settings of the driver, around those of the core."""

from dataclasses import dataclass
from typing import Literal

from raft.config import Config
from raft.errors import ConfigError

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Frozen, checked once, each with its unit and its reason."""

    core: Config
    tick_seconds: float = 0.1
    initial_election_tick_advance: bool = True  # a starting node waits for one heartbeat, not for a whole timeout
    sync: Literal["inline", "thread"] = "inline"  # inline is faster below 0.5 ms an fsync, thread keeps the loop free
    proposal_bytes_max: int = 512 * 1024  # taken in one turn: the size of one entry, or of several
    inbox_bytes_max: int = 64 * MIB  # received and not yet stepped; the rest is dropped, raft resends
    catch_up_bytes: int = 64 * MIB  # of the log stay for members that are a little behind: cheaper than a snapshot
    catch_up_entries: int = 10_000  # likewise: what stays is within both
    snapshot_pin_bytes: int = 1024 * MIB  # of the log stay for whoever is being sent a snapshot, at most
    snapshot_bytes_per_second: int = 0  # that one transfer may use; 0: no limit
    snapshots_at_once: int = 1  # transfers

    def __post_init__(self) -> None:
        if self.tick_seconds <= 0:
            raise ConfigError("tick_seconds must be positive")
        if self.sync not in {"inline", "thread"}:
            raise ConfigError(f"sync is inline or thread, not {self.sync}")
        for name in ("proposal_bytes_max", "inbox_bytes_max", "snapshots_at_once"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be positive")
        for name in ("catch_up_bytes", "catch_up_entries", "snapshot_pin_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative")
        if self.snapshot_bytes_per_second and self.snapshot_bytes_per_second < 64 * 1024:
            raise ConfigError("snapshot_bytes_per_second is 0 (no limit) or at least 64 KiB")
