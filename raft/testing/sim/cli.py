"""The command line of the simulator.

    SEED                    one seed; with --trace every event, with --shrink a failure is made small
    FIRST..LAST             a range; a line for each failure, then the sums
    --seeds FILE            the seeds named in a file, one a line, `#` begins a comment
    exhaustive              no seed: every run of three nodes within narrow bounds

A failing seed prints the one command that replays it. The exit code is 0 only when nothing was violated.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from raft.testing.sim.campaign import Totals, line, play
from raft.testing.sim.exhaustive import Violation, run_all
from raft.testing.sim.marks import MARKS
from raft.testing.sim.plan import SECONDS, Outcome, Plan, run
from raft.testing.sim.shrink import Shrinker, chosen, replay_arguments
from raft.testing.sim.trace import HEAD, Trace

EXHAUSTIVE: Final = "exhaustive"
_TRACE_TAIL: Final = 40  # lines of a failing run that are shown


COUNTED: Final = {"events": "", "answered": "requests", "unknown": "requests, lost with their node"}


def main(arguments: list[str], command: str) -> int:
    """`command`: how a user starts this, for what a failure prints."""
    options = _parser(command).parse_args(arguments)
    if options.seeds == EXHAUSTIVE:
        return _exhaustive()
    if options.shrink or options.trace or _is_one(options.seeds):
        return _one(options, command)
    return play(
        _seeds(options),
        lambda seed: run(Plan.of(seed, options.seconds)),
        Totals(MARKS, COUNTED),
        lambda seed: _repro(command, str(seed), options.seconds),
        verbose=options.verbose,
        stop=options.stop,
    )


def _exhaustive() -> int:
    try:
        for found in run_all():
            print(found, flush=True)
    except Violation as violation:
        print(violation)
        return 1
    return 0


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=command, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("seeds", nargs="?", default="1..200", help=f"SEED or FIRST..LAST or {EXHAUSTIVE}")
    parser.add_argument("--seeds", dest="file", type=Path, help="a file with seeds")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="virtual time under faults of each seed")
    parser.add_argument("--verbose", action="store_true", help="a line for every seed")
    parser.add_argument("--stop", action="store_true", help="stop at the first violation")
    parser.add_argument("--trace", action="store_true", help="print every event of one seed")
    parser.add_argument("--shrink", action="store_true", help="make the failure of one seed small")
    parser.add_argument("--until", type=float, default=0.0, help="seconds after which faults and requests stop")
    parser.add_argument("--faults", default="", help="numbers of the faults that stay, or none")
    parser.add_argument("--requests", default="", help="numbers of the requests that stay, or none")
    parser.add_argument("--salt", type=int, default=0, help="other chances with the same schedule")
    parser.add_argument("--off", default="", help="what is switched off")
    return parser


def _is_one(text: str) -> bool:
    return text.isdigit()


def _seeds(options: argparse.Namespace) -> Iterable[int]:
    if options.file is not None:
        texts = [text.split("#")[0].strip() for text in options.file.read_text().splitlines()]
        return [int(text) for text in texts if text]
    first, _, last = options.seeds.partition("..")
    return range(int(first), int(last or first) + 1)


def _repro(command: str, arguments: str, seconds: float) -> str:
    return f"{command} {arguments}" + ("" if seconds == SECONDS else f" --seconds {seconds:g}")


def _one(options: argparse.Namespace, command: str) -> int:
    plan = chosen(
        int(options.seeds),
        options.seconds,
        until=options.until,
        faults=options.faults,
        requests=options.requests,
        off=options.off,
        salt=options.salt,
    )
    trace = Trace()
    outcome = run(plan, trace)
    if options.trace:
        print("\n".join([HEAD, *trace.lines]))
    elif not outcome.ok:
        print("\n".join([HEAD, *trace.lines[-_TRACE_TAIL:]]))
    totals = Totals(MARKS, COUNTED)
    totals.add(outcome)
    print(plan.options)
    print(totals.report())
    print(line(outcome))
    if outcome.ok:
        return 0
    print(outcome.violation)
    if options.shrink:
        _shrink(plan, outcome, command)
    else:
        print(f"repro: {_repro(command, replay_arguments(plan), options.seconds)}")
    return 1


def _shrink(plan: Plan, outcome: Outcome, command: str) -> None:
    shrinker = Shrinker(plan, outcome)
    small = shrinker.shrink()
    trace = Trace()
    run(small, trace)
    print(f"\nshrunk in {shrinker.runs} runs: {len(small.faults)} faults, {len(small.requests)} requests")
    print("\n".join([HEAD, *trace.lines]))
    print(shrinker.outcome.violation)
    print(f"repro: {command} {replay_arguments(small)}")
