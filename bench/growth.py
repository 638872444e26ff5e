"""Puts/s and p99 as things grow, ours beside etcd's: keys, members, connections. `make bench-growth`.

    python -m bench.growth [--quick] [--only SYSTEM] [--what keys,members,connections]

Each point is a closed loop of puts of new keys. Keys and members are tried with 100 connections x 10, connections with
one call in flight on each. Points of both systems alternate.
"""

import argparse
import asyncio
import dataclasses
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

from bench import plots, report
from bench.__main__ import event_loop
from bench.clusters import cluster
from bench.measure import QUICK, Effort, Numbers, RefusedError, Scene, closed, seed
from bench.progress import Progress
from bench.rows import PUT

KEYS: Final = (10_000, 100_000, 1_000_000)
MEMBERS: Final = (3, 5)
CONNECTIONS: Final = (1, 10, 100, 1000, 5000)
QUICK_SHARE: Final = 50  # of the keys
LABELS: Final = {"keys": "keys in the store", "members": "members", "connections": "connections, one call on each"}

Point = tuple[int, Numbers]


async def keys(system: str, effort: Effort) -> AsyncIterator[Point]:
    """Clusters with more and more keys."""
    for count in KEYS:
        async with cluster(system) as (members, leader):
            scene = Scene(members, leader, effort)
            there = count * effort.keys // max(KEYS)
            await seed(scene, there)
            yield there, await closed(scene, PUT, connections=100, each=10)


async def sizes(system: str, effort: Effort) -> AsyncIterator[Point]:
    """Clusters of several sizes."""
    for size in MEMBERS:
        async with cluster(system, size=size) as (members, leader):
            scene = Scene(members, leader, effort)
            await seed(scene, effort.seed)
            yield size, await closed(scene, PUT, connections=100, each=10)


async def connections(system: str, effort: Effort) -> AsyncIterator[Point]:
    """More and more clients of one cluster, each with one call in flight."""
    async with cluster(system) as (members, leader):
        scene = Scene(members, leader, effort)
        await seed(scene, effort.seed)
        for count in CONNECTIONS:
            yield count, await closed(scene, PUT, connections=count)


SERIES: Final = {"keys": keys, "members": sizes, "connections": connections}


async def measure(names: list[str], systems: list[str], effort: Effort, keep: Any) -> None:
    """Every series; each result goes to `keep`."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    for name in names:
        for system in systems:
            try:
                async for x, numbers in SERIES[name](system, effort):
                    keep(
                        {"bench": "growth", "measure": f"{name} {x:,}", "series": name, "x": x, "system": system},
                        numbers,
                    )
            except (RefusedError, OSError, RuntimeError, TimeoutError) as error:
                keep({"bench": "growth", "measure": name, "series": name, "system": system}, {"refused": str(error)})


def draw(results: list[dict[str, Any]]) -> list[Any]:
    """Two diagrams a series."""
    found = []
    for name, label in LABELS.items():
        points = [one for one in results if one["series"] == name and "rate" in one]
        for metric, title in (("rate", "puts/s"), ("p99_ms", "p99, ms")):
            panel = plots.Panel(f"{title} by {name}", label, title, logarithmic=name != "members")
            for one in points:
                panel.curves.setdefault(one["system"], []).append((one["x"], one[metric]))
            if panel.curves:
                found.append(panel)
    return list(plots.panels(found, "growth")) if found else []


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| puts by | | kvstore /s | p99 ms | etcd /s | p99 ms | ratio |", "|---|---|---|---|---|---|---|"]
    for series, x in dict.fromkeys((one["series"], one["x"]) for one in results if "rate" in one):
        at = {one["system"]: one for one in results if (one["series"], one.get("x")) == (series, x) and "rate" in one}
        cells = [series, f"{x:,}"]
        for system in ("kvstore", "etcd"):
            one = at.get(system)
            cells += [f"{one['rate']:,.0f}", f"{one['p99_ms']:.1f}"] if one else ["-", "-"]
        cells.append(f"{at['kvstore']['rate'] / at['etcd']['rate']:.2f}" if {"kvstore", "etcd"} <= set(at) else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.growth", description="puts/s and p99 by keys, members, connections")
    parser.add_argument("--quick", action="store_true", help="short, few keys: shows that it works")
    parser.add_argument("--only", choices=["etcd", "kvstore"], help="leave the other out")
    parser.add_argument("--what", default=",".join(SERIES), help="a list of keys, members, connections")
    options = parser.parse_args()
    names = [name for name in SERIES if name in options.what.split(",")]
    effort = dataclasses.replace(QUICK, keys=max(KEYS) // QUICK_SHARE) if options.quick else Effort()
    commit, progress = report.commit(), Progress()
    results: list[dict[str, Any]] = []

    def keep(point: dict[str, Any], numbers: Numbers) -> None:
        results.append({"bench": "growth", "commit": commit, **point, **numbers})
        report.append(results[-1:], f"{commit}-growth")
        progress.finished(results[-1])

    try:
        event_loop()(measure(names, [options.only] if options.only else ["etcd", "kvstore"], effort, keep))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\ninterrupted: what is there is kept")
    print(f"\n{table(results)}\n")
    for path in draw(results):
        print(f"plot: {path}")
    return 1 if any("refused" in one for one in results) else 0


if __name__ == "__main__":
    sys.exit(main())
