"""python -m tests.jepsen.matrix: runs that nobody has done yet at this commit, until all are done.

Each nemesis with at least two workloads, each workload with at least three nemeses; then everything at random, from
one seed after the other. Results accumulate in tests/jepsen/recorded/matrix.json by the commit of the server's code;
stopped at any time, it goes on where it was. A violation is recorded, its run is kept, and the matrix goes on.

    --minutes M    stop after the cell in which M minutes are over
    --table        only write what is recorded to docs/JEPSEN.md

Exit code 0: what was run has passed. 1: some has not. 2: some run of the harness itself failed. 3: not on this machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from tests.jepsen.apart import RECORDED, HarnessFailedError, row, run, write_table
from tests.jepsen.backends import AUTO, BACKENDS, capabilities, choose
from tests.jepsen.faults import FAULTS
from tests.jepsen.guard import ROOT
from tests.jepsen.probe import probe
from tests.jepsen.report import TOGETHER, commit, quantiles
from tests.jepsen.run import possible
from tests.jepsen.workloads import WORKLOADS

RESULTS = RECORDED / "matrix.json"
FOLDER = ROOT / "build" / "jepsen" / "matrix"
WORKLOADS_EACH, NEMESES_EACH = 2, 3  # at least
EVERYTHING = "all"
SEEDS_MIN = 3
HARNESS_FAILED, CANNOT = 2, 3


@dataclass
class Cell:
    """A run that was done. gaps: seconds without an acknowledged write, by kind of fault."""

    workload: str
    nemesis: str
    seed: int
    seconds: float
    backend: str
    members: int
    operations: dict[str, int]
    gaps: dict[str, list[float]]
    failed: list[str]  # verdicts that are no pass

    @property
    def faults(self) -> int:
        return sum(map(len, self.gaps.values()))


Pair = tuple[str, str]  # workload, nemesis


def next_pair(workloads: Sequence[str], nemeses: Sequence[str], done: Collection[Pair]) -> Pair | None:
    """What is lacking most, so that what is new tomorrow finds its place; None when nothing is."""

    def uses(at: int, name: str) -> int:
        return sum(pair[at] == name for pair in done)

    def free(pair: Pair) -> bool:
        return pair not in done

    for nemesis in nemeses:
        if uses(1, nemesis) < min(WORKLOADS_EACH, len(workloads)):
            choice = [workload for workload in workloads if free((workload, nemesis))]
            return min(choice, key=lambda workload: uses(0, workload)), nemesis
    for workload in workloads:
        if uses(0, workload) < min(NEMESES_EACH, len(nemeses)):
            choice = [nemesis for nemesis in nemeses if free((workload, nemesis))]
            return workload, min(choice, key=lambda nemesis: uses(1, nemesis))
    return None


def load() -> dict[str, list[Cell]]:
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {at: [Cell(**cell) for cell in cells] for at, cells in kept.items()}


def save(kept: dict[str, list[Cell]]) -> None:
    """A file of one line for each cell, so that results of two branches merge."""
    RECORDED.mkdir(exist_ok=True)
    blocks = []
    for at, cells in kept.items():
        lines = ",\n".join("  " + json.dumps(asdict(cell)) for cell in cells)
        blocks.append(f" {json.dumps(at)}: [\n{lines}\n ]")
    RESULTS.write_text("{\n" + ",\n".join(blocks) + "\n}\n")


def cell_of(report: dict[str, Any], nemesis: str) -> Cell:
    options = report["options"]
    gaps: dict[str, list[float]] = {}
    for fault in report["faults"]:
        gaps.setdefault(TOGETHER if fault["beside"] else fault["name"], []).append(fault["unavailable"])
    kinds = {
        kind: sum(counts.get(kind, 0) for counts in report["operations"].values()) for kind in ("ok", "fail", "info")
    }
    failed = [f"{one['name']}: {one['result']}" for one in report["verdicts"] if one["result"] != "pass"]
    return Cell(
        options["workload"],
        nemesis,
        options["seed"],
        options["seconds"],
        options["backend"],
        options["members"],
        kinds,
        gaps,
        failed,
    )


def next_cell(given: argparse.Namespace, nemeses: Sequence[str], cells: list[Cell], skip: set[Any]) -> Any:
    """(workload, nemesis, seed, seconds), or None."""
    pair = next_pair(list(WORKLOADS), nemeses, {(cell.workload, cell.nemesis) for cell in cells} | skip)
    if pair is not None:
        return *pair, given.seed, given.time
    random = [cell for cell in cells if cell.nemesis == EVERYTHING]
    if sum(cell.seconds for cell in random) >= given.random_minutes * 60 and len(random) >= SEEDS_MIN:
        return None
    used = {cell.seed for cell in random} | {seed for _, what, *rest in skip if what == EVERYTHING for seed in rest}
    seed = next(number for number in count(1) if number not in used)
    return list(WORKLOADS)[seed % len(WORKLOADS)], EVERYTHING, seed, given.random_time


# The tables


def _violations(cells: list[Cell]) -> str:
    return str(sum(bool(cell.failed) for cell in cells))


def fault_table(cells: list[Cell]) -> list[str]:
    """By kind of fault, whatever else its run had."""
    rows = [
        row(["fault", "workloads", "times", "p50", "p99", "max"]),
        row(["---", "---", *["---:"] * 4]),
    ]
    for name in [*FAULTS, TOGETHER]:
        having = [cell for cell in cells if name in cell.gaps]
        if having:
            took = quantiles(gap for cell in having for gap in cell.gaps[name])
            numbers = [f"{took['count']}", *(f"{took[which]:.1f}" for which in ("p50", "p99", "max"))]
            rows.append(row([f"`{name}`", " ".join(sorted({cell.workload for cell in having})), *numbers]))
    return rows


def workload_table(cells: list[Cell]) -> list[str]:
    rows = [
        row(["workload", "nemeses", "runs", "minutes", "faults", "operations", "violations"]),
        row(["---", *["---:"] * 6]),
    ]
    for workload in WORKLOADS:
        its = [cell for cell in cells if cell.workload == workload and cell.nemesis != EVERYTHING]
        if its:
            rows.append(row([f"`{workload}`", str(len({cell.nemesis for cell in its})), *_sums(its)]))
    for cell in cells:
        if cell.nemesis == EVERYTHING:
            rows.append(row([f"`{cell.workload}`, everything at random, seed {cell.seed}", "all", *_sums([cell])]))
    rows.append(row(["all", "", *_sums(cells)]))
    return rows


def _sums(cells: list[Cell]) -> list[str]:
    minutes = sum(cell.seconds for cell in cells) / 60
    numbers = [len(cells), round(minutes), sum(cell.faults for cell in cells)]
    numbers.append(sum(sum(cell.operations.values()) for cell in cells))
    return [*(f"{number:,}" for number in numbers), _violations(cells)]


def document(kept: dict[str, list[Cell]]) -> str:
    lines: list[str] = []
    for at, cells in reversed(kept.items()):
        backends = ", ".join(sorted({cell.backend for cell in cells}))
        lines += [f"Commit {at}, five members, backend {backends}:", "", *workload_table(cells), ""]
        lines += [
            f"- {cell.workload}, {cell.nemesis}, seed {cell.seed}: {', '.join(cell.failed)}"
            for cell in cells
            if cell.failed
        ]
    everything = [cell for cells in kept.values() for cell in cells]
    lines += ["", "Seconds without an acknowledged write, by kind of fault, all commits together:", ""]
    return "\n".join([*lines, *fault_table(everything)])


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.jepsen.matrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--time", type=float, default=90.0, help="seconds of a cell")
    parser.add_argument("--random-time", type=float, default=300.0, help="seconds of a run of everything at random")
    parser.add_argument("--random-minutes", type=float, default=90.0, help="of all such runs together")
    parser.add_argument("--seed", type=int, default=1, help="of the cells of one nemesis")
    parser.add_argument("--minutes", type=float, default=10_000.0)
    parser.add_argument("--backend", choices=[AUTO, *BACKENDS], default=AUTO)
    parser.add_argument("--table", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    given = parse(arguments)
    kept = load()
    if given.table:
        write_table("matrix", document(kept))
        return 0
    found = probe()
    backend = choose(given.backend, found)
    if backend is None:
        return CANNOT
    nemeses, skipped = possible(tuple(FAULTS), capabilities(backend, found))
    for name, why in skipped.items():
        print(f"SKIPPED   {name:<14} {why}")
    at, end = commit(), time.monotonic() + given.minutes * 60
    worst, skip = 0, set[Any]()
    while time.monotonic() < end:
        cells = kept.setdefault(at, [])
        cell = next_cell(given, nemeses, cells, skip)
        if cell is None:
            break
        workload, nemesis, seed, seconds = cell
        out = FOLDER / f"{workload}-{nemesis}-{seed}"
        flags = {"workload": workload, "nemesis": nemesis, "seed": seed, "backend": backend}
        try:
            result = cell_of(run(out, seconds, **flags), nemesis)
        except HarnessFailedError as error:
            print(f"HARNESS   {workload} {nemesis} seed {seed}: {error}", flush=True)
            skip.add((workload, nemesis) if nemesis != EVERYTHING else (workload, nemesis, seed))
            worst = max(worst, HARNESS_FAILED)
            continue
        kept = load()  # another clone's results may have been merged meanwhile
        kept.setdefault(at, []).append(result)
        save(kept)
        write_table("matrix", document(kept))
        verdict = f"FAIL {', '.join(result.failed)}" if result.failed else "pass"
        print(f"{workload:<10} {nemesis:<18} seed {seed} {result.faults:>4} faults  {verdict}", flush=True)
        worst = max(worst, bool(result.failed))
    print(f"commit {at}: {len(kept.get(at, []))} runs recorded")
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
