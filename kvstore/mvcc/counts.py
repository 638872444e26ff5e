"""KeyCounts: how many live keys an interval holds, without a walk over all of them.

    count of [low, high)  =  from low to the next boundary, walked
                           + the numbers of the blocks in between
                           + from the last boundary to high, walked

A long count, a page of a listing needs one too, notes on its way how many keys it passed (`walked`), and from then on
every commit adds and takes away what it makes live and what it ends, in the step in which that becomes visible. So the
numbers are those of the current state at any moment. They cover the interval that was walked. Whatever changes
`latest` otherwise than key by key (a big delete, a large revoke, another state in its place) drops them, and the next
long count begins anew.

A cache in memory: whether it is there shows in nothing but the time that a count takes. All bounds are those of rows.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from kvstore.mvcc.engine import Engine

WALKED_MIN: Final = 5_000  # keys: shorter counts are walked each time
COUNTS_MAX: Final = 8  # intervals whose numbers are kept
BLOCK_MAX: Final = 2048  # keys; a block that has grown larger is split
WAITING_MAX: Final = 10_000  # changes that commits may bring during a walk, or it was in vain: about 5 ms
_CHUNK: Final = 256


@final
class KeyCounts:
    def __init__(self, low: bytes, high: bytes, ended: "Callable[[KeyCounts, int], None]") -> None:
        """`ended` is told when the walk has."""
        self._ended = ended
        self.low = low
        self.high = high
        self._lows: list[bytes] = [low]  # where each block begins
        self._counts: list[int] = [0]
        self._waiting: list[tuple[bytes, int]] | None = []  # changes of commits behind the moment of a walk under way
        self._large: set[bytes] = set()  # beginnings of blocks to split
        self.dropped = False

    def walked(self, rows: list[bytes]) -> None:
        """The walk has passed these, in order and without a gap."""
        if self._counts[-1]:
            self._lows.append(rows[0])
            self._counts.append(0)
        self._counts[-1] += len(rows)

    def end(self, passed: int) -> None:
        """The walk is over; how many it has passed, or 0 when it was given up."""
        self._ended(self, passed)

    def use(self) -> None:
        """From now on they are those of the current state."""
        waiting, self._waiting = self._waiting or [], None
        for row, change in waiting:
            self._add(row, change)

    def covers(self, low: bytes, high: bytes) -> bool:
        return self.low <= low and high <= self.high

    def commit(self, engine: "Engine", changes: Sequence[tuple[bytes, int]]) -> None:
        """1: this row was not live and is now; -1: the other way round."""
        if self._waiting is not None:
            self._waiting += changes
            self.dropped = self.dropped or len(self._waiting) > WAITING_MAX
            return
        for row, change in changes:
            self._add(row, change)
        for low in self._large:
            self._split(engine, low)
        self._large.clear()

    def _add(self, row: bytes, change: int) -> None:
        if not self.low <= row < self.high:
            return
        at = bisect_right(self._lows, row) - 1
        self._counts[at] += change
        if self._counts[at] > BLOCK_MAX:
            self._large.add(self._lows[at])
        elif not self._counts[at] and len(self._lows) > 1:
            # Its stretch falls to the block before it; the first one takes over the next.
            del self._counts[at]
            del self._lows[max(at, 1)]

    def _split(self, engine: "Engine", low: bytes) -> None:
        at = bisect_left(self._lows, low)
        if at == len(self._lows) or self._lows[at] != low:
            return  # emptied by the same commit
        high = self._lows[at + 1] if at + 1 < len(self._lows) else self.high
        scan = engine.scan(low, high)
        lows: list[bytes] = []
        counts: list[int] = []
        while rows := scan.keys(_CHUNK):
            lows.append(rows[0])
            counts.append(len(rows))
        lows[:1] = [low]
        self._lows[at : at + 1] = lows
        self._counts[at : at + 1] = counts

    def count(self, engine: "Engine", low: bytes, high: bytes) -> int:
        """Of the current state, in an interval that they cover."""
        lows = self._lows
        first = bisect_left(lows, low)
        end = len(lows) if high >= self.high else bisect_right(lows, high) - 1
        if first >= end:
            return _walk(engine, low, high)
        between = sum(self._counts[first:end])
        behind = _walk(engine, lows[end], high) if end < len(lows) else 0
        return _walk(engine, low, lows[first]) + between + behind


def _walk(engine: "Engine", low: bytes, high: bytes) -> int:
    if low >= high:
        return 0
    scan = engine.scan(low, high)
    passed = 0
    while rows := scan.keys(_CHUNK):
        passed += len(rows)
    return passed
