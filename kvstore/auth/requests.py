"""What a request of KV touches: one check for each kind of operation, the same on every level of a txn.

A put needs WRITE on its key, and READ too where it asks for what was there. A delete and its prev_kv likewise, on the
whole range. A compare tells something about keys, so it needs READ on them. Both branches of a txn are checked, since a
refusal must not tell which one was taken.

A put with a lease needs WRITE on every key that is on the lease already; that takes the state (kvstore/state/auth.py).
"""

from collections.abc import Iterator

from kvstore.auth.table import AuthTable, Identity
from kvstore.errors import KvError
from kvstore.pb.rpc_pb2 import DeleteRangeRequest, PutRequest, RequestOp, TxnRequest


def refuse_put(table: AuthTable, who: Identity, request: PutRequest) -> KvError | None:
    refused = table.refuse_write(who, request.key)
    if refused is None and request.prev_kv:
        refused = table.refuse_read(who, request.key)
    return refused


def refuse_delete_range(table: AuthTable, who: Identity, request: DeleteRangeRequest) -> KvError | None:
    refused = table.refuse_write(who, request.key, request.range_end)
    if refused is None and request.prev_kv:
        refused = table.refuse_read(who, request.key, request.range_end)
    return refused


def refuse_txn(table: AuthTable, who: Identity, request: TxnRequest) -> KvError | None:
    refused = table.refuse_stale(who)  # also of a txn that touches nothing
    for compare in request.compare:
        refused = refused or table.refuse_read(who, compare.key, compare.range_end)
    for branch in (request.success, request.failure):
        for op in branch:
            refused = refused or _refuse_op(table, who, op)
    return refused


def _refuse_op(table: AuthTable, who: Identity, op: RequestOp) -> KvError | None:
    kind = op.WhichOneof("request")
    if kind == "request_range":
        return table.refuse_read(who, op.request_range.key, op.request_range.range_end)
    if kind == "request_put":
        return refuse_put(table, who, op.request_put)
    if kind == "request_delete_range":
        return refuse_delete_range(table, who, op.request_delete_range)
    if kind == "request_txn":
        return refuse_txn(table, who, op.request_txn)
    return None  # there is nothing in it; refused for that


def leases_of(request: TxnRequest) -> Iterator[int]:
    """Those that puts of any level and branch attach keys to."""
    for branch in (request.success, request.failure):
        for op in branch:
            if op.HasField("request_put") and op.request_put.lease:
                yield op.request_put.lease
            elif op.HasField("request_txn"):
                yield from leases_of(op.request_txn)
