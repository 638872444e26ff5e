"""Our members under a full mixed load for a long time: does anything grow? `make bench-soak MINUTES=30`.

    python -m bench.soak [--minutes N]

Puts over a bounded set of keys, linearizable and serializable gets, transactions and ranges keep the members busy,
while watchers follow every change and leases are kept alive. History is compacted every minute, so that what grows is
a leak.
Every sample holds throughput, latency, and of each member memory, descriptors, threads and asyncio tasks. At the end
the slopes are printed, and what is left once all clients are gone beside what was there before they came.
"""

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bench import plots, report
from bench.__main__ import event_loop
from bench.channel import Channel, dial
from bench.clusters import Members, cluster
from bench.load import Load, Operation, connect, disconnect
from bench.measure import MIB, RefusedError, as_numbers, check
from bench.messages import PUT, RANGE, TXN, VALUE_BYTES, field
from bench.streams import GRANT, TTL_SECONDS, Keeper, Watcher
from kvstore.pb import rpc_pb2 as pb

PREFIX: Final = b"soak/"
KEYS: Final = 50_000
CONNECTIONS, EACH = 100, 2
SAMPLE_SECONDS: Final = 5.0
COMPACT_EVERY_SECONDS: Final = 60.0
HISTORY: Final = 1000  # revisions that a compaction leaves
COMPACT: Final = "/etcdserverpb.KV/Compact"
WATCHERS: Final = 20
LEASES: Final = 50
KEEP_ALIVE_SECONDS: Final = 0.5
SETTLE_SECONDS: Final = 10.0  # after the clients have gone
WARM_UP_SHARE: Final = 1 / 3  # of the samples that no slope is taken of: caches fill
EVER: Final = b"\x08\x01\x20" + b"\xff" * 9 + b"\x01"  # a compare's result GREATER and version -1: always true


def mixed() -> Callable[[], Operation]:
    """Three puts, three linearizable and two serializable gets, a transaction and a range of 100 keys in ten calls."""
    value = field(2, b"v" * VALUE_BYTES)

    def key() -> bytes:
        return PREFIX + b"%06d" % random.randrange(KEYS)

    def txn() -> bytes:
        chosen = key()
        return field(1, EVER + field(3, chosen)) + field(2, field(2, field(1, chosen) + value))

    put = Operation(PUT, lambda: field(1, key()) + value, writes=1)
    get = Operation(RANGE, lambda: field(1, key()))
    serializable = Operation(RANGE, lambda: field(1, key()) + b"\x38\x01")
    change = Operation(TXN, txn, writes=1)
    some = Operation(RANGE, lambda: field(1, key()) + field(2, PREFIX + b"a") + b"\x18\x64")
    deck = [put] * 3 + [get] * 3 + [serializable] * 2 + [change, some]
    return lambda: random.choice(deck)


async def tasks(members: Members, number: int) -> int:
    """How many asyncio tasks a member has."""
    reader, writer = await asyncio.open_unix_connection(members.admin_path(number), limit=1 << 24)
    writer.write(b'{"do": "tasks"}\n')
    answer = json.loads(await reader.readline())
    writer.close()
    return len(answer["tasks"])


async def look(members: Members) -> dict[str, float]:
    """The largest of all members."""
    processes = [Path(f"/proc/{pid}") for pid in members.pids]
    return {
        "rss_mb": max(members.rss_each()) / MIB,
        "descriptors": max(len(list((process / "fd").iterdir())) for process in processes),
        "threads": max(len(list((process / "task").iterdir())) for process in processes),
        "tasks": max([await tasks(members, number) for number in range(members.size)]),
    }


class Clients:
    """What drives the members besides the calls: watchers of everything, keepers of leases."""

    def __init__(self) -> None:
        self._channels: list[Channel] = []
        self.watchers: list[Watcher] = []
        self.keepers: list[Keeper] = []

    async def start(self, members: Members) -> None:
        for number in range(WATCHERS):
            watcher = Watcher(await self._dial(members, number), PREFIX)
            self.watchers.append(watcher)
            await watcher.created()
        grant = pb.LeaseGrantRequest(TTL=TTL_SECONDS).SerializeToString()
        for number in range(LEASES):
            lease = pb.LeaseGrantResponse.FromString(await members.ask(0, GRANT, grant)).ID
            self.keepers.append(Keeper(await self._dial(members, number), lease, pause=KEEP_ALIVE_SECONDS))

    async def _dial(self, members: Members, number: int) -> Channel:
        self._channels.append(await dial(members.urls[number % members.size]))
        return self._channels[-1]

    async def check(self, events: int) -> None:
        """Every watcher has got everything, every lease is alive."""
        for watcher in self.watchers:
            await watcher.until(events)
        wrong = [keeper.wrong for keeper in self.keepers if keeper.wrong]
        if wrong:
            raise RefusedError(wrong[0])

    async def stop(self) -> None:
        await disconnect(list(self._channels))


