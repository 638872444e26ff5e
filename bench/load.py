"""The load generator of record: a closed loop (so many calls in flight) or an open one (so many begun each second).

Every answer's grpc-status is looked at and its response checked; what went wrong is counted by its reason. A closed
loop tells what a system can do, an open one what waiting is like at a rate that it can bear: there a call's time
begins when it was due, so a system that falls behind cannot hide it by slowing the generator down.
"""

import asyncio
import dataclasses
import gc
import resource
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from bench import channel, h2
from bench.clusters import cpu_seconds
from bench.histogram import Histogram

WARM_UP_SECONDS: Final = 0.5
DRAIN_SECONDS: Final = 60.0  # without an answer, and the calls in flight count as failed
FAILURES_MAX: Final = 100  # then the loop ends: the row is refused anyway
OPEN_LOOP_TICK: Final = 0.001
DIALS_AT_ONCE: Final = 100


class Connection(Protocol):
    """Either kind: bench.h2's and bench.channel's."""

    def call(self, path: str, message: bytes, done: h2.Done) -> None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Operation:
    """A kind of call."""

    path: str
    message: Callable[[], bytes]
    writes: int = 0  # by how much a success moves the revision
    right: Callable[[bytes], bool] = bool  # whether the response is one; an empty one never is


@dataclass(frozen=True)
class Measured:
    """What came of one window. Times in seconds."""

    done: int
    writes: int  # since the start, warm-up included: by how much the revision must have moved
    failed: dict[str, int]  # by reason
    seconds: float
    histogram: Histogram
    server_cpu: float  # of all members together
    generator_cpu: float


class Window:
    """What is counted between two moments."""

    def __init__(self, pids: list[int]) -> None:
        gc.collect()
        gc.freeze()  # nothing that is there already is looked at while the window is open
        self._pids = pids
        self.histogram = Histogram()
        self._server, self._own, self._began = cpu_seconds(pids), time.process_time(), time.perf_counter()

    def close(self, writes: int, failed: Counter[str]) -> Measured:
        seconds = time.perf_counter() - self._began
        server, own = cpu_seconds(self._pids) - self._server, time.process_time() - self._own
        done = self.histogram.count
        return Measured(done, writes, dict(failed), seconds, self.histogram, server, own)


class Load:
    """Drives connections with operations; one run each."""

    def __init__(self, connections: list[Connection], pick: Callable[[], Operation], pids: list[int]) -> None:
        self._connections = connections
        self._pick = pick
        self._pids = pids
        self.failed: Counter[str] = Counter()
        self.writes = 0
        self.answered = 0
        self._record = Histogram().record
        self._open = 0
        self._left: int | None = None  # calls still to begin; None: until stopped
        self._ended = asyncio.Event()

    async def closed(self, in_flight: int, seconds: float) -> Measured:
        """Keep so many calls in flight for so long."""
        self._begin(in_flight)
        deadline = time.perf_counter() + DRAIN_SECONDS
        await self._until(WARM_UP_SECONDS)
        # A first answer to each is part of the warm-up. An event would cost every answer.
        while self.answered < in_flight and not self._ended.is_set() and time.perf_counter() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(OPEN_LOOP_TICK)
        window = self._window()
        await self._until(seconds)
        measured = window.close(0, self.failed)
        self._record = Histogram().record
        await self._drain()
        return dataclasses.replace(measured, writes=self.writes, failed=dict(self.failed))

    async def counted(self, in_flight: int, count: int) -> Measured:
        """Keep so many calls in flight until so many are answered."""
        window = self._window()
        self._left = count
        self._begin(min(in_flight, count))
        answered = -1
        while self._open and self.answered > answered:
            answered = self.answered
            await self._until(DRAIN_SECONDS)
        if self._open:
            self.failed["no answer"] += self._open
        return window.close(self.writes, self.failed)

    async def paced(self, rate: float, seconds: float) -> Measured:
        """Begin a call every 1/rate seconds, whatever the answers do."""
        window = self._window()
        began = time.perf_counter()
        number, last = 0, int(rate * seconds)
        while number < last and sum(self.failed.values()) < FAILURES_MAX:
            due = min(last, int((time.perf_counter() - began) * rate) + 1)
            while number < due:
                connection = self._connections[number % len(self._connections)]
                _Slot(self, connection, once=True).send(began + number / rate)
                number += 1
            await asyncio.sleep(OPEN_LOOP_TICK)
        await self._drain()
        return window.close(self.writes, self.failed)

    def _window(self) -> Window:
        window = Window(self._pids)
        self._record = window.histogram.record
        return window

    def _begin(self, in_flight: int) -> None:
        for number in range(in_flight):
            _Slot(self, self._connections[number % len(self._connections)]).send()

    async def _until(self, seconds: float) -> None:
        """So long, or until the loop has ended by failures."""
        try:
            await asyncio.wait_for(self._ended.wait(), seconds)
        except TimeoutError:
            return

    async def _drain(self) -> None:
        self._left = 0
        if self._open:
            try:
                await asyncio.wait_for(self._ended.wait(), DRAIN_SECONDS)
            except TimeoutError:
                self.failed["no answer"] += self._open

    def next(self) -> Operation | None:
        """What a slot does next; None: it is done."""
        if self._left is not None:
            if self._left <= 0:
                return None
            self._left -= 1
        self._open += 1
        return self._pick()

    def finished(self, operation: Operation, seconds: float, status: int, response: bytes) -> None:
        self._open -= 1
        self.answered += 1
        if status == 0 and operation.right(response):
            self.writes += operation.writes
            self._record(seconds)
        else:
            self.failed["a wrong answer" if status == 0 else f"gRPC status {status}"] += 1
            if sum(self.failed.values()) >= FAILURES_MAX:
                self._left = 0

    def check_ended(self) -> None:
        if self._open == 0 and self._left is not None and self._left <= 0:
            self._ended.set()


class _Slot:
    """One call in flight after another, on one connection."""

    __slots__ = ("_began", "_connection", "_load", "_once", "_operation")

    def __init__(self, load: Load, connection: Connection, *, once: bool = False) -> None:
        self._load = load
        self._connection = connection
        self._once = once

    def send(self, began: float | None = None) -> None:
        operation = self._load.next()
        if operation is None:
            self._load.check_ended()
            return
        self._operation = operation
        message = operation.message()
        self._began = time.perf_counter() if began is None else began
        self._connection.call(operation.path, message, self._answered)

    def _answered(self, status: int, response: bytes) -> None:
        self._load.finished(self._operation, time.perf_counter() - self._began, status, response)
        if self._once:
            self._load.check_ended()
        else:
            self.send()


async def connect(
    urls: list[str], count: int, context: ssl.SSLContext | None = None, *, large: bool = False
) -> list[Connection]:
    """So many connections, spread over the URLs. large: their requests may be of any size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + 1000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 1000), hard))
    found: list[Connection] = []
    for start in range(0, count, DIALS_AT_ONCE):
        numbers = range(start, min(count, start + DIALS_AT_ONCE))
        dial = channel.dial if large else h2.dial
        found += await asyncio.gather(*[dial(urls[number % len(urls)], context) for number in numbers])
    return found


async def disconnect(connections: list[Connection]) -> None:
    await asyncio.gather(*[connection.close() for connection in connections])
