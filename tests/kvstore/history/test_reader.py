"""History joins events with who, when and why, over compaction points."""

from pathlib import Path

import pytest

from kvstore.history import reader as reader_module
from kvstore.history.reader import read_history
from kvstore.mvcc.compaction import Compactor
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.history_pb2 import Change, ReadHistoryRequest
from kvstore.state.command import Op, encode_batch, encode_request
from tests.kvstore.state.support import Entry, State


async def read(state: State, **fields: object) -> list[Change]:
    request = ReadHistoryRequest(key=b"\0", range_end=b"\0")
    for name, value in fields.items():
        setattr(request, name, value)
    found: list[Change] = []
    with state.store.view() as view:
        async for changes in read_history(view, request):
            assert changes
            found += changes
    return found


async def test_history_tells_every_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "ANSWER_CHANGES", 2)
    monkeypatch.setattr(reader_module, "_CHUNK", 2)
    state = State(tmp_path / "s")
    sequence = 0
    for index in range(1, 6):
        requests = []
        for at in range(3):
            sequence += 1
            raw = pb.PutRequest(key=b"k%d" % at, value=b"%d" % index).SerializeToString()
            requests.append(encode_request(Op.PUT, raw, 7, 1, sequence, "ann", 0, f"r{sequence}"))
        await state.feed([Entry(index, encode_batch(index * 100, requests), term=index)])
    state.sequence = sequence
    deleted = await state.delete(b"k", b"l")
    everything = await read(state)
    await state.apply(pb.CompactionRequest(revision=deleted))
    await Compactor(state.store).run()
    assert await read(state) == everything
    assert len(everything) == 18
    fourth = everything[3]
    assert (fourth.event.kv.key, fourth.event.kv.mod_revision) == (b"k0", 5)
    assert (fourth.index, fourth.term, fourth.time, fourth.member) == (2, 2, 200, 7)
    assert (fourth.user, fourth.request_id) == ("ann", "r4")
    assert [change.event.type for change in everything[-3:]] == [1, 1, 1]
    assert {change.event.kv.mod_revision for change in everything[-3:]} == {deleted}
    assert await read(state, from_revision=5, to_revision=7) == everything[3:6]
    assert await read(state, from_revision=5, limit=5) == everything[3:8]
    assert await read(state, key=b"k1", range_end=b"") == [one for one in everything if one.event.kv.key == b"k1"]
    assert await read(state, from_revision=99) == []
    state.close()