async def soak(members: Members, leader: int, minutes: float, keep: Callable[[dict[str, Any]], None]) -> None:
    """Samples go to `keep`; the first and the last are without clients."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    keep({"phase": "before", "minute": 0.0, **await look(members)})
    clients, opened = Clients(), await connect(members.urls, CONNECTIONS)
    began = compacted = time.monotonic()
    writes = 0
    pick = mixed()
    try:
        await clients.start(members)
        while (now := time.monotonic()) - began < minutes * 60:
            before = await members.state(leader)
            measured = await Load(opened, pick, members.pids).closed(CONNECTIONS * EACH, SAMPLE_SECONDS)
            after = await members.state(leader)
            if before is None or after is None:
                raise RefusedError("the leader does not answer")
            check(measured, before, after)
            writes += measured.writes
            await clients.check(writes)
            numbers = {name: value for name, value in as_numbers(measured).items() if name != "histogram"}
            keep({"phase": "load", "minute": (now - began) / 60, **numbers, **await look(members)})
            if now - compacted > COMPACT_EVERY_SECONDS:
                compacted = now
                request = pb.CompactionRequest(revision=after.revision - HISTORY)
                await members.ask(leader, COMPACT, request.SerializeToString())
    finally:
        await clients.stop()
        await disconnect(opened)
    await asyncio.sleep(SETTLE_SECONDS)
    keep({"phase": "after", "minute": (time.monotonic() - began) / 60, **await look(members)})


GROWING: Final = {"rss_mb": "MB", "p99_ms": "ms", "rate": "/s", "descriptors": "", "threads": "", "tasks": ""}


def slope(points: list[tuple[float, float]]) -> float:
    """Growth per hour of (minute, value) by least squares, after the warm-up."""
    chosen = points[int(len(points) * WARM_UP_SHARE) :]
    if len(chosen) < 2:
        return 0.0
    return statistics.linear_regression([x for x, _ in chosen], [y for _, y in chosen]).slope * 60


def summary(samples: list[dict[str, Any]]) -> str:
    loaded = [one for one in samples if one["phase"] == "load"]
    edges = {one["phase"]: one for one in samples if one["phase"] != "load"}
    lines = ["| | before | under load, median | growth per hour | after |", "|---|---|---|---|---|"]
    for name, unit in GROWING.items():
        points = [(one["minute"], one[name]) for one in loaded]
        cells = [f"{edges[phase][name]:,.0f}" if name in edges.get(phase, {}) else "" for phase in ("before", "after")]
        middle = f"{statistics.median(y for _, y in points):,.1f}" if points else ""
        lines.append(f"| {name} {unit} | {cells[0]} | {middle} | {slope(points):+,.1f} | {cells[1]} |")
    return "\n".join(lines)


def draw(samples: list[dict[str, Any]]) -> list[Path]:
    loaded = [one for one in samples if one["phase"] == "load"]
    titles = {"rate": "operations/s", "p99_ms": "p99, ms", "rss_mb": "RSS of the largest member, MB"}
    titles |= {"descriptors": "open descriptors", "threads": "threads", "tasks": "asyncio tasks"}
    found = []
    for name, title in titles.items():
        curve = {"kvstore": [(one["minute"], one[name]) for one in loaded]}
        found.append(plots.Panel(title, "minutes", title, curve, logarithmic=False))
    return plots.panels(found, "soak", columns=3) if loaded else []


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.soak", description="a full mixed load for long: does anything grow?")
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    commit = report.commit()
    samples: list[dict[str, Any]] = []

    def keep(sample: dict[str, Any]) -> None:
        samples.append({"bench": "soak", "system": "kvstore", "commit": commit, **sample})
        report.append(samples[-1:], f"{commit}-soak")
        shown = [f"{name} {sample[name]:,.1f} {unit}" for name, unit in GROWING.items() if name in sample]
        print(f"{sample['phase']:6} {sample['minute']:6.1f} min  {'  '.join(shown)}", flush=True)

    async def measure() -> None:
        async with cluster("kvstore", admin=True) as (members, leader):
            await soak(members, leader, options.minutes, keep)

    code = 0
    try:
        event_loop()(measure())
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\ninterrupted: what is there is kept")
    except RefusedError as error:
        print(f"stopped: {error}", file=sys.stderr)
        code = 1
    print(f"\n{summary(samples)}\n")
    for path in draw(samples):
        print(f"plot: {path}")
    return code


if __name__ == "__main__":
    sys.exit(main())
