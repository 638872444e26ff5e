"""`make jepsen` in a process of its own, for commands that do it many times; and tables in docs/JEPSEN.md."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.jepsen.guard import ROOT

DOCUMENT = ROOT / "docs" / "JEPSEN.md"
RECORDED = ROOT / "tests" / "jepsen" / "recorded"
JUDGE_SECONDS = 900.0  # besides the time under faults


class HarnessFailedError(Exception):
    """The run has said nothing about the members."""


def run(out: Path, seconds: float, **flags: object) -> dict[str, Any]:
    """The run's report; flags as the command's, without dashes. What it says is in `out`/verdicts.txt."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = [sys.executable, "-m", "tests.jepsen", f"--time={seconds:.0f}", f"--out={out}"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    with (out / "verdicts.txt").open("w") as said:
        limit = seconds + JUDGE_SECONDS
        code = subprocess.run(command, stdout=said, stderr=said, check=False, timeout=limit, cwd=ROOT).returncode
    if code not in {0, 1}:
        raise HarnessFailedError(f"exit code {code}: {(out / 'verdicts.txt').read_text()[-500:]}")
    (report,) = out.glob("*/report.json")
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_table(name: str, table: str) -> None:
    """Between the two comments of that name."""
    begin, end = f"<!-- {name}: made by `make jepsen-{name}` -->", f"<!-- end of {name} -->"
    before, found, rest = DOCUMENT.read_text().partition(begin)
    assert found, f"{DOCUMENT.name} has no place for {name}"
    DOCUMENT.write_text(f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}")
