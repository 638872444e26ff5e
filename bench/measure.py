"""What is measured on a running cluster: each function is one measurement and returns its numbers by name.

A measurement whose calls failed, or after which the revision has not moved by the number of puts, raises Refused:
such a figure shows nothing. Connections of the main rows go to the leader, of both systems alike.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from bench.channel import CallFailedError, dial
from bench.clusters import Members, State
from bench.load import Load, Measured, Operation, connect, disconnect
from bench.messages import RANGE, Keys

Numbers = dict[str, Any]
PERCENTS: Final = {"p50_ms": 50, "p90_ms": 90, "p99_ms": 99, "p999_ms": 99.9}
MIB: Final = 1 << 20
REST_SECONDS: Final = 2.0
RESTART_SECONDS: Final = 120.0
POLL_SECONDS: Final = 0.01
STATE_SECONDS: Final = 30.0  # it may still work off what it was given


class RefusedError(Exception):
    """Not to be reported as a figure."""


@dataclass(frozen=True)
class Effort:
    """How long and how much."""

    seconds: float = 5.0  # of each window
    keys: int = 1_000_000  # of the rows that speak of a million
    seed: int = 20_000  # keys that are there before the small rows
    watchers: int = 1000
    kills: int = 3  # of one round of the failover row
    h2load: int = 100_000  # requests


QUICK: Final = Effort(seconds=1.0, keys=20_000, seed=5000, watchers=100, kills=1, h2load=5000)


@dataclass
class Scene:
    """A running cluster, and the keys on it."""

    members: Members
    leader: int
    effort: Effort
    progress: Callable[[str], None] = field(default=lambda text: None)
    keys: Keys = field(default_factory=Keys)

    @property
    def leader_url(self) -> str:
        return self.members.urls[self.leader]

    @property
    def follower_url(self) -> str:
        return self.members.urls[(self.leader + 1) % self.members.size]

    async def state(self) -> State:
        found = await self.members.state(self.leader, STATE_SECONDS)
        if found is None:
            raise RefusedError(f"the leader does not answer\n{self.members.log_tail(self.leader)}")
        return found


async def seed(scene: Scene, count: int) -> None:
    """Put so many keys before anything is measured."""
    await counted(scene, count=count)


async def closed(
    scene: Scene,
    pick: Callable[[Keys], Callable[[], Operation]],
    *,
    connections: int,
    each: int = 1,
    follower: bool = False,
    large: bool = False,
) -> Numbers:
    """A closed loop for the window: `each` calls in flight on each connection."""
    return await _driven(
        scene,
        pick(scene.keys),
        lambda load: load.closed(connections * each, scene.effort.seconds),
        connections=connections,
        url=scene.follower_url if follower else scene.leader_url,
        large=large,
    )


async def paced(scene: Scene, *, rate: float, connections: int = 50) -> Numbers:
    """Puts begun at a fixed rate; a call's time counts from when it was due."""
    put = scene.keys.put()
    numbers = await _driven(
        scene,
        lambda: put,
        lambda load: load.paced(rate, scene.effort.seconds),
        connections=connections,
        url=scene.leader_url,
    )
    return {**numbers, "offered": rate}


async def counted(scene: Scene, *, count: int | None = None, connections: int = 100, each: int = 10) -> Numbers:
    """So many puts of keys never used before (default: the million)."""
    put = scene.keys.put()
    return await _driven(
        scene,
        lambda: put,
        lambda load: load.counted(connections * each, count or scene.effort.keys),
        connections=connections,
        url=scene.leader_url,
    )


async def _driven(
    scene: Scene, pick: Callable[[], Operation], run: Any, *, connections: int, url: str, large: bool = False
) -> Numbers:
    before = await scene.state()
    opened = await connect([url], connections, scene.members.context, large=large)
    try:
        measured: Measured = await run(Load(opened, pick, scene.members.pids))
    finally:
        await disconnect(opened)
    after = await scene.state()
    check(measured, before, after)
    numbers = as_numbers(measured)
    if measured.writes:
        numbers["batch"] = measured.writes / max(1, after.raft_index - before.raft_index)
    if before.term != after.term:
        numbers["note"] = f"an election (term {before.term} -> {after.term})"
    numbers["rss_mb"] = scene.members.rss_bytes() / MIB
    return numbers


def check(measured: Measured, before: State, after: State) -> None:
    """A figure counts only when every call succeeded and the store says the same."""
    if measured.failed:
        raise RefusedError("calls failed: " + ", ".join(f"{count} x {why}" for why, count in measured.failed.items()))
    moved = after.revision - before.revision
    if moved != measured.writes:
        raise RefusedError(f"the revision moved by {moved} where {measured.writes} writes were answered")
    if not measured.done:
        raise RefusedError("no call was answered")


def as_numbers(measured: Measured) -> Numbers:
    percentiles = measured.histogram.percentiles(PERCENTS.values())
    return {
        "rate": measured.done / measured.seconds,
        **{name: seconds * 1000 for name, seconds in zip(PERCENTS, percentiles, strict=True)},
        "cpu_us": measured.server_cpu / measured.done * 1e6,
        "generator_cpu_us": measured.generator_cpu / measured.done * 1e6,
        "generator_share": measured.generator_cpu / measured.seconds,
        "done": measured.done,
        "seconds": measured.seconds,
        "histogram": measured.histogram.to_json(),
    }


async def idle(scene: Scene) -> Numbers:
    """Memory of members that were just started."""
    await asyncio.sleep(REST_SECONDS)
    return {"rss_mb": scene.members.rss_bytes() / MIB}


async def sizes(scene: Scene) -> Numbers:
    """Memory and disk with what was put."""
    await asyncio.sleep(REST_SECONDS)
    return {"rss_mb": scene.members.rss_bytes() / MIB, "disk_mb": scene.members.disk_bytes() / MIB}


async def total(scene: Scene) -> Numbers:
    """Counts of the prefix that holds all keys, one after another. A wrong count refuses the row."""
    operation = scene.keys.total(scene.keys.count)
    return await closed(scene, lambda keys: lambda: operation, connections=1)


async def restart(scene: Scene) -> Numbers:
    """kill -9 of all members, start of all: seconds to the first linearizable read of a key that was put."""
    members = scene.members
    members.stop()
    began = time.perf_counter()
    for number in range(members.size):
        members.start_member(number)
    reads = [asyncio.create_task(_first_read(scene, number)) for number in range(members.size)]
    try:
        for first in asyncio.as_completed(reads, timeout=RESTART_SECONDS):
            await first
            break
        seconds = time.perf_counter() - began
    except TimeoutError:
        raise RefusedError(f"no read within {RESTART_SECONDS:.0f} s of the start\n{members.log_tail()}") from None
    finally:
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
    scene.leader = await members.settled()
    await asyncio.sleep(REST_SECONDS)
    return {"restart_s": seconds, "rss_mb": members.rss_bytes() / MIB}


async def _first_read(scene: Scene, number: int) -> None:
    get = scene.keys.get()
    message = get.message()
    while True:
        try:
            channel = await dial(scene.members.urls[number], scene.members.context)
        except OSError:
            await asyncio.sleep(POLL_SECONDS)
            continue
        try:
            response = await channel.ask(RANGE, message, RESTART_SECONDS)
        except CallFailedError:
            await asyncio.sleep(POLL_SECONDS)
            continue
        finally:
            await channel.close()
        if not get.right(response):
            raise RefusedError("the first linearizable read after the restart does not find a key that was put")
        return
