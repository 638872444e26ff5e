"""How long the event loop was held up, for tests and for whoever hunts a stall.

With DEBUG_LOOP_LAG set, or with an admin socket that may ask for it, a task asks to be woken every few
milliseconds and notes by how much it was late. SIGUSR1 writes the worst since the last time into the log and begins
anew.

On a machine with fewer cores than busy processes most lateness is the kernel's: the thread could have run but got
no core. Linux counts that wait per thread, and it is taken off in `stall_ms`; `late_ms` is the whole.
"""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Final

import structlog

VARIABLE: Final = "DEBUG_LOOP_LAG"
EVERY_SECONDS: Final = 0.005
SCHEDSTAT: Final = Path("/proc/thread-self/schedstat")  # time on a core, time waiting for one (ns), slices


class LoopLag:
    """Watches the running loop until the process ends."""

    def __init__(self) -> None:
        self._late = 0.0
        self._stall = 0.0
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self.report)
        self._task = loop.create_task(self._run())

    def close(self) -> None:
        self._task.cancel()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)

    async def _run(self) -> None:
        while True:
            asked, waited = time.perf_counter(), core_wait_seconds()
            await asyncio.sleep(EVERY_SECONDS)
            late = time.perf_counter() - asked - EVERY_SECONDS
            self._late = max(self._late, late)
            self._stall = max(self._stall, late - (core_wait_seconds() - waited))

    def take(self) -> dict[str, float]:
        """The worst since it was taken last, in milliseconds."""
        worst = {"stall_ms": round(self._stall * 1000, 1), "late_ms": round(self._late * 1000, 1)}
        self._late = self._stall = 0.0
        return worst

    def report(self) -> None:
        """Log the worst since the last report."""
        structlog.get_logger("kvstore").info("loop lag", **self.take())


def wants_lag() -> bool:
    return bool(os.environ.get(VARIABLE))


def core_wait_seconds() -> float:
    """How long this thread has been ready to run without a core; 0 where the kernel does not say."""
    try:
        return int(SCHEDSTAT.read_text().split()[1]) / 1e9
    except OSError:
        return 0.0
