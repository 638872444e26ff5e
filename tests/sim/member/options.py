"""Options: all that a seed decides before the simulation starts (swarm testing).

Times are nanoseconds of virtual time where they end in no unit; `network_delay` is in microseconds, as the network of
the Raft level wants it. Rates are per second of the whole cluster, probabilities per message.
"""

from dataclasses import dataclass, replace
from typing import Final

from raft.testing.sim.options import MESSAGE_FAULTS
from raft.testing.sim.rng import SimRng
from tests.sim.member.loop import MILLISECOND, SECOND

# Fault classes that are scheduled: how often per second, at least and at most.
FAULT_RATES: Final = {
    "crash": (0.03, 0.4),  # kill -9: what was written to files stays, rows not flushed are lost
    "power_cut": (0.03, 0.4),  # what was not synced is lost, kept or torn
    "power_cut_all": (0.02, 0.1),
    "stop": (0.03, 0.2),  # SIGTERM: hands over, answers, flushes
    "disk_failure": (0.02, 0.15),  # an fsync fails: the member must die
    "slow_disk": (0.03, 0.4),
    "pause": (0.05, 0.5),
    "partition": (0.05, 0.4),
    "one_way": (0.05, 0.4),
    "clog": (0.05, 0.4),
    "clock_rate": (0.05, 0.5),
    "wall_jump": (0.05, 0.5),
    "transfer": (0.05, 0.5),
}
DIRECTED_RATES: Final = {  # directed.py
    "old_revoke": (0.1, 0.4),
    "late_forward": (0.05, 0.2),
}
SWITCHES: Final = (*FAULT_RATES, *DIRECTED_RATES, *MESSAGE_FAULTS, "reorder", "client_loss", "clock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    seed: int
    members: int
    heartbeat_ms: int
    election_ms: int
    pre_vote: bool
    sync: str
    snapshot_count: int
    catchup_entries: int
    catchup_bytes: int
    piece_bytes: int  # of a snapshot
    segment_bytes: int
    cache_bytes: int
    progress_seconds: float

    sync_delay: int  # mean of an fsync
    thread_delay: int  # mean of other work in a thread
    slice_steps: int  # looks at the clock that a slice of work lasts

    network_delay: int  # microseconds, mean
    fifo: bool
    encoded: bool
    message_faults: dict[str, float]
    client_delay: int
    client_loss: float
    client_grain: int  # requests arrive at multiples of it
    fault_rates: dict[str, float]
    clock_error: float

    clients: int
    think: int  # mean pause of a client
    watchers: int
    small_watches: bool  # the hub's bounds are so small that they are always reached
    large_bytes: int  # from which size on a KeyValue stands in its event only
    compactions: float  # per second; 0: none
    leases: bool
    changes: float  # of membership, per second; 0: none
    administered: bool  # somebody changes users and roles
    safety: int  # how long faults go on

    def stream(self, concern: str) -> SimRng:
        return SimRng(self.seed, f"member {concern}")

    @property
    def election_timeout(self) -> int:
        return 2 * self.election_ms * MILLISECOND

    def without(self, name: str) -> "Options":
        """The same with one of SWITCHES off, for making a failure smaller."""
        assert name in SWITCHES, f"no such switch: {name}"
        if name == "reorder":
            return replace(self, fifo=True)
        if name == "client_loss":
            return replace(self, client_loss=0.0)
        if name == "clock":
            return replace(self, clock_error=0.0)
        return replace(
            self,
            fault_rates={key: rate for key, rate in self.fault_rates.items() if key != name},
            message_faults={key: p for key, p in self.message_faults.items() if key != name},
        )


def draw(seed: int, seconds: float) -> Options:
    """What `seed` stands for. `seconds`: how long faults go on."""
    rng = SimRng(seed, "member options")
    heartbeat_ms = rng.choice([20, 50, 100])
    election_ms = heartbeat_ms * rng.choice([5, 10, 10])
    return Options(
        seed=seed,
        members=rng.choice([1, 3, 3, 3, 3, 5]),
        heartbeat_ms=heartbeat_ms,
        election_ms=election_ms,
        pre_vote=rng.chance(0.85),
        sync=rng.choice(["inline", "thread"]),
        snapshot_count=rng.choice([5, 20, 100, 10_000]),
        catchup_entries=rng.choice([0, 5, 50, 5000]),
        catchup_bytes=rng.choice([0, 2000, 64 << 20]),
        piece_bytes=rng.choice([512, 4096, 65536]),
        segment_bytes=rng.choice([512, 4096, 65536]),
        cache_bytes=rng.choice([1024, 65536]),
        progress_seconds=rng.choice([0.5, 2.0, 600.0]),
        sync_delay=int(rng.log_uniform(100, 10_000) * 1000),
        thread_delay=int(rng.log_uniform(100, 100_000) * 1000),
        slice_steps=rng.choice([1, 2, 8, 1000]),
        network_delay=int(rng.log_uniform(200, election_ms * 1000 / 30)),
        fifo=rng.chance(0.5),
        encoded=rng.chance(0.1),
        message_faults=_swarm(rng, MESSAGE_FAULTS),
        client_delay=int(rng.log_uniform(100, 5_000) * 1000),
        client_loss=rng.choice([0.0, 0.0, 0.01, 0.05]),
        client_grain=rng.choice([1, MILLISECOND, 5 * MILLISECOND]),
        fault_rates=_swarm(rng, FAULT_RATES) | _swarm(SimRng(seed, "member directed"), DIRECTED_RATES),
        clock_error=rng.choice([0.0, 0.01, 0.1, 0.3]),
        clients=rng.between(6, 12),
        think=int(rng.log_uniform(8, 40) * MILLISECOND),
        watchers=rng.between(1, 4),
        small_watches=rng.chance(0.5),
        large_bytes=SimRng(seed, "member large").choice([1, 60, 4096]),
        compactions=rng.choice([0.0, 0.2, 1.0, 3.0]),
        leases=rng.chance(0.6),
        changes=rng.choice([0.0, 0.0, 0.3]),
        administered=SimRng(seed, "member administered").chance(0.4),
        safety=int(seconds * SECOND),
    )


def _swarm(rng: SimRng, rates: dict[str, tuple[float, float]]) -> dict[str, float]:
    found = {}
    for name, (low, high) in rates.items():
        rate = rng.log_uniform(low, high)
        if rng.chance(0.4):
            found[name] = rate
    return found
