"""Snapshots of the state: what is taken is sent unchanged, what is received is checked, what is installed counts."""

import asyncio
import errno
import gc
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.mvcc import schema
from kvstore.mvcc.compaction import Compactor
from kvstore.mvcc.hash import hash_kv
from kvstore.mvcc.store import MvccStore, StoreOptions
from kvstore.mvcc.transaction import BIG_DELETE
from kvstore.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest
from kvstore.server.snapshots import ROOM_BYTES, FolderReader, configuration_of
from raft.snapshot import ReceivedSnapshot, SnapshotFailed, SnapshotFile
from raft.types import Configuration, SnapshotMeta
from tests.kvstore.server.snapshot_support import Side, copy, meta_of, put, transfer
from tests.kvstore.state.support import state_hash


@pytest.fixture
async def leader(tmp_path: Path) -> AsyncIterator[Side]:
    side = Side(tmp_path / "leader")
    yield side
    await side.close()


@pytest.fixture
async def follower(tmp_path: Path) -> AsyncIterator[Side]:
    side = Side(tmp_path / "follower")
    yield side
    await side.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            gc.collect()  # an exception's traceback may hold an engine
            await asyncio.sleep(0.01)


async def test_the_receiver_is_the_sender_at_the_snapshots_index(leader: Side, follower: Side) -> None:
    """S-26: position and content of a snapshot agree, whatever is applied while it is on its way."""
    await leader.fill(range(50))
    await follower.fill(range(3))
    reader = await leader.snapshots.take()
    expected, wanted_hash = state_hash(leader.store), await hash_kv(leader.store, 0)
    await leader.fill(range(50, 80))
    meta, writer = meta_of(reader, leader), follower.snapshots.incoming()
    await copy(reader, writer, meta)
    await follower.snapshots.install(ReceivedSnapshot(meta, writer))
    assert meta.index == 50
    assert (follower.store.applied_index, follower.store.applied_term) == (50, 1)
    assert state_hash(follower.store) == expected
    assert await hash_kv(follower.store, 0) == wanted_hash
    assert follower.folders.installed_index == 50
    reader.close()
    await follower.apply(*[put(b"more%d" % number) for number in range(5)])
    assert follower.store.applied_index == 51


async def test_the_installed_state_is_found_again_and_the_old_one_is_gone(leader: Side, tmp_path: Path) -> None:
    """S-27: the index that counts is the snapshot's, not the older one of before."""
    await leader.fill(range(20))
    follower = Side(tmp_path / "f")
    await follower.fill(range(2))
    await transfer(leader, follower)
    expected = state_hash(leader.store)
    await until(lambda: "state-0" not in follower.names())
    await follower.close()
    store = MvccStore.open(follower.folders.find())
    assert follower.names() == ["CURRENT", "state-20"]
    assert store.applied_index == 20
    assert state_hash(store) == expected
    store.close()


async def test_a_snapshot_in_the_middle_of_a_big_delete_is_the_state_before_it(tmp_path: Path, follower: Side) -> None:
    """S-26: rows of a write under way are in it, and nobody sees them; whoever gets it applies that entry again."""
    leader = Side(tmp_path / "l", StoreOptions(slice_ns=0))
    for first in range(0, BIG_DELETE + 100, 1000):
        await leader.apply(*[put(b"k%d" % number) for number in range(first, first + 1000)])
    index, delete = leader.store.applied_index, DeleteRangeRequest(key=b"k", range_end=b"l")
    deleting = asyncio.create_task(leader.apply(delete))
    while not hidden_rows(leader.store):
        await asyncio.sleep(0)
    # What `take` does once its flush is done, which lets the delete go on.
    reader = FolderReader(leader.folders.checkpoint(1), leader.store.applied_index, leader.store.applied_term)
    leader.store.engine.checkpoint(leader.path / "snapshot-1")
    reader.list_files()
    assert (reader.index, deleting.done()) == (index, False)
    meta, writer = meta_of(reader, leader), follower.snapshots.incoming()
    await copy(reader, writer, meta)
    reader.close()
    await follower.snapshots.install(ReceivedSnapshot(meta, writer))
    assert hidden_rows(follower.store)
    assert follower.store.get_latest(b"k5") is not None
    await deleting
    await follower.apply(delete)
    assert follower.store.get_latest(b"k5") is None
    assert state_hash(follower.store) == state_hash(leader.store)
    await leader.close()


def hidden_rows(store: MvccStore) -> bool:
    """Whether there are rows of a revision that is not visible yet."""
    return bool(store.engine.scan(schema.event_from(store.current_revision + 1), b"f").keys(1))


async def test_a_checkpoint_stays_as_it_is_until_it_is_closed(leader: Side) -> None:
    await leader.fill(range(10))
    first = await leader.snapshots.take()
    content = [first.read(file.name, 0, file.size) for file in first.files]
    await leader.fill(range(10, 20))
    second = await leader.snapshots.take()
    assert (first.index, second.index) == (10, 20)
    assert leader.names() == ["CURRENT", "snapshot-1", "snapshot-2", "state-0"]
    second.close()
    assert [first.read(file.name, 0, file.size) for file in first.files] == content
    first.close()
    assert leader.names() == ["CURRENT", "state-0"]


