"""The bench over a real member: measurements of every kind, and nothing left behind after Ctrl-C."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import measure, streams
from bench.clusters import cluster
from bench.measure import Effort, Scene
from bench.messages import Keys
from bench.rows import PUT, one
from tests.e2e.cluster import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.alone]
EFFORT = Effort(seconds=0.3, keys=600, seed=300, watchers=20)
ROOT = Path(__file__).parent.parent.parent


async def test_measurements_of_a_member() -> None:
    async with cluster("kvstore", size=1) as (members, leader):
        scene = Scene(members, leader, EFFORT)
        assert (await measure.idle(scene))["rss_mb"] > 1
        put = await measure.counted(scene)
        assert put["done"] == EFFORT.keys
        assert (await streams.catch_up(scene))["done"] == EFFORT.keys // 2
        assert (await measure.total(scene))["done"] > 0
        assert (await measure.restart(scene))["restart_s"] > 0
        assert (await measure.closed(scene, PUT, connections=4))["batch"] >= 1
        assert (await measure.closed(scene, one(Keys.txn), connections=4))["done"] > 0
        assert (await measure.closed(scene, one(lambda keys: keys.put(1 << 20)), connections=2, large=True))["done"] > 0
        assert (await streams.fan_out(scene))["watchers"] == EFFORT.watchers
        assert (await streams.full_rate(scene, connections=2, each=2))["done"] > 0
        assert (await streams.keep_alives(scene))["done"] > 0
        assert (await measure.sizes(scene))["disk_mb"] > 0


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if str(folder).encode() in command:
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process_and_keeps_the_results(tmp_path: Path, signal_: signal.Signals) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    code = "import sys, pathlib; from bench import __main__ as m, report, plots; p = pathlib.Path(sys.argv.pop(1));"
    code += "report.RESULTS = plots.RESULTS = p; sys.exit(m.main())"
    command = [sys.executable, "-c", code, str(tmp_path / "results")]
    arguments = ["--row", "rss-idle,put-1", "--only", "kvstore", "--seconds", "60"]
    with subprocess.Popen(command + arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if "rss-idle" in line:
                break
        wait_for(lambda: len(processes_of(tmp_path / "bench-")) == 3, "the second cluster's members")
        running.send_signal(signal_)
        rest = running.stdout.read()
        assert running.wait(30) == 130
    assert "interrupted" in rest
    assert "| rss-idle |" in rest
    assert processes_of(tmp_path / "bench-") == []
    assert list(tmp_path.glob("bench-*")) == []
    [kept] = (tmp_path / "results").glob("*.jsonl")
    assert "rss-idle" in kept.read_text()
