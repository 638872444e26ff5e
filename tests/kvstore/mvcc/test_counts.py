"""Counts that are kept: the same numbers as a walk, whatever happened since the walk that they come from."""

import asyncio
import random
from pathlib import Path

import pytest

from kvstore.mvcc import counts, transaction
from kvstore.mvcc.range import range_, range_small
from kvstore.mvcc.store import MvccStore, StoreOptions
from kvstore.pb import rpc_pb2 as pb
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


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "BLOCK_MAX", 8)
    monkeypatch.setattr(counts, "_CHUNK", 4)
    monkeypatch.setattr("kvstore.mvcc.range._CHUNK", 4)
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
