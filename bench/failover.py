"""How long no write goes through when the leader changes: `make bench-failover`, and the row `failover`.

    planned   Maintenance.MoveLeader to another member
    kill -9   of the leader's process

A put is sent every few milliseconds, in turn to the members that will stay, and each may wait: so there is always one
to be answered as soon as that is possible. The gap is the longest time between two answers around the change. Settings
are the same for both: heartbeat 100 ms, election timeout 1000 ms. Rounds alternate, so that a slow minute of the
machine hits both. A round counts only when the leader has really changed.

    python -m bench.failover [--rounds N] [--only kvstore|etcd]
"""

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import time
from collections import Counter
from typing import Any, Final

from bench.channel import Channel, dial
from bench.clusters import ELECTION_MS, HEARTBEAT_MS, Members, cluster
from bench.measure import Numbers, RefusedError, Scene
from bench.messages import PUT, Keys
from kvstore.pb import rpc_pb2 as pb

EVENTS: Final = ("planned", "kill -9")
EVERY_SECONDS: Final = 0.005
BEFORE_SECONDS: Final = 0.3  # of undisturbed writes
AFTER_SECONDS: Final = 0.5  # of writes that go through again
LIMIT_SECONDS: Final = 20.0
MOVE_LEADER: Final = "/etcdserverpb.Maintenance/MoveLeader"


class Writer:
    """Puts at an even pace, spread over some members; notes when each was answered."""

    def __init__(self, channels: list[Channel], keys: Keys) -> None:
        self._channels = channels
        self._put = keys.put(value_bytes=64)
        self.answered: list[float] = []
        self.failed: Counter[int] = Counter()  # by gRPC status

    async def run(self) -> None:
        """Until cancelled."""
        number = 0
        while True:
            self._channels[number % len(self._channels)].call(PUT, self._put.message(), self._done)
            number += 1
            await asyncio.sleep(EVERY_SECONDS)

    def _done(self, status: int, response: bytes) -> None:
        if status:
            self.failed[status] += 1
        else:
            self.answered.append(time.perf_counter())

    def gap(self) -> float:
        """Seconds; the longest between two answers."""
        return max(later - earlier for earlier, later in zip(self.answered, self.answered[1:], strict=False))


async def change(members: Members, leader: int, event: str, keys: Keys) -> tuple[int, dict[str, Any]]:
    """One change of the leader under writes: the next leader and what was seen. Leaves all members running."""
    others = [number for number in range(members.size) if number != leader]
    channels = [await dial(members.urls[number], members.context) for number in others]
    writer = Writer(channels, keys)
    writing = asyncio.create_task(writer.run())
    try:
        await asyncio.sleep(BEFORE_SECONDS + random.random() * HEARTBEAT_MS / 1000)  # anywhere between two heartbeats
        began = time.perf_counter()
        if event == "planned":
            target = await members.state(random.choice(others))
            assert target is not None, "a member that writes go to does not answer"
            move = pb.MoveLeaderRequest(targetID=target.member_id)
            await members.ask(leader, MOVE_LEADER, move.SerializeToString())
        else:
            members.kill(leader)
        await _until_answered(writer, began)
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        for channel in channels:
            await channel.close()
    if event == "kill -9":
        members.start_member(leader)
    now = await members.settled()
    if now == leader:
        raise RefusedError(f"{event}: the leader is the same as before")
    return now, {
        "event": event,
        "gap_ms": writer.gap() * 1000,
        "answered": len(writer.answered),
        "failed": dict(writer.failed),
    }


async def _until_answered(writer: Writer, began: float) -> None:
    """Until writes that were answered after the change have gone on for a while."""
    while time.perf_counter() - began < LIMIT_SECONDS:
        await asyncio.sleep(0.02)
        after = [one for one in writer.answered if one > began]
        # Answers may still come from before the change took effect: the gap must lie between these two.
        changed = time.perf_counter() - began > 2 * ELECTION_MS / 1000 + AFTER_SECONDS
        if changed and len(after) > 10 and time.perf_counter() - after[-1] < 0.1:
            return
    raise RefusedError(f"no write went through within {LIMIT_SECONDS:.0f} s")


async def killed(scene: Scene) -> Numbers:
    """The row: some kills, the median of their gaps."""
    gaps = []
    for _ in range(scene.effort.kills):
        scene.leader, seen = await change(scene.members, scene.leader, "kill -9", scene.keys)
        gaps.append(seen["gap_ms"])
    return {"gap_ms": statistics.median(gaps), "gap_max_ms": max(gaps), "kills": len(gaps)}


def table(rows: list[dict[str, Any]]) -> str:
    """Median and longest, ours beside etcd's."""
    lines = [
        "| no write goes through for, ms | kvstore median | longest | etcd median | longest | ratio of medians |",
        "|---|---|---|---|---|---|",
    ]
    for event in EVENTS:
        cells = [event]
        medians = []
        for system in ("kvstore", "etcd"):
            gaps = [row["gap_ms"] for row in rows if row["system"] == system and row["event"] == event]
            cells += [f"{statistics.median(gaps):.0f}", f"{max(gaps):.0f}"] if gaps else ["-", "-"]
            medians += [statistics.median(gaps)] if gaps else []
        cells.append(f"{medians[0] / medians[1]:.2f}" if len(medians) == 2 else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


async def main(rounds: int, systems: list[str]) -> list[dict[str, Any]]:
    rows = []
    async with contextlib.AsyncExitStack() as stack:
        clusters = {name: await stack.enter_async_context(cluster(name)) for name in systems}
        leaders = {name: leader for name, (_, leader) in clusters.items()}
        keys = Keys(b"failover/")
        for number in range(rounds):
            for event in EVENTS:
                for name, (members, _) in clusters.items():
                    leaders[name], row = await change(members, leaders[name], event, keys)
                    rows.append({"bench": "failover", "system": name, "round": number, "time": time.time(), **row})
                    print(
                        f"round {number + 1:3} {name:8} {event:8} {row['gap_ms']:7.0f} ms"
                        f"  ({row['answered']} answered, failed by status: {row['failed'] or 'none'})",
                        flush=True,
                    )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="bench.failover", description="the write gap of a change of the leader")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", choices=["kvstore", "etcd"], help="leave the other out")
    options = parser.parse_args()
    from bench import report  # it knows the rows, and they know this module

    commit = report.commit()
    print(
        f"{commit}, {os.cpu_count()} cores, heartbeat {HEARTBEAT_MS} ms, election timeout {ELECTION_MS} ms, etcd 3.5.1"
    )
    found = asyncio.run(main(options.rounds, [options.only] if options.only else ["etcd", "kvstore"]))
    path = report.append(found, f"{commit}-failover")
    print(f"\n{table(found)}\n\nrows: {path}")
