"""How long things took, for /metrics: histograms of this process, which count and never decide.

COMMITS = Histogram(0.001, 14)      # buckets 1 ms, 2 ms, 4 ms ... 8.192 s, as etcd's
with_time = COMMITS.timed(function)
with COMMITS.time(): ...
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Final, TypeVar, final

Argument = TypeVar("Argument")


@final
class Histogram:
    __slots__ = ("bounds", "counts", "total")

    def __init__(self, first: float, buckets: int, bounds: Sequence[float] = ()) -> None:
        """Each bound is twice the one before, unless they are named; above the last there is one bucket more."""
        self.bounds = list(bounds) or [first * 2**number for number in range(buckets)]
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0  # seconds

    now = staticmethod(perf_counter)

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    @contextmanager
    def time(self) -> Iterator[None]:
        """What ends with an error took its time too."""
        began = perf_counter()
        try:
            yield
        finally:
            self.observe(perf_counter() - began)

    def timed(self, function: Callable[[Argument], None]) -> Callable[[Argument], None]:
        def call(argument: Argument) -> None:
            began = perf_counter()
            function(argument)
            self.observe(perf_counter() - began)

        return call


FSYNCS: Final = Histogram(0.001, 14)  # of the log
COMMITS: Final = Histogram(0.001, 14)  # of a batch of changes into the store
APPLIES: Final = Histogram(0.0001, 20)  # of all entries that were committed at once
HASHES: Final = Histogram(0.01, 15)
HASHES_BY_REVISION: Final = Histogram(0.01, 15)
SNAPSHOT_FILES: Final = Histogram(0.01, 17)
DEFRAGMENTS: Final = Histogram(0.1, 13)
COMPACTIONS: Final = Histogram(0.1, 14)
