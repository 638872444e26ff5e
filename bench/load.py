"""One row of the bench: keep so many calls in flight for so long, and say what came of it."""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.h2 import Connection

CONNECTIONS_MAX = 50
WARM_UP_SECONDS = 0.5
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Measured:
    """What one row gave. Latencies and CPU in seconds; `done` and `failed` count calls that ended in the window."""

    done: int
    failed: int
    total: int  # calls answered since the start, warm-up included: what a revision must have moved by
    seconds: float
    p50: float
    p99: float
    server_cpu: float  # of all members together
    generator_cpu: float

    @property
    def rate(self) -> float:
        return self.done / self.seconds


def cpu_seconds(pids: list[int]) -> float:
    """User and system time that these processes have used, from /proc."""
    ticks = 0
    for pid in pids:
        # The command's name may hold spaces and brackets; what follows the last bracket is in fixed places.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_SECOND


class Load:
    """A closed loop: each of `in_flight` slots sends its next call when its last is answered."""

    def __init__(self, connections: list[Connection], path: str, message: Callable[[], bytes]) -> None:
        self._connections = connections
        self._path = path
        self._message = message
        self._latencies: list[float] = []
        self._failed = 0
        self._total = 0
        self._open = 0
        self._stopping = False
        self._idle = asyncio.Event()

    async def run(self, in_flight: int, seconds: float, pids: list[int]) -> Measured:
        for slot in range(in_flight):
            self._send(self._connections[slot % len(self._connections)])
        await asyncio.sleep(WARM_UP_SECONDS)
        self._latencies, self._failed = [], 0
        start, cpu, own = time.perf_counter(), cpu_seconds(pids), time.process_time()
        await asyncio.sleep(seconds)
        seconds = time.perf_counter() - start
        latencies, failed = sorted(self._latencies), self._failed
        cpu, own = cpu_seconds(pids) - cpu, time.process_time() - own
        self._stopping = True
        await asyncio.wait_for(self._idle.wait(), 30)
        return Measured(
            done=len(latencies),
            failed=failed,
            total=self._total,
            seconds=seconds,
            p50=latencies[len(latencies) // 2] if latencies else float("nan"),
            p99=latencies[len(latencies) * 99 // 100] if latencies else float("nan"),
            server_cpu=cpu,
            generator_cpu=own,
        )

    def _send(self, connection: Connection) -> None:
        self._open += 1

        def done(seconds: float, ok: bool) -> None:
            self._open -= 1
            if ok:
                self._total += 1
                self._latencies.append(seconds)
            else:
                self._failed += 1
            if ok and not self._stopping:
                self._send(connection)
            elif self._open == 0:
                self._idle.set()

        connection.call(self._path, self._message(), done)


async def connect(client_urls: list[str], in_flight: int) -> list[Connection]:
    """Up to CONNECTIONS_MAX connections, spread over the members as those of many clients are."""
    loop = asyncio.get_running_loop()
    connections = []
    for number in range(min(in_flight, CONNECTIONS_MAX)):
        authority = client_urls[number % len(client_urls)].removeprefix("http://")
        host, _, port = authority.rpartition(":")
        _, connection = await loop.create_connection(lambda name=authority: Connection(name), host, int(port))  # type: ignore[misc]
        connections.append(connection)
    return connections
