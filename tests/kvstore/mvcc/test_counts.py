"""Counts that are kept: the same numbers as a walk, whatever happened since the walk that they come from."""

import asyncio
import random
from pathlib import Path

import pytest

from kvstore.mvcc import counts, transaction
from kvstore.mvcc.range import range_, range_small
from kvstore.mvcc.store import MvccStore, StoreOptions
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.kv_pb2 import KeyValue
from tests.kvstore.state.support import State

ALL = pb.RangeRequest(key=b"\0", range_end=b"\0", count_only=True)


async def count(store: MvccStore, request: pb.RangeRequest) -> int:
    with store.view() as view:
        return (await range_(view, request)).count


def walked(store: MvccStore, request: pb.RangeRequest) -> int:
    high = None if request.range_end == b"\0" else request.range_end
    scan = store.scan_latest(request.key, high)
    found = 0
    while not scan.done:
        found += scan.count(1000)
    return found


async def check_page(store: MvccStore, request: pb.RangeRequest) -> None:
    """Both ways to answer it say the same."""
    keys = [row[1:] for row, _ in store.scan_latest(request.key, None).rows(1000)]
    with store.view() as view:
        answers = [range_small(store, request), await range_(view, request)]
    for found in answers:
        if found is not None:
            assert [KeyValue.FromString(kv).key for kv in found.kvs] == keys[: request.limit]
            assert (found.count, found.more) == (len(keys), len(keys) > request.limit)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "BLOCK_MAX", 8)
    monkeypatch.setattr(counts, "_CHUNK", 4)
    monkeypatch.setattr("kvstore.mvcc.range._CHUNK", 4)
    monkeypatch.setattr("kvstore.mvcc.range.SMALL_ROWS", 4)
    monkeypatch.setattr(transaction, "BIG_DELETE", 25)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("seed", range(8))
