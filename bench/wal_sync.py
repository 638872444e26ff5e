"""What a durable append costs: python -m bench.wal_sync [DIRECTORY]

Appends of 1 and 64 entries of 300 bytes, each with its fdatasync: called from the event loop (inline)
and through a thread, with an idle and with a busy loop. Then the start: how fast a log is read.
Prints medians and the tail in microseconds.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from raft.storage.segmented import SegmentedStorage
from raft.types import Configuration, Entry, HardState

DATA = bytes(range(150)) * 2
SAVES = 2000


class Appender:
    def __init__(self, storage: SegmentedStorage, count: int) -> None:
        self._storage = storage
        self._count = count

    def __call__(self) -> None:
        first = self._storage.last_index + 1
        entries = [Entry(first + i, 1, DATA) for i in range(self._count)]
        self._storage.save(HardState(1, 1, first - 1), entries, True)


def report(name: str, seconds: list[float]) -> None:
    seconds.sort()
    marks = [statistics.median(seconds), seconds[len(seconds) * 99 // 100], seconds[-1], statistics.mean(seconds)]
    print(f"{name:42s}" + "".join([f"{1e6 * mark:10.0f}" for mark in marks]))


async def measure(name: str, save: Callable[[], None], executor: ThreadPoolExecutor | None, busy: bool) -> None:
    loop = asyncio.get_running_loop()
    stopping = False

    async def spin() -> None:
        while not stopping:  # what other requests do to the loop: 200 us of Python, then a turn for others
            end = time.perf_counter() + 200e-6
            while time.perf_counter() < end:
                pass
            await asyncio.sleep(0)

    spinning = asyncio.create_task(spin()) if busy else None
    times: list[float] = []
    for _ in range(SAVES):
        start = time.perf_counter()
        if executor is None:
            save()
        else:
            await loop.run_in_executor(executor, save)
        times.append(time.perf_counter() - start)
        await asyncio.sleep(0)
    stopping = True
    if spinning is not None:
        await spinning
    report(name, times)


async def appends(directory: Path) -> None:
    print(f"{'':42s}{'median':>10s}{'p99':>10s}{'max':>10s}{'mean':>10s}  us")
    with ThreadPoolExecutor(1) as executor:
        for count in (1, 64):
            storage = SegmentedStorage(directory / f"log-{count}")
            storage.load()
            storage.reset(0, 0, Configuration((1,)))
            save = Appender(storage, count)
            for busy in (False, True):
                loop = "busy" if busy else "idle"
                await measure(f"{count} entries, inline, {loop} loop", save, None, busy)
                await measure(f"{count} entries, thread, {loop} loop", save, executor, busy)
            storage.close()


def start(directory: Path, size: int) -> None:
    storage = SegmentedStorage(directory / f"start-{size}")
    storage.load()
    storage.reset(0, 0, Configuration((1,)))
    data = bytes(range(250)) * (size // 250)
    count = 128 * 1024 * 1024 // size
    for first in range(1, count, 1000):
        storage.save(None, [Entry(first + i, 1, data) for i in range(1000)], False)
    bytes_stored = storage.bytes_stored()
    storage.close()
    storage = SegmentedStorage(directory / f"start-{size}")
    before = time.perf_counter()
    storage.load()
    seconds = time.perf_counter() - before
    print(
        f"start with entries of {size} bytes: {bytes_stored / seconds / 1e6:.0f} MB/s, {count / seconds:.0f} entries/s"
    )
    storage.close()


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else ".", prefix=".wal-sync-") as name:
        asyncio.run(appends(Path(name)))
        for size in (250, 1000, 10_000):
            start(Path(name), size)


if __name__ == "__main__":
    main()
