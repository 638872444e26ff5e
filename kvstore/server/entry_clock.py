"""The time that a leader writes into an entry.

Every entry carries a time, and apply never asks a clock, so all members agree on it. It never goes back,
not even when the leader's clock is set back or another member with a slower clock takes over: it is the
time of the entry before plus what a monotonic clock says has passed since, and is led towards the wall
clock gently, at most one tenth faster or slower than real time. Only at the first entry of a leadership
may it jump, forward: the cluster may have been down for a night.

What is missing: a leader whose clock is far ahead of the other members' is believed.
"""

from collections.abc import Callable
from typing import Final

SLEW_DIVISOR: Final = 10

Nanoseconds = Callable[[], int]


class EntryClock:
    """wall: nanoseconds since 1970. monotonic: nanoseconds since anything."""

    def __init__(self, wall: Nanoseconds, monotonic: Nanoseconds) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._last = 0  # the time given last
        self._at = 0  # what `monotonic` said then
        self._term = 0

    def stamp(self, term: int, applied_time: int) -> int:
        """The next entry's time, at least 1 ns after the one before and after `applied_time`."""
        wall, now = self._wall(), self._monotonic()
        if term != self._term:
            time = wall
        else:
            passed = now - self._at
            slew = passed // SLEW_DIVISOR
            time = self._last + passed
            time += max(-slew, min(slew, wall - time))
        time = max(time, self._last + 1, applied_time + 1)
        self._term, self._last, self._at = term, time, now
        return time