async def test_kept_counts_are_those_of_a_walk(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    state = State(tmp_path / "s", options=StoreOptions(count_walked_min=10))
    kept = 0

    def key() -> bytes:
        return b"%c%03d" % (rng.choice(b"abc"), rng.randrange(100))

    for step in range(150):
        requests = [pb.PutRequest(key=key()) for _ in range(rng.randrange(12))]
        requests += [pb.DeleteRangeRequest(key=key()) for _ in range(rng.randrange(12))]
        if rng.random() < 0.1:
            low = key()
            requests.append(pb.DeleteRangeRequest(key=low, range_end=low[:2] + b"\xff"))
        if rng.random() < 0.03:
            requests.append(pb.DeleteRangeRequest(key=b"b", range_end=b"c"))
        if rng.random() < 0.05:
            requests.append(pb.LeaseGrantRequest(ID=step + 1, TTL=9))
            requests += [pb.PutRequest(key=key(), lease=step + 1) for _ in range(30)]
            requests.append(pb.LeaseRevokeRequest(ID=step + 1))
        rng.shuffle(requests)
        await state.apply(*requests)
        if rng.random() < 0.3:
            low = rng.choice([b"\0", b"b", key()])
            await count(state.store, pb.RangeRequest(key=low, range_end=b"\0", count_only=True))
        low, high = sorted((key(), key()))
        for request in (ALL, pb.RangeRequest(key=low, range_end=high + b"\0", count_only=True)):
            known = state.store.count_latest(request.key, None if request is ALL else request.range_end)
            kept += known is not None
            assert known in {None, walked(state.store, request)}
            assert await count(state.store, request) == walked(state.store, request)
        await check_page(state.store, pb.RangeRequest(key=low, range_end=b"\0", limit=(1, 3, 200)[step % 3]))
    assert kept > 5
    state.close()


@pytest.mark.usefixtures("small_blocks")
async def test_commits_during_the_walk_are_counted_after_it(tmp_path: Path) -> None:
    ticks = iter(range(10**9))
    options = StoreOptions(count_walked_min=10, clock=lambda: next(ticks), slice_ns=1)  # pauses whenever it can
    state = State(tmp_path / "s", options=options)
    await state.apply(*[pb.PutRequest(key=b"k%02d" % one) for one in range(50)])
    with state.store.view() as view:
        walk = asyncio.create_task(range_(view, ALL))
        await asyncio.sleep(0)
        assert not walk.done()
        await state.apply(pb.PutRequest(key=b"a"), pb.PutRequest(key=b"k0"), pb.DeleteRangeRequest(key=b"k49"))
        assert state.store.count_latest(b"\0", None) is None
        await state.apply(pb.PutRequest(key=b"z"))
        assert not walk.done()
        assert (await walk).count == 50  # the moment of the view
    assert state.store.count_latest(b"\0", None) == 52
    assert state.store.count_latest(b"k", b"l") == 50
    small = range_small(state.store, ALL)
    assert small is not None
    assert small.count == 52
    limited = pb.RangeRequest(key=b"\0", range_end=b"\0", limit=3)
    with state.store.view() as view:
        found = await range_(view, limited)
    assert (found.count, len(found.kvs), found.more) == (52, 3, True)
    state.close()


@pytest.mark.usefixtures("small_blocks")
async def test_a_walk_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    ticks = iter(range(10**9))
    state = State(tmp_path / "s", options=StoreOptions(count_walked_min=10, clock=lambda: next(ticks), slice_ns=1))
    await state.apply(*[pb.PutRequest(key=b"k%02d" % one) for one in range(50)])
    with state.store.view() as view:
        walk = range_(view, ALL)
        next(walk.__await__())
        walk.close()
    assert state.store.count_latest(b"\0", None) is None
    assert await count(state.store, ALL) == 50
    assert state.store.count_latest(b"\0", None) == 50
    state.close()


@pytest.mark.usefixtures("small_blocks")
async def test_a_listing_walks_once(tmp_path: Path) -> None:
    """Page after page says how many keys there are; after the first one all are answered at once."""
    state = State(tmp_path / "s", options=StoreOptions(count_walked_min=10))
    await state.apply(*[pb.PutRequest(key=b"k%02d" % one) for one in range(50)])
    few = range_small(state.store, pb.RangeRequest(key=b"k46", range_end=b"l", limit=1))
    assert few is not None
    assert (len(few.kvs), few.count, few.more) == (1, 4, True)
    first = pb.RangeRequest(key=b"k", range_end=b"l", limit=3)
    assert range_small(state.store, first) is None
    with state.store.view() as view:
        found = await range_(view, first)
    assert (len(found.kvs), found.count, found.more) == (3, 50, True)
    await state.apply(pb.PutRequest(key=b"k001"), pb.PutRequest(key=b"k500"))
    for at, left in (b"k02\0", 48), (b"k46", 5), (b"k48", 3):
        page = range_small(state.store, pb.RangeRequest(key=at, range_end=b"l", limit=3))
        assert page is not None
        assert (len(page.kvs), page.count, page.more) == (3, left, left > 3)
    state.close()


@pytest.mark.usefixtures("small_blocks")
async def test_counts_of_a_few_intervals_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.mvcc.store.COUNTS_MAX", 2)
    state = State(tmp_path / "s", options=StoreOptions(count_walked_min=10))
    store = state.store
    await state.apply(*[pb.PutRequest(key=b"%c%02d" % (one, two)) for one in b"abc" for two in range(20)])

    def kept() -> list[int | None]:
        return [store.count_latest(low, high) for low, high in ((b"a", b"b"), (b"b", b"c"), (b"c", b"d"))]

    for low in b"ab":
        await count(store, pb.RangeRequest(key=bytes([low]), range_end=bytes([low + 1]), count_only=True))
    assert kept() == [20, 20, None]
    await state.apply(pb.PutRequest(key=b"a"), pb.DeleteRangeRequest(key=b"b07"))
    assert kept() == [21, 19, None]
    await count(store, pb.RangeRequest(key=b"c", range_end=b"d", count_only=True))
    assert kept() == [None, 19, 20]
    await count(store, pb.RangeRequest(key=b"a", range_end=b"c", count_only=True))  # holds that of b
    assert kept() == [21, 19, 20]
    state.close()
