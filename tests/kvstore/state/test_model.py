"""The store against the model: random writes in random entries, every answer, event and old revision compared."""

from pathlib import Path
from random import Random

import pytest

from kvstore.errors import KvError
from kvstore.mvcc import schema, transaction
from kvstore.mvcc.compaction import Compactor
from kvstore.mvcc.encoding import range_body
from kvstore.mvcc.events import prev_kv, read_events
from kvstore.mvcc.leases import LeaseSweeper, keys_of, read_leases
from kvstore.mvcc.range import range_, range_small
from kvstore.mvcc.store import StoreOptions
from kvstore.pb import kv_pb2
from kvstore.pb import rpc_pb2 as pb
from tests.kvstore.state import workload
from tests.kvstore.state.model import Model
from tests.kvstore.state.support import State, response

SEEDS = range(6)
SMALL = 1  # keys: above it a delete is a big one


def expected(model: Model, request: object) -> object:
    try:
        return model.apply(request)
    except KvError as error:
        return error


async def compare_range(state: State, model: Model, request: pb.RangeRequest) -> None:
    try:
        want: object = model.range(request)
    except KvError as error:
        want = error
    with state.store.view() as view:
        if isinstance(want, KvError):
            with pytest.raises(KvError) as caught:
                await range_(view, request)
            assert caught.value == want
            return
        found = await range_(view, request)
    small = range_small(state.store, request)
    for result in (found, small) if small is not None else (found,):
        got = pb.RangeResponse.FromString(range_body(result.kvs, result.count, result.more))
        got.header.revision = state.store.current_revision
        assert got == want, request


async def compare_leases(state: State, model: Model) -> None:
    with state.store.view() as view:
        found = {lease: row.ttl async for rows in read_leases(view) for lease, row in rows}
        assert found == model.leases
        for lease in workload.LEASES:
            assert await keys_of(view, lease) == model.keys_of(lease)
            assert view.has_lease(lease) == (lease in model.leases)


async def compare_events(state: State, model: Model, handed_over: bool) -> None:
    read = await read_events(state.store, 0, 1 << 60)
    if handed_over:
        assert read == state.sinks.revisions
    parsed = {one.revision: [kv_pb2.Event.FromString(event.event) for event in one.events] for one in read}
    assert parsed == model.events
    for revision in read if not handed_over else state.sinks.revisions:
        for at, event in enumerate(revision.events):
            if any(earlier.key == event.key for earlier in revision.events[:at]):
                continue  # changed twice in one revision: prev is the change before, prev_kv the revision before
            before = model.past[revision.revision - 1].get(event.key)
            assert event.prev == (before and before.SerializeToString()) or not handed_over
            hidden = revision.revision - 1 < model.compacted
            known = None if hidden or before is None else before.SerializeToString()
            assert prev_kv(state.store, event.key, revision.revision) == known


@pytest.mark.parametrize("big", [False, True], ids=["", "big"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_random_requests_answer_as_the_model_does(
    tmp_path: Path, seed: int, big: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """big: all deletes and revokes go the way of those of a million keys, all values that of large ones."""
    if big:
        monkeypatch.setattr(transaction, "BIG_DELETE", SMALL)
    rng = Random(seed)
    options = StoreOptions(large_bytes=1 if big else schema.LARGE_BYTES)
    state, model = State(tmp_path / "s", options=options), Model()
    compactor, sweeper = Compactor(state.store), LeaseSweeper(state.store)
    swept = 0
    for _ in range(150):
        requests = []
        wants = []
        for _ in range(rng.choice([1, 1, 2, 5, 20])):
            requests.append(workload.a_write(rng, model.revision, model.compacted))
            wants.append(expected(model, requests[-1]))
        results = await state.apply(*requests)
        for request, want, result in zip(requests, wants, results, strict=True):
            if isinstance(result, KvError) or isinstance(want, KvError):
                assert result == want, request
            else:
                assert response(request, result) == want, request
        assert state.store.current_revision == model.revision
        assert state.store.compact_revision == model.compacted
        for _ in range(5):
            await compare_range(state, model, workload.a_range(rng, model.revision))
        if compactor.pending and rng.random() < 0.5:
            await compactor.run()
        await compare_leases(state, model)
        if sweeper.pending and rng.random() < 0.2:
            swept += 1
            await sweeper.run()
            assert not state.store.ended
    assert bool(swept) == big
    await compare_events(state, model, not big)
    for at in range(max(model.compacted, 1), model.revision + 1):
        await compare_range(state, model, pb.RangeRequest(key=b"\0", range_end=b"\0", revision=at))
    state.close()
