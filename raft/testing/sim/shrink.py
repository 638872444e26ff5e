"""Shrinking: from a failing plan to a small one that fails in the same way.

    1. nothing happens after the violation
    2. faults, then requests, are left out in ever smaller groups (Zeller's ddmin)
    3. fault classes of messages and settings are switched off one by one

What stays of a schedule keeps its times, but not the fate of its messages: each candidate has four tries
with other chances (its salt). It counts when its violation is noticed in the same place. Each run is
deterministic, so what is left can be named: a seed, the numbers of the faults and requests that stay, what
is off, the salt.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar, final

from raft.testing.sim.options import SWITCHES
from raft.testing.sim.plan import SECONDS, Outcome, Plan, run

Item = TypeVar("Item")
RUNS_MAX: Final = 600


@final
class Shrinker:
    def __init__(self, plan: Plan, outcome: Outcome, runs_max: int = RUNS_MAX) -> None:
        assert outcome.violation, "nothing to shrink"
        self.plan = plan
        self.outcome = outcome
        self.runs = 0
        self._runs_max = runs_max
        self._safety_only = outcome.at <= plan.options.safety

    def shrink(self) -> Plan:
        self._try(self.plan.until(self.outcome.at))
        size = -1
        while size != self._size() and self.runs < self._runs_max:
            size = self._size()
            self._minimise(self.plan.faults, lambda faults: replace(self.plan, faults=faults))
            self._minimise(self.plan.requests, lambda requests: replace(self.plan, requests=requests))
            for name in SWITCHES:
                if name not in self.plan.off:
                    self._try(self.plan.without(name))
            self._try(self.plan.until(self.outcome.at))
        return self.plan

    def _size(self) -> int:
        return len(self.plan.faults) + len(self.plan.requests) - len(self.plan.off)

    def _try(self, candidate: Plan) -> bool:
        """Whatever is left out shifts the chances of all messages after it: so a few others are tried too."""
        salt = self.plan.options.salt
        for other in (salt, salt + 1, salt + 2, salt + 3):
            if self.runs >= self._runs_max:
                return False
            self.runs += 1
            salted = candidate.salted(other)
            outcome = run(salted, safety_only=self._safety_only)
            if outcome.signature == self.outcome.signature:
                self.plan, self.outcome = salted, outcome
                return True
        return False

    def _minimise(self, items: Sequence[Item], make: Callable[[list[Item]], Plan]) -> None:
        """Leave out groups of items, halving the groups whenever none can be left out any more."""
        kept = list(items)
        group = len(kept)
        while group and self.runs < self._runs_max:
            start = 0
            while start < len(kept):
                fewer = kept[:start] + kept[start + group :]
                if self._try(make(fewer)):
                    kept = fewer
                else:
                    start += group
            group //= 2


def replay_arguments(plan: Plan) -> str:
    """What to give to the command line to run exactly this plan."""
    whole = Plan.of(plan.options.seed)
    words = [str(plan.options.seed)]
    if plan.options.safety != whole.options.safety:
        words.append(f"--until {plan.options.safety / 1e6:.6f}".rstrip("0").rstrip("."))
        whole = whole.until(plan.options.safety)
    if len(plan.faults) < len(whole.faults):
        words.append(f"--faults {write_numbers([fault.number for fault in plan.faults])}")
    if len(plan.requests) < len(whole.requests):
        words.append(f"--requests {write_numbers([request.number for request in plan.requests])}")
    if plan.options.salt:
        words.append(f"--salt {plan.options.salt}")
    if plan.off:
        words.append(f"--off {','.join(plan.off)}")
    return " ".join(words)


def write_numbers(numbers: list[int]) -> str:
    """1,2,3,7 -> "1-3,7"; "none" for no number."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join([f"{low}-{high}" if high > low else str(low) for low, high in ranges]) or "none"


def read_numbers(text: str) -> set[int]:
    found: set[int] = set()
    for part in [] if text == "none" else text.split(","):
        low, _, high = part.partition("-")
        found.update(range(int(low), int(high or low) + 1))
    return found


def chosen(
    seed: int,
    seconds: float = SECONDS,
    *,
    until: float = 0,
    faults: str = "",
    requests: str = "",
    off: str = "",
    salt: int = 0,
) -> Plan:
    """The plan that `replay_arguments` named."""
    plan = Plan.of(seed, seconds).salted(salt)
    if until:
        plan = plan.until(round(until * 1e6))
    if faults:
        numbers = read_numbers(faults)
        plan = replace(plan, faults=[fault for fault in plan.faults if fault.number in numbers])
    if requests:
        numbers = read_numbers(requests)
        plan = replace(plan, requests=[request for request in plan.requests if request.number in numbers])
    for name in off.split(",") if off else []:
        plan = plan.without(name)
    return plan
