"""PySyncObj, the Python peer: three processes with a replicated dict and its journal on the same disk.

It has no client protocol, so operations are called inside the leader's process and pay no RPC at all, and its answers
are callbacks. Of its two ways of sending (a batch each period, or each entry at once) the better is taken. It promises
less: the journal is a memory-mapped file which nothing flushes before an answer (SyncObj never calls flush(), and
there is no fsync or msync in journal.py), so an answered write survives kill -9 but not a power cut, not even one of a
majority. The rows beside it compare our synced writes over the network with its unsynced ones inside of a process.

    python -m bench.peer ADDRESS,PARTNER,PARTNER JOURNAL BATCH    one member; commands come on stdin, a line each
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from bench.clusters import cpu_seconds, free_ports
from bench.histogram import Histogram
from bench.load import WARM_UP_SECONDS
from bench.measure import PERCENTS, Effort, Numbers, RefusedError
from bench.messages import VALUE_BYTES

SIZE: Final = 3
START_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 60.0


async def puts(effort: Effort, *, in_flight: int) -> Numbers:
    """New keys put into the replicated dict, so many at a time."""
    found = [await _puts(effort, in_flight, batch) for batch in (False, True)]
    return max(found, key=lambda numbers: numbers["rate"])


async def _puts(effort: Effort, in_flight: int, batch: bool) -> Numbers:
    async with running(batch) as members:
        leader = await _leader(members)
        cpu = cpu_seconds([member.pid for member in members])
        numbers = await _ask(leader, {"do": "load", "in_flight": in_flight, "seconds": effort.seconds})
        cpu = cpu_seconds([member.pid for member in members]) - cpu
        total = numbers.pop("total")
        deadline = time.monotonic() + ANSWER_SECONDS
        while min([(await _ask(member, {"do": "look"}))["keys"] for member in members]) < total:
            if time.monotonic() > deadline:
                raise RefusedError(f"not all of PySyncObj's members have got the {total} keys that were answered")
            await asyncio.sleep(0.05)
        return {**numbers, "cpu_us": cpu / total * 1e6, "batch_mode": batch}


@contextlib.asynccontextmanager
async def running(batch: bool) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Three members; ended with all that they wrote."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(SIZE)]
    members: list[asyncio.subprocess.Process] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            for number, address in enumerate(addresses):
                order = ",".join([address, *(other for other in addresses if other != address)])
                journal = Path(folder) / f"{number}.journal"
                members.append(
                    await asyncio.create_subprocess_exec(
                        *(sys.executable, "-m", "bench.peer", order, str(journal), str(int(batch))),
                        stdin=asyncio.subprocess.PIPE,
                        stdout=asyncio.subprocess.PIPE,
                        stderr=asyncio.subprocess.DEVNULL,
                        start_new_session=True,
                    )
                )
            yield members
        finally:
            for member in members:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(member.pid, signal.SIGKILL)
                await member.wait()


async def _ask(member: asyncio.subprocess.Process, command: dict[str, Any]) -> dict[str, Any]:
    assert member.stdin is not None
    assert member.stdout is not None
    member.stdin.write(json.dumps(command).encode() + b"\n")
    line = await asyncio.wait_for(member.stdout.readline(), ANSWER_SECONDS)
    if not line:
        raise RefusedError("a member of PySyncObj has ended")
    answer: dict[str, Any] = json.loads(line)
    return answer


async def _leader(members: list[asyncio.subprocess.Process]) -> asyncio.subprocess.Process:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        seen = [await _ask(member, {"do": "look"}) for member in members]
        leaders = [member for member, one in zip(members, seen, strict=True) if one["leader"]]
        if len(leaders) == 1 and all(one["ready"] for one in seen):
            return leaders[0]
        await asyncio.sleep(0.05)
    raise RefusedError(f"PySyncObj has no leader after {START_SECONDS:.0f} s")


class Loop:
    """A closed loop inside of the leader; callbacks come in its own thread."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._value = "v" * VALUE_BYTES
        self.histogram = Histogram()
        self._number = 0
        self._open = 0
        self._stopping = False
        self._ended = threading.Event()
        self.failed = 0
        self.total = 0

    def run(self, in_flight: int, seconds: float) -> dict[str, Any]:
        for _ in range(in_flight):
            self._next()
        time.sleep(WARM_UP_SECONDS)
        self.histogram = window = Histogram()
        began = time.perf_counter()
        time.sleep(seconds)
        seconds = time.perf_counter() - began
        self.histogram = Histogram()
        self._stopping = True
        self._ended.wait(ANSWER_SECONDS)
        percentiles = window.percentiles(PERCENTS.values())
        return {
            "rate": window.count / seconds,
            **{name: value * 1000 for name, value in zip(PERCENTS, percentiles, strict=True)},
            "done": window.count,
            "seconds": seconds,
            "failed": self.failed,
            "total": self.total,
            "histogram": window.to_json(),
        }

    def _next(self) -> None:
        self._open += 1
        self._number += 1
        began = time.perf_counter()

        def done(_: object, failure: int) -> None:
            self._open -= 1
            if failure:
                self.failed += 1
            else:
                self.total += 1
                self.histogram.record(time.perf_counter() - began)
            if not self._stopping:
                self._next()
            elif self._open == 0:
                self._ended.set()

        self._store.set(f"bench/{self._number:012}", self._value, callback=done)


def member(order: str, journal: str, batch: str) -> None:
    """One process: "look" tells its state, "load" drives it."""
    from pysyncobj import SyncObj, SyncObjConf  # type: ignore[import-untyped]
    from pysyncobj.batteries import ReplDict  # type: ignore[import-untyped]

    store = ReplDict()
    address, *partners = order.split(",")
    settings = SyncObjConf(journalFile=journal, appendEntriesUseBatch=bool(int(batch)))
    node = SyncObj(address, partners, conf=settings, consumers=[store])
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "load":
            answer = Loop(store).run(command["in_flight"], command["seconds"])
        else:
            answer = {"leader": node._isLeader(), "ready": node.isReady(), "keys": len(store)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    member(*sys.argv[1:])
