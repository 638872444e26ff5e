"""Options: all that a seed decides before the simulation starts (swarm testing).

Each fault class is switched on or off, and its rate drawn log-uniformly: a rare fault is not hidden by
a frequent one, and now and then only one class is left. The cluster's settings vary as well.
Times are in microseconds of virtual time, rates per second of it, probabilities per message.
"""

from dataclasses import dataclass, replace
from typing import Final

from raft.config import Config
from raft.testing.sim.clock import MILLISECOND, SECOND
from raft.testing.sim.rng import SimRng
from raft.types import Configuration, NodeId

# Fault classes that are scheduled: how often per second of the whole cluster, at least and at most.
FAULT_RATES: Final = {
    "crash": (0.02, 0.5),  # kill -9: what was written stays
    "power_cut": (0.02, 0.5),  # what was not synced is lost, kept or torn
    "power_cut_all": (0.01, 0.1),
    "disk_failure": (0.02, 0.2),
    "slow_disk": (0.02, 0.3),
    "pause": (0.02, 0.5),
    "partition": (0.05, 0.5),
    "one_way": (0.05, 0.5),
    "clog": (0.05, 0.5),
    "clock_rate": (0.05, 0.5),
    "compact": (0.1, 5),
    "transfer": (0.05, 1),
    "member": (0.05, 1),  # a change of members
    # directed.py
    "usurp": (0.02, 0.2),
    "late_answer": (0.02, 0.2),
    "late_handover": (0.02, 0.2),
    "amnesia": (0.02, 0.2),
    "lag": (0.02, 0.3),
    "late_appends": (0.02, 0.3),
    "fork": (0.02, 0.3),
}

# Fault classes of single messages: the probability, at least and at most.
MESSAGE_FAULTS: Final = {"loss": (0.001, 0.3), "duplicate": (0.001, 0.3), "replay": (0.001, 0.1)}