async def test_a_transfer_that_was_cut_off_goes_on_where_it_was(leader: Side, follower: Side) -> None:
    await leader.fill(range(20), size=500)
    reader = await leader.snapshots.take()
    meta = meta_of(reader, leader)
    writer = follower.snapshots.incoming()
    largest = max(reader.files, key=lambda file: file.size)
    writer.begin(meta, reader.files)
    writer.write(largest.name, 0, reader.read(largest.name, 0, 100))
    again = follower.snapshots.incoming()
    assert again.begin(meta, reader.files)[largest.name] == 100
    await copy(reader, again, meta)
    await follower.snapshots.install(ReceivedSnapshot(meta, again))
    assert state_hash(follower.store) == state_hash(leader.store)
    reader.close()


async def test_a_part_that_has_become_useless_takes_no_space(leader: Side, follower: Side) -> None:
    """The log has brought it after all, and the leader sends no more of it."""
    await leader.fill(range(20))
    reader = await leader.snapshots.take()
    writer = follower.snapshots.incoming()
    writer.begin(meta_of(reader, leader), reader.files)
    writer.write(reader.files[-1].name, 0, b"x")
    follower.snapshots.applied(19)
    assert follower.names() == ["CURRENT", "state-0", "state-20.part"]
    follower.snapshots.applied(20)
    await until(lambda: follower.names() == ["CURRENT", "state-0"])
    with pytest.raises(SnapshotFailed, match="thrown away"):
        writer.write(reader.files[-1].name, 1, b"x")
    with pytest.raises(SnapshotFailed, match="thrown away"):
        writer.finish()
    assert follower.snapshots.incoming() is not writer
    reader.close()


async def test_another_snapshot_starts_from_nothing(leader: Side, follower: Side) -> None:
    await leader.fill(range(20))
    reader = await leader.snapshots.take()
    meta = meta_of(reader, leader)
    writer = follower.snapshots.incoming()
    writer.begin(meta, reader.files)
    writer.write(reader.files[0].name, 0, b"x")
    other = SnapshotMeta(meta.index + 1, meta.term, meta.configuration, meta.context)
    assert set(follower.snapshots.incoming().begin(other, reader.files).values()) == {0}
    assert "state-20.part" not in follower.names()
    writer.discard()
    assert follower.names() == ["CURRENT", "state-0"]
    reader.close()


@pytest.mark.parametrize("at", [0, -1])
async def test_a_damaged_byte_is_found_and_nothing_of_it_stays(leader: Side, follower: Side, at: int) -> None:
    await leader.fill(range(20))
    reader = await leader.snapshots.take()
    meta = meta_of(reader, leader)
    writer = follower.snapshots.incoming()
    writer.begin(meta, reader.files)
    for file in reader.files:
        data = bytearray(reader.read(file.name, 0, file.size))
        if file.name.endswith(".sst"):
            data[at] ^= 1
        writer.write(file.name, 0, bytes(data))
    with pytest.raises(SnapshotFailed, match="arrived damaged"):
        writer.finish()
    assert follower.names() == ["CURRENT", "state-0"]
    await copy(reader, follower.snapshots.incoming(), meta)  # and the next attempt begins anew
    reader.close()


async def test_what_the_header_does_not_say_truly_is_refused(leader: Side, follower: Side) -> None:
    """S-26: index, term and configuration of the header and of the content are the same."""
    await leader.fill(range(20))
    reader = await leader.snapshots.take()
    true = meta_of(reader, leader)
    for meta in (
        SnapshotMeta(21, true.term, true.configuration),
        SnapshotMeta(20, true.term + 1, true.configuration),
        SnapshotMeta(20, true.term, Configuration((5, 6))),
        SnapshotMeta(20, true.term, true.configuration, b"another context"),
    ):
        with pytest.raises(SnapshotFailed, match="was announced as"):
            await copy(reader, follower.snapshots.incoming(), meta)
        assert follower.names() == ["CURRENT", "state-0"]
    reader.close()


async def test_a_state_of_another_cluster_is_refused(leader: Side, follower: Side) -> None:
    await leader.fill(range(20))
    reader = await leader.snapshots.take()
    writer = follower.snapshots.incoming()
    writer._cluster_id += 1
    with pytest.raises(SnapshotFailed, match="was announced as"):
        await copy(reader, writer, meta_of(reader, leader))
    reader.close()


