"""Opening what is not right, and views that hold still."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rocksdict import Options, Rdict, WriteBatch

from kvstore.mvcc import schema
from kvstore.mvcc.compaction import Compactor
from kvstore.mvcc.events import kv_at
from kvstore.mvcc.range import range_
from kvstore.mvcc.store import MvccStore, StoreDamaged, StoreInUse, UnknownStoreFormat
from kvstore.pb import rpc_pb2 as pb
from tests.kvstore.state.support import State

ALL = pb.RangeRequest(key=b"\0", range_end=b"\0")


async def test_an_empty_store_is_at_revision_1_and_stays_there_without_changes(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    assert (state.store.current_revision, state.store.applied_index, state.store.compact_revision) == (1, 0, 0)
    assert await state.delete(b"nothing") == 1
    assert await state.put(b"k") == 2
    assert await state.delete(b"a", b"b") == 2
    assert state.store.current_revision == 2
    state.close()


async def test_what_was_flushed_is_there_again(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    await state.put(b"k", b"1")
    assert await state.store.flush() == 1
    kv = state.store.get_latest(b"k")
    state.close()
    again = MvccStore.open(tmp_path / "s")
    assert (again.applied_index, again.applied_term, again.current_revision) == (1, 1, 2)
    assert again.get_latest(b"k") == kv
    total, in_use = again.size_bytes()
    assert total >= in_use > 0
    again.close()


async def test_nothing_is_written_to_rocksdbs_own_log(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    await state.put(b"k", b"v" * 10_000)
    assert [path.stat().st_size for path in (tmp_path / "s").glob("*.log")] in ([], [0])
    state.close()


def test_a_store_in_use_is_refused(tmp_path: Path) -> None:
    store = MvccStore.open(tmp_path / "s")
    with pytest.raises(StoreInUse, match="in use by another process"):
        MvccStore.open(tmp_path / "s")
    script = (
        "import sys; from pathlib import Path; from kvstore.mvcc.store import MvccStore\n"
        "MvccStore.open(Path(sys.argv[1]))"
    )
    other = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "s")], capture_output=True, text=True, check=False
    )
    assert "StoreInUse" in other.stderr
    store.close()
    MvccStore.open(tmp_path / "s").close()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    store = MvccStore.open(tmp_path / "s")
    batch = WriteBatch(raw_mode=True)
    batch.put(schema.META_FORMAT, schema.pack_u64(schema.FORMAT_2 + 1))
    store.write(batch)
    store.engine._db.flush()
    store.close()
    for _ in range(2):  # the first refusal let go of the lock
        with pytest.raises(UnknownStoreFormat, match="has format 3, this version knows 2"):
            MvccStore.open(tmp_path / "s")


def test_another_database_is_refused(tmp_path: Path) -> None:
    database = Rdict(str(tmp_path / "s"), Options(raw_mode=True))
    database[b"some"] = b"thing"
    database.close()
    with pytest.raises(UnknownStoreFormat, match="not a store of kvstore"):
        MvccStore.open(tmp_path / "s")


async def test_damage_is_told_with_what_to_do(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    await state.apply(*[pb.PutRequest(key=b"%d" % n, value=os.urandom(500)) for n in range(100)])
    await state.store.flush()
    state.close()
    (table,) = (tmp_path / "s").glob("*.sst")
    data = bytearray(table.read_bytes())
    data[2000] ^= 1
    table.write_bytes(data)

    async def read_all() -> None:
        store = MvccStore.open(tmp_path / "s")
        try:
            with store.view() as view:
                for revision in (0, 50):
                    await range_(view, pb.RangeRequest(key=b"\0", range_end=b"\0", revision=revision))
        finally:
            store.close()

    with pytest.raises(StoreDamaged, match="move its data directory away"):
        await read_all()


@pytest.mark.parametrize("what", ["MANIFEST-*", "CURRENT"])
def test_a_lost_or_damaged_file_is_refused(tmp_path: Path, what: str) -> None:
    MvccStore.open(tmp_path / "s").close()
    (path,) = (tmp_path / "s").glob(what)
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(StoreDamaged, match="move its data directory away"):
        MvccStore.open(tmp_path / "s")


async def test_a_view_stays_as_it_was(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    await state.apply(*[pb.PutRequest(key=b"k%d" % n, value=b"1") for n in range(9)])
    await state.put(b"k3", b"2")
    view = state.store.view()
    before = (await range_(view, ALL)).kvs
    old = pb.RangeRequest(key=b"\0", range_end=b"\0", revision=5)
    before_old = (await range_(view, old)).kvs
    await state.put(b"k4", b"3")
    await state.delete(b"k", b"l")
    await state.put(b"z")
    await state.apply(pb.CompactionRequest(revision=state.store.current_revision))
    await Compactor(state.store).run()
    assert (await range_(view, ALL)).kvs == before
    assert (await range_(view, old)).kvs == before_old
    assert view.get_latest(b"k3") == before[3]
    assert view.get_latest(b"z") is None
    assert kv_at(view, b"k3", 5) is not None
    assert kv_at(state.store, b"k3", 5) is None
    view.close()
    state.close()
