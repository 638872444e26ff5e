"""Campaign: a range of seeds, one after the other, and their sums. Both levels of the simulator print the same.

A terminal sees how far it is. Ctrl-C ends it with the sums so far.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol, final

_TWICE_EVERY: Final = 50  # every such seed runs twice and must do the same
INTERRUPTED: Final = 130


class Outcome(Protocol):
    """What one seed came to, as far as both levels agree on it."""

    @property
    def seed(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def real_seconds(self) -> float: ...
    @property
    def commits(self) -> int: ...
    @property
    def hash(self) -> int: ...
    @property
    def injected(self) -> Counter[str]: ...
    @property
    def marks(self) -> Counter[str]: ...
    @property
    def violation(self) -> str: ...
    @property
    def ok(self) -> bool: ...


@final
class Totals:
    """The sums of a campaign."""

    def __init__(self, marks: Iterable[str], counted: Mapping[str, str]) -> None:
        """counted: further numbers of an outcome, by attribute, each with what it counts."""
        self._marks = list(marks)
        self._counted = counted
        self._numbers: Counter[str] = Counter()
        self._seeds = 0
        self._seconds = self._real_seconds = 0.0
        self._injected: Counter[str] = Counter()
        self._hit: Counter[str] = Counter()
        self.violations = 0

    def add(self, outcome: Outcome) -> None:
        self._seeds += 1
        self._seconds += outcome.seconds
        self._real_seconds += outcome.real_seconds
        self._numbers["commits"] += outcome.commits
        for name in self._counted:
            self._numbers[name] += getattr(outcome, name)
        self._injected.update(outcome.injected)
        self._hit.update(outcome.marks)
        self.violations += not outcome.ok

    def report(self) -> str:
        ratio = self._seconds / max(self._real_seconds, 1e-9)
        commits = self._numbers["commits"]
        injected = ", ".join([f"{name} {count:,}" for name, count in sorted(self._injected.items())])
        never = [name for name in self._marks if not self._hit[name]]
        rows = {
            "seeds": f"{self._seeds:,}",
            "simulated": f"{self._seconds:,.0f} s in {self._real_seconds:,.1f} s: {ratio:.1f} s per second",
            "commits": f"{commits:,}, {commits / max(self._seconds, 1e-9):.1f} per simulated second",
            **{name: f"{self._numbers[name]:,} {what}".rstrip() for name, what in self._counted.items()},
            "faults": injected,
            "marks": f"{len(self._marks) - len(never)} of {len(self._marks)} hit; never: {', '.join(never) or 'none'}",
            "violations": f"{self.violations}",
        }
        return "\n".join([f"{name:<12} {text}" for name, text in rows.items()])


def line(outcome: Outcome) -> str:
    ratio = outcome.seconds / max(outcome.real_seconds, 1e-9)
    verdict = "ok" if outcome.ok else outcome.violation.splitlines()[0]
    return (
        f"seed {outcome.seed:<8} {outcome.seconds:6.1f} s in {outcome.real_seconds:5.2f} s ({ratio:5.1f}x)"
        f" commits {outcome.commits:<6} hash {outcome.hash:016x} {verdict}"
    )


def play(
    seeds: Iterable[int],
    run: Callable[[int], Outcome],
    totals: Totals,
    repro: Callable[[int], str],
    *,
    verbose: bool,
    stop: bool,
) -> int:
    """Run them all and print the sums. The exit code: 0 only when nothing was violated.

    repro: the command that replays a seed. stop: at the first violation. verbose: a line for every seed.
    """
    code = 0
    try:
        for seed in seeds:
            _show(f"seed {seed}, violations so far: {totals.violations}")
            outcome = run(seed)
            totals.add(outcome)
            twice = outcome.ok and seed % _TWICE_EVERY == 0
            if twice and run(seed).hash != outcome.hash:
                _show("")
                print(f"seed {seed} does not do the same twice")
                return 1
            if not verbose and outcome.ok:
                continue
            _show("")
            print(line(outcome), flush=True)
            if not outcome.ok:
                print(outcome.violation)
                print(f"repro: {repro(seed)}", flush=True)
                if stop:
                    break
    except KeyboardInterrupt:
        code = INTERRUPTED
    _show("")
    print(totals.report())
    return 1 if totals.violations else code


def _show(text: str) -> None:
    """Over the last such text, and for people only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
