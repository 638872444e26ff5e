"""kill -9 of a whole member at every step of a flush, a compaction of the log, a change of segment, and a start.

One run without a kill says which steps there are (crash_points_child.py has their names). Then one process
for each step dies there, before the call, half way or after it, and the member is started again on what it left:

- it starts, and log and store meet;
- the store, before anything is applied again, is exactly the state after some request: an applied index that is
  ahead of its data or behind it would show here, or in what the log still has to bring;
- afterwards every acknowledged write is there under its revision, and at most the one under way besides; the
  hash is that of a store to which the same requests were applied without any crash;
- term, vote and commit index are possible ones, and the member takes a write.

A kill loses nothing that the kernel has: lost and torn writes of a power cut are in tests/raft/test_segmented_crash.py.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest

from kvstore.mvcc.engine import writes_past_page_cache
from kvstore.mvcc.events import read_events
from kvstore.mvcc.hash import hash_kv
from kvstore.mvcc.store import MvccStore
from kvstore.pb.kv_pb2 import Event, KeyValue
from kvstore.pb.rpc_pb2 import PutRequest
from kvstore.server.bootstrap import OpenMember, open_member
from kvstore.server.server import KvServer
from kvstore.state.command import Op, decode_batch
from raft.storage.segmented import SegmentedStorage
from raft.types import EntryKind
from tests.e2e.cluster import clean_environment
from tests.e2e.crash_points_child import (
    KILLED,
    REQUESTS,
    SEGMENT_BYTES,
    TIMED,
    Point,
    applied_requests,
    make_server,
    settings,
    stop_server,
    workload,
)
from tests.kvstore.state.support import State

SEED = 20261122
SAMPLED = 60  # of the steps outside of the windows
FLUSH_SECONDS = [0.0001 * step * step for step in range(1, 9)]  # a flush takes one to five milliseconds
OPEN_SECONDS = [0.002, 0.004, 0.008, 0.012]
HISTORY = workload()

# Steps that must have been died at in any run of this file, or it no longer tests what it says.
FLUSH = ["store: flush"]
LOG_COMPACTION = [
    f"compact: {call}"
    for call in ("all of it", "pwritev segment", "fdatasync segment", "unlink segment", "sync directory")
]
SEGMENT_CHANGE = [
    f"segment change: {call}"
    for call in ("create new segment", "pwritev new segment", "fdatasync new segment", "rename new segment")
] + ["segment change: sync directory"]
SAVE = ["save: pwritev segment", "save: fdatasync segment", "store: write"]
FIRST_START = ["member.json: write", "store: open"] + [
    name.replace("segment change", "reset") for name in SEGMENT_CHANGE
]
REPAIR = [
    f"load: {call}"
    for call in ("truncate segment", "pwritev segment", "fdatasync segment", "unlink segment", "sync directory")
]


Job: TypeAlias = tuple[Path | None, Point | None]  # the folder to start from a copy of; where to die


class Children:
    """The process that starts members for us; it works on the next job while we look at the last one's folder."""

    def __init__(self, path: Path, wrapper: list[str] | None = None) -> None:
        self._path = path
        self._folders = 0
        self._process = subprocess.Popen(
            [*(wrapper or []), sys.executable, "-m", "tests.e2e.crash_points_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environment(),
            text=True,
            start_new_session=True,  # whoever it has started dies with it
        )

    def run(self, jobs: list[Job]) -> Iterator[tuple[Path, int]]:
        """The folder of each job and how its process ended, in order."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        folders = [self._path / str(self._folders + number) for number in range(len(jobs))]
        self._folders += len(jobs)
        for folder, (start, point) in zip(folders, jobs, strict=True):
            print(json.dumps([str(folder), start and str(start), point]), file=self._process.stdin)
        self._process.stdin.flush()
        for folder in folders:
            line = self._process.stdout.readline()
            assert line, "the child is gone; its stderr says why"
            yield folder, int(line)

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@contextmanager
def running(path: Path, wrapper: list[str] | None = None) -> Iterator[Children]:
    made = Children(path, wrapper)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with running(tmp_path / "members") as made:
        yield made


@dataclass(frozen=True, slots=True)
class Told:
    """What the processes said before they died."""

    sent: int  # requests, from the first on
    done: int
    term: int


def told(folder: Path) -> Told:
    sent = done = term = 0
    for line in (folder / "told").read_text().splitlines() if (folder / "told").exists() else []:
        kind, number, *answer = line.split()
        if kind == "sent":
            sent = int(number) + 1
        else:
            done, term = int(number) + 1, int(answer[1])
            assert int(answer[0]) == HISTORY[int(number)].revision, f"request {number} was acknowledged as {line!r}"
    return Told(sent, done, term)


def open_log(path: Path) -> SegmentedStorage:
    return SegmentedStorage(path, segment_bytes=SEGMENT_BYTES)


async def reference(path: Path) -> list[int]:
    """The state's hash after each number of requests, without raft and without a crash."""
    state = State(path)
    hashes = [(await hash_kv(state.store, 0))[0]]
    for request in HISTORY:
        await state.apply(request.message)
        assert (state.store.current_revision, state.store.compact_revision) == (
            request.revision,
            request.compact_revision,
        )
        hashes.append((await hash_kv(state.store, 0))[0])
    state.close()
    return hashes


def check_found(member: OpenMember, before: Told, hashes: list[int], state_hash: int) -> None:
    """What the disk holds, before the member begins to work."""
    storage, store, hard_state = member.storage, member.store, member.loaded.hard_state
    assert storage.first_index - 1 <= store.applied_index <= storage.last_index
    assert storage.first_index - 1 <= hard_state.commit <= storage.last_index
    assert hard_state.term >= max(before.term, store.applied_term)
    assert hard_state.vote in (0, member.identity.member_id)
    entries = storage.entries(storage.first_index, storage.last_index, 1 << 30)
    terms = [entry.term for entry in entries]
    assert terms == sorted(terms)
    assert hard_state.term >= max(terms, default=0)

    applied = applied_requests(HISTORY, store)
    assert applied <= before.sent
    assert state_hash == hashes[applied], f"not the state after {applied} requests"
    missing = [
        getattr(request, str(request.WhichOneof("op"))).SerializeToString()
        for entry in entries
        if entry.index > store.applied_index and entry.kind is EntryKind.COMMAND
        for request in decode_batch(entry.data).requests
        if request.WhichOneof("op") not in ("member_publish", "cluster_version")  # the members' own
    ]
    stored = applied + len(missing)
    assert before.done <= stored <= before.sent, f"log and store know {stored} requests"
    assert missing == [request.message.SerializeToString() for request in HISTORY[applied:stored]]


async def check_state(store: MvccStore, before: Told, hashes: list[int]) -> None:
    """What clients can see, once the log has been applied again."""
    applied = applied_requests(HISTORY, store)
    assert before.done <= applied <= before.sent
    assert (await hash_kv(store, 0))[0] == hashes[applied]
    found = [
        (revision.revision, event.kv.key, None if event.type == Event.DELETE else event.kv.value)
        for revision in await read_events(store, 2, store.current_revision)
        for event in [Event.FromString(one.event) for one in revision.events]
    ]
    expected = [(request.revision, key, value) for request in HISTORY[:applied] for key, value in request.changes]
    assert found == expected
    live = {key: (revision, value) for revision, key, value in expected}
    rows = [KeyValue.FromString(row) for _, row in store.scan_latest(b"\0", None).rows(1000)]
    assert {kv.key: (kv.mod_revision, kv.value) for kv in rows} == {
        key: (revision, value) for key, (revision, value) in live.items() if value is not None
    }


@asynccontextmanager
async def serving(folder: Path, member: OpenMember) -> AsyncIterator[KvServer]:
    server = make_server(folder, member)
    try:
        async with asyncio.timeout(20):
            await server.start()
            await server.published.wait()
        yield server
    finally:
        await stop_server(server, member)


async def check(folder: Path, hashes: list[int]) -> None:
    """A member starts on what was left in `folder`, works, stops, and finds all of it again."""
    before = told(folder)
    member = await open_member(settings(folder), open_log)
    check_found(member, before, hashes, (await hash_kv(member.store, 0))[0])
    names = sorted(path.name for path in (folder / "data" / "log").iterdir())
    first = int(names[0].removesuffix(".log"))
    assert names == [*[f"{first + number:016d}.log" for number in range(len(names) - 1)], "LOCK"]
    async with serving(folder, member) as server:
        await check_state(server.store, before, hashes)
        revision = server.store.current_revision
        result = await server.propose_one(Op.PUT, PutRequest(key=b"after", value=b"crash").SerializeToString())
        assert result.revision == revision + 1
        after = await hash_kv(server.store, 0)
        last = server.status().commit
    member = await open_member(settings(folder), open_log)
    assert member.storage.last_index >= last  # what a repair leaves behind the records shows at the start after it
    assert await hash_kv(member.store, 0) == after
    member.storage.close()
    member.store.close()
    member.release()


def sides(name: str) -> list[str | float]:
    if name == "store: flush":
        return ["before", *FLUSH_SECONDS, "after"]
    if name == "store: open":
        return ["before", *OPEN_SECONDS, "after"]
    return ["before", "torn", "after"] if "pwritev" in name else ["before", "after"]


def points(names: list[str]) -> list[tuple[str, int]]:
    """Each name with how often it has come by then."""
    seen: Counter[str] = Counter()
    found: list[tuple[str, int]] = []
    for name in names:
        seen[name] += 1
        found.append((name, seen[name]))
    return found


def window(names: list[str]) -> range:
    """From the flush that leads to the first compaction of the log to the end of a change of segment behind it."""
    compacted = names.index("compact: sync directory")
    flushed = max(at for at in range(compacted) if names[at] == "store: flush")
    return range(flushed - 3, names.index("segment change: sync directory", compacted) + 4)


def recorded(children: Children, start: Path | None = None) -> list[str]:
    """The steps of a process that lives to the end."""
    [(folder, end)] = children.run([(start, None)])
    assert end == 0
    assert told(folder).done == REQUESTS
    return (folder / "steps").read_text().splitlines()


def check_all(children: Children, jobs: list[Job], hashes: list[int]) -> set[str]:
    """The names of the steps that were died at."""
    died: set[str] = set()
    missed = 0
    for (start, point), (folder, end) in zip(jobs, children.run(jobs), strict=True):
        assert point is not None
        assert end in (0, KILLED, TIMED), f"{point} from {start}: ended with {end}"
        if end == 0:
            missed += 1
        else:
            died.add(point[0])
        try:
            asyncio.run(check(folder, hashes))
        except BaseException as error:
            error.add_note(f"died at {point}, started from {start}; see {folder}")
            raise
        shutil.rmtree(folder)
    # How work in threads falls beside the requests differs from run to run, and with it how often a step comes.
    assert missed <= len(jobs) // 20, f"{missed} of {len(jobs)} processes lived on"
    return died


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kill_at_every_step_of_flush_log_compaction_and_segment_change(children: Children, tmp_path: Path) -> None:
    hashes = asyncio.run(reference(tmp_path / "reference"))
    names = recorded(children)
    steps = points(names)
    first_start = range(names.index("save: pwritev segment"))
    inside = sorted({*first_start, *window(names)})
    jobs: list[Job] = [(None, (*steps[at], side)) for at in inside for side in sides(names[at])]
    rng = random.Random(SEED)
    outside = sorted(set(range(len(names))) - set(inside))
    jobs += [(None, (*steps[at], rng.choice(sides(names[at])))) for at in rng.sample(outside, SAMPLED)]
    died = check_all(children, jobs, hashes)
    assert died >= {*FLUSH, *LOG_COMPACTION, *SEGMENT_CHANGE, *SAVE, *FIRST_START}


def left_behind(names: list[str]) -> list[Point]:
    """Kills after which the next start has something to do: cut off, make again, remove, apply again."""
    compacted = names.index("compact: sync directory")
    unlinks = names[:compacted].count("compact: unlink segment")
    assert unlinks >= 2, "a compaction of several segments is wanted"
    changes = names[:compacted].count("segment change: rename new segment")
    flushes = names[:compacted].count("store: flush")
    return [
        ("save: pwritev segment", 30, "torn"),
        ("segment change: create new segment", changes, "after"),
        ("segment change: pwritev new segment", changes, "torn"),
        ("segment change: rename new segment", changes, "before"),
        ("segment change: rename new segment", changes, "after"),
        ("store: flush", flushes, "after"),
        ("compact: pwritev segment", 1, "torn"),
        ("compact: fdatasync segment", 1, "after"),
        ("compact: unlink segment", 1, "after"),
        ("compact: unlink segment", unlinks, "after"),
        ("reset: pwritev new segment", 1, "torn"),
        ("reset: sync directory", 1, "after"),
        ("member.json: write", 2, "before"),
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kill_at_every_step_of_a_start_after_a_kill(children: Children, tmp_path: Path) -> None:
    hashes = asyncio.run(reference(tmp_path / "reference"))
    left = list(children.run([(None, point) for point in left_behind(recorded(children))]))
    jobs: list[Job] = []
    for folder, end in left:
        assert end == KILLED
        names = recorded(children, folder)
        begun = [at for at, name in enumerate(names) if name == "store: write"][2]  # it loaded, and applies again
        # One thing after the other here: "after" is "before" the next.
        jobs += [
            (folder, (*step, side)) for step in points(names[:begun]) for side in sides(step[0]) if side != "after"
        ]
    died = check_all(children, jobs, hashes)
    assert died >= {*REPAIR, "load: lock directory", "load: make directory", "member.json: write", "store: open"}


# The calls of RocksDB's own thread, which only strace can count. A file's number is where RocksDB stands after
# the first start and one flush; `when` is beyond what any other thread does to the file.
TABLE, MANIFEST = "000010.sst", "MANIFEST-000005"
# Past the page cache whole blocks are written, and at the end what is too much of the last one is cut off.
DIRECT_CALLS = [(TABLE, call, 1) for call in ("openat", "pwrite64", "ftruncate", "fsync", "close")]
CACHED_CALLS = [(TABLE, call, 1) for call in ("openat", "write", "fdatasync", "close")]
MANIFEST_CALLS = [(MANIFEST, "write", 7), (MANIFEST, "write", 8), (MANIFEST, "fdatasync", 3)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_kill_at_every_call_of_a_flush_inside_rocksdb(tmp_path: Path) -> None:
    hashes = asyncio.run(reference(tmp_path / "reference"))
    table_calls = DIRECT_CALLS if writes_past_page_cache(tmp_path) else CACHED_CALLS
    for file, call, when in table_calls + MANIFEST_CALLS:
        folder = tmp_path / f"{file}-{call}-{when}"
        inject = f"inject={call}:signal=SIGKILL:when={when}"
        strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", f"{folder}/0/data/state-0/{file}", "-e", inject]
        with running(folder, strace) as children:
            [(left, end)] = children.run([(None, None)])
            assert end == KILLED, f"{call} {when} of {file} was not reached"
            assert (left / "steps").read_text().splitlines().count("store: flush") > 1
            asyncio.run(check(left, hashes))
