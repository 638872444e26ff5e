"""How long calls took, in logarithmic buckets: each is 1 % wider than the one before, so memory is bounded.

A day in microseconds is 2,500 buckets; only those that were hit are kept, and JSON holds them as they are.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

GROWTH = 1.01
SCALE = 1 / math.log(GROWTH)
SECONDS_MIN = 1e-9


class Histogram:
    """`record(seconds)`, then `percentile(99)`."""

    def __init__(self, buckets: Mapping[str, int] | None = None) -> None:
        """buckets: what `to_json` gave."""
        self.buckets: defaultdict[int, int] = defaultdict(int)
        self.buckets.update({int(bucket): count for bucket, count in (buckets or {}).items()})

    def record(self, seconds: float) -> None:
        self.buckets[math.floor(math.log(max(seconds, SECONDS_MIN)) * SCALE)] += 1

    @property
    def count(self) -> int:
        return sum(self.buckets.values())

    def percentile(self, percent: float) -> float:
        """Seconds that so many of a hundred calls took at most, to 1 %; nan without any."""
        return self.percentiles([percent])[0]

    def percentiles(self, percents: Iterable[float]) -> list[float]:
        """Several, in one pass; in rising order."""
        ordered, found = sorted(self.buckets.items()), []
        place, below, total = -1, 0, self.count
        for percent in percents:
            while below < max(1, math.ceil(total * percent / 100)) and place + 1 < len(ordered):
                place += 1
                below += ordered[place][1]
            found.append(GROWTH ** (ordered[place][0] + 0.5) if total else math.nan)
        return found

    def merge(self, other: "Histogram") -> None:
        for bucket, count in other.buckets.items():
            self.buckets[bucket] += count

    def to_json(self) -> dict[str, int]:
        return {str(bucket): count for bucket, count in sorted(self.buckets.items())}
