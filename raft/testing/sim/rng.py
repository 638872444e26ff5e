"""SimRng: the randomness of a simulation, one stream for each concern.

Every stream comes from (seed, concern), so that what one concern draws never shifts another: a run
without its network losses has the same crashes at the same times.
"""

import random
from collections.abc import Sequence
from math import exp, log
from typing import TypeVar, final

from raft.core.ports import Rng

Item = TypeVar("Item")


@final
class SimRng(Rng):
    def __init__(self, seed: int, concern: str) -> None:
        self._random = random.Random(f"{seed}/{concern}")  # hashed by sha512: the same in every process
        self.random = self._random.random  # uniform in [0, 1)

    def below(self, bound: int) -> int:
        return self._random.randrange(bound)

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def between(self, low: int, high: int) -> int:
        """Uniform in low..high."""
        return self._random.randint(low, high)

    def log_uniform(self, low: float, high: float) -> float:
        """Every order of magnitude alike: rare faults are not hidden by frequent ones."""
        return exp(log(low) + self.random() * (log(high) - log(low)))

    def exponential(self, mean: float) -> int:
        return int(self._random.expovariate(1.0) * mean)

    def choice(self, items: Sequence[Item]) -> Item:
        return items[self._random.randrange(len(items))]

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        return self._random.sample(items, count)