async def test_a_disk_without_room_refuses_before_the_first_byte(
    leader: Side, follower: Side, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await leader.fill(range(20))
    reader = await leader.snapshots.take()
    meta = meta_of(reader, leader)
    size = sum(file.size for file in reader.files)
    writer = follower.snapshots.incoming()
    monkeypatch.setattr(type(follower.folders), "free_bytes", lambda _: size + ROOM_BYTES - 1)
    with pytest.raises(SnapshotFailed, match=f"needs {size} bytes of disk"):
        writer.begin(meta, reader.files)
    assert "refused a snapshot: too little space on the disk" in capsys.readouterr().out
    assert follower.names() == ["CURRENT", "state-0"]
    monkeypatch.setattr(type(follower.folders), "free_bytes", lambda _: size + ROOM_BYTES)
    await copy(reader, follower.snapshots.incoming(), meta)
    reader.close()


async def test_a_disk_that_fills_up_meanwhile_gets_its_space_back(
    leader: Side, follower: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    await leader.fill(range(20))
    reader = await leader.snapshots.take()
    writer = follower.snapshots.incoming()
    writer.begin(meta_of(reader, leader), reader.files)
    writer.write(reader.files[0].name, 0, b"x")
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        writer.write(reader.files[0].name, 1, b"x")
    assert follower.names() == ["CURRENT", "state-0"]
    reader.close()


async def test_an_old_snapshot_changes_nothing(leader: Side, follower: Side) -> None:
    """S-26: what this member has acknowledged since is newer."""
    await leader.fill(range(5))
    await follower.fill(range(9))
    before = state_hash(follower.store)
    await transfer(leader, follower)
    assert follower.store.applied_index == 9
    assert state_hash(follower.store) == before
    assert follower.names() == ["CURRENT", "state-0"]


async def test_two_snapshots_in_quick_succession(leader: Side, follower: Side) -> None:
    """S-24 (etcd#18055): the second one arrives while the first one is installed."""
    await leader.fill(range(10))
    reader = await leader.snapshots.take()
    meta, writer = meta_of(reader, leader), follower.snapshots.incoming()
    await copy(reader, writer, meta)
    with pytest.raises(SnapshotFailed, match="is being installed already"):
        follower.snapshots.incoming().begin(meta, reader.files)
    await leader.fill(range(10, 20))
    second = await leader.snapshots.take()
    other_meta, other = meta_of(second, leader), follower.snapshots.incoming()
    await asyncio.gather(follower.snapshots.install(ReceivedSnapshot(meta, writer)), copy(second, other, other_meta))
    assert follower.store.applied_index == 10
    await follower.snapshots.install(ReceivedSnapshot(other_meta, other))
    assert state_hash(follower.store) == state_hash(leader.store)
    await until(lambda: follower.names() == ["CURRENT", "state-20"])
    reader.close()
    second.close()


async def test_a_view_goes_on_in_the_old_state_until_it_is_closed(leader: Side, follower: Side) -> None:
    await leader.fill(range(20))
    await follower.fill(range(3))
    view = follower.store.view()
    scan = follower.store.scan(b"e", b"f")
    before = await hash_kv(view, 0)
    events = len(scan.rows(1))
    await transfer(leader, follower)
    assert await hash_kv(view, 0) == before
    assert view.get_latest(b"k2") is not None
    assert view.get_latest(b"k9") is None
    assert follower.store.get_latest(b"k9") is not None
    assert len(scan.rows(100)) + events == 3
    await asyncio.gather(*follower.snapshots._removals)
    assert "state-0" in follower.names()
    view.close()
    del view, scan
    await until(lambda: "state-0" not in follower.names())


async def test_compaction_begins_anew_on_the_new_state(leader: Side, tmp_path: Path) -> None:
    """A run that is under way must not write down its progress in a state that lacks what it did before."""
    follower = Side(tmp_path / "f", StoreOptions(slice_ns=0))  # pauses whenever it can
    for side in (leader, follower):
        await side.apply(put(b"early", b"1"))
        await side.apply(put(b"early", b"2"))  # nothing looks at it again once 100 is compacted
        for number in range(300):
            await side.apply(put(b"k%d" % (number % 40), b"%d" % number))
        await side.apply(CompactionRequest(revision=100))
    compactor = Compactor(follower.store)
    await compactor.run()
    removed = compactor.removed
    await follower.apply(CompactionRequest(revision=200))
    await leader.apply(CompactionRequest(revision=200))
    await leader.apply(CompactionRequest(revision=290))
    reader, writer = await leader.snapshots.take(), follower.snapshots.incoming()
    await copy(reader, writer, meta_of(reader, leader))
    reader.close()
    running = asyncio.create_task(compactor.run())
    while compactor.removed == removed:
        await asyncio.sleep(0)
    other = MvccStore.open(writer.folder, follower.store.options)
    assert other.get(schema.META_COMPACTED) is None
    follower.store.swap(other)
    assert (compactor.done_revision, running.done()) == (0, False)
    await running
    assert (compactor.done_revision, compactor.pending) == (290, False)
    await Compactor(leader.store).run()
    rows = follower.store.engine.scan(b"v", b"w").rest()
    assert rows == leader.store.engine.scan(b"v", b"w").rest()
    assert await hash_kv(follower.store, 0) == await hash_kv(leader.store, 0)
    await follower.close()


async def test_the_configuration_is_that_of_the_members_until_it_is_changed(leader: Side) -> None:
    assert configuration_of(leader.store) == (Configuration((5, 6, 7)), b"")


async def test_names_of_files_are_plain(leader: Side) -> None:
    await leader.fill(range(3))
    reader = await leader.snapshots.take()
    assert all(isinstance(file, SnapshotFile) and "/" not in file.name for file in reader.files)
    reader.close()
