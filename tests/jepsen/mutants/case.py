"""One mutant of the server, and the run that has to see it.

A file is like one of tests/sim/mutants, and may take the edits of some of those along:

    bug = "what is wrong"
    also = ["S-18_acknowledged_before_the_fsync"]
    workload = "set"
    nemesis = ["power-cut-all"]
    [[edit]]                             # file, old, new

The members run a copy of the code with the edits; the harness and the clients do not.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.jepsen.judge import FAIL, UNDECIDED, Verdict
from tests.jepsen.network import NetworkError
from tests.jepsen.run import HarnessError, Options, Run
from tests.sim.mutants.mutant import FOLDER as SIMULATOR
from tests.sim.mutants.mutant import Edit, Mutant, load, mutated

FOLDER = Path(__file__).parent
SECONDS = 20.0
MEMBERS = 3
SEEDS = (1, 2, 3)
SECONDS_MAX = 300.0  # to be seen, all seeds together


@dataclass(frozen=True)
class Case:
    name: str
    bug: str
    edits: tuple[Edit, ...]
    options: Options

    @property
    def mutant(self) -> Mutant:
        return Mutant(self.name, "", self.bug, "member", self.edits, "")


@dataclass(frozen=True)
class Found:
    """What came of a case."""

    bug: str
    command: str
    seed: int  # 0: not seen
    seconds: float  # of all runs until it was seen
    verdict: str
    complaint: str
    sound: str  # what the same run says of the server as it is: "pass", or its first complaint


def read_case(path: Path) -> Case:
    fields = tomllib.loads(path.read_text())
    also = [edit for name in fields.pop("also", []) for edit in load(SIMULATOR / f"{name}.toml").edits]
    edits = (*also, *(Edit(**edit) for edit in fields.pop("edit", [])))
    bug, nemeses, workload = fields.pop("bug"), tuple(fields.pop("nemesis")), fields.pop("workload")
    options = Options(workload, nemeses, seconds=SECONDS, members=MEMBERS)
    assert not fields, f"{path.name}: unknown: {', '.join(fields)}"
    return Case(path.stem, bug, edits, options)


def read_cases() -> list[Case]:
    return [read_case(path) for path in sorted(FOLDER.glob("*.toml"))]


@contextmanager
def _said_to(path: Path) -> Iterator[None]:
    """What a run prints goes beside its report."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    finally:
        path.mkdir(parents=True, exist_ok=True)
        (path / "verdicts.txt").write_text(said.getvalue())


def _run(options: Options, path: Path) -> list[Verdict]:
    """The verdicts that are no pass."""
    run = Run(options, path)
    with _said_to(path):
        try:
            run.run()
        except (HarnessError, NetworkError, subprocess.TimeoutExpired) as error:
            return [Verdict("harness", UNDECIDED, [str(error)])]
    return [verdict for verdict in run.verdicts if verdict.result != "pass"]


def check(case: Case, path: Path) -> Found:
    """Two runs, or more where chance hides the bug: the server as it is must pass, the mutant must not."""
    shutil.rmtree(path, ignore_errors=True)
    sound = _run(case.options, path / "sound")
    begun = time.monotonic()
    with mutated(case.mutant) as root:
        for seed in SEEDS:
            options = replace(case.options, seed=seed, code=str(root))
            seen = [one for one in _run(options, path / f"seed-{seed}") if one.result == FAIL]
            seconds = time.monotonic() - begun
            if seen or seconds > SECONDS_MAX:
                break
    first = seen[0] if seen else Verdict("", "", [""])
    return Found(
        case.bug,
        replace(case.options, seed=seed).command,
        seed if seen else 0,
        round(seconds, 1),
        ", ".join(one.name for one in seen),
        first.complaints[0][:200],
        "; ".join(f"{one.name}: {one.complaints[0][:200]}" for one in sound) or "pass",
    )
