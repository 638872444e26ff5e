"""kill -9 at every step of a snapshot: while it is taken, received, installed, and while the next start tidies up.

One run without a kill says which steps there are (snapshot_crash_child.py has their names). Then one process
for each step dies just before it, and the data directory is opened again (S-25):

- it opens, and the state is the old one or the new one, never anything else;
- log and state meet: what the state lacks is in the log, and what the log holds is of the state's history;
- nothing is left of what was under way, and the member's term and vote have not gone back.

The order of fsyncs and renames is checked too (S-51), since a kill loses nothing that the kernel has.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvstore.pb.rpc_pb2 import PutRequest
from kvstore.server.bootstrap import OpenMember
from kvstore.state.applier import Applier
from raft.types import Entry, HardState
from tests.e2e.cluster import clean_environment
from tests.e2e.snapshot_crash_child import META, SNAPSHOT, Step, close, opened, snapshots_of
from tests.kvstore.state.support import MEMBER, Sinks, entry, state_hash

KILLED = -signal.SIGKILL
OLD, NEW = 12, 40  # applied by the follower; the index of the snapshot
TERM = 3
FOLLOWER = HardState(TERM, 9, OLD)


def entries(first: int, last: int, term: int) -> list[Entry]:
    return [
        Entry(index, term, entry(index, index, [PutRequest(key=b"k%d" % (index % 7), value=b"%d" % index * 50)]).data)
        for index in range(first, last + 1)
    ]


async def apply(member: OpenMember, given: list[Entry]) -> None:
    await Applier(member.store, MEMBER, 1, Sinks()).apply(list(given))


@dataclass(frozen=True, slots=True)
class World:
    """Prepared folders, each with DATA/, and the hashes of the two states."""

    leader: Path
    follower: Path
    old: str
    new: str


async def prepare(path: Path) -> World:
    base, leader, follower = path / "base", path / "leader", path / "follower"
    member = await opened(base)
    first = entries(1, OLD, 1)
    member.storage.save(HardState(1, 0, OLD), first, True)
    await apply(member, first[:8])
    await member.store.flush()
    await apply(member, first[8:])  # in the log only, for a start that finds the store at 8
    old = state_hash(member.store)
    await close(member)
    shutil.copytree(base, leader)
    shutil.copytree(base, follower)

    member = await opened(leader)
    rest = entries(OLD + 1, NEW, TERM)
    member.storage.save(HardState(TERM, 9, NEW), rest, True)
    await apply(member, [*first[member.store.applied_index :], *rest])
    new = state_hash(member.store)
    snapshots = snapshots_of(member)
    reader = await snapshots.take()
    shutil.copytree(leader / "data" / "snapshot-1", follower / SNAPSHOT)
    (follower / META).write_text(json.dumps([reader.index, reader.term]))
    reader.close()
    await close(member, snapshots)

    member = await opened(follower)
    # Not committed, and of another history than the leader's: the snapshot ends it (S-22, S-23).
    member.storage.save(FOLLOWER, entries(OLD + 1, NEW + 5, 2), True)
    await close(member)
    return World(leader, follower, old, new)


class Children:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.snapshot_crash_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environment(),
            text=True,
            start_new_session=True,  # whoever it has started dies with it
        )

    def run(self, what: str, start: Path, last: Step | None) -> tuple[Path, int]:
        """Where it ran, and how it ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        folder = self._path / str(self._count)
        self._count += 1
        print(json.dumps([what, str(folder), str(start), last]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "the child is gone; its stderr says why"
        return folder, int(line)

    def steps(self, what: str, start: Path) -> list[Step]:
        """Of a process that lives to the end: each name with how often it has come by then."""
        folder, end = self.run(what, start, None)
        assert end == 0
        seen: Counter[str] = Counter()
        found: list[Step] = []
        for name in (folder / "steps").read_text().splitlines():
            seen[name] += 1
            found.append((name, seen[name]))
        return found

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    made = Children(tmp_path / "runs")
    (tmp_path / "runs").mkdir()
    yield made
    made.close()


async def check(folder: Path, world: World) -> str:
    """Open what a killed process has left. Which state it holds: "old" or "new"."""
    member = await opened(folder)
    try:
        storage, store = member.storage, member.store
        names = sorted(path.name for path in (folder / "data").iterdir())
        assert names == ["CURRENT", "LOCK", "log", "member.json", member.folders.current.name]
        assert member.loaded.hard_state.term == TERM
        if store.applied_index == NEW:
            assert state_hash(store) == world.new
            assert storage.term_at(NEW) == TERM
            assert storage.last_index == NEW or storage.first_index == 1  # the leader's own log is as it was
            return "new"
        assert store.applied_index <= OLD
        assert (member.loaded.hard_state, storage.last_index) == (FOLLOWER, NEW + 5)
        await apply(member, storage.entries(store.applied_index + 1, OLD, 1 << 30))
        assert state_hash(store) == world.old
        return "old"
    finally:
        await close(member)


def check_all(children: Children, world: World, what: str, start: Path) -> list[str]:
    """The state that is found after a kill at each step."""
    found: list[str] = []
    for step in children.steps(what, start):
        folder, end = children.run(what, start, step)
        assert end == KILLED, f"{step} was not reached"
        try:
            found.append(asyncio.run(check(folder, world)))
        except BaseException as error:
            error.add_note(f"died before {step} of {what}; see {folder}")
            raise
        shutil.rmtree(folder)
    return found


@pytest.mark.timeout(120)
def test_kill_at_every_step_of_taking_a_snapshot(children: Children, tmp_path: Path) -> None:
    world = asyncio.run(prepare(tmp_path))
    names = [name for name, _ in children.steps("take", world.leader)]
    assert {"rocksdb flush", "rocksdb checkpoint"} < set(names)
    assert any(name.startswith("unlink") for name in names)
    assert set(check_all(children, world, "take", world.leader)) == {"new"}


@pytest.mark.timeout(120)
def test_kill_at_every_step_of_receiving_and_installing(children: Children, tmp_path: Path) -> None:
    world = asyncio.run(prepare(tmp_path))
    names = [name for name, _ in children.steps("receive", world.follower)]
    found = check_all(children, world, "receive", world.follower)
    swing = names.index("replace data/CURRENT.new")
    assert found == ["old"] * (swing + 1) + ["new"] * (len(names) - swing - 1)
    assert any("log" in name for name in names[swing + 1 :]), "the log is reset after the swing"


@pytest.mark.timeout(120)
def test_kill_at_every_step_of_the_start_after_a_kill(children: Children, tmp_path: Path) -> None:
    world = asyncio.run(prepare(tmp_path))
    steps = children.steps("receive", world.follower)
    pieces = [step for step in steps if step[0].startswith("pwrite data/state-")]
    after = steps[steps.index(("replace data/CURRENT.new", 1)) + 1 :]
    left = [
        (pieces[len(pieces) // 2], "old"),  # half of it received
        ((f"rename data/state-{NEW}.part", 1), "old"),  # verified
        (("replace data/CURRENT.new", 1), "old"),  # whole, and not named
        (after[2], "new"),  # the log is as it was
        (next(step for step in after if step[0].startswith("rename data/log/")), "new"),  # the log is half reset
    ]
    for step, expected in left:
        start, end = children.run("receive", world.follower, step)
        assert end == KILLED
        assert set(check_all(children, world, "start", start)) == {expected}, step


def test_what_counts_is_on_the_disk_before_it_counts(children: Children, tmp_path: Path) -> None:
    """S-51: files, then their folder, then its name, then CURRENT's content, then CURRENT."""
    world = asyncio.run(prepare(tmp_path))
    names = [name for name, _ in children.steps("receive", world.follower)]
    part = f"state-{NEW}.part"
    files = sorted(path.name for path in (world.follower / SNAPSHOT).iterdir())
    renamed, swing = names.index(f"rename data/{part}"), names.index("replace data/CURRENT.new")
    written = max(at for at, name in enumerate(names) if name.startswith(f"pwrite data/{part}/"))
    synced = names[written:renamed]
    assert {f"fsync data/{part}/{file}" for file in files} <= set(synced)
    assert synced[-1] == f"fsync data/{part}"
    assert names[renamed + 1] == "fsync data"
    assert names[swing - 1] == "fsync data/CURRENT.new"
    assert names[swing + 1] == "fsync data"
