"""Clocks that jump or run at another speed, of some members (libfaketime). What a member answers tells that they do.

A jump is of the wall clock alone, as of an operator or of NTP: monotonic clocks do not jump. A speed is of both.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import ClassVar

from tests.e2e.cluster import Member, wait_for
from tests.jepsen.faults.base import Fault, Repeated

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"))), None)
JUMP_SECONDS = (0.5, 300.0)
BETWEEN_SECONDS = (0.1, 1.0)
NEAR_SECONDS = 0.25  # an answer's way, and its reader's
SPEEDS = (0.7, 0.9, 1.1, 1.5)
MEASURED_SECONDS = 1.0


def clocks(member: Member) -> tuple[float, float]:
    """Its wall clock less ours, and its monotonic one, in seconds."""
    answer = member.admin(do="status")["clock"]
    return answer["wall_ns"] / 1e9 - time.time(), answer["monotonic_ns"] / 1e9


class Clocks(Fault):
    """Its victims are started again with the library in between; at the end without it."""

    needs = ("libfaketime",)
    ours = True
    how_many = "one"

    def restart(self, **environment: str) -> None:
        self.old = [dict(member.environment) for member in self.victims]
        for member in self.victims:
            member.kill()
            member.environment |= {"LD_PRELOAD": str(LIBRARY), **environment}
            member.start()
            member.wait_ready()  # one after the other: the fault is the clock

    def stop(self) -> None:
        for member, environment in zip(self.victims, self.old, strict=True):
            member.kill()
            member.environment = environment
            member.start()
            member.wait_ready()

    def healed(self) -> str:
        for member in self.victims:
            member.wait_ready()
        off = {member.name: clocks(member)[0] for member in self.system.cluster.members}
        return "" if all(abs(seconds) < NEAR_SECONDS for seconds in off.values()) else f"clocks are off by {off}"


class Jumps(Repeated, Clocks):
    """Forward and back by up to five minutes, over and over."""

    def prepare(self) -> str:
        self.victims = self.pick(self.how_many)
        self.offset = 0.0
        self.seen = 0
        # Of this life of the fault: one that ends must not move the clock of the next.
        self.file = self.victims[0].log_path.with_suffix(f".clock{time.monotonic_ns()}")
        self._write()
        self.restart(FAKETIME_TIMESTAMP_FILE=str(self.file), FAKETIME_NO_CACHE="1", FAKETIME_DONT_FAKE_MONOTONIC="1")
        return " ".join(member.name for member in self.victims)

    def _write(self) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(f"{self.offset:+.3f}")
        os.replace(new, self.file)

    def again(self) -> None:
        self.offset = self.rng.choice((-1, 1)) * self.rng.uniform(*JUMP_SECONDS)
        self._write()
        if all(abs(clocks(member)[0] - self.offset) < NEAR_SECONDS for member in self.victims if member.running):
            self.seen += 1
        self.pause(*BETWEEN_SECONDS)

    def bites(self) -> str:
        wait_for(lambda: self.seen >= 3, "three jumps that the members tell of", 15)
        return ""

    def end(self) -> None:
        super().end()
        self.stop()
        self.file.unlink()


class Speeds(Clocks):
    """Each victim's clocks, both of them, run too fast or too slow."""

    speeds: ClassVar[tuple[float, ...]] = SPEEDS

    def begin(self) -> str:
        self.victims = self.pick(self.how_many)
        self.speed = self.rng.choice(self.speeds)
        self.restart(FAKETIME=f"+0 x{self.speed}")
        return f"{' '.join(member.name for member in self.victims)} x{self.speed}"

    def bites(self) -> str:
        before = self._read()
        time.sleep(MEASURED_SECONDS)
        after = self._read()
        found = [(late[1] - early[1]) / (late[0] - early[0]) for early, late in zip(before, after, strict=True)]
        near = all(abs(one - self.speed) < abs(1 - self.speed) / 2 for one in found)
        return "" if near else f"speeds are {found}"

    def _read(self) -> list[tuple[float, float]]:
        """Our clock and each victim's, at the same time: one's answer may take longer than another's."""
        return [(time.monotonic(), clocks(member)[1]) for member in self.victims]

    def end(self) -> None:
        self.stop()


def of(how_many: str, base: type[Clocks]) -> type[Clocks]:
    return type(f"{base.__name__}_{how_many}", (base,), {"how_many": how_many, "leaves_majority": True})


CLOCKS: dict[str, type[Fault]] = {
    **{f"clock-jump-{how}": of(how, Jumps) for how in ("leader", "minority", "all")},
    **{f"clock-speed-{how}": of(how, Speeds) for how in ("leader", "minority", "all")},
}
