"""Short runs as `make jepsen` does them, and what a run says about faults that this machine cannot do."""

from pathlib import Path

import pytest

from tests.jepsen.faults import FAULTS
from tests.jepsen.record import read
from tests.jepsen.run import Options, Run, possible

SECONDS = 10.0
SLICES = {
    "register": ("isolate", "one-way", "kill-leader", "pause-leader"),
    "append": ("halves", "ring", "kill-majority"),
    "set": ("bridge-reject", "flaky", "pause-majority"),
}


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
