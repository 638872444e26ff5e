"""Long work in slices: the one place of mvcc and state that knows the event loop.

Ranges, counts, hashes and big deletes would hold the loop for seconds (a million keys are 0.3 s of bare
iteration), and a member that does not answer for an election timeout is deposed. Such work asks its
Budget after each small step and pauses when the slice is used up. What it reads is pinned, and what it
writes is invisible until it is whole, so that other work may run in every pause.

The clock only says when to pause; no result depends on it.

A big write is done by every member at the same moment. Where members share cores, or other processes want
them, a loop that computes without a rest is made to wait by the kernel for tens of milliseconds at a time; so
big writes work for a part of the time only, and get the core at once when they want it.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeVar, final

T = TypeVar("T")

Clock = Callable[[], int]  # nanoseconds, monotonic

MONOTONIC: Final[Clock] = time.monotonic_ns
SLICE_NS: Final = 5_000_000
BIG_WRITE_SLICE_NS: Final = 3_000_000
BIG_WRITE_REST: Final = 0.5  # slices: two thirds of a core
BACKGROUND_SLICE_NS: Final = 2_000_000
BACKGROUND_REST: Final = 1  # slices: half a core
_STALL_SECONDS: Final = 0.002


@final
class Budget:
    """One piece of work's share of the loop."""

    __slots__ = ("_clock", "_deadline", "_rest_seconds", "_slice_ns")

    def __init__(self, clock: Clock, slice_ns: int, rest: float = 0) -> None:
        """`rest`: how long a pause is, in slices; with 0 it ends once all that was ready has run."""
        self._clock = clock
        self._slice_ns = slice_ns
        self._rest_seconds = rest * slice_ns / 1e9
        self._deadline = clock() + slice_ns

    def spent(self) -> bool:
        return self._clock() >= self._deadline

    async def pause(self) -> None:
        """Let everything else run that is ready, then begin a new slice."""
        await asyncio.sleep(self._rest_seconds)
        self._deadline = self._clock() + self._slice_ns

    async def pause_if_spent(self) -> None:
        if self._clock() >= self._deadline:
            await self.pause()

    async def stall(self) -> None:
        """Wait a little for the background threads of the engine: back-pressure."""
        await asyncio.sleep(_STALL_SECONDS)
        self._deadline = self._clock() + self._slice_ns


async def in_thread(work: Callable[[], T]) -> T:
    """Run blocking work that releases the GIL beside the loop.

    Threads cannot be cancelled. Who is, waits for the end all the same: what the work uses may be closed next.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    finally:
        await asyncio.wait([running])
