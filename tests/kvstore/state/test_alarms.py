"""Alarms in apply: etcd's answers, what each refuses, and that no member's own quota has a say (S-60a)."""

from pathlib import Path

import pytest

from kvstore import errors
from kvstore.errors import KvError
from kvstore.mvcc import schema
from kvstore.mvcc.store import MvccStore
from kvstore.pb import rpc_pb2 as pb
from kvstore.state.alarms import UNKNOWN_ALARM, read_alarms
from kvstore.state.applier import AppliedResult, Result
from kvstore.state.quota import put_cost, txn_cost
from tests.kvstore.state.support import State, entry, response, state_hash

GET, ACTIVATE, DEACTIVATE = pb.AlarmRequest.GET, pb.AlarmRequest.ACTIVATE, pb.AlarmRequest.DEACTIVATE
NONE, NOSPACE, CORRUPT = pb.AlarmType.NONE, pb.AlarmType.NOSPACE, pb.AlarmType.CORRUPT
Members = list[tuple[int, int]]


def alarm(action: int, member: int = 0, kind: int = NOSPACE) -> pb.AlarmRequest:
    return pb.AlarmRequest(action=action, memberID=member, alarm=kind)  # type: ignore[arg-type]


def put_op(key: bytes = b"a", **options: int) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, **options))  # type: ignore[arg-type]


def delete_op(key: bytes = b"a") -> pb.RequestOp:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))


NESTED = pb.RequestOp(request_txn=pb.TxnRequest(failure=[put_op()]))
COSTLY: list[pb.PutRequest | pb.TxnRequest | pb.LeaseGrantRequest] = [
    pb.PutRequest(key=b"a"),
    pb.PutRequest(key=b"a", lease=99),  # before the lease is looked for
    pb.TxnRequest(success=[put_op()]),
    pb.TxnRequest(failure=[put_op()]),  # whichever branch is taken
    pb.TxnRequest(success=[NESTED]),
    pb.LeaseGrantRequest(TTL=10, ID=5),
]
FREE = [
    pb.DeleteRangeRequest(key=b"a"),
    pb.TxnRequest(success=[delete_op()]),
    pb.CompactionRequest(revision=2),
]


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "s")


def alarms_of(request: pb.AlarmRequest, result: Result) -> Members:
    answer = response(request, result)
    assert isinstance(answer, pb.AlarmResponse)
    return [(one.memberID, one.alarm) for one in answer.alarms]


async def ask(state: State, request: pb.AlarmRequest) -> Members:
    (result,) = await state.apply(request)
    return alarms_of(request, result)


async def test_answers_are_those_of_etcd(state: State) -> None:
    """Each line was asked of an etcd 3.5.1 first."""
    steps: list[tuple[pb.AlarmRequest, Members]] = [
        (alarm(GET, kind=NONE), []),
        (alarm(ACTIVATE, 5, NONE), []),
        (alarm(ACTIVATE), [(0, NOSPACE)]),  # a member of 0 is a member like any other
        (alarm(ACTIVATE), [(0, NOSPACE)]),
        (alarm(ACTIVATE, 5), [(5, NOSPACE)]),
        (alarm(GET, kind=NONE), [(0, NOSPACE), (5, NOSPACE)]),
        (alarm(GET, 5, NONE), [(0, NOSPACE), (5, NOSPACE)]),
        (alarm(GET, kind=CORRUPT), []),
        (alarm(DEACTIVATE, 0, NONE), []),
        (alarm(DEACTIVATE, 5, NONE), []),
        (alarm(DEACTIVATE, 9), []),
        (alarm(DEACTIVATE, 5, CORRUPT), []),
        (alarm(DEACTIVATE), [(0, NOSPACE)]),
        (alarm(ACTIVATE, 2**64 - 1, CORRUPT), [(2**64 - 1, CORRUPT)]),
        (alarm(GET, kind=NONE), [(5, NOSPACE), (2**64 - 1, CORRUPT)]),
        (alarm(DEACTIVATE, 5), [(5, NOSPACE)]),
        (alarm(DEACTIVATE, 5), []),
    ]
    for request, expected in steps:
        assert await ask(state, request) == expected, request
    for bad in (alarm(7), alarm(ACTIVATE, 1, 7), alarm(DEACTIVATE, 1, -1)):
        assert await state.apply(bad) == [UNKNOWN_ALARM]
    assert state.store.current_revision == 1
    state.close()


