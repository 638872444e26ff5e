"""Many deadlines for the price of one timer.

A timer of the loop costs more than a call does. Deadlines of calls nearly never come, so they wait in buckets of a
grain each and only the next bucket has a timer. A deadline is kept late by a grain at most, never early.
"""

import asyncio
from typing import Final, Protocol

GRAIN_SECONDS: Final = 0.02


class Expiring(Protocol):
    def expire(self) -> None:
        """The deadline has passed. Must not raise."""


class Deadlines:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buckets: dict[int, dict[Expiring, None]] = {}  # by grain; each in the order of arrival
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0  # the grain that the timer waits for

    def add(self, call: Expiring, when: float) -> int:
        """when: of the loop's clock. Returns what `remove` wants."""
        grain = int(when / GRAIN_SECONDS) + 1
        bucket = self._buckets.get(grain)
        if bucket is None:
            bucket = self._buckets[grain] = {}
            if self._timer is None or grain < self._next:
                self._arm(grain)
        bucket[call] = None
        return grain

    def remove(self, call: Expiring, grain: int) -> None:
        """It ended before its deadline, or has expired."""
        bucket = self._buckets.get(grain)
        if bucket is not None:
            bucket.pop(call, None)

    def close(self) -> None:
        self._buckets.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, grain: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = grain
        self._timer = self._loop.call_at(grain * GRAIN_SECONDS, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        due = sorted([grain for grain in self._buckets if grain * GRAIN_SECONDS <= now])
        for grain in due:
            for call in list(self._buckets.pop(grain)):
                call.expire()
        if self._buckets:
            self._arm(min(self._buckets))
