"""Large values stand in their event only; the row of `latest` says in which. Nobody who reads notices."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kvstore.mvcc import schema
from kvstore.mvcc.engine import Engine
from kvstore.mvcc.hash import damaged_key
from kvstore.mvcc.range import range_
from kvstore.mvcc.store import MvccStore, Reader, StoreDamaged, StoreOptions
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.kv_pb2 import KeyValue
from tests.kvstore.state.support import State, live_bytes

SIZE = 20_000
ALL = pb.RangeRequest(key=b"\0", range_end=b"\0")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "s")
    yield state
    state.close()


def value_of(reader: Reader, key: bytes) -> bytes | None:
    kv = reader.get_latest(key)
    return None if kv is None else KeyValue.FromString(kv).value


def raw(store: MvccStore, key: bytes) -> bytes | None:
    return store.engine.get(schema.LATEST + key)


def put(key: bytes, value: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value))


async def test_a_large_value_is_found_through_its_event(state: State) -> None:
    store, large = state.store, bytes(range(256)) * 100
    revision = await state.put(b"k", large)
    await state.apply(pb.TxnRequest(success=[put(b"other", b"1"), put(b"second", large)]))
    assert raw(store, b"k") == schema.event_row(revision, 0)
    assert raw(store, b"second") == schema.event_row(revision + 1, 1)
    assert value_of(store, b"k") == value_of(store, b"second") == large
    assert store.live.keys == live_bytes(store) > 2 * len(large)
    with store.view() as view:
        assert [KeyValue.FromString(kv).value for kv in (await range_(view, ALL)).kvs] == [large, b"1", large]
        assert await damaged_key(view) is None


@pytest.mark.parametrize("together", [False, True])
async def test_from_large_to_small_and_back_and_gone(state: State, together: bool) -> None:
    steps = [b"s", bytes(SIZE), b"t", bytes(SIZE + 1), bytes(SIZE + 2), None, bytes(SIZE + 3)]
    requests = [
        pb.DeleteRangeRequest(key=b"k") if value is None else pb.PutRequest(key=b"k", value=value) for value in steps
    ]
    if together:  # one group: the last one counts
        await state.apply(*requests)
        assert value_of(state.store, b"k") == steps[-1]
        return
    for request, value in zip(requests, steps, strict=True):
        await state.apply(request)
        assert value_of(state.store, b"k") == value
        assert state.store.live.keys == live_bytes(state.store)


async def test_a_view_goes_on_seeing_what_was_overwritten_and_deleted(state: State) -> None:
    await state.put(b"a", bytes(SIZE))
    await state.put(b"b", bytes(SIZE))
    with state.store.view() as view:
        await state.put(b"a", b"small")
        await state.delete(b"b")
        await state.apply(pb.CompactionRequest(revision=state.store.current_revision))
        await state.store.flush()
        assert value_of(view, b"a") == value_of(view, b"b") == bytes(SIZE)
    assert value_of(state.store, b"a") == b"small"


async def test_chunks_of_a_scan_stay_small(state: State) -> None:
    for at in range(40):
        await state.put(b"k%02d" % at, bytes(64 << 10))
    scan, sizes = state.store.scan(*schema.latest_rows(b"", None)), []
    while rows := scan.rows(1000):
        sizes.append(len(rows))
    assert sum(sizes) == 40
    assert max(sizes) <= 5
    assert len(state.store.scan(*schema.latest_rows(b"", None)).keys(1000)) == 40


async def test_a_missing_event_is_damage(state: State) -> None:
    revision = await state.put(b"k", bytes(SIZE))
    batch = state.store.engine.batch()
    batch.delete(schema.event_row(revision, 0))
    state.store.write(batch)
    with pytest.raises(StoreDamaged, match="event is gone"):
        state.store.get_latest(b"k")
    with pytest.raises(StoreDamaged, match="event is gone"):
        state.store.scan(*schema.latest_rows(b"", None)).rows(1)


def format_of(store: MvccStore) -> bytes | None:
    return store.engine.get(schema.META_FORMAT)


async def test_a_store_of_format_1_is_read_and_becomes_one_of_2_by_its_first_large_value(tmp_path: Path) -> None:
    """In 1, rows of `latest` held every KeyValue."""
    path, one, two = tmp_path / "s", schema.pack_u64(1), schema.pack_u64(2)
    old = State(path, options=StoreOptions(large_bytes=1 << 30))
    await old.put(b"k", bytes(SIZE))
    await old.store.flush()
    assert format_of(old.store) == one
    old.close()
    looked_at = MvccStore.open(path, StoreOptions(engine=partial(Engine, read_only=True)))
    assert value_of(looked_at, b"k") == bytes(SIZE)
    looked_at.close()
    state = State(path)
    state.sequence = 100
    await state.put(b"small", b"1")
    assert format_of(state.store) == one
    assert len(raw(state.store, b"k") or b"") > SIZE
    assert value_of(state.store, b"k") == bytes(SIZE)
    await state.put(b"k", bytes(SIZE))
    assert raw(state.store, b"k") == schema.event_row(4, 0)
    assert format_of(state.store) == two
    async with state.store.engine.merging():
        assert format_of(state.store) == two
    await state.delete(b"k")  # its event stays
    await state.store.flush()
    state.close()
    again = MvccStore.open(path)
    assert format_of(again) == two
    again.close()
