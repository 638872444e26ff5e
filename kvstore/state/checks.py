"""Requests that no state can make right: checked where they arrive, to fail fast, and again by apply.

The texts and their order are etcd's (api/v3rpc/key.go: checkRangeRequest, checkPutRequest,
checkTxnRequest, checkIntervals). Every function raises KvError or returns None.

Apply passes no operation budget: that is a setting of the member where the client is connected, and a
setting must never decide an outcome.
"""

from bisect import bisect_right
from typing import Final

from kvstore import errors
from kvstore.pb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)

LEASE_TTL_MAX: Final = 9_000_000_000  # seconds; etcd's

_SORT_ORDERS: Final = frozenset(RangeRequest.SortOrder.values())
_SORT_TARGETS: Final = frozenset(RangeRequest.SortTarget.values())


def check_range(request: RangeRequest) -> None:
    if not request.key:
        raise errors.KEY_NOT_PROVIDED.fresh()
    if request.sort_order not in _SORT_ORDERS or request.sort_target not in _SORT_TARGETS:
        raise errors.INVALID_SORT_OPTION.fresh()


def check_put(request: PutRequest) -> None:
    if not request.key:
        raise errors.KEY_NOT_PROVIDED.fresh()
    if request.ignore_value and request.value:
        raise errors.VALUE_PROVIDED.fresh()
    if request.ignore_lease and request.lease:
        raise errors.LEASE_PROVIDED.fresh()


def check_delete_range(request: DeleteRangeRequest) -> None:
    if not request.key:
        raise errors.KEY_NOT_PROVIDED.fresh()


def check_compaction(request: CompactionRequest) -> None:
    """Whether a revision can be compacted depends on the state alone: nothing to refuse beforehand."""
    del request


def check_txn(request: TxnRequest, max_ops: int | None) -> None:
    """max_ops: --max-txn-ops, shared by all levels of nesting; None: no limit."""
    for branch in _check_txn(request, max_ops):
        # Most branches are one operation, which has nothing to be at odds with.
        if len(branch) > 1 or (branch and branch[0].HasField("request_txn")):
            _check_branch(branch)


def _check_txn(request: TxnRequest, max_ops: int | None) -> tuple[list[RequestOp], list[RequestOp]]:
    """Each operation for itself, on all levels. Returns the branches: they are read once, which costs."""
    compares, success, failure = request.compare, list(request.success), list(request.failure)
    left = None
    if max_ops is not None:
        left = max_ops - max(len(compares), len(success), len(failure))
        if left < 0:
            raise errors.TOO_MANY_OPS.fresh()
    for compare in compares:
        if not compare.key:
            raise errors.KEY_NOT_PROVIDED.fresh()
    for op in success:
        check_op(op, left)
    for op in failure:
        check_op(op, left)
    return success, failure


def check_op(op: RequestOp, left: int | None) -> None:
    """One operation of a txn. left: how many a txn in it may have; None: any number."""
    kind = op.WhichOneof("request")
    if kind == "request_put":
        check_put(op.request_put)
    elif kind == "request_range":
        check_range(op.request_range)
    elif kind == "request_delete_range":
        check_delete_range(op.request_delete_range)
    elif kind == "request_txn":
        _check_txn(op.request_txn, left)
    else:
        raise errors.KEY_NOT_FOUND.fresh()


class _Intervals:
    """Disjoint, sorted [low, high) of deleted keys."""

    def __init__(self, intervals: list[tuple[bytes, bytes]]) -> None:
        merged: list[tuple[bytes, bytes]] = []
        for low, high in sorted(interval for interval in intervals if interval[0] < interval[1]):
            if merged and low <= merged[-1][1]:
                last_low, last_high = merged[-1]
                merged[-1] = (last_low, max(last_high, high))
            else:
                merged.append((low, high))
        self.merged = merged
        self._lows = [low for low, _ in merged]

    def __contains__(self, key: bytes) -> bool:
        at = bisect_right(self._lows, key) - 1
        return at >= 0 and key < self.merged[at][1]


def _check_branch(ops: list[RequestOp]) -> tuple[set[bytes], _Intervals]:
    """No key may be put twice, nor put where it is deleted. Returns what the branch puts and deletes.

    Deletes of this level count before everything, those of a nested txn from that txn on, and puts of
    this level last (etcd checkIntervals): a nested put followed by a nested delete of it is allowed. And the
    range end "\\0" is no open end here but that string, and nothing lies below it: clients may therefore delete
    everything from a key on, and put some of it again.
    """
    deleted = [op.request_delete_range for op in ops if op.HasField("request_delete_range")]
    deletes = _Intervals([(delete.key, delete.range_end or delete.key + b"\0") for delete in deleted])
    puts: set[bytes] = set()
    for op in ops:
        if not op.HasField("request_txn"):
            continue
        then_puts, then_deletes = _check_branch(list(op.request_txn.success))
        else_puts, else_deletes = _check_branch(list(op.request_txn.failure))
        # Only one of the two branches runs, so they may share keys with each other.
        for key in then_puts | else_puts:
            if key in puts or key in deletes:
                raise errors.DUPLICATE_KEY.fresh()
        puts |= then_puts | else_puts
        if then_deletes.merged or else_deletes.merged:
            deletes = _Intervals(deletes.merged + then_deletes.merged + else_deletes.merged)
    for op in ops:
        if not op.HasField("request_put"):
            continue
        key = op.request_put.key
        if key in puts or key in deletes:
            raise errors.DUPLICATE_KEY.fresh()
        puts.add(key)
    return puts, deletes
