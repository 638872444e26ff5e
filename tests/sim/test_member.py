"""The simulator's member level: a slice of seeds, and that it replays, judges, and finds known bugs.

In CI the slice starts at a seed that is derived from the commit, so that every commit tries others.
"""

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from kvstore.mvcc.store import MvccStore, StoreOptions
from kvstore.pb import rpc_pb2 as pb
from raft.testing.sim.rng import SimRng
from tests.kvstore.state.support import State, state_hash
from tests.kvstore.state.workload import a_write
from tests.sim.member.checks import Truth
from tests.sim.member.cli import chosen, shrink
from tests.sim.member.engine import MemoryBatch, MemoryEngine, RowsOnDisk
from tests.sim.member.leases import LeaseLog, check_leases
from tests.sim.member.loop import SECOND, Process, SimLoop, Stuck
from tests.sim.member.nemesis import Fault
from tests.sim.member.options import SWITCHES
from tests.sim.member.plan import Plan, run
from tests.sim.member.world import World
from tests.sim.mutants.mutant import ROOT, load_all, mutated, simulate
from tests.sim.test_sim import first_seed

SLICE = 16
GROUP = 4
FIRST = first_seed()


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FIRST, FIRST + SLICE, GROUP))
def test_slice(first: int, capsys: pytest.CaptureFixture[str]) -> None:
    if first == FIRST and FIRST != 1:
        with capsys.disabled():
            print(f"\nthis commit's slice: make sim LEVEL=member FIRST={FIRST} N={SLICE}")
    commits = 0
    for seed in range(first, first + GROUP):
        outcome = run(Plan.of(seed))
        assert outcome.ok, f"{outcome.violation}\nrepro: make sim LEVEL=member SEED={seed}"
        commits += outcome.commits
    assert commits > 50 * GROUP, "hardly anything was committed: the histories show nothing"


def test_nothing_of_a_run_is_left() -> None:
    """An error of the table that is raised itself keeps its members, and all they hold, for ever."""
    assert run(Plan.of(4, seconds=4)).ok
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is World]


@pytest.mark.parametrize("seed", range(4, 8))
def test_a_member_that_stops_as_the_calm_begins_comes_back(seed: int) -> None:
    """12080544: it was not started again, and the cluster was blamed for it."""
    plan = Plan.of(seed, seconds=2)
    last_moment = plan.options.safety + SECOND // 10 - 1000  # nanoseconds: the phases change every 0.1 s
    outcome = run(replace(plan, faults=[Fault(last_moment, 1, "stop")]))
    assert outcome.ok, outcome.violation
    assert outcome.marks["stopped"]


