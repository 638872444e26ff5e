"""What is done to the members of a run, and when: rounds of one fault, or of two that can be had at once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.jepsen.faults import NEMESES, Fault, System, Told
from tests.jepsen.record import Writer

QUIET_SECONDS = (0.5, 2.0)  # between two rounds
FAULT_SECONDS = (1.0, 5.0)
APART_SECONDS = (0.2, 1.5)  # between two beginnings, or ends, within a round
TOGETHER = 0.35  # of the rounds have two faults, where there are two that differ in kind


class NotHealedError(Exception):
    """A fault has ended and is there."""


@dataclass
class Breaking:
    system: System
    rng: random.Random
    writer: Writer
    alive: Callable[[], None]  # raises when the clients are gone
    seconds: tuple[float, float] = FAULT_SECONDS

    def __post_init__(self) -> None:
        self.told: list[Told] = []

    def run(self, able: list[str], seconds: float) -> None:
        """Until the time is over; each fault in turn before any comes again."""
        end = time.monotonic() + seconds
        waiting: list[str] = []
        while (left := end - time.monotonic()) > 0:
            self.alive()
            time.sleep(min(left, self.rng.uniform(*QUIET_SECONDS)))
            if able:
                waiting = waiting or self.rng.sample(able, len(able))
                self._round([waiting.pop()], able)

    def _round(self, names: list[str], able: list[str]) -> None:
        if self.rng.random() < TOGETHER:
            names = [*names, *self._another(names[0], able)]
        begun: list[tuple[Fault, Told]] = []
        for name in names:
            self._pause(APART_SECONDS if begun else None)
            fault = NEMESES[name](self.system, self.rng)
            what = fault.begin()
            told = Told(name, what, time.monotonic_ns(), beside=" ".join(other for other in names if other != name))
            self.writer.line("nemesis", "info", name, "", what)
            begun.append((fault, told))
        self._pause(self.seconds)
        for number, (fault, told) in enumerate(self.rng.sample(begun, len(begun))):
            self._pause(APART_SECONDS if number else None)
            fault.end()
            told.ended = time.monotonic_ns()
            self.writer.line("nemesis", "info", f"end {told.name}", "", told.what)
        for fault, told in begun:  # a member that is cut off does not come up before the other fault has ended too
            if sick := fault.healed():
                raise NotHealedError(f"{told.name} does not heal: {sick}")
            self.told.append(told)

    def _another(self, name: str, able: list[str]) -> list[str]:
        layer = NEMESES[name].layer
        others = [one for one in able if layer and NEMESES[one].layer and NEMESES[one].layer != layer]
        return [self.rng.choice(others)] if others else []

    def _pause(self, bounds: tuple[float, float] | None) -> None:
        if bounds is not None:
            time.sleep(self.rng.uniform(*bounds))
