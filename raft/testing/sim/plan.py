"""Plan: one simulation to run. A seed stands for one; parts of it may be left out to make a failure smaller."""

import gc
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from typing import Final

from raft.runtime import Runtime
from raft.testing.sim.clock import SECOND
from raft.testing.sim.nemesis import Fault, draw_faults
from raft.testing.sim.options import Options, draw
from raft.testing.sim.trace import Trace
from raft.testing.sim.workload import Request, draw_requests
from raft.testing.sim.world import World

SECONDS: Final = 40.0  # of virtual time under faults


@dataclass(frozen=True)
class Plan:
    options: Options
    faults: list[Fault]
    requests: list[Request]
    off: tuple[str, ...] = ()  # fault classes that were switched off

    @classmethod
    def of(cls, seed: int, seconds: float = SECONDS) -> "Plan":
        options = draw(seed, seconds)
        return cls(options, draw_faults(options), draw_requests(options))

    def until(self, time: int) -> "Plan":
        """Faults and requests stop at `time`."""
        return replace(
            self,
            options=replace(self.options, safety=time),
            faults=[fault for fault in self.faults if fault.at <= time],
            requests=[request for request in self.requests if request.at <= time],
        )

    def salted(self, salt: int) -> "Plan":
        """The same schedule with other chances."""
        return replace(self, options=replace(self.options, salt=salt))

    def without(self, name: str) -> "Plan":
        return replace(self, options=self.options.without(name), off=(*self.off, name))


@dataclass(frozen=True)
class Outcome:
    seed: int
    seconds: float  # simulated
    real_seconds: float
    events: int
    commits: int
    answered: int
    unknown: int
    hash: int  # of all that happened
    injected: Counter[str]
    marks: Counter[str]
    violation: str  # "" when there is none
    signature: str  # where it was noticed: two failures with the same one are taken for the same
    at: int  # virtual time of the end

    @property
    def ok(self) -> bool:
        return not self.violation


def run(plan: Plan, trace: Trace | None = None, *, safety_only: bool = False) -> Outcome:
    """Run to the end or to the first violation. `safety_only`: the end is when faults stop."""
    clock = Runtime().clock
    begin = clock()
    collects = gc.isenabled()
    gc.disable()  # nothing here lives in cycles for long, and a run is short
    try:
        world = World(plan.options, plan.faults, plan.requests, trace)
        violation = signature = ""
        try:
            world.run(safety_only)
        except Exception as error:
            violation, signature = _describe(error)
            if trace is not None:
                world.note(None, "violation", violation.splitlines()[0])
    finally:
        if collects:
            gc.enable()
    return Outcome(
        plan.options.seed,
        world.clock.now / SECOND,
        (clock() - begin) / 1e9,
        world.clock.events,
        world.checker.commit_index,
        world.history.answered_count,
        world.history.unknown,
        world.hash,
        world.injected,
        world.marks.counts,
        violation,
        signature,
        world.clock.now,
    )


def _describe(error: Exception) -> tuple[str, str]:
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    where = " < ".join([f"{frame.name}:{frame.lineno}" for frame in reversed(frames[-4:])])
    return f"{type(error).__name__}: {error}\n  in {where}", f"{type(error).__name__} in {last.name}"