def test_a_seed_does_the_same_twice_and_in_any_process() -> None:
    traces: list[list[str]] = [[], []]
    outcomes = [run(Plan.of(5, seconds=4), trace) for trace in traces]
    assert traces[0] == traces[1]
    result = subprocess.run(
        [sys.executable, "-m", "tests.sim.member", "5..5", "--seconds", "4", "--verbose"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"hash {outcomes[0].hash:016x}" in result.stdout


def test_switches_leave_the_other_faults_as_they_are() -> None:
    plan = Plan.of(9)
    for name in SWITCHES:
        assert plan.without(name).faults == [fault for fault in plan.faults if fault.kind != name]
    assert chosen(9, 15.0, "1,3", "loss") == plan.without("loss").only({1, 3})


@pytest.mark.slow
def test_a_mutant_is_found() -> None:
    """A slow watch skips events."""
    [mutant] = [mutant for mutant in load_all() if mutant.name.startswith("S-53_slow")]
    with mutated(mutant) as root:
        found = simulate(root, "1..20", "--stop", level="member")
        assert found.returncode == 1, found.stdout
        assert "the truth is" in found.stdout


def test_shrinking_keeps_only_what_the_failure_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan.of(9)
    needed = plan.faults[2]

    class Failed:
        def __init__(self, ok: bool) -> None:
            self.ok = ok

    monkeypatch.setattr("tests.sim.member.cli.run", lambda plan: Failed(needed not in plan.faults))
    small, _ = shrink(plan, 15.0)
    assert small.faults == [needed]


def test_a_lease_that_went_too_early_is_noticed() -> None:
    """Also when no entry of the log accounts for it."""
    truth = Truth({})
    truth.granted.add(7)
    lease = LeaseLog(7, 3, granted=0.0, alive=[(2.0, 2.1, 3)])
    assert check_leases([lease], truth, {}, {7: 4 * SECOND}, 0.0) == [
        "lease 7 of 3 s expired at 4.000, renewed at 2.000",
        "lease 7 of 3 s never ended",
    ]
    truth.lease_ends[7] = [(9, True)]
    assert check_leases([lease], truth, {9: 5 * SECOND}, {7: 5 * SECOND}, 0.0) == []


# The loop


@pytest.fixture
def loop() -> Iterator[SimLoop]:
    made = SimLoop()
    yield made
    made.bury()


def test_time_jumps_and_killed_processes_do_nothing_more(loop: SimLoop) -> None:
    process, done = Process(loop, "one"), []

    async def work() -> None:
        try:
            done.append(loop.time())
            await asyncio.sleep(10)
            done.append(loop.time())
            await asyncio.sleep(10)
        finally:
            done.append(-1.0)

    async def main() -> None:
        process.spawn(work())
        await asyncio.sleep(15)
        process.kill()
        await asyncio.sleep(1000)

    loop.run_until_complete(main())
    assert done == [0.0, 10.0]
    assert loop.now == 1015 * SECOND


def test_a_paused_process_goes_on_where_it_was(loop: SimLoop) -> None:
    process, done = Process(loop, "one"), []

    async def work() -> None:
        await asyncio.sleep(1)
        done.append(loop.time())

    async def main() -> None:
        process.spawn(work())
        process.pause()
        await asyncio.sleep(5)
        assert done == []
        process.resume()
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    assert done == [6.0]  # it had not even begun


def test_clocks_run_at_their_own_rates_and_blocking_work_takes_time(loop: SimLoop) -> None:
    process, done = Process(loop, "fast"), []
    process.set_rate(2.0)

    async def work() -> None:
        await asyncio.sleep(2)
        done.append(loop.now)
        process.be_busy(3 * SECOND)
        await asyncio.sleep(0)
        done.append(loop.now)

    async def main() -> None:
        await process.spawn(work())

    loop.run_until_complete(main())
    assert done == [1 * SECOND, 4 * SECOND]


def test_work_in_a_thread_takes_its_time(loop: SimLoop) -> None:
    process = Process(loop, "one")
    process.thread_delay = lambda: 2 * SECOND

    async def main() -> None:
        assert await process.spawn(asyncio.to_thread(lambda: loop.now)) == 1 * SECOND
        assert loop.now == 2 * SECOND

    loop.run_until_complete(main())


def test_what_never_ends_is_noticed(loop: SimLoop) -> None:
    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Stuck, match="goes on and on"):
        loop.run_until_complete(spin())


def test_a_deadlock_is_noticed(loop: SimLoop) -> None:
    async def wait() -> None:
        await loop.create_future()

    with pytest.raises(Stuck, match="nothing is left"):
        loop.run_until_complete(wait())


# The engine


def batch(*puts: bytes) -> MemoryBatch:
    made = MemoryBatch()
    for key in puts:
        made.put(key, b"v" + key)
    return made


def test_a_crash_leaves_a_prefix_of_what_was_not_flushed(tmp_path: Path, loop: SimLoop) -> None:
    found = set()
    for seed in range(30):
        rows = RowsOnDisk()
        engine = MemoryEngine(tmp_path / str(seed), rows.at(tmp_path / str(seed)), loop.root)
        engine.write(batch(b"a"))
        loop.run_until_complete(engine.flush()) if seed == 0 else engine._flush()
        engine.write(batch(b"b"))
        engine.write(batch(b"c"))
        rows.crash(SimRng(seed, "crash"))
        again = MemoryEngine(tmp_path / str(seed), rows.at(tmp_path / str(seed)), loop.root)
        found.add(tuple(key for key in (b"a", b"b", b"c") if again.get(key) is not None))
    assert found == {(b"a",), (b"a", b"b"), (b"a", b"b", b"c")}


def test_iterators_are_pinned(tmp_path: Path, loop: SimLoop) -> None:
    engine = MemoryEngine(tmp_path / "s", RowsOnDisk().at(tmp_path / "s"), loop.root)
    engine.write(batch(b"a", b"b", b"c"))
    scan = engine.scan(b"a", b"z")
    change = MemoryBatch()
    change.delete_range(b"a", b"c")
    engine.write(change)
    assert [key for key, _ in scan.rows(10)] == [b"a", b"b", b"c"]
    assert [key for key, _ in engine.scan(b"a", b"z").rows(10)] == [b"c"]


def test_the_store_does_the_same_on_both_engines(tmp_path: Path, loop: SimLoop) -> None:
    """The simulated members' rows are those that RocksDB would have."""
    rows = RowsOnDisk()
    options = StoreOptions(engine=lambda path: MemoryEngine(path, rows.at(path), loop.root))  # type: ignore[arg-type,return-value]
    memory, rocks = State(tmp_path / "memory", options=options), State(tmp_path / "rocks")

    async def feed(state: State) -> None:
        rng = Random(7)
        for _ in range(60):
            store = state.store
            await state.apply(*[a_write(rng, store.current_revision, store.compact_revision) for _ in range(3)])
        await state.apply(pb.PutRequest(key=b"last", value=b"v"))

    asyncio.run(feed(memory))
    asyncio.run(feed(rocks))
    assert memory.store.current_revision > 20
    assert state_hash(memory.store) == state_hash(rocks.store)
    loop.run_until_complete(memory.store.flush())
    memory.close()
    rocks.close()
    again = MvccStore.open(tmp_path / "memory", options)
    assert again.current_revision == memory.store.current_revision
