"""The simulator: a slice of seeds, and that it replays, judges, shrinks and finds known bugs.

In CI the slice starts at a seed that is derived from the commit, so that every commit tries others.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raft.testing.sim import Plan, run
from raft.testing.sim.history import READ, SWAP, WRITE, Operation, linearizable
from raft.testing.sim.marks import MARKS, Marks
from raft.testing.sim.options import SWITCHES
from raft.testing.sim.shrink import chosen, read_numbers, replay_arguments, write_numbers
from raft.testing.sim.trace import Trace
from tests.sim.mutants.mutant import ROOT, load_all, mutated, simulate

SLICE = 24
GROUP = 4


def first_seed() -> int:
    if not os.environ.get("CI"):
        return 1
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return int(done.stdout[:6], 16) if done.returncode == 0 else 1


FIRST = first_seed()


@pytest.mark.parametrize("first", range(FIRST, FIRST + SLICE, GROUP))
def test_slice(first: int, capsys: pytest.CaptureFixture[str]) -> None:
    if first == FIRST and FIRST != 1:
        with capsys.disabled():
            print(f"\nthis commit's slice: make sim FIRST={FIRST} N={SLICE}")
    commits = 0
    for seed in range(first, first + GROUP):
        outcome = run(Plan.of(seed))
        assert outcome.ok, f"{outcome.violation}\nrepro: python -m tests.sim {seed}"
        commits += outcome.commits
    assert commits > 100 * GROUP, "hardly anything was committed: the histories show nothing"


def test_remembered_seeds() -> None:
    lines = (Path(__file__).parent / "seeds.txt").read_text().splitlines()
    seeds = [int(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]
    for seed in seeds:
        outcome = run(Plan.of(seed))
        assert outcome.ok, f"{outcome.violation}\nrepro: python -m tests.sim {seed}"


@pytest.mark.parametrize("seed", [5, 6])  # a log in memory, the real log
def test_a_seed_does_the_same_twice_and_in_any_process(seed: int) -> None:
    traces = [Trace(), Trace()]
    outcomes = [run(Plan.of(seed, seconds=8), trace) for trace in traces]
    assert traces[0].lines == traces[1].lines
    assert outcomes[0].hash == outcomes[1].hash
    for hash_seed in ("1", "2"):
        result = subprocess.run(
            [sys.executable, "-m", "tests.sim", str(seed), "--seconds", "8"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"hash {outcomes[0].hash:016x}" in result.stdout


def test_tracing_changes_nothing() -> None:
    assert run(Plan.of(5, seconds=8)).hash == run(Plan.of(5, seconds=8), Trace()).hash


def test_seeds_differ() -> None:
    assert len({run(Plan.of(seed, seconds=2)).hash for seed in range(1, 6)}) == 5


def test_replay_arguments_name_the_plan() -> None:
    plan = Plan.of(7).until(9_000_001).without("loss").without("reorder").salted(3)
    plan = Plan(plan.options, plan.faults[::3], plan.requests[5:9], plan.off)
    words = replay_arguments(plan).split()
    given = dict(zip(words[1::2], words[2::2], strict=True))
    again = chosen(
        int(words[0]),
        until=float(given["--until"]),
        faults=given["--faults"],
        requests=given["--requests"],
        off=given["--off"],
        salt=int(given["--salt"]),
    )
    assert again == plan


def test_numbers() -> None:
    assert write_numbers([1, 2, 3, 7, 9, 10]) == "1-3,7,9-10"
    assert write_numbers([]) == "none"
    assert read_numbers("1-3,7,9-10") == {1, 2, 3, 7, 9, 10}
    assert read_numbers("none") == set()


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_keep_the_schedule(name: str) -> None:
    plan = Plan.of(7)
    assert plan.without(name).faults == plan.faults


def operation(
    kind: str, started: int, returned: int, value: int, result: int, expected: int | None = None
) -> Operation:
    made = Operation(value, kind, 1, value, expected)
    made.started, made.result = started, result
    if returned:
        made.returned = returned
    return made


GOOD = {
    "one after the other": [operation(WRITE, 1, 2, 7, 0), operation(READ, 3, 4, 0, 7)],
    "a concurrent read sees the write or not": [operation(WRITE, 1, 4, 7, 0), operation(READ, 2, 3, 0, 0)],
    "an unknown write may be seen late": [operation(WRITE, 1, 0, 7, 0), operation(READ, 8, 9, 0, 7)],
    "an unknown swap may need an unknown write": [
        operation(WRITE, 1, 0, 7, 0),
        operation(SWAP, 2, 0, 8, 0, expected=7),
        operation(READ, 5, 6, 0, 8),
    ],
    "a swap that fails changes nothing": [
        operation(WRITE, 1, 2, 7, 0),
        operation(SWAP, 3, 4, 8, 7, expected=6),
        operation(READ, 5, 6, 0, 7),
    ],
}
BAD = {
    "a stale read": [operation(WRITE, 1, 2, 7, 0), operation(READ, 3, 4, 0, 0)],
    "a value that nobody wrote": [operation(READ, 1, 2, 0, 7)],
    "a lost write": [operation(WRITE, 1, 2, 7, 0), operation(WRITE, 3, 4, 8, 0)],
    "reads that go back": [
        operation(WRITE, 1, 0, 7, 0),
        operation(READ, 2, 3, 0, 7),
        operation(READ, 4, 5, 0, 0),
    ],
    "a swap of another value": [operation(WRITE, 1, 2, 7, 0), operation(SWAP, 3, 4, 8, 6, expected=6)],
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_linearizable(history: list[Operation]) -> None:
    assert linearizable(history)


@pytest.mark.parametrize("history", BAD.values(), ids=BAD)
def test_not_linearizable(history: list[Operation]) -> None:
    assert not linearizable(history)


def test_facts_become_marks() -> None:
    marks = Marks()
    for fact in ("became leader", "truncates 4..9", "probes n2 from 3: it refused 9", "lost its quorum"):
        marks.fact(fact)
    assert marks.counts == {"became_leader": 1, "truncated": 1, "probed": 1, "lost_quorum": 1}
    with pytest.raises(AssertionError):
        marks.hit("no such mark")
    assert len(MARKS) >= 60


@pytest.mark.parametrize("mutant", load_all(), ids=lambda mutant: mutant.name)
def test_mutants_still_apply(mutant: object, tmp_path: Path) -> None:
    for edit in mutant.edits:  # type: ignore[attr-defined]
        target = tmp_path / edit.file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((ROOT / edit.file).read_text())
    mutant.apply(tmp_path)  # type: ignore[attr-defined]


def test_a_mutant_is_found_shrunk_and_replayed() -> None:
    """A late append erases the tail: found, made small, and the small failure fails alike."""
    [mutant] = [mutant for mutant in load_all() if mutant.scenario == "S-16"]
    with mutated(mutant) as root:
        found = simulate(root, "4..40", "--stop")  # seed 3 is found too, but its 600 runs end with 42 requests
        assert found.returncode == 1, found.stdout
        [seed] = re.findall(r"^repro: python -m tests.sim (\d+)$", found.stdout, re.MULTILINE)
        shrunk = simulate(root, seed, "--shrink")
        assert shrunk.returncode == 1
        [size] = re.findall(r"^shrunk in \d+ runs: (\d+ faults, \d+ requests)$", shrunk.stdout, re.MULTILINE)
        faults, requests = re.findall(r"\d+", size)
        assert int(faults) <= 3, size
        assert int(requests) <= 15, size
        repro = re.findall(r"^repro: python -m tests.sim (.*)$", shrunk.stdout, re.MULTILINE)[-1]
        again = simulate(root, *repro.split())
        assert again.returncode == 1
        [violation] = re.findall(r"^(AssertionError: .*)$", again.stdout, re.MULTILINE)
        assert violation in shrunk.stdout
    assert simulate(ROOT, *repro.split()).returncode == 0
