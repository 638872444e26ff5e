"""A state as a snapshot file: exactly what etcd would have kept of it, in a stream as etcd's."""

import asyncio
import gc
import hashlib
import os
import random
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.bbolt.writer import BboltWriter
from kvstore.errors import TOO_MANY_REQUESTS, KvError
from kvstore.mvcc import schema as rows
from kvstore.mvcc.compaction import Compactor
from kvstore.mvcc.encoding import delete_event
from kvstore.mvcc.engine import Scan
from kvstore.mvcc.slices import Budget
from kvstore.mvcc.store import MvccStore, StoreOptions
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.kv_pb2 import Event, KeyValue
from kvstore.pb.lease_pb2 import Lease
from kvstore.snapshot import save as save_module
from kvstore.snapshot.revisions import RevisionSet
from kvstore.snapshot.save import BLOB_BYTES, NO_SPACE, SnapshotFiles, SpooledFile, blobs
from kvstore.state.cluster import ClusterTable
from tests.kvstore.bbolt.files import decode
from tests.kvstore.snapshot.files import MEMBERS, save
from tests.kvstore.state.support import State
from tests.kvstore.state.workload import a_write

BUCKETS = [
    *(b"alarm", b"auth", b"authRoles", b"authUsers", b"cluster", b"key", b"lease"),
    *(b"members", b"members_removed", b"meta"),
]


def revision_row(revision: int, sub: int, is_delete: bool) -> bytes:
    return b"%b_%b%b" % (revision.to_bytes(8, "big"), sub.to_bytes(8, "big"), b"t" if is_delete else b"")


