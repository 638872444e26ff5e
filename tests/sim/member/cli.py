"""The command line of the member level.

    SEED                    one seed; with --trace every event, with --shrink a failure is made small
    FIRST..LAST             a range; one line for each failure, then the sums

A failing seed prints the one command that replays it. The exit code is 0 only when nothing was violated.
"""

import argparse
from typing import Final

from raft.testing.sim.campaign import Totals, line, play
from raft.testing.sim.shrink import read_numbers, write_numbers
from tests.sim.member.marks import MARKS
from tests.sim.member.options import SWITCHES
from tests.sim.member.plan import SECONDS, Plan, run

HEAD: Final = f"{'ms':>11} {'':>4} {'event':<14} {'role':>6} {'applied/commit/last rev':<24} detail"
_TRACE_TAIL: Final = 40


COUNTED: Final = {
    "turns": "of the loop",
    "requests": "answered",
    "unknown": "requests of unknown outcome",
    "watches": "",
}


def main(arguments: list[str], command: str) -> int:
    """`command`: how a user starts this, for what a failure prints."""
    options = _parser(command).parse_args(arguments)
    first, _, last = options.seeds.partition("..")
    if not last:
        return _one(options, command)
    return play(
        range(int(first), int(last) + 1),
        lambda seed: run(Plan.of(seed, options.seconds)),
        Totals(MARKS, COUNTED),
        lambda seed: _repro(command, Plan.of(seed, options.seconds), options.seconds),
        verbose=options.verbose,
        stop=options.stop,
    )


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
    totals = Totals(MARKS, COUNTED)
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
