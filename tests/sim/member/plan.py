"""Plan: one simulation to run. A seed stands for one; parts of it may be left out to make a failure smaller."""

import gc
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.sim.member.loop import SECOND
from tests.sim.member.nemesis import Fault, draw_faults
from tests.sim.member.options import Options, draw
from tests.sim.member.world import Violation, World

SECONDS: Final = 15.0  # of virtual time under faults
_MEMORY: Final = Path("/dev/shm")  # a data directory holds two small files: its identity and its lock


@dataclass(frozen=True)
class Plan:
    options: Options
    faults: list[Fault]
    off: tuple[str, ...] = ()

    @classmethod
    def of(cls, seed: int, seconds: float = SECONDS) -> "Plan":
        options = draw(seed, seconds)
        return cls(options, draw_faults(options))

    def without(self, name: str) -> "Plan":
        return replace(
            self,
            options=self.options.without(name),
            faults=[fault for fault in self.faults if fault.kind != name],
            off=(*self.off, name),
        )

    def only(self, numbers: set[int]) -> "Plan":
        return replace(self, faults=[fault for fault in self.faults if fault.number in numbers])


@dataclass(frozen=True)
class Outcome:
    seed: int
    seconds: float  # simulated
    real_seconds: float
    turns: int
    commits: int
    requests: int
    unknown: int
    watches: int
    hash: int
    injected: Counter[str]
    marks: Counter[str]
    violation: str

    @property
    def ok(self) -> bool:
        return not self.violation


def run(plan: Plan, trace: list[str] | None = None) -> Outcome:
    begin = time.perf_counter()
    collects = gc.isenabled()
    gc.disable()  # when cycles go must not matter
    path = Path(tempfile.mkdtemp(prefix="sim-", dir=_MEMORY if _MEMORY.is_dir() else None))
    try:
        world = World(plan.options, plan.faults, path, trace)
        violation = ""
        try:
            world.run()
        except Violation as error:
            violation = str(error)
        operations = world.history.operations
        return Outcome(
            plan.options.seed,
            world.loop.now / SECOND,
            time.perf_counter() - begin,
            world.loop.turns,
            max(world.log, default=0),
            sum([1 for one in operations if one.outcome.value == "ok"]),
            sum([1 for one in operations if one.outcome.value == "unknown"]),
            len(world.watches),
            world.hash,
            world.injected,
            world.marks,
            violation,
        )
    finally:
        shutil.rmtree(path, ignore_errors=True)
        del world
        gc.collect()
        if collects:
            gc.enable()