def expected_keys(store: MvccStore) -> dict[bytes, bytes]:
    """By definition, from all events: what a compaction at C leaves, and all that is newer."""
    compact = store.compact_revision
    events = [
        (*rows.split_event(row), Event.FromString(event))
        for row, event in store.scan(rows.event_from(0), rows.event_from(store.current_revision + 1)).rest()
    ]
    newest = {event.kv.key: (revision, sub) for revision, sub, event in events if revision <= compact}
    found: dict[bytes, bytes] = {}
    for revision, sub, event in events:
        is_delete = event.type == Event.DELETE
        if revision <= compact and (newest[event.kv.key] != (revision, sub) or (is_delete and revision < compact)):
            continue
        kv = KeyValue(key=event.kv.key) if is_delete else event.kv
        found[revision_row(revision, sub, is_delete)] = kv.SerializeToString()
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("physical", [False, True], ids=["hidden", "removed"])
async def test_the_file_is_what_etcd_would_have(tmp_path: Path, seed: int, physical: bool) -> None:
    state = State(tmp_path / "s", options=StoreOptions(slice_ns=0))
    ClusterTable(state.store).bootstrap(MEMBERS)
    rng = random.Random(seed)
    for _ in range(300):
        await state.apply(a_write(rng, state.store.current_revision, state.store.compact_revision))
    compacted = max(state.store.compact_revision, state.store.current_revision * 2 // 3)
    if seed % 4:
        await state.apply(pb.CompactionRequest(revision=compacted))
    if physical:
        await Compactor(state.store).run()
    await save(state.store, tmp_path / "file")
    size = (tmp_path / "file").stat().st_size
    found = decode(tmp_path / "file", size - 32)
    assert sorted(found) == BUCKETS
    assert found[b"key"] == expected_keys(state.store)
    leases = {key: Lease.FromString(value) for key, value in found[b"lease"].items()}
    assert {lease.ID: (lease.TTL, lease.RemainingTTL) for lease in leases.values()} == {
        rows.row_lease(row): tuple(int.from_bytes(value[at : at + 8], "big") for at in (0, 8))
        for row, value in state.store.scan(rows.LEASE, rows.after(rows.LEASE)).rest()
    }
    assert all(key == lease.ID.to_bytes(8, "big", signed=True) for key, lease in leases.items())
    meta = found[b"meta"]
    assert int.from_bytes(meta[b"consistent_index"], "big") == state.store.applied_index
    assert meta[b"confState"] == b'{"voters":[161],"learners":[178],"auto_leave":false}'
    if state.store.compact_revision:
        row = revision_row(state.store.compact_revision, 0, False)
        assert meta[b"scheduledCompactRev"] == meta[b"finishedCompactRev"] == row
    assert found[b"members"] == {
        b"a1": b'{"id":161,"peerURLs":["http://p:1"],"name":"m1","clientURLs":["http://c:1"]}',
        b"b2": b'{"id":178,"peerURLs":["http://p:2","http://p:3"],"isLearner":true}',
    }
    state.close()


@given(st.sets(st.one_of(st.integers(1, 300), st.integers(1, 2**62))))
def test_a_set_of_revisions(members: set[int]) -> None:
    found = RevisionSet()
    for revision in members:
        found.add(revision)
    assert list(found) == sorted(members)
    assert all(revision in found for revision in members)
    assert not any(revision + 1 in found for revision in members if revision + 1 not in members)
    intervals = list(found.intervals())
    assert all(low < high for low, high in intervals)
    assert all(before[1] <= after[0] for before, after in pairwise(intervals))
    assert all(high - low <= 4096 for low, high in intervals)
    assert sum(any(low <= revision < high for low, high in intervals) for revision in members) == len(members)


async def test_the_stream_is_as_etcds(tmp_path: Path) -> None:
    """Blobs of at most 32 KiB, a falling rest, whole sectors, and the SHA-256 of it at the end."""
    state = State(tmp_path / "s")
    for number in range(60):
        await state.put(b"k%d" % number, os.urandom(50_000))
    files = SnapshotFiles(state.store, ClusterTable(state.store), tmp_path)
    async with files.file() as spooled, aclosing(blobs(spooled)) as pieces:
        found = [piece async for piece in pieces]
    data = b"".join(blob for blob, _ in found[:-1])
    assert found[-1] == (hashlib.sha256(data).digest(), 0)
    assert len(data) % 512 == 0
    assert len(data) > 3_000_000
    assert {len(blob) for blob, _ in found[:-2]} == {BLOB_BYTES}
    left = len(data)
    for blob, remaining in found[:-1]:
        left -= len(blob)
        assert remaining == left
    state.close()


async def test_what_is_applied_meanwhile_is_not_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put, deleted, compacted and removed between any two slices."""
    state = State(tmp_path / "s", options=StoreOptions(slice_ns=0))
    for number in range(2000):
        await state.put(b"k%d" % (number % 700), b"before %d" % number)
    await state.apply(pb.CompactionRequest(revision=1500))
    expected = expected_keys(state.store)
    pauses = 0

    async def meddle(budget: Budget) -> None:
        nonlocal pauses
        pauses += 1
        with monkeypatch.context() as patch:
            patch.setattr(Budget, "pause_if_spent", ready)
            await state.put(b"k%d" % pauses, b"after")
            await state.delete(b"k5", b"k6")
            if pauses == 5:
                await state.apply(pb.CompactionRequest(revision=state.store.current_revision))
                await Compactor(state.store).run()

    async def ready(budget: Budget) -> None: ...

    monkeypatch.setattr(Budget, "pause_if_spent", meddle)
    await save(state.store, tmp_path / "file")
    assert pauses > 10
    size = (tmp_path / "file").stat().st_size
    found = decode(tmp_path / "file", size - 32)
    assert found[b"key"] == expected
    assert found[b"meta"][b"finishedCompactRev"] == revision_row(1500, 0, False)
    state.close()


async def test_so_many_at_once_and_no_more(tmp_path: Path) -> None:
    """etcd panicked when two were asked for at once (#18055)."""
    state = State(tmp_path / "s")
    await state.put(b"k")
    files = SnapshotFiles(state.store, ClusterTable(state.store), tmp_path)
    let_go = asyncio.Event()
    whole = asyncio.Semaphore(0)
    contents: list[bytes] = []

    async def take() -> None:
        async with files.file() as spooled:
            contents.append(spooled.read(0))
            whole.release()
            await let_go.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(save_module.FILES_MAX):
            group.create_task(take())
        for _ in range(save_module.FILES_MAX):
            await whole.acquire()
        with pytest.raises(KvError) as refused:
            await take()
        let_go.set()
    assert refused.value == TOO_MANY_REQUESTS
    assert len(set(contents)) == 1
    await take()
    state.close()


async def test_nothing_is_left_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(tmp_path / "s")
    for number in range(100):
        await state.put(b"k%d" % number, b"v" * 100_000)
    folder = tmp_path / "files"
    folder.mkdir()
    files = SnapshotFiles(state.store, ClusterTable(state.store), folder)
    gc.collect()  # what tests before this one have left
    open_before = len(os.listdir("/proc/self/fd"))

    async with files.file():
        assert list(folder.iterdir()) == []
    # No room: told before the work, and found out in the middle of it.
    monkeypatch.setattr(save_module, "ROOM_BYTES", 1 << 62)
    with pytest.raises(KvError) as full:
        await files.file().__aenter__()
    assert full.value == NO_SPACE
    monkeypatch.undo()
    pieces = 0

    def full_disk(spooled: SpooledFile, needed: int) -> None:
        nonlocal pieces
        pieces += 1
        if pieces == 4:
            raise NO_SPACE.fresh()

    monkeypatch.setattr(SpooledFile, "check_room", full_disk)
    with pytest.raises(KvError) as full:
        await files.file().__aenter__()
    assert (full.value, pieces) == (NO_SPACE, 4)
    monkeypatch.undo()
    # The client goes while the file is made.
    making = asyncio.create_task(files.file().__aenter__())
    await asyncio.sleep(0)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    gc.collect()
    assert list(folder.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == open_before
    async with files.file():
        pass
    state.close()


async def test_of_a_transaction_only_the_changes_that_are_newest(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    txn = pb.TxnRequest(success=[pb.RequestOp(request_put=pb.PutRequest(key=key)) for key in (b"a", b"b", b"c")])
    await state.apply(txn)
    await state.put(b"b")
    await state.apply(pb.CompactionRequest(revision=3))
    await save(state.store, tmp_path / "file")
    found = decode(tmp_path / "file", (tmp_path / "file").stat().st_size - 32)
    rows_left = [(2, 0), (2, 2), (3, 0)]
    assert list(found[b"key"]) == [revision_row(revision, sub, False) for revision, sub in rows_left]
    state.close()


async def test_a_big_delete_under_way_is_not_in_the_file(tmp_path: Path) -> None:
    """It writes its events before anybody may see them."""
    state = State(tmp_path / "s")
    await state.put(b"a")
    batch = state.store.engine.batch()
    batch.put(rows.event_row(3, 0), delete_event(b"a", b"\x03"))
    batch.put(rows.version_key(b"a", 3, 0), rows.TOMBSTONE)
    state.store.write(batch)
    await save(state.store, tmp_path / "file")
    found = decode(tmp_path / "file", (tmp_path / "file").stat().st_size - 32)
    assert list(found[b"key"]) == [revision_row(2, 0, False)]
    state.close()


async def test_no_step_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two chances to pause no more than some hundred rows are looked at, whatever the state is like."""
    state = State(tmp_path / "s")
    for start in range(0, 6000, 100):
        await state.apply(*[pb.PutRequest(key=b"%d" % number, value=b"v") for number in range(start, start + 100)])
    for _ in range(3000):  # one key's history: its compaction leaves a long gap
        await state.put(b"0")
    await state.apply(pb.CompactionRequest(revision=8500))
    seen = most = 0
    looked_at = Scan.rows
    added = BboltWriter.add

    def look(scan: Scan, count: int) -> list[tuple[bytes, bytes]]:
        nonlocal seen
        found = looked_at(scan, count)
        seen += len(found)
        return found

    def add(writer: BboltWriter, key: bytes, value: bytes) -> None:
        nonlocal seen
        seen += 1
        added(writer, key, value)

    async def pause(budget: Budget) -> None:
        nonlocal seen, most
        most = max(most, seen)
        seen = 0

    monkeypatch.setattr(Scan, "rows", look)
    monkeypatch.setattr(BboltWriter, "add", add)
    monkeypatch.setattr(Budget, "pause_if_spent", pause)
    await save(state.store, tmp_path / "file")
    assert 100 < most <= 1024
    state.close()
