"""A transaction as a typed value: compares, then one of two lists of operations.

    result = await client.txn(
        when=[value("lock").equals("me"), version("job").greater(0)],
        then=[put("job", "done"), delete("lock")],
        otherwise=[get("lock")],
    )

An operation is the request message itself, so `txn()` nests. The server answers all of it at one revision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from kvstore.client.types import Bytes, key_range, to_bytes
from kvstore.pb import rpc_pb2

Request: TypeAlias = rpc_pb2.RangeRequest | rpc_pb2.PutRequest | rpc_pb2.DeleteRangeRequest | rpc_pb2.TxnRequest
SortBy: TypeAlias = Literal["key", "version", "create", "mod", "value"]
Order: TypeAlias = Literal["none", "ascend", "descend"]


def get(
    key: Bytes,
    range_end: Bytes | None = None,
    *,
    prefix: bool = False,
    from_key: bool = False,
    revision: int = 0,
    limit: int = 0,
    sort_by: SortBy = "key",
    order: Order = "none",
    keys_only: bool = False,
    count_only: bool = False,
    serializable: bool = False,
    min_mod_revision: int = 0,
    max_mod_revision: int = 0,
    min_create_revision: int = 0,
    max_create_revision: int = 0,
) -> rpc_pb2.RangeRequest:
    """Read a key or a range. `revision` 0: the newest; `limit` 0: all. Keys come in order unless sorted otherwise."""
    first, end = key_range(key, range_end, prefix, from_key)
    return rpc_pb2.RangeRequest(
        key=first,
        range_end=end,
        revision=revision,
        limit=limit,
        sort_target=rpc_pb2.RangeRequest.SortTarget.Value(sort_by.upper()),
        sort_order=rpc_pb2.RangeRequest.SortOrder.Value(order.upper()),
        keys_only=keys_only,
        count_only=count_only,
        serializable=serializable,
        min_mod_revision=min_mod_revision,
        max_mod_revision=max_mod_revision,
        min_create_revision=min_create_revision,
        max_create_revision=max_create_revision,
    )


def put(
    key: Bytes,
    value: Bytes = b"",
    *,
    lease: int = 0,
    prev_kv: bool = False,
    ignore_value: bool = False,
    ignore_lease: bool = False,
) -> rpc_pb2.PutRequest:
    """Write a key. `ignore_value` and `ignore_lease` keep what the key has; it must exist then."""
    return rpc_pb2.PutRequest(
        key=to_bytes(key),
        value=to_bytes(value),
        lease=lease,
        prev_kv=prev_kv,
        ignore_value=ignore_value,
        ignore_lease=ignore_lease,
    )


def delete(
    key: Bytes,
    range_end: Bytes | None = None,
    *,
    prefix: bool = False,
    from_key: bool = False,
    prev_kv: bool = False,
) -> rpc_pb2.DeleteRangeRequest:
    first, end = key_range(key, range_end, prefix, from_key)
    return rpc_pb2.DeleteRangeRequest(key=first, range_end=end, prev_kv=prev_kv)


def txn(
    when: Sequence[rpc_pb2.Compare] = (), then: Sequence[Request] = (), otherwise: Sequence[Request] = ()
) -> rpc_pb2.TxnRequest:
    """`then` when every compare holds, else `otherwise`. A transaction may be an operation of another one."""
    return rpc_pb2.TxnRequest(
        compare=when, success=[_operation(op) for op in then], failure=[_operation(op) for op in otherwise]
    )


def reads_only(request: rpc_pb2.TxnRequest) -> bool:
    """True when no branch, however deep, changes anything."""
    return all(
        op.HasField("request_range") or (op.HasField("request_txn") and reads_only(op.request_txn))
        for op in (*request.success, *request.failure)
    )


def _operation(request: Request) -> rpc_pb2.RequestOp:
    if isinstance(request, rpc_pb2.RangeRequest):
        return rpc_pb2.RequestOp(request_range=request)
    if isinstance(request, rpc_pb2.PutRequest):
        return rpc_pb2.RequestOp(request_put=request)
    if isinstance(request, rpc_pb2.DeleteRangeRequest):
        return rpc_pb2.RequestOp(request_delete_range=request)
    return rpc_pb2.RequestOp(request_txn=request)


_NumberField: TypeAlias = Literal["version", "create_revision", "mod_revision", "lease"]
_TARGETS: Final[dict[_NumberField, "rpc_pb2.Compare.CompareTarget.ValueType"]] = {
    "version": rpc_pb2.Compare.VERSION,
    "create_revision": rpc_pb2.Compare.CREATE,
    "mod_revision": rpc_pb2.Compare.MOD,
    "lease": rpc_pb2.Compare.LEASE,
}


@dataclass(frozen=True, slots=True)
class _Number:
    """A number of a key (0 when the key is absent), or of every key of a range."""

    field: _NumberField
    key: bytes
    range_end: bytes

    def _is(self, result: "rpc_pb2.Compare.CompareResult.ValueType", number: int) -> rpc_pb2.Compare:
        compare = rpc_pb2.Compare(result=result, target=_TARGETS[self.field], key=self.key, range_end=self.range_end)
        setattr(compare, self.field, number)
        return compare

    def equals(self, number: int) -> rpc_pb2.Compare:
        return self._is(rpc_pb2.Compare.EQUAL, number)

    def not_equals(self, number: int) -> rpc_pb2.Compare:
        return self._is(rpc_pb2.Compare.NOT_EQUAL, number)

    def greater(self, number: int) -> rpc_pb2.Compare:
        return self._is(rpc_pb2.Compare.GREATER, number)

    def less(self, number: int) -> rpc_pb2.Compare:
        return self._is(rpc_pb2.Compare.LESS, number)


@dataclass(frozen=True, slots=True)
class _Value:
    """The value of a key, or of every key of a range. A compare with an absent key is false."""

    key: bytes
    range_end: bytes

    def _is(self, result: "rpc_pb2.Compare.CompareResult.ValueType", data: Bytes) -> rpc_pb2.Compare:
        return rpc_pb2.Compare(
            result=result,
            target=rpc_pb2.Compare.VALUE,
            key=self.key,
            range_end=self.range_end,
            value=to_bytes(data),
        )

    def equals(self, data: Bytes) -> rpc_pb2.Compare:
        return self._is(rpc_pb2.Compare.EQUAL, data)

    def not_equals(self, data: Bytes) -> rpc_pb2.Compare:
        return self._is(rpc_pb2.Compare.NOT_EQUAL, data)

    def greater(self, data: Bytes) -> rpc_pb2.Compare:
        return self._is(rpc_pb2.Compare.GREATER, data)

    def less(self, data: Bytes) -> rpc_pb2.Compare:
        return self._is(rpc_pb2.Compare.LESS, data)


def value(key: Bytes, range_end: Bytes | None = None, *, prefix: bool = False) -> _Value:
    return _Value(*key_range(key, range_end, prefix, False))


def version(key: Bytes, range_end: Bytes | None = None, *, prefix: bool = False) -> _Number:
    return _Number("version", *key_range(key, range_end, prefix, False))


def create_revision(key: Bytes, range_end: Bytes | None = None, *, prefix: bool = False) -> _Number:
    return _Number("create_revision", *key_range(key, range_end, prefix, False))


def mod_revision(key: Bytes, range_end: Bytes | None = None, *, prefix: bool = False) -> _Number:
    return _Number("mod_revision", *key_range(key, range_end, prefix, False))


def lease(key: Bytes, range_end: Bytes | None = None, *, prefix: bool = False) -> _Number:
    return _Number("lease", *key_range(key, range_end, prefix, False))
