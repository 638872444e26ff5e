"""Short runs as `make jepsen` does them, and what a run says about faults that this machine cannot do."""

import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.jepsen.backends import AUTO, capabilities, choose
from tests.jepsen.faults import FAULTS
from tests.jepsen.guard import ROOT
from tests.jepsen.record import read
from tests.jepsen.run import Options, Run, possible
from tests.jepsen.workloads import WORKLOADS

SECONDS = 10.0
SLICES = {
    "register": ("isolate", "one-way", "kill-leader", "pause-leader"),
    "append": ("halves", "ring", "kill-majority"),
    "set": ("bridge-reject", "flaky", "pause-majority"),
}


# Of the slice that every run of the tests has: seconds under faults, in all; workloads; faults for each of them.
CI_SECONDS = float(os.environ.get("JEPSEN_SECONDS", "140"))
CI_WORKLOADS, CI_FAULTS = 2, 4


def seed() -> int:
    """Another one for each commit, the same for all who test it."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT)
    return int(os.environ.get("JEPSEN_SEED") or int(head.stdout[:6] or "1", 16))


@pytest.mark.slow
@pytest.mark.timeout(CI_SECONDS + 300)
def test_a_few_at_random(netns: dict[str, str], tmp_path: Path) -> None:
    """JEPSEN_SECONDS and JEPSEN_SEED make it longer, and do it again."""
    rng = random.Random(seed())
    backend = choose(AUTO, netns)
    assert backend is not None
    able = possible(tuple(FAULTS), capabilities(backend, netns))[0]
    for workload in rng.sample(list(WORKLOADS), min(CI_WORKLOADS, len(WORKLOADS))):
        nemeses = tuple(rng.sample(able, CI_FAULTS))
        options = Options(workload, nemeses, seed(), CI_SECONDS / CI_WORKLOADS, backend=backend)
        run = Run(options, tmp_path / workload)
        assert run.run() == 0, "\n".join([options.command, *map(str, run.verdicts)])


@pytest.mark.long
@pytest.mark.parametrize("workload", SLICES)
def test_slice(netns: dict[str, str], tmp_path: Path, workload: str) -> None:
    run = Run(Options(workload, SLICES[workload], seed=1, seconds=SECONDS, members=3), tmp_path / "run")
    code = run.run()
    assert code == 0, "\n".join(map(str, run.verdicts))
    lines = read(tmp_path / "run" / "history.jsonl")
    assert [one["time_ns"] for one in lines] == sorted(one["time_ns"] for one in lines)
    assert {one["type"] for one in lines} >= {"invoke", "ok"}
    assert (tmp_path / "run" / "report.json").exists()


def test_what_cannot_be_done_is_skipped_by_name() -> None:
    found = {need: "" for fault in FAULTS.values() for need in fault.needs} | {"random loss": "no such match"}
    able, skipped = possible(tuple(FAULTS), found)
    assert skipped == {"flaky": "random loss: no such match"}
    assert set(able) == FAULTS.keys() - {"flaky"}
