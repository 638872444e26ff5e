"""Ranges: a set of keys as disjoint intervals, so that one look tells whether a whole range is in it."""

from bisect import bisect_right
from collections.abc import Iterable
from typing import final

Interval = tuple[bytes, bytes | None]  # [low, high); None: no upper end


@final
class Ranges:
    __slots__ = ("_highs", "_lows")

    def __init__(self, intervals: Iterable[Interval]) -> None:
        lows: list[bytes] = []
        highs: list[bytes | None] = []
        for low, high in sorted(intervals, key=lambda interval: interval[0]):
            if high is not None and high <= low:
                continue
            if lows and (highs[-1] is None or low <= highs[-1]):
                # Neighbours are one interval: two grants may cover together what neither covers alone.
                top = highs[-1]
                highs[-1] = None if top is None or high is None else max(top, high)
            else:
                lows.append(low)
                highs.append(high)
        self._lows = lows
        self._highs = highs

    def covers(self, low: bytes, high: bytes | None) -> bool:
        """All of [low, high). Of a range that is none (high <= low) its key counts, as in etcd's interval tree."""
        at = bisect_right(self._lows, low) - 1
        if at < 0:
            return False
        top = self._highs[at]
        if high is None:
            return top is None
        return top is None or (low < top and high <= top)

    @property
    def is_everything(self) -> bool:
        return self.covers(b"\0", None)
