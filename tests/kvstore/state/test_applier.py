"""Apply: duplicates, refusals that leave nothing, who is told what, and what stops a member."""

from pathlib import Path

import pytest

from kvstore import errors
from kvstore.errors import KvError
from kvstore.mvcc import transaction
from kvstore.mvcc.events import read_events
from kvstore.mvcc.range import range_, range_small
from kvstore.mvcc.slices import Budget
from kvstore.mvcc.store import MvccStore, StoreOptions
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.command_pb2 import EntryRecord
from kvstore.state.applier import AppliedResult
from kvstore.state.command import Op, UnknownFormat, UnknownRequest, encode_batch, encode_request
from tests.kvstore.state.support import Entry, State, entry, response, state_hash


async def test_a_request_seen_before_is_dropped(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    put = pb.PutRequest(key=b"k", value=b"1")
    await state.feed([entry(1, 1, [put, put]), entry(2, 2, [put]), entry(3, 1, [put], member=8)])
    # The second of member 7 came again in entry 2; member 8 counts for itself.
    assert state.store.current_revision == 4
    assert state.sinks.answers[1] == AppliedResult(2, b"")
    assert state.sinks.answers[2] == errors.TIMEOUT
    await state.store.flush()
    state.close()
    again = State(tmp_path / "s")
    await again.feed([entry(4, 2, [put]), entry(5, 1, [put], boot=2), entry(6, 9, [put], boot=1)])
    # Known after a restart; a new boot begins anew, and an older boot is over.
    assert again.store.current_revision == 5
    again.close()


async def test_a_refused_txn_leaves_nothing(tmp_path: Path) -> None:
    """S-60b: an error of a late operation is found before the first one is carried out."""
    state = State(tmp_path / "s")
    await state.put(b"a")
    await state.put(b"b")
    await state.apply(pb.CompactionRequest(revision=3))
    before = state_hash(state.store)
    bad: list[tuple[pb.RequestOp, KvError]] = [
        (pb.RequestOp(request_range=pb.RangeRequest(key=b"a", revision=2)), errors.COMPACTED),
        (pb.RequestOp(request_range=pb.RangeRequest(key=b"a", revision=9)), errors.FUTURE_REVISION),
        (pb.RequestOp(request_put=pb.PutRequest(key=b"x", lease=5)), errors.LEASE_NOT_FOUND),
        (pb.RequestOp(request_put=pb.PutRequest(key=b"x", ignore_value=True)), errors.KEY_NOT_FOUND),
        (pb.RequestOp(request_put=pb.PutRequest(key=b"w")), errors.DUPLICATE_KEY),
        (pb.RequestOp(), errors.KEY_NOT_FOUND),
    ]
    for op, error in bad:
        for nested in (False, True):
            txn = pb.TxnRequest()
            txn.success.add().request_put.CopyFrom(pb.PutRequest(key=b"w"))
            txn.success.add().request_delete_range.CopyFrom(pb.DeleteRangeRequest(key=b"a", range_end=b"b"))
            (txn.success.add().request_txn.success if nested else txn.success).add().CopyFrom(op)
            assert await state.apply(txn) == [error]
    assert state.store.current_revision == 3
    latest = range_small(state.store, pb.RangeRequest(key=b"\0", range_end=b"\0"))
    assert latest is not None
    assert latest.count == 2
    await state.put(b"c")
    assert [one.revision for one in state.sinks.revisions] == [2, 3, 4]
    assert state_hash(state.store) != before
    # The branch that is not taken is only checked for what no state could make right.
    txn = pb.TxnRequest(compare=[pb.Compare(key=b"a", target=pb.Compare.VERSION, version=1)])
    txn.failure.add().request_range.CopyFrom(pb.RangeRequest(key=b"a", revision=99))
    assert await state.apply(txn) == [AppliedResult(4, b"\x10\x01")]
    state.close()


@pytest.mark.parametrize(
    ("op", "error"),
    [
        (pb.RequestOp(request_put=pb.PutRequest()), errors.KEY_NOT_PROVIDED),
        (pb.RequestOp(request_put=pb.PutRequest(key=b"b", value=b"1", ignore_value=True)), errors.VALUE_PROVIDED),
        (pb.RequestOp(request_range=pb.RangeRequest(key=b"b", sort_order=9)), errors.INVALID_SORT_OPTION),
        (pb.RequestOp(), errors.KEY_NOT_FOUND),
    ],
)
async def test_the_branch_not_taken_is_checked_in_a_small_txn_too(
    tmp_path: Path, op: pb.RequestOp, error: KvError
) -> None:
    state = State(tmp_path / "s")
    good = pb.RequestOp(request_put=pb.PutRequest(key=b"a", value=b"v"))
    absent = pb.Compare(key=b"a", target=pb.Compare.CREATE, create_revision=0)
    assert await state.apply(pb.TxnRequest(compare=[absent], success=[good], failure=[op])) == [error]
    put = pb.ResponseOp(response_put=pb.PutResponse(header=pb.ResponseHeader(revision=2)))
    done = pb.TxnResponse(succeeded=True, responses=[put]).SerializeToString()
    assert await state.apply(pb.TxnRequest(compare=[absent], success=[good])) == [AppliedResult(2, done)]
    present = pb.Compare(key=b"a", target=pb.Compare.VERSION, version=1)
    assert await state.apply(pb.TxnRequest(compare=[present], success=[op], failure=[good])) == [error]
    assert await state.apply(pb.TxnRequest(compare=[absent], success=[good])) == [AppliedResult(2, b"")]
    state.close()


async def test_a_put_cannot_keep_the_value_of_a_key_that_its_txn_deletes(tmp_path: Path) -> None:
    """Such a txn gets past the rule against duplicate keys when the delete has an open end, and kills an etcd."""
    state = State(tmp_path / "s")
    await state.put(b"b")
    delete = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"a", range_end=b"\0"))
    put = pb.RequestOp(request_put=pb.PutRequest(key=b"b", ignore_value=True))
    nested = pb.RequestOp(request_txn=pb.TxnRequest(success=[put]))
    for later in (put, nested):
        assert await state.apply(pb.TxnRequest(success=[delete, later])) == [errors.KEY_NOT_FOUND]
    assert state.store.current_revision == 2
    (result,) = await state.apply(pb.TxnRequest(success=[put, delete]))  # in this order it has a value to keep
    assert isinstance(result, AppliedResult)
    assert result.revision == 3
    state.close()


