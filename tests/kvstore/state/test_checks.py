"""What is refused before it reaches the log, with etcd's rules and order."""

import pytest

from kvstore import errors
from kvstore.errors import KvError
from kvstore.pb import rpc_pb2 as pb
from kvstore.state.checks import check_delete_range, check_put, check_range, check_txn


def put(key: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=b"v"))


def delete(key: bytes, range_end: bytes = b"") -> pb.RequestOp:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=range_end))


def txn(then: list[pb.RequestOp], otherwise: list[pb.RequestOp] | None = None) -> pb.RequestOp:
    return pb.RequestOp(request_txn=pb.TxnRequest(success=then, failure=otherwise or []))


def error_of(request: pb.TxnRequest, max_ops: int | None = 128) -> KvError | None:
    try:
        check_txn(request, max_ops)
    except KvError as error:
        return error
    return None


def test_single_requests() -> None:
    for check, request, error in [
        (check_put, pb.PutRequest(value=b"v"), errors.KEY_NOT_PROVIDED),
        (check_put, pb.PutRequest(key=b"k", value=b"v", ignore_value=True), errors.VALUE_PROVIDED),
        (check_put, pb.PutRequest(key=b"k", lease=1, ignore_lease=True), errors.LEASE_PROVIDED),
        (check_delete_range, pb.DeleteRangeRequest(range_end=b"z"), errors.KEY_NOT_PROVIDED),
        (check_range, pb.RangeRequest(range_end=b"z"), errors.KEY_NOT_PROVIDED),
        (check_range, pb.RangeRequest(key=b"k", sort_order=7), errors.INVALID_SORT_OPTION),  # type: ignore[arg-type]
        (check_range, pb.RangeRequest(key=b"k", sort_target=7), errors.INVALID_SORT_OPTION),  # type: ignore[arg-type]
    ]:
        with pytest.raises(KvError) as caught:
            check(request)  # type: ignore[operator]
        assert caught.value == error


def test_a_raised_error_keeps_no_frames() -> None:
    with pytest.raises(KvError):
        check_put(pb.PutRequest())
    assert errors.KEY_NOT_PROVIDED.__traceback__ is None


def test_the_operation_budget_is_shared_with_nested_txns() -> None:
    assert error_of(pb.TxnRequest(success=[put(b"%d" % n) for n in range(128)])) is None
    assert error_of(pb.TxnRequest(success=[put(b"%d" % n) for n in range(129)])) == errors.TOO_MANY_OPS
    compares = [pb.Compare(key=b"k")] * 129
    assert error_of(pb.TxnRequest(compare=compares)) == errors.TOO_MANY_OPS
    # This level uses 100, so 28 are left for the next.
    outer = [put(b"%d" % n) for n in range(99)]
    assert error_of(pb.TxnRequest(success=[*outer, txn([put(b"n%d" % n) for n in range(28)])])) is None
    nested = txn([put(b"n%d" % n) for n in range(29)])
    assert error_of(pb.TxnRequest(success=[*outer, nested])) == errors.TOO_MANY_OPS
    assert error_of(pb.TxnRequest(success=[*outer, nested]), None) is None


def test_empty_parts_of_a_txn() -> None:
    assert error_of(pb.TxnRequest(compare=[pb.Compare()])) == errors.KEY_NOT_PROVIDED
    assert error_of(pb.TxnRequest(failure=[pb.RequestOp()])) == errors.KEY_NOT_FOUND
    assert error_of(pb.TxnRequest(success=[txn([put(b"")])])) == errors.KEY_NOT_PROVIDED


@pytest.mark.parametrize(
    ("ops", "refused"),
    [
        ([put(b"a"), put(b"a")], True),
        ([put(b"a"), delete(b"a")], True),
        ([delete(b"a", b"c"), put(b"b")], True),
        ([delete(b"a", b"c"), put(b"c")], False),
        ([delete(b"a", b"\0"), put(b"z")], False),  # etcd takes this range end for a string here
        ([delete(b"b", b"a"), put(b"b")], False),  # an empty interval deletes nothing
        ([delete(b"a", b"c"), delete(b"b", b"d")], False),
        ([delete(b"a", b"c"), delete(b"b", b"d"), put(b"c")], True),
        ([delete(b"a", b"z"), delete(b"b", b"c"), put(b"x")], True),
        ([txn([put(b"a")], [put(b"a")])], False),  # only one of the branches runs
        ([txn([put(b"a")]), put(b"a")], True),
        ([put(b"a"), txn([], [put(b"a")])], True),
        ([delete(b"a"), txn([put(b"a")])], True),
        ([txn([put(b"a")]), txn([], [put(b"a")])], True),
        ([txn([delete(b"a")]), put(b"a")], True),
        ([txn([delete(b"a")]), txn([put(b"a")])], True),
        ([txn([put(b"a")]), txn([delete(b"a")])], False),  # as etcd has it: deletes count from their txn on
        ([txn([delete(b"a")], [put(b"a")])], False),
    ],
)
def test_duplicate_keys_in_either_branch(ops: list[pb.RequestOp], refused: bool) -> None:
    expected = errors.DUPLICATE_KEY if refused else None
    assert error_of(pb.TxnRequest(success=ops)) == expected
    assert error_of(pb.TxnRequest(failure=ops)) == expected
