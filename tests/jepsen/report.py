"""What a run leaves behind: report.json and, from it and the history, report.html.

python -m tests.jepsen.report DIRECTORY     writes the page anew
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.jepsen.guard import ROOT
from tests.jepsen.record import Call, calls, read

AFTER_SECONDS = 5.0  # to recover: counted to a fault's time without writes, unless another fault begins
TOGETHER = "two at once"
SERVER_CODE = ("raft", "kvstore", ":(exclude)raft/testing", ":(exclude)*.md")  # what results are about


def writes(call: Call) -> bool:
    """Whether its answer shows that something could be written. Nobody waits for an answer to an unlock."""
    reads = call.f in {"read", "stale", "at", "peek", "keepalive", "unlock"}
    return call.ok and not reads and (call.f != "txn" or any(step[0] == "append" for step in call.asked))


def unavailability(found: list[Call], faults: list[dict[str, Any]], started: int, stopped: int) -> None:
    """Notes at each fault the longest time between two acknowledged writes, in seconds. started, stopped: ns."""
    answers = sorted((call.returned - started) / 1e9 for call in found if writes(call))
    nexts = [*(fault["began"] for fault in faults[1:]), (stopped - started) / 1e9]
    for fault, following in zip(faults, nexts, strict=False):  # a run that ended early has none
        end = min(fault["ended"] + AFTER_SECONDS, max(fault["ended"], following))
        fault["unavailable"] = round(longest_gap(answers, fault["began"], end), 3)


def longest_gap(answers: list[float], start: float, end: float) -> float:
    """At most between two answers within [start, end], those two included."""
    inside = [start, *(at for at in answers if start <= at <= end), end]
    return max(later - earlier for earlier, later in pairwise(inside))


def quantiles(values: Iterable[float]) -> dict[str, float]:
    """count, p50, p99 and max, as the tables show them."""
    ordered = sorted(values)
    if not ordered:
        return {"count": 0}
    last = len(ordered) - 1
    return {
        "count": len(ordered),
        "p50": ordered[last // 2],
        "p99": ordered[min(last, -(-99 * len(ordered) // 100) - 1)],
        "max": ordered[-1],
    }


def by_class(faults: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The time without acknowledged writes, for each kind of fault; two at once are a kind of their own."""
    gaps: dict[str, list[float]] = {}
    for fault in faults:
        gaps.setdefault(TOGETHER if fault["beside"] else fault["name"], []).append(fault["unavailable"])
    return {name: quantiles(found) for name, found in gaps.items()}


def operations(found: list[Call]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for call in found:
        counts.setdefault(call.f, Counter())[call.type] += 1
    return {f: dict(counts[f]) for f in sorted(counts)}


def commit(folders: Sequence[str] = SERVER_CODE) -> str:
    """The last that touched the code there; with a "+" when the working tree differs from it."""
    done = subprocess.run(
        ["git", "log", "-1", "--format=%h", "--", *folders], capture_output=True, text=True, check=False, cwd=ROOT
    )
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *folders], check=False, cwd=ROOT).returncode
    return (done.stdout.strip() or "unknown") + "+" * bool(changed)


def write(path: Path, report: dict[str, Any]) -> None:
    """Both files, into the run's directory."""
    (path / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    rewrite(path)


def rewrite(path: Path) -> None:
    from tests.jepsen.page import page

    report = json.loads((path / "report.json").read_text())
    (path / "report.html").write_text(page(report, calls(read(path / "history.jsonl"))))


if __name__ == "__main__":
    rewrite(Path(sys.argv[1]))
