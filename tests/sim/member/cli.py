"""The command line of the member level.

    SEED                    one seed; with --trace every event, with --shrink a failure is made small
    FIRST..LAST             a range; one line for each failure, then the sums

A failing seed prints the one command that replays it. The exit code is 0 only when nothing was violated.
"""

import argparse
from collections import Counter
from typing import Final, final

from raft.testing.sim.shrink import read_numbers, write_numbers
from tests.sim.member.marks import MARKS
from tests.sim.member.options import SWITCHES
from tests.sim.member.plan import SECONDS, Outcome, Plan, run

HEAD: Final = f"{'ms':>11} {'':>4} {'event':<14} {'role':>6} {'applied/commit/last rev':<24} detail"
_TWICE_EVERY: Final = 50  # of a range, every such seed runs twice and must do the same
_TRACE_TAIL: Final = 40


@final
class Totals:
    """The sums of a range of seeds."""

    def __init__(self) -> None:
        self.seeds = 0
        self.seconds = self.real_seconds = 0.0
        self.turns = self.commits = self.requests = self.unknown = self.watches = 0
        self.injected: Counter[str] = Counter()
        self.marks: Counter[str] = Counter()
        self.failed: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.seconds += outcome.seconds
        self.real_seconds += outcome.real_seconds
        self.turns += outcome.turns
        self.commits += outcome.commits
        self.requests += outcome.requests
        self.unknown += outcome.unknown
        self.watches += outcome.watches
        self.injected.update(outcome.injected)
        self.marks.update(outcome.marks)
        if not outcome.ok:
            self.failed.append(outcome)

    def report(self) -> str:
        ratio = self.seconds / max(self.real_seconds, 1e-9)
        injected = ", ".join([f"{name} {count:,}" for name, count in sorted(self.injected.items())])
        never = [name for name in MARKS if not self.marks[name]]
        lines = [
            f"seeds        {self.seeds:,}",
            f"simulated    {self.seconds:,.0f} s in {self.real_seconds:,.1f} s: {ratio:.1f} s per second",
            f"turns        {self.turns:,} of the loop",
            f"commits      {self.commits:,}, {self.commits / max(self.seconds, 1e-9):.1f} per simulated second",
            f"requests     {self.requests:,} answered, {self.unknown:,} of unknown outcome; {self.watches:,} watches",
            f"faults       {injected}",
            f"marks        {len(MARKS) - len(never)} of {len(MARKS)} hit; never: {', '.join(never) or 'none'}",
            f"violations   {len(self.failed)}",
        ]
        return "\n".join(lines)


def line(outcome: Outcome) -> str:
    ratio = outcome.seconds / max(outcome.real_seconds, 1e-9)
    verdict = "ok" if outcome.ok else outcome.violation.splitlines()[0]
    return (
        f"seed {outcome.seed:<8} {outcome.seconds:6.1f} s in {outcome.real_seconds:5.2f} s ({ratio:5.1f}x)"
        f" commits {outcome.commits:<6} hash {outcome.hash:016x} {verdict}"
    )


def main(arguments: list[str], command: str) -> int:
    """`command`: how a user starts this, for what a failure prints."""
    options = _parser(command).parse_args(arguments)
    first, _, last = options.seeds.partition("..")
    if not last:
        return _one(options, command)
    totals = Totals()
    for seed in range(int(first), int(last) + 1):
        plan = Plan.of(seed, options.seconds)
        outcome = run(plan)
        totals.add(outcome)
        if options.verbose or not outcome.ok:
            print(line(outcome), flush=True)
        if outcome.ok and seed % _TWICE_EVERY == 0 and run(plan).hash != outcome.hash:
            print(f"seed {seed} does not do the same twice")
            return 1
        if not outcome.ok:
            print(outcome.violation)
            print(f"repro: {_repro(command, plan, options.seconds)}", flush=True)
            if options.stop:
                break
    print(totals.report())
    return 1 if totals.failed else 0


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=command, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("seeds", nargs="?", default="1..100", help="SEED or FIRST..LAST")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="virtual time under faults of each seed")
    parser.add_argument("--verbose", action="store_true", help="a line for every seed")
    parser.add_argument("--stop", action="store_true", help="stop at the first violation")
    parser.add_argument("--trace", action="store_true", help="print every event of one seed")
    parser.add_argument("--shrink", action="store_true", help="make the failure of one seed small")
    parser.add_argument("--faults", default="", help="numbers of the faults that stay, or none")
    parser.add_argument("--off", default="", help="what is switched off")
    return parser


def _repro(command: str, plan: Plan, seconds: float) -> str:
    words = [command, str(plan.options.seed)]
    whole = Plan.of(plan.options.seed, seconds)
    for name in plan.off:
        whole = whole.without(name)
    if seconds != SECONDS:
        words.append(f"--seconds {seconds:g}")
    if len(plan.faults) < len(whole.faults):
        words.append(f"--faults {write_numbers([fault.number for fault in plan.faults])}")
    if plan.off:
        words.append(f"--off {','.join(plan.off)}")
    return " ".join(words)


def chosen(seed: int, seconds: float, faults: str, off: str) -> Plan:
    plan = Plan.of(seed, seconds)
    for name in off.split(",") if off else []:
        plan = plan.without(name)
    return plan.only(read_numbers(faults)) if faults else plan


def _one(options: argparse.Namespace, command: str) -> int:
    plan = chosen(int(options.seeds), options.seconds, options.faults, options.off)
    trace: list[str] = []
    outcome = run(plan, trace)
    if options.trace:
        print("\n".join([HEAD, *trace]))
    elif not outcome.ok:
        print("\n".join([HEAD, *trace[-_TRACE_TAIL:]]))
    totals = Totals()
    totals.add(outcome)
    print(plan.options)
    print(totals.report())
    print(line(outcome))
    if outcome.ok:
        return 0
    print(outcome.violation)
    seconds = options.seconds
    if options.shrink:
        plan, seconds = shrink(plan, seconds)
        print(f"\nshrunk to {len(plan.faults)} faults in {seconds:g} s, without {', '.join(plan.off) or 'nothing'}")
        small: list[str] = []
        print("\n".join([HEAD, *small]) if run(plan, small).ok else "\n".join([HEAD, *small[-_TRACE_TAIL:]]))
    print(f"repro: {_repro(command, plan, seconds)}")
    return 1


def shrink(plan: Plan, seconds: float) -> tuple[Plan, float]:
    """Leave out what the failure does not need: time, whole classes of faults, then single faults."""
    seed = plan.options.seed
    kept = {fault.number for fault in plan.faults}
    while seconds > 1:
        shorter = chosen(seed, seconds * 0.7, "", ",".join(plan.off)).only(kept)
        if run(shorter).ok:
            break
        plan, seconds = shorter, seconds * 0.7
    for name in SWITCHES:
        smaller = plan.without(name)
        if smaller.options != plan.options and not run(smaller).ok:
            plan = smaller
    for fault in plan.faults:
        smaller = plan.only({one.number for one in plan.faults if one is not fault})
        if not run(smaller).ok:
            plan = smaller
    return plan, seconds