# What can be switched off without changing what else happens by chance.
SWITCHES: Final = (*MESSAGE_FAULTS, "reorder", "clock", "segmented", "encoded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    seed: int
    voters: int
    learners: int
    tick: int  # of a node whose clock runs right
    election_ticks: int
    heartbeat_ticks: int
    pre_vote: bool
    check_quorum: bool
    lease_reads: bool
    lease_read_drift: float
    append_bytes_max: int
    inflight_appends_max: int
    uncommitted_bytes_max: int
    apply_bytes_max: int

    joiners: int  # processes that may join
    zombies: bool  # who was removed goes on as if nothing were
    catch_up_entries: int | None  # kept by a compaction; None: whatever a member lacks
    pinned: bool  # a compaction keeps what follows a snapshot that is being sent
    snapshot_chunks: int
    chunk_time: int  # besides the network's delay
    streams_reset: bool  # peers notice the death of a process at once

    segmented: bool  # the real log over a simulated file system; else a log in memory
    segment_bytes: int
    cache_bytes: int
    encoded: bool  # messages go through the peers' wire format
    sync_delay: int  # mean of an fsync
    apply_delay: int  # mean of a batch

    network_delay: int  # mean
    fifo: bool  # messages of a link stay in order
    message_faults: dict[str, float]  # probability per message
    fault_rates: dict[str, float]  # per second
    clock_error: float  # how much faster or slower a node's clock may run

    writes: float  # per second
    reads: float
    payload: int  # bytes of a command
    safety: int  # how long faults go on
    salt: int  # other chances of messages and delays, with the same schedule
    eager: bool  # what comes in during a save is taken at once; else after it, as raft/node.py does

    def stream(self, concern: str) -> SimRng:
        """Chances that `salt` changes."""
        return SimRng(self.seed, f"{concern} {self.salt}")

    @property
    def nodes(self) -> list[NodeId]:
        return list(range(1, self.voters + self.learners + 1))

    @property
    def configuration(self) -> Configuration:
        nodes = self.nodes
        return Configuration(tuple(nodes[: self.voters]), tuple(nodes[self.voters :]))

    def config(self, node_id: NodeId) -> Config:
        return Config(
            node_id=node_id,
            election_ticks=self.election_ticks,
            heartbeat_ticks=self.heartbeat_ticks,
            pre_vote=self.pre_vote,
            check_quorum=self.check_quorum,
            lease_reads=self.lease_reads,
            lease_read_drift=self.lease_read_drift,
            append_bytes_max=self.append_bytes_max,
            inflight_appends_max=self.inflight_appends_max,
            uncommitted_bytes_max=self.uncommitted_bytes_max,
            apply_bytes_max=self.apply_bytes_max,
        )

    @property
    def election_timeout(self) -> int:
        """The longest that a node whose clock runs right waits for a leader."""
        return 2 * self.election_ticks * self.tick

    @property
    def round_trip(self) -> int:
        """About the time that a message, its fsync and the answer take."""
        return 2 * self.network_delay + self.sync_delay

    def without(self, name: str) -> "Options":
        """The same with one of SWITCHES off; for making a failure smaller."""
        assert name in SWITCHES, f"no such switch: {name}"
        if name == "reorder":
            return replace(self, fifo=True)
        if name == "clock":
            return replace(self, clock_error=0.0)
        if name == "segmented":
            return replace(self, segmented=False)
        if name == "encoded":
            return replace(self, encoded=False)
        return replace(self, message_faults={key: p for key, p in self.message_faults.items() if key != name})


def draw(seed: int, seconds: float = 40) -> Options:
    """What `seed` stands for. `seconds`: how long faults go on."""
    rng = SimRng(seed, "options")
    election_ticks = rng.choice([3, 5, 10, 10])
    tick = rng.choice([30, 60, 100]) * MILLISECOND
    tiny = rng.chance(0.3)  # bounds so small that they are always reached
    payload = rng.choice([16, 64, 200])
    lease_reads = rng.chance(0.25)
    drift = rng.choice([0.1, 0.2, 0.3])
    clock_error = rng.choice([0.0, 0.01, 0.1, 0.3])
    if lease_reads:
        # The fastest clock may run 1 / (1 - drift) times as fast as the slowest (raft/core/reads.py).
        clock_error = min(clock_error, drift / (2 - drift))
    return Options(
        seed=seed,
        voters=rng.choice([1, 3, 3, 3, 5, 5]),
        learners=rng.choice([0, 0, 0, 1, 2]),
        tick=tick,
        election_ticks=election_ticks,
        heartbeat_ticks=rng.between(1, 2) if election_ticks > 3 else 1,
        pre_vote=rng.chance(0.75) or lease_reads,
        check_quorum=rng.chance(0.75) or lease_reads,
        lease_reads=lease_reads,
        lease_read_drift=drift,
        append_bytes_max=payload * rng.between(1, 4) if tiny else 64 * 1024,
        inflight_appends_max=rng.between(1, 4) if tiny else 256,
        uncommitted_bytes_max=payload * rng.between(5, 50) if tiny or rng.chance(0.1) else 2**20,
        apply_bytes_max=payload * rng.between(1, 8) if tiny else 2**20,
        joiners=rng.choice([1, 2, 4]),
        zombies=rng.chance(0.3),
        catch_up_entries=rng.choice([None, 0, 0, 5, 50]),
        pinned=rng.chance(0.5),
        snapshot_chunks=rng.choice([1, 3, 10]),
        chunk_time=int(rng.log_uniform(100, 10 * MILLISECOND)),
        streams_reset=rng.chance(0.5),
        segmented=rng.chance(0.3),
        segment_bytes=rng.choice([2048, 8192, 32768]),
        cache_bytes=rng.choice([1024, 65536]),
        encoded=rng.chance(0.05),
        sync_delay=int(rng.log_uniform(100, 30 * MILLISECOND)),
        apply_delay=int(rng.log_uniform(50, 20 * MILLISECOND)),
        network_delay=int(rng.log_uniform(200, tick * election_ticks / 20)),
        fifo=rng.chance(0.5),
        message_faults=_swarm(rng, MESSAGE_FAULTS),
        fault_rates=_swarm(rng, FAULT_RATES),
        clock_error=clock_error,
        writes=rng.log_uniform(15, 80),
        reads=rng.log_uniform(2, 20),
        payload=payload,
        safety=int(seconds * SECOND),
        salt=0,
        eager=rng.chance(0.5),
    )


def _swarm(rng: SimRng, rates: dict[str, tuple[float, float]]) -> dict[str, float]:
    found = {}
    for name, (low, high) in rates.items():
        rate = rng.log_uniform(low, high)
        if rng.chance(0.5):
            found[name] = rate
    return found
