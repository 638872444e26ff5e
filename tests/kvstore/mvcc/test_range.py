"""Range where the model does not look: the small way and the sliced way agree, and large values stay in bounds."""

from pathlib import Path

import pytest

from kvstore import errors
from kvstore.errors import KvError
from kvstore.mvcc.range import SMALL_ROWS, range_, range_small
from kvstore.pb import kv_pb2
from kvstore.pb import rpc_pb2 as pb
from tests.kvstore.state.support import State


async def test_many_keys_sorted_limited_and_old(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    values = [b"%04d" % (n * 7919 % 5000) for n in range(5000)]
    for at in range(0, 5000, 500):
        puts = [pb.PutRequest(key=b"k%04d" % n, value=values[n]) for n in range(at, at + 500)]
        await state.apply(*puts)
    everything = {"key": b"k", "range_end": b"l"}
    with state.store.view() as view:
        by_value = pb.RangeRequest(**everything, sort_target=pb.RangeRequest.VALUE)  # type: ignore[arg-type]
        found = await range_(view, by_value)
        assert [kv_pb2.KeyValue.FromString(kv).value for kv in found.kvs] == sorted(values)
        by_value.sort_order, by_value.limit = pb.RangeRequest.DESCEND, 3
        found = await range_(view, by_value)
        assert [kv_pb2.KeyValue.FromString(kv).value for kv in found.kvs] == [b"4999", b"4998", b"4997"]
        assert (found.count, found.more) == (5000, True)
        by_value.limit = 5000
        assert not (await range_(view, by_value)).more
        for revision in (0, 2501):
            limited = pb.RangeRequest(**everything, limit=300, revision=revision)  # type: ignore[arg-type]
            found = await range_(view, limited)
            assert [kv_pb2.KeyValue.FromString(kv).key for kv in found.kvs] == [b"k%04d" % n for n in range(300)]
            assert (found.count, found.more) == (5000 if not revision else 2500, True)
    state.close()


async def test_what_is_small_is_answered_at_once(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    await state.apply(*[pb.PutRequest(key=b"k%03d" % n, value=b"v") for n in range(SMALL_ROWS + 50)])
    assert range_small(state.store, pb.RangeRequest(key=b"k", range_end=b"l")) is None
    assert range_small(state.store, pb.RangeRequest(key=b"k", revision=2)) is None
    small = range_small(state.store, pb.RangeRequest(key=b"k1", range_end=b"k2", limit=5, keys_only=True))
    assert small is not None
    assert (len(small.kvs), small.count, small.more) == (5, 78, True)
    assert not kv_pb2.KeyValue.FromString(small.kvs[0]).value
    # A few large values are not small.
    await state.apply(*[pb.PutRequest(key=b"x%d" % n, value=bytes(200_000)) for n in range(4)])
    large = pb.RangeRequest(key=b"x", range_end=b"y")
    assert range_small(state.store, large) is None
    for revision in (0, state.store.current_revision - 1):
        large.revision = revision
        with state.store.view() as view:
            assert (await range_(view, large)).count == (3 if revision else 4)
    state.close()


async def test_revisions_that_cannot_be_read(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    for n in range(5):
        await state.put(b"k", b"%d" % n)
    assert await state.apply(pb.CompactionRequest(revision=7)) == [errors.FUTURE_REVISION]
    await state.apply(pb.CompactionRequest(revision=4))
    assert await state.apply(pb.CompactionRequest(revision=4)) == [errors.COMPACTED]
    with state.store.view() as view:
        for revision, error in [(3, errors.COMPACTED), (7, errors.FUTURE_REVISION)]:
            with pytest.raises(KvError) as caught:
                await range_(view, pb.RangeRequest(key=b"k", revision=revision))
            assert caught.value == error
        for revision, value in [(4, b"2"), (5, b"3"), (6, b"4"), (0, b"4"), (-5, b"4")]:
            found = await range_(view, pb.RangeRequest(key=b"k", revision=revision))
            assert kv_pb2.KeyValue.FromString(found.kvs[0]).value == value
        # An interval that ends before it begins is empty, not wrong.
        assert (await range_(view, pb.RangeRequest(key=b"k", range_end=b"a"))).count == 0
    state.close()
