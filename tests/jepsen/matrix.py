"""python -m tests.jepsen.matrix: runs that nobody has done yet at this commit, until all are done.

Each nemesis with at least two workloads, each workload with at least three nemeses; then everything at random, from
one seed after the other. Results accumulate in tests/jepsen/recorded/matrix.json by the last commit that touched the
server's code. Stopped at any time (Ctrl-C, SIGTERM), it goes on where it was: a run that is not over is not counted.
A violation is recorded, its run is kept below build/jepsen/matrix, and the matrix goes on.

    --minutes M    stop after the cell in which M minutes are over
    --list         only say what is left to run
    --table        only write what is recorded to docs/JEPSEN.md

Exit code 0: all that is recorded of this commit has passed. 1: some has not. 2: some run of the harness itself failed,
and is lacking. 3: not on this machine. 130: stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any, NamedTuple

from tests.jepsen.apart import RECORDED, HarnessFailedError, replace, row, run, write_table
from tests.jepsen.backends import AUTO, BACKENDS, capabilities, choose
from tests.jepsen.faults import FAULTS, NEMESES
from tests.jepsen.faults.scenarios import SCENARIOS
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
AROUND_SECONDS = {EVERYTHING: 180.0}  # around the time under faults, until some are recorded: start, self-tests, checks
AROUND_CELL_SECONDS = 15.0
LOST_MAX = 5  # runs of the harness that fail one after the other: so will the next
HARNESS_FAILED, CANNOT, STOPPED = 2, 3, 130


class Job(NamedTuple):
    """A run that is to be done, or was."""

    workload: str
    nemesis: str
    seed: int
    seconds: float


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
    took: float = 0.0  # seconds, all in all

    @property
    def job(self) -> Job:
        return Job(self.workload, self.nemesis, self.seed, self.seconds)

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


def least_tried(nemeses: Sequence[str], kept: dict[str, list[Cell]], at: str) -> list[str]:
    """What has passed least often at other commits comes first: a violation that is found late costs most."""
    passed = Counter(cell.nemesis for one, cells in kept.items() if one != at for cell in cells if not cell.failed)
    return sorted(nemeses, key=lambda nemesis: passed[nemesis])


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
    replace(RESULTS, "{\n" + ",\n".join(blocks) + "\n}\n")


def cell_of(report: dict[str, Any], nemesis: str, took: float) -> Cell:
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
        round(took, 1),
    )


def next_job(given: argparse.Namespace, nemeses: Sequence[str], done: Collection[Job]) -> Job | None:
    pair = next_pair(list(WORKLOADS), nemeses, {(job.workload, job.nemesis) for job in done})
    if pair is not None:
        return Job(*pair, given.seed, given.time)
    random = [job for job in done if job.nemesis == EVERYTHING]
    if sum(job.seconds for job in random) >= given.random_minutes * 60 and len(random) >= SEEDS_MIN:
        return None
    used = {job.seed for job in random}
    seed = next(number for number in count(1) if number not in used)
    return Job(list(WORKLOADS)[seed % len(WORKLOADS)], EVERYTHING, seed, given.random_time)


def plan(given: argparse.Namespace, nemeses: Sequence[str], done: Iterable[Job]) -> Iterator[Job]:
    """All that is left, in this order."""
    done = list(done)
    while (job := next_job(given, nemeses, done)) is not None:
        yield job
        done.append(job)


def expected_seconds(jobs: Iterable[Job], cells: Iterable[Cell]) -> float:
    """How long these will take, by what such runs have taken around their time under faults."""
    around: dict[bool, list[float]] = {True: [], False: []}
    for cell in cells:
        if cell.took:
            around[cell.nemesis == EVERYTHING].append(cell.took - cell.seconds)

    def of(job: Job) -> float:
        known = around[job.nemesis == EVERYTHING]
        return sum(known) / len(known) if known else AROUND_SECONDS.get(job.nemesis, AROUND_CELL_SECONDS)

    return sum(job.seconds + of(job) for job in jobs)


def hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


# The tables


def _violations(cells: list[Cell]) -> str:
    return str(sum(bool(cell.failed) for cell in cells))


def fault_table(cells: list[Cell]) -> list[str]:
    """By kind of fault, whatever else its run had."""
    rows = [
        row(["fault", "workloads", "times", "p50", "p99", "max"]),
        row(["---", "---", *["---:"] * 4]),
    ]
    for name in [*NEMESES, TOGETHER]:
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
        seeds = ", ".join(map(str, sorted({cell.seed for cell in cells if cell.nemesis != EVERYTHING})))
        where = f"five members, backend {backends}, seed {seeds} where no other is told"
        lines += [f"Commit {at}, {where}:", "", *workload_table(cells), ""]
        failed = [
            f"- {cell.workload}, {cell.nemesis}, seed {cell.seed}: {', '.join(cell.failed)}"
            for cell in cells
            if cell.failed
        ]
        lines += [*failed, ""] if failed else []
    everything = [cell for cells in kept.values() for cell in cells]
    lines += ["Seconds without an acknowledged write, by kind of fault, all commits together:", ""]
    return "\n".join([*lines, *fault_table(everything)])


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.jepsen.matrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--time", type=float, default=90.0, help="seconds of a cell")
    parser.add_argument("--random-time", type=float, default=600.0, help="seconds of a run of everything at random")
    parser.add_argument("--random-minutes", type=float, default=90.0, help="of all such runs together")
    parser.add_argument("--seed", type=int, default=1, help="of the cells of one nemesis")
    parser.add_argument("--minutes", type=float, default=10_000.0)
    parser.add_argument("--backend", choices=[AUTO, *BACKENDS], default=AUTO)
    parser.add_argument("--scenarios", action="store_true", help="also the scenarios that are no fault of another name")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true")
    return parser.parse_args(arguments)


class Matrix:
    """What is recorded of this commit, and what is done about the rest."""

    def __init__(self, given: argparse.Namespace, backend: str, nemeses: Sequence[str]) -> None:
        self.given = given
        self.backend = backend
        self.at = commit()
        self.nemeses = least_tried(nemeses, load(), self.at)
        self.lost: list[Job] = []  # runs of the harness that failed, since the last that did not
        self.lacking: list[Job] = []  # all of them

    @property
    def cells(self) -> list[Cell]:
        return load().get(self.at, [])

    @property
    def left(self) -> list[Job]:
        """What was run for less time is not done. What is lacking was run for none: another seed takes its place."""
        done = [cell.job for cell in self.cells if cell.nemesis == EVERYTHING or cell.seconds >= self.given.time]
        return list(plan(self.given, self.nemeses, [*done, *(job._replace(seconds=0.0) for job in self.lacking)]))

    def tell(self) -> None:
        """How much is left."""
        left = self.left
        cells = [job for job in left if job.nemesis != EVERYTHING]
        print(
            f"commit {self.at}: {len(self.cells)} runs recorded; left: {len(cells)} cells and {len(left) - len(cells)} "
            f"runs of everything at random, about {self.until(left)}",
            flush=True,
        )

    def until(self, left: list[Job]) -> str:
        return hours(expected_seconds(left, self.cells))

    def run(self, end: float) -> None:
        """All that is left; what the harness has failed at is tried once more at the end."""
        for last in (False, True):
            while time.monotonic() < end and len(self.lost) < LOST_MAX and (left := self.left):
                self.run_one(left[0], len(left))
            if last or not self.lacking or time.monotonic() >= end or len(self.lost) >= LOST_MAX:
                return
            self.lacking.clear()

    def run_one(self, job: Job, left: int) -> None:
        out = FOLDER / self.at / f"{job.workload}-{job.nemesis}-{job.seed}"
        name = f"{time.strftime('%H:%M:%S')} {job.workload:<10} {job.nemesis:<20} seed {job.seed}"
        flags = {"workload": job.workload, "nemesis": job.nemesis, "seed": job.seed, "backend": self.backend}
        begun = time.monotonic()
        try:
            report = run(out, job.seconds, **flags)
            if report["commit"] != self.at:
                raise HarnessFailedError(f"the server's code was of {self.at}, and in the end of {report['commit']}")
        except HarnessFailedError as error:
            print(f"{name} HARNESS {error}\n{out}", flush=True)
            self.lost.append(job)
            self.lacking.append(job)
            return
        self.lost.clear()
        cell = cell_of(report, job.nemesis, time.monotonic() - begun)
        kept = load()  # another clone's results may have been merged meanwhile
        kept.setdefault(self.at, []).append(cell)
        save(kept)
        write_table("matrix", document(kept))
        longest = max((gap for gaps in cell.gaps.values() for gap in gaps), default=0.0)
        verdict = f"FAIL {', '.join(cell.failed)}\n{out}" if cell.failed else "pass"
        print(
            f"{name} {cell.faults:>4} faults {cell.operations['ok']:>7,} ok, no write for {longest:4.1f} s at most, "
            f"{cell.took:4.0f} s; left: {left - 1}, {self.until(self.left)}  {verdict}",
            flush=True,
        )
        if not cell.failed:  # its page and history are of no use to anybody
            shutil.rmtree(out)

    @property
    def code(self) -> int:
        return 1 if any(cell.failed for cell in self.cells) else HARNESS_FAILED if self.lacking else 0


def main(arguments: list[str]) -> int:
    given = parse(arguments)
    if given.table:
        write_table("matrix", document(load()))
        return 0
    found = probe()
    backend = choose(given.backend, found)
    if backend is None:
        return CANNOT
    wanted = [*FAULTS, *(name for name, fault in SCENARIOS.items() if given.scenarios and fault not in FAULTS.values())]
    nemeses, skipped = possible(tuple(wanted), capabilities(backend, found))
    for name, why in skipped.items():
        print(f"SKIPPED   {name:<20} {why}")
    matrix = Matrix(given, backend, nemeses)
    matrix.tell()
    if given.list:
        for job in matrix.left:
            print(f"{job.workload:<10} {job.nemesis:<20} seed {job.seed} {job.seconds:.0f} s")
        return 0
    try:
        matrix.run(time.monotonic() + given.minutes * 60)
    except KeyboardInterrupt:
        print("stopped: what is not over is not counted; the same command goes on", flush=True)
        return STOPPED
    for job in matrix.lacking:
        print(f"lacking   {job.workload} {job.nemesis} seed {job.seed}: the harness failed; to be run again")
    for cell in matrix.cells:
        if cell.failed:
            print(f"FAIL      {cell.workload} {cell.nemesis} seed {cell.seed}: {', '.join(cell.failed)}")
    matrix.tell()
    return matrix.code


if __name__ == "__main__":
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # also where a shell has told its background jobs to ignore the first
        signal.signal(number, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
