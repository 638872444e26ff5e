"""Company: for whom the next batch waits.

Clients that ask again as soon as they are answered fall into two groups that take turns: while the entry of one is on
its way, the other gathers. Then every entry carries half of them, and costs nearly what one with all would. So once
clients have been answered, the next entry waits for nearly as many requests, but not long. With 50 clients that is
19,500 puts/s instead of 15,000, each answered sooner. The same holds for read rounds.

Some never come back. After a wait in vain the next batch leaves at once, after another the next two, then four.
"""

import asyncio
from collections.abc import Callable
from typing import Final, final

WAIT_SECONDS: Final = 0.003  # about what an entry takes on a fast disk and network; uvloop's timers may be 1 ms early
VAIN_MAX: Final = 64  # batches that leave at once before the next attempt, at most
Later = Callable[[float, Callable[[], None]], asyncio.TimerHandle]


@final
class Company:
    def __init__(self, later: Later, wake: Callable[[], None]) -> None:
        """later: the loop's call_later. wake: called when nobody is waited for any more."""
        self._later = later
        self._wake = wake
        self._wanted = 0  # requests that should be there before the next batch leaves
        self._timer: asyncio.TimerHandle | None = None
        self._skips = 0  # batches that still leave at once
        self._vain = 1  # how many will after the next wait in vain

    def answered(self, count: int, waiting: int) -> None:
        """A batch's clients have been answered, while so many requests wait already."""
        if self._timer is not None or count + waiting < 2:  # who is alone waits for nobody
            return
        if self._skips:
            self._skips -= 1
            return
        self._wanted = waiting + count - count // 4  # some may have left, or ask for something else now
        self._timer = self._later(WAIT_SECONDS, self._give_up)

    def is_expected(self, waiting: int) -> bool:
        """Whether a batch of these requests should wait for more."""
        if waiting < self._wanted:
            return True
        if self._timer is not None:
            self._stop()
            self._vain = 1
        return False

    def has_come(self, waiting: int) -> bool:
        """Whether whoever was waited for is there now."""
        return 0 < self._wanted <= waiting

    def _give_up(self) -> None:
        self._stop()
        self._skips = self._vain
        self._vain = min(2 * self._vain, VAIN_MAX)
        self._wake()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wanted = 0
