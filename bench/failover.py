"""How long no write goes through when the leader changes: `make bench-failover`. Ours beside etcd's, in one run.

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
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc

from bench import report
from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from tests.conformance.etcd import EtcdCluster
from tests.e2e.cluster import Cluster

EVENTS: Final = ("planned", "kill -9")
EVERY_SECONDS: Final = 0.005
BEFORE_SECONDS: Final = 0.3  # of undisturbed writes
AFTER_SECONDS: Final = 0.5  # of writes that go through again
LIMIT_SECONDS: Final = 20.0
HEARTBEAT_MS, ELECTION_MS = 100, 1000
OPTIONS: Final = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]


class System(ABC):
    """Three members, by number."""

    urls: list[str]

    @abstractmethod
    def kill(self, number: int) -> None: ...

    @abstractmethod
    def start_member(self, number: int) -> None: ...


class Ours(System):
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.urls = cluster.endpoints

    def kill(self, number: int) -> None:
        self._cluster.members[number].kill()

    def start_member(self, number: int) -> None:
        self._cluster.members[number].start()


class Etcd(System):
    def __init__(self, cluster: EtcdCluster) -> None:
        self._cluster = cluster
        self.urls = cluster.client_urls

    def kill(self, number: int) -> None:
        self._cluster.kill(number)

    def start_member(self, number: int) -> None:
        self._cluster.start_member(number)


@contextlib.contextmanager
def running(system: str) -> Iterator[System]:
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        if system == "etcd":
            etcd = EtcdCluster(Path(scratch), heartbeat_ms=HEARTBEAT_MS, election_ms=ELECTION_MS)
            stack.callback(etcd.stop)
            etcd.start()
            yield Etcd(etcd)
        else:
            flags = [f"--heartbeat-interval={HEARTBEAT_MS}", f"--election-timeout={ELECTION_MS}"]
            yield Ours(stack.enter_context(Cluster(3, Path(scratch), flags=flags)))


class Writer:
    """Puts at an even pace, spread over some members; notes when each was answered."""

    def __init__(self, stubs: list[rpc_pb2_grpc.KVStub]) -> None:
        self._stubs = stubs
        self.answered: list[float] = []
        self.failed: Counter[str] = Counter()  # by what was told
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled."""
        number = 0
        try:
            while True:
                call = asyncio.create_task(self._put(self._stubs[number % len(self._stubs)], number))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)
                number += 1
                await asyncio.sleep(EVERY_SECONDS)
        finally:
            for call in self._calls:
                call.cancel()

    async def _put(self, stub: rpc_pb2_grpc.KVStub, number: int) -> None:
        put: Any = stub.Put  # of an aio channel
        try:
            await put(rpc_pb2.PutRequest(key=b"failover/%d" % number, value=b"v" * 64), timeout=LIMIT_SECONDS)
        except grpc.RpcError as error:
            self.failed[error.details() or ""] += 1
        else:
            self.answered.append(time.perf_counter())

    def gap(self) -> float:
        """Seconds; the longest between two answers."""
        return max(later - earlier for earlier, later in zip(self.answered, self.answered[1:], strict=False))


class Members:
    """Channels to all, and what they say of themselves."""

    def __init__(self, urls: list[str]) -> None:
        self._channels = [grpc.aio.insecure_channel(url.removeprefix("http://"), options=OPTIONS) for url in urls]
        self.kv: list[rpc_pb2_grpc.KVStub] = [rpc_pb2_grpc.KVStub(channel) for channel in self._channels]  # type: ignore[arg-type]
        self.maintenance: list[Any] = [rpc_pb2_grpc.MaintenanceStub(channel) for channel in self._channels]  # type: ignore[arg-type]

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def status(self, number: int) -> rpc_pb2.StatusResponse | None:
        try:
            answer: rpc_pb2.StatusResponse = await self.maintenance[number].Status(rpc_pb2.StatusRequest(), timeout=2)
        except grpc.RpcError:
            return None
        return answer

    async def settled(self) -> tuple[int, list[int]]:
        """The leader's number and all ids, once every member follows it and has applied nearly all."""
        deadline = time.perf_counter() + 60
        while time.perf_counter() < deadline:
            found = [await self.status(number) for number in range(len(self._channels))]
            known = [one for one in found if one is not None]
            ids = [one.header.member_id for one in known]
            applied = [one.raftAppliedIndex for one in known]
            leaders = {one.leader for one in known}
            if len(known) == len(found) and len(leaders) == 1 and max(applied) - min(applied) < 100:
                leader = leaders.pop()
                if leader in ids:
                    return ids.index(leader), ids
            await asyncio.sleep(0.05)
        raise SystemExit("the members did not settle within a minute")


async def measure(system: System, members: Members, event: str) -> dict[str, Any]:
    """One change of the leader under writes. Leaves all members running."""
    leader, ids = await members.settled()
    others = [number for number in range(len(ids)) if number != leader]
    target = random.choice(others)
    writer = Writer([members.kv[number] for number in others])
    writing = asyncio.create_task(writer.run())
    await asyncio.sleep(BEFORE_SECONDS + random.random() * HEARTBEAT_MS / 1000)  # anywhere between two heartbeats
    began = time.perf_counter()
    if event == "planned":
        await members.maintenance[leader].MoveLeader(rpc_pb2.MoveLeaderRequest(targetID=ids[target]), timeout=10)
    else:
        await asyncio.to_thread(system.kill, leader)
    await _until_answered(writer, began)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    if event == "kill -9":
        system.start_member(leader)
    now, _ = await members.settled()
    if now == leader:
        raise SystemExit(f"{event}: the leader is the same as before: this round shows nothing")
    return {
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
    raise SystemExit(f"no write went through within {LIMIT_SECONDS:.0f} s")


def _most(failed: dict[str, int]) -> str:
    return f", most with {max(failed, key=lambda text: failed[text])!r}" if failed else ""


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
    with contextlib.ExitStack() as stack:
        clusters = [(name, stack.enter_context(running(name))) for name in systems]
        members = {name: Members(system.urls) for name, system in clusters}
        for number in range(rounds):
            for event in EVENTS:
                for name, system in clusters:
                    row = await measure(system, members[name], event)
                    rows.append({"bench": "failover", "system": name, "round": number, "time": time.time(), **row})
                    print(
                        f"round {number + 1:3} {name:8} {event:8} {row['gap_ms']:7.0f} ms"
                        f"  ({row['answered']} answered, {sum(row['failed'].values())} failed{_most(row['failed'])})",
                        flush=True,
                    )
        for one in members.values():
            await one.close()
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="bench.failover", description="the write gap of a change of the leader")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", choices=["kvstore", "etcd"], help="leave the other out")
    options = parser.parse_args()
    commit = report.commit()
    print(
        f"{commit}, {os.cpu_count()} cores, heartbeat {HEARTBEAT_MS} ms, election timeout {ELECTION_MS} ms, etcd 3.5.1"
    )
    found = asyncio.run(main(options.rounds, [options.only] if options.only else ["etcd", "kvstore"]))
    path = report.append(found, f"{commit}-failover")
    print(f"\n{table(found)}\n\nrows: {path}")