@pytest.mark.parametrize("kind", [NOSPACE, CORRUPT])
async def test_what_an_alarm_refuses(state: State, kind: int) -> None:
    await state.put(b"a")
    refusal = errors.NO_SPACE if kind == NOSPACE else errors.CORRUPT
    await state.apply(alarm(ACTIVATE, 3, kind))
    before = state_hash(state.store)
    for costly in COSTLY:
        assert await state.apply(costly) == [refusal], costly
    revoke = pb.LeaseRevokeRequest(ID=4)
    if kind == CORRUPT:
        for free in (*FREE, revoke):
            assert await state.apply(free) == [refusal], free
    assert state.store.current_revision == 2
    await state.apply(alarm(ACTIVATE, 4, kind), alarm(DEACTIVATE, 3, kind))
    assert await state.apply(COSTLY[0]) == [refusal]  # one is left
    if kind == NOSPACE:
        for free in FREE:
            (result,) = await state.apply(free)
            assert isinstance(result, AppliedResult), free
        assert await state.apply(revoke) == [errors.LEASE_NOT_FOUND]
    assert state_hash(state.store) != before
    # Within one entry the order counts: the put behind the alarm's end passes.
    results = await state.apply(COSTLY[0], alarm(DEACTIVATE, 4, kind), COSTLY[0], alarm(ACTIVATE, 4, kind), COSTLY[0])
    assert results[0] == results[4] == refusal
    assert isinstance(results[2], AppliedResult)
    state.close()


async def test_one_kind_of_alarm_does_not_end_with_the_other(state: State) -> None:
    """It does in etcd, until the next restart."""
    await state.apply(alarm(ACTIVATE, 3), alarm(ACTIVATE, 3, CORRUPT))
    assert await state.apply(COSTLY[0], FREE[0]) == [errors.CORRUPT, errors.CORRUPT]
    await state.apply(alarm(DEACTIVATE, 3, CORRUPT))
    assert await state.apply(COSTLY[0]) == [errors.NO_SPACE]
    state.close()


async def test_alarms_outlive_a_restart_and_travel_with_a_state(state: State, tmp_path: Path) -> None:
    await state.put(b"a")
    await state.apply(alarm(ACTIVATE, 3))
    await state.store.flush()
    state.close()
    again = State(tmp_path / "s")
    again.sequence = 10
    assert await again.apply(COSTLY[0]) == [errors.NO_SPACE]
    assert [(one.memberID, one.alarm) for one in read_alarms(again.store)] == [(3, NOSPACE)]
    other = State(tmp_path / "other")  # a member that is behind, and takes this state over
    assert isinstance((await other.apply(COSTLY[0]))[0], AppliedResult)
    await again.store.flush()
    again.store.engine.checkpoint(tmp_path / "copy")
    other.store.swap(MvccStore.open(tmp_path / "copy"))
    other.sequence = 20
    assert await other.apply(COSTLY[0]) == [errors.NO_SPACE]
    again.close()
    other.close()


async def test_s60a_a_store_that_is_full_decides_nothing(tmp_path: Path) -> None:
    """The same log to members whose stores differ in what a quota looks at, in how entries are grouped and in how far
    compaction has got: all results and all states are equal, at each index."""
    requests: list[list[object]] = [
        [pb.PutRequest(key=b"k%d" % at, value=b"v" * 40_000) for at in range(5)],
        [alarm(ACTIVATE, 1), *COSTLY, *FREE],
        [pb.CompactionRequest(revision=4), alarm(ACTIVATE, 2), alarm(DEACTIVATE, 1), COSTLY[0]],
        [alarm(DEACTIVATE, 2), pb.PutRequest(key=b"z"), alarm(ACTIVATE, 9, CORRUPT), *FREE],
        [alarm(DEACTIVATE, 9, CORRUPT), pb.DeleteRangeRequest(key=b"\0", range_end=b"\0"), COSTLY[2]],
    ]
    entries, sequence = [], 1
    for index, batch in enumerate(requests, 1):
        entries.append(entry(index, sequence, batch))  # type: ignore[arg-type]
        sequence += len(batch)
    plain, full = State(tmp_path / "plain"), State(tmp_path / "full")
    full.store.live = full.store.live._replace(base_keys=2**40)  # as if it had far more than its quota
    for one in entries:
        await plain.feed([one])
        await full.feed([one])
        assert state_hash(plain.store) == state_hash(full.store)
    grouped = State(tmp_path / "grouped")
    await grouped.feed(entries)
    assert state_hash(plain.store) == state_hash(grouped.store)
    assert plain.sinks.answers == full.sinks.answers == grouped.sinks.answers
    assert [type(one) for one in plain.sinks.answers.values()].count(KvError) == 10
    for state in (plain, full, grouped):
        state.close()


def test_costs() -> None:
    assert put_cost(pb.PutRequest(key=b"abc", value=b"12345")) == 256 + 8
    txn = pb.TxnRequest(success=[put_op(), delete_op()], failure=[put_op(), put_op(b"bb"), NESTED])
    assert txn_cost(txn) == 3 * 256 + 1 + 2 + 1
    assert txn_cost(pb.TxnRequest(success=[delete_op()])) == 0


async def test_alarms_are_no_rows_of_anything_else(state: State) -> None:
    await state.apply(alarm(ACTIVATE, 3))
    rows = [row for row, _ in state.store.cluster_rows(schema.CLUSTER, b"d")]
    assert rows == [b"calarm/" + (1).to_bytes(4, "big") + (3).to_bytes(8, "big")]
    state.close()
