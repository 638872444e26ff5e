"""Links that are slow, that jitter, send twice or have little room. `bites` measures datagrams pair by pair."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import permutations
from typing import ClassVar

from tests.jepsen.faults.base import Fault
from tests.jepsen.network import Pair
from tests.jepsen.packets import Flight, Link, Links, flights

COUNT, SIZE = 40, 500  # datagrams, bytes; that none of them comes twice happens once in 10^6
ARRIVAL_SECONDS = 3.0


class Slow(Fault):
    """All links between members, or those of one, are like `link`."""

    needs = ("packet queue",)
    layer = "network"
    link: ClassVar[Link]
    of_one = False

    def begin(self) -> str:
        pairs = list(permutations(self.system.names, 2))
        where = "all"
        if self.of_one:
            where = self.rng.choice([self.pick("one")[0], self.pick("leader")[0]]).name
            pairs = [pair for pair in pairs if where in pair]
        self.pairs = pairs
        self.links = Links(self.system.network, dict.fromkeys(pairs, self.link), random.Random(self.rng.random()))
        self.links.open()
        return f"{where}: {_words(self.link)}"

    def bites(self) -> str:
        return self._differing(self.pairs, lambda flight: _shows(self.link, flight))

    def end(self) -> None:
        self.links.close()

    def healed(self) -> str:
        quick = self.link.delay / 2 or 0.05  # the fastest of some: a busy machine delays one, not all
        return self._differing(
            list(permutations(self.system.names, 2)),
            lambda flight: sorted(flight.numbers) == list(range(COUNT)) and flight.fastest < quick,
        )

    def _differing(self, pairs: list[Pair], fine: Callable[[Flight], bool]) -> str:
        found = flights(self.system.network, pairs, COUNT, SIZE, ARRIVAL_SECONDS)
        return "; ".join(f"{pair}: {flight.arrived}" for pair, flight in found.items() if not fine(flight))


def _shows(link: Link, flight: Flight) -> bool:
    numbers = flight.numbers
    narrowest = (COUNT - 1) * SIZE / link.rate / 2  # a busy machine sends them over some time
    return (
        flight.fastest >= link.delay - link.jitter
        and max(seconds for _, seconds in flight.arrived) >= narrowest
        and (not link.duplicate or len(numbers) > len(set(numbers)))
        and (link.reorder == (numbers != sorted(numbers)) or bool(link.duplicate))
        and len(set(numbers)) == COUNT
    )


def _words(link: Link) -> str:
    delay = f"{link.delay * 1000:.0f}+-{link.jitter * 1000:.0f} ms" * bool(link.delay)
    order = "out of order" * link.reorder
    twice = f"{link.duplicate:.0%} twice" * bool(link.duplicate)
    rate = f"{link.rate * 8 / 1000:.0f} kbit/s" if link.rate < math.inf else ""
    return ", ".join(filter(None, [delay, order, twice, rate]))


def slow(link: Link, *, of_one: bool = False) -> type[Slow]:
    return type("Slow", (Slow,), {"link": link, "of_one": of_one})


LINKS: dict[str, type[Fault]] = {
    "slow": slow(Link(delay=0.05, jitter=0.01)),
    "slow-one": slow(Link(delay=0.2, jitter=0.1), of_one=True),
    "jitter": slow(Link(delay=0.075, jitter=0.05, reorder=True)),
    "duplicate": slow(Link(delay=0.01, jitter=0.01, reorder=True, duplicate=0.3)),
    "narrow": slow(Link(rate=64_000)),
    "narrow-one": slow(Link(rate=16_000), of_one=True),
}