async def test_a_txn_sees_its_own_writes_and_what_its_entry_wrote_before(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    txn = pb.TxnRequest(compare=[pb.Compare(key=b"a", target=pb.Compare.VALUE, value=b"1")])
    txn.success.add().request_put.CopyFrom(pb.PutRequest(key=b"b", value=b"2", prev_kv=True))
    txn.success.add().request_range.CopyFrom(pb.RangeRequest(key=b"a", range_end=b"z"))
    txn.success.add().request_range.CopyFrom(pb.RangeRequest(key=b"a", range_end=b"z", revision=2))
    txn.success.add().request_delete_range.CopyFrom(pb.DeleteRangeRequest(key=b"a"))
    nested = txn.success.add().request_txn
    nested.compare.add().CopyFrom(pb.Compare(key=b"a", target=pb.Compare.VERSION, version=1))
    nested.success.add().request_range.CopyFrom(pb.RangeRequest(key=b"a", range_end=b"z", keys_only=True))
    _, result = await state.apply(pb.PutRequest(key=b"a", value=b"1"), txn)
    answer = response(txn, result)
    assert isinstance(answer, pb.TxnResponse)
    assert answer.succeeded
    ops = answer.responses
    assert [kv.key for kv in ops[1].response_range.kvs] == [b"a", b"b"]
    assert [kv.key for kv in ops[2].response_range.kvs] == [b"a"]  # revision 2 is of this very entry
    assert ops[3].response_delete_range.deleted == 1
    # The nested compare was made on the state before the txn; its range sees the delete.
    assert ops[4].response_txn.succeeded
    assert [kv.key for kv in ops[4].response_txn.responses[0].response_range.kvs] == [b"b"]
    assert [op.response_range.header.revision for op in ops[1:3]] == [3, 3]
    assert ops[0].response_put.header.revision == 3
    assert ops[4].response_txn.HasField("header")
    assert answer.header.revision == state.store.current_revision == 3
    assert [event.is_delete for event in state.sinks.revisions[1].events] == [False, True]
    state.close()


async def test_what_this_version_does_not_know_stops_it(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    await state.put(b"a")
    good = entry(2, 2, [pb.PutRequest(key=b"b")])
    for data, error in [(b"\x08\x02", UnknownFormat), (b"\x08\x01\x1a\x03\xba\x06\x00", UnknownRequest)]:
        with pytest.raises(error, match="upgrade this member"):
            await state.feed([good, Entry(3, data)])
        assert state.store.applied_index == 1
    state.close()


async def test_a_record_tells_about_every_revision_of_its_entry(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    raw = pb.PutRequest(key=b"k").SerializeToString()
    requests = [
        encode_request(Op.PUT, raw, 7, 1, 1, "ann", 0, "id-1"),
        encode_request(Op.DELETE_RANGE, pb.DeleteRangeRequest(key=b"none").SerializeToString(), 7, 1, 2),
        encode_request(Op.PUT, raw, 8, 1, 1),
    ]
    await state.feed([Entry(1, encode_batch(5000, requests), term=3), Entry(2, encode_batch(4000, []), term=4)])
    ((row, record),) = state.store.scan(b"r", b"s").rows(9)
    assert row == b"r" + (3).to_bytes(8, "big")
    found = EntryRecord.FromString(record)
    assert (found.index, found.term, found.time) == (1, 3, 5000)
    assert [(one.revision, one.sub, one.member, one.user, one.request_id) for one in found.origins] == [
        (2, 0, 7, "ann", "id-1"),
        (3, 2, 8, "", ""),
    ]
    assert state.store.last_entry_time == 5000  # time never goes back
    assert (state.store.applied_index, state.store.applied_term) == (2, 4)
    state.close()


class Order:
    """Sinks that check what they are told against what is visible."""

    def __init__(self, store: MvccStore) -> None:
        self.store = store
        self.calls: list[str] = []

    def members(self) -> None:
        pass

    def events(self, batch: object) -> None:
        assert self.store.current_revision == 2
        self.calls.append("events")

    def results(self, results: object) -> None:
        self.calls.append("results")

    def applied(self, index: int, term: int) -> None:
        assert index == self.store.applied_index
        self.calls.append("applied")


async def test_sinks_are_told_in_order_and_after_the_batch_is_visible(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    order = Order(state.store)
    state.applier._sinks = order
    await state.feed([entry(1, 1, [pb.PutRequest(key=b"k")]), Entry(2, b"", kind=1)])
    await state.feed([Entry(3, b"", kind=1)])
    assert order.calls == ["events", "results", "applied", "applied"]
    state.close()


@pytest.mark.parametrize("in_txn", [False, True])
async def test_readers_never_see_half_of_a_big_delete(
    tmp_path: Path, in_txn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "BIG_DELETE", 100)
    monkeypatch.setattr(transaction, "SPILL_BYTES", 1000)
    monkeypatch.setattr(transaction, "_CHUNK", 32)
    ticks = iter(range(10**9))
    state = State(tmp_path / "s", options=StoreOptions(clock=lambda: next(ticks), slice_ns=1))
    everything = pb.RangeRequest(key=b"k", range_end=b"l", count_only=True)
    await state.apply(*[pb.PutRequest(key=b"k%03d" % n, value=b"v") for n in range(500)])
    seen: list[tuple[int, int]] = []
    real = Budget.pause

    async def pause(budget: Budget) -> None:
        monkeypatch.setattr(Budget, "pause", real)  # the reader's own pauses read nothing
        with state.store.view() as view:
            old = pb.RangeRequest(key=b"k", range_end=b"l", count_only=True, revision=view.current_revision)
            latest, pinned = await range_(view, everything), await range_(view, old)
            assert latest.count == pinned.count
            seen.append((view.current_revision, latest.count))
            assert await read_events(view, view.current_revision + 1, 1 << 40) == []
        monkeypatch.setattr(Budget, "pause", pause)
        await real(budget)

    delete = pb.DeleteRangeRequest(key=b"k", range_end=b"l")
    txn = pb.TxnRequest()
    txn.success.add().request_put.CopyFrom(pb.PutRequest(key=b"a"))
    txn.success.add().request_delete_range.CopyFrom(delete)
    txn.success.add().request_range.CopyFrom(everything)
    monkeypatch.setattr(Budget, "pause", pause)
    (result,) = await state.apply(txn if in_txn else delete)
    monkeypatch.setattr(Budget, "pause", real)
    assert len(seen) > 20
    assert set(seen) == {(501, 500)}
    with state.store.view() as view:
        assert (await range_(view, everything)).count == 0
    assert state.store.current_revision == 502
    if in_txn:
        answer = response(txn, result)
        assert isinstance(answer, pb.TxnResponse)
        assert answer.responses[1].response_delete_range.deleted == 500
        assert answer.responses[2].response_range.count == 0
    # Its events are not handed over, but read back.
    assert state.sinks.revisions[-1].stored
    assert state.sinks.revisions[-1].events == []
    (read,) = await read_events(state.store, 502, 502)
    assert len(read.events) == 501 if in_txn else 500
    state.close()


async def test_a_put_without_options_takes_a_short_way_to_the_same_state(tmp_path: Path) -> None:
    """An option that changes nothing, prev_kv, leads the same puts along the general way."""
    states = [State(tmp_path / "short"), State(tmp_path / "general")]
    for state, prev_kv in zip(states, (False, True), strict=True):
        await state.apply(pb.LeaseGrantRequest(ID=5, TTL=60), pb.PutRequest(key=b"a\0b", value=b"1", lease=5))
        delete = pb.DeleteRangeRequest(key=b"c")
        ranged = pb.TxnRequest()  # a range of the group: what is put behind it must be in order for the next one
        ranged.success.add().request_range.CopyFrom(pb.RangeRequest(key=b"a", range_end=b"z"))
        puts = [pb.PutRequest(key=key, value=key * 70, prev_kv=prev_kv) for key in (b"c", b"a\0b", b"d" * 200, b"c")]
        requests = [*puts, delete, pb.PutRequest(key=b"c", prev_kv=prev_kv), ranged, *puts, ranged]
        results = await state.apply(*requests)
        answer = response(ranged, results[-1])
        assert isinstance(answer, pb.TxnResponse)
        assert [kv.version for kv in answer.responses[0].response_range.kvs] == [3, 3, 2]
        assert [getattr(result, "revision", None) for result in results] == [3, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12, 12]
    short, general = states
    assert state_hash(short.store) == state_hash(general.store)
    assert short.sinks.revisions == general.sinks.revisions
    before = [[event.prev for event in one.events] for one in general.sinks.revisions]
    assert [[event.prev for event in one.events] for one in short.sinks.revisions] == before
    for state in states:
        state.close()
