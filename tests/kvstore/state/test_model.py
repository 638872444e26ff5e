"""The store against the model: random writes in random entries, every answer, event and old revision compared."""

from pathlib import Path
from random import Random

import pytest

from kvstore.errors import KvError
from kvstore.mvcc.compaction import Compactor
from kvstore.mvcc.encoding import range_body
from kvstore.mvcc.events import prev_kv, read_events
from kvstore.mvcc.range import range_, range_small
from kvstore.pb import kv_pb2
from kvstore.pb import rpc_pb2 as pb
from tests.kvstore.state import workload
from tests.kvstore.state.model import Model
from tests.kvstore.state.support import State, response

SEEDS = range(6)


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


async def compare_events(state: State, model: Model) -> None:
    read = await read_events(state.store, 0, 1 << 60)
    assert read == state.sinks.revisions
    parsed = {one.revision: [kv_pb2.Event.FromString(event.event) for event in one.events] for one in read}
    assert parsed == model.events
    for revision in state.sinks.revisions:
        for at, event in enumerate(revision.events):
            if any(earlier.key == event.key for earlier in revision.events[:at]):
                continue  # changed twice in one revision: prev is the change before, prev_kv the revision before
            before = model.past[revision.revision - 1].get(event.key)
            assert event.prev == (before and before.SerializeToString())
            hidden = revision.revision - 1 < model.compacted
            assert prev_kv(state.store, event.key, revision.revision) == (None if hidden else event.prev)


@pytest.mark.parametrize("seed", SEEDS)
async def test_random_requests_answer_as_the_model_does(tmp_path: Path, seed: int) -> None:
    rng = Random(seed)
    state, model = State(tmp_path / "s"), Model()
    compactor = Compactor(state.store)
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
    await compare_events(state, model)
    for at in range(max(model.compacted, 1), model.revision + 1):
        await compare_range(state, model, pb.RangeRequest(key=b"\0", range_end=b"\0", revision=at))
    state.close()
