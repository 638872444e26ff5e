"""Results that accumulate: docs/differential.json by commit, judge and members, and docs/DIFFERENTIAL.md made from it.

`python -m tests.conformance.differential --record` adds a run; `python -m tests.conformance.differential.record`
writes the page again.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conformance.differential.coverage import ERRORS, LACKS, Coverage
from tests.conformance.differential.known import BOTH, KNOWN
from tests.conformance.rare.known import RARE
from tests.conformance.rpcs import RPCS

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "differential.json"
PAGE = ROOT / "docs" / "DIFFERENTIAL.md"
COUNTS = ("cases", "operations", "differences", "seconds")
INTRO = """# Compared with etcd

Made by `python -m tests.conformance.differential --record`; do not edit. Random cases (seeds) of valid, borderline
and invalid requests go to a real etcd of one member and to us, of one member or to a follower of three: several
clients, open watches, leases, compactions, nested transactions, users and their permissions, locks and elections
(also of users), members, alarms, downgrades. Every response, error code and error text is compared field by field,
every watch by its sequence of events, after ids, terms and what depends on the time are mapped. Run it: `python -m
tests.conformance.differential --judge 3.5.1 --seconds 600 --seed 1`. A case that differs is shrunk and printed as
Python.

What healthy members never say is compared in stories of members that fail, hang, stop or fall behind, on three real
members of each side: `python -m tests.conformance.rare --judge 3.5.1`. Their answers count here like the others.
"""
RANDOM = "random cases"
STORIES = "stories of failure"


class Dirty(Exception):
    """Results belong to a commit, and the tree has changes that are in none."""


def commit() -> str:
    """Of the tree as it is; raises Dirty."""
    changed = _git("status", "--porcelain").splitlines()
    ours = {RESULTS.relative_to(ROOT).as_posix(), PAGE.relative_to(ROOT).as_posix()}
    if any(line[3:] not in ours for line in changed):
        raise Dirty(f"commit these first: {changed}")
    return _git("rev-parse", "--short=12", "HEAD").strip()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def add(run: dict[str, Any], coverage: Coverage) -> None:
    """`run` has commit, judge, kind, members and COUNTS."""
    runs: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    same = [one for one in runs if all(one[key] == run[key] for key in ("commit", "judge", "kind", "members"))]
    found = same[0] if same else {**run, **dict.fromkeys(COUNTS, 0), **Coverage().as_json()}
    if not same:
        runs.append(found)
    whole = Coverage()
    whole.add(found)
    whole.add(coverage.as_json())
    found.update({key: found[key] + run[key] for key in COUNTS}, **whole.as_json())
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(one) for one in runs) + "\n]\n")
    PAGE.write_text(page())


def page() -> str:
    runs: list[dict[str, Any]] = json.loads(RESULTS.read_text())
    whole = {judge: Coverage() for judge in BOTH}
    kinds = {kind: Coverage() for kind in (RANDOM, STORIES)}
    for run in runs:
        whole[run["judge"]].add(run)
        kinds[run["kind"]].add(run)
    return "\n".join([INTRO, *_totals(runs), *_known(whole), *_rpcs(whole), *_errors(whole, kinds), *_commits(runs)])


def _totals(runs: list[dict[str, Any]]) -> Iterator[str]:
    yield "| judge | operations compared | cases | differences |\n|---|--:|--:|--:|"
    for judge in BOTH:
        of_judge = [run for run in runs if run["judge"] == judge]
        operations, cases, differences = (
            sum(run[key] for run in of_judge) for key in ("operations", "cases", "differences")
        )
        yield f"| etcd {judge} | {operations:,} | {cases:,} | {differences:,} |"
    yield "\nA difference is a fault of ours, or a row that this page still lacked: see the commits that followed.\n"


def _known(whole: dict[str, Coverage]) -> Iterator[str]:
    yield "## What may differ\n\n| what | etcd | we | judges | met |\n|---|---|---|---|--:|"
    for name, known in {**KNOWN, **RARE}.items():
        met = sum(coverage.excused[name] for coverage in whole.values())
        judges = "both" if known.judges == BOTH else ", ".join(known.judges)
        yield f"| {known.what} | {known.etcd} | {known.we} | {judges} | {met or 'not counted'} |"


def _rpcs(whole: dict[str, Coverage]) -> Iterator[str]:
    yield f"\n## Operations by RPC\n\n| RPC | {' | '.join(BOTH)} | when not compared |\n|---|{'--:|' * len(BOTH)}---|"
    for name in RPCS:
        counts = {judge: coverage.calls_of(name) for judge, coverage in whole.items()}
        yield f"| {name} | {' | '.join(f'{count:,}' for count in counts.values())} | {_why_not(name, counts, '')} |"


def _errors(whole: dict[str, Coverage], kinds: dict[str, Coverage]) -> Iterator[str]:
    yield "\n## Error texts\n\nHow often the judge said it, and we too, or what the first table says instead.\n"
    yield f"| text | {' | '.join(BOTH)} | in | when not reached |\n|---|{'--:|' * len(BOTH)}---|---|"
    for text, reason in ERRORS.items():
        counts = {judge: coverage.errors[text] for judge, coverage in whole.items()}
        by = ", ".join(kind for kind, coverage in kinds.items() if coverage.errors[text])
        numbers = " | ".join(f"{count:,}" for count in counts.values())
        yield f"| {text} | {numbers} | {by} | {_why_not(text, counts, reason)} |"
    other = sorted({text for coverage in whole.values() for text in coverage.errors} - set(ERRORS))
    yield f"\nOthers that both sides gave alike: {'; '.join(f'`{text}`' for text in other) or 'none'}."


def _why_not(name: str, counts: dict[str, int], reason: str) -> str:
    """reason: for which no judge says it."""
    reasons = [LACKS[judge].get(name, "") for judge, count in counts.items() if not count]
    if not any(counts.values()):
        reasons.append(reason)
    return "; ".join(dict.fromkeys(filter(None, reasons)))


def _commits(runs: list[dict[str, Any]]) -> Iterator[str]:
    yield "\n## Runs\n\n| commit | judge | what | our members | seconds | cases | operations | differences |"
    yield "|---|---|---|--:|--:|--:|--:|--:|"
    for run in runs:
        numbers = " | ".join(f"{run[key]:,.0f}" for key in ("members", "seconds", "cases", "operations", "differences"))
        yield f"| {run['commit']} | {run['judge']} | {run['kind']} | {numbers} |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page())
