"""Time, chance and threads: the only file of raft/ that may touch them.

Whoever gives a Node a Runtime of its own decides all three. A test passes a clock that it moves by
hand, a seeded rng and an executor that runs, delays or fails what it is given.
"""

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

from raft.core.ports import Rng

Result = TypeVar("Result")
Clock = Callable[[], int]


class SeededRng(Rng):
    """Replays from its seed; without one, seeded by the operating system."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    def below(self, bound: int) -> int:
        return self._random.randrange(bound)


class Runtime:
    """What a node needs from the world besides its loop, its disk and its network."""

    def __init__(
        self, *, clock: Clock = time.monotonic_ns, rng: Rng | None = None, executor: Executor | None = None
    ) -> None:
        self.clock = clock  # nanoseconds since some fixed moment; never goes back
        self.rng = rng if rng is not None else SeededRng()
        self._executor = executor
        self._own_executor: ThreadPoolExecutor | None = None
        self._aside: ThreadPoolExecutor | None = None

    async def run(self, function: Callable[..., Result], *args: object) -> Result:
        """Run `function` in a thread. Calls of one Runtime never overlap, unless it was given a wider executor."""
        executor = self._executor
        if executor is None:
            if self._own_executor is None:
                self._own_executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raft")
            executor = self._own_executor
        return await asyncio.get_running_loop().run_in_executor(executor, function, *args)

    async def run_aside(self, function: Callable[..., Result], *args: object) -> Result:
        """The same in another thread, for what may take its time: the bytes of snapshots. It delays no `run`."""
        executor = self._executor
        if executor is None:
            if self._aside is None:
                self._aside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raft-snapshots")
            executor = self._aside
        return await asyncio.get_running_loop().run_in_executor(executor, function, *args)

    def close(self) -> None:
        """End the threads that this Runtime started itself, once the last `run` is done."""
        if self._own_executor is not None:
            self._own_executor.shutdown(wait=True)
            self._own_executor = None
        if self._aside is not None:
            self._aside.shutdown(wait=False, cancel_futures=True)
            self._aside = None
