"""`make jepsen` in a process of its own, for commands that do it many times; and tables in docs/JEPSEN.md."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.jepsen.guard import ROOT

DOCUMENT = ROOT / "docs" / "JEPSEN.md"
RECORDED = ROOT / "tests" / "jepsen" / "recorded"
JUDGE_SECONDS = 900.0  # besides the time under faults
END_SECONDS = 60.0  # of a run that is told to end, to remove all that it has made


class HarnessFailedError(Exception):
    """The run has said nothing about the members."""


def run(out: Path, seconds: float, **flags: object) -> dict[str, Any]:
    """The run's report; flags as the command's, without dashes. What it says is in `out`/verdicts.txt.

    An interruption ends the run first, with all that it has made."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = [sys.executable, "-m", "tests.jepsen", f"--time={seconds:.0f}", f"--out={out}"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    with (out / "verdicts.txt").open("w") as said:
        # In a session of its own: else Ctrl-C would reach it twice, and a second one ends no run in order.
        process = subprocess.Popen(command, stdout=said, stderr=said, cwd=ROOT, start_new_session=True)
        try:
            code = process.wait(seconds + JUDGE_SECONDS)
        except subprocess.TimeoutExpired:
            raise HarnessFailedError(f"no end after {seconds + JUDGE_SECONDS:.0f} s") from None
        finally:
            _end(process)
    if code not in {0, 1}:
        raise HarnessFailedError(f"exit code {code}: {(out / 'verdicts.txt').read_text()[-500:]}")
    (report,) = out.glob("*/report.json")
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        process.kill()
        process.wait()


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def replace(path: Path, text: str) -> None:
    """Whole or not at all: hours of results are in there, and an interruption may come at any time."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


def write_table(name: str, table: str) -> None:
    """Between the two comments of that name."""
    begin, end = f"<!-- {name}: made by `make jepsen-{name}` -->", f"<!-- end of {name} -->"
    before, found, rest = DOCUMENT.read_text().partition(begin)
    assert found, f"{DOCUMENT.name} has no place for {name}"
    replace(DOCUMENT, f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}")
