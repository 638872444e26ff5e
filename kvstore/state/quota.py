"""What a request takes of the quota: etcd's estimates (server/storage/quota.go), for the front and for apply."""

from typing import Final

from kvstore.pb.rpc_pb2 import PutRequest, RequestOp, TxnRequest

PUT_OVERHEAD: Final = 256  # bytes
LEASE_BYTES: Final = 64


def put_cost(request: PutRequest) -> int:
    return PUT_OVERHEAD + len(request.key) + len(request.value)


def txn_cost(request: TxnRequest) -> int:
    """Of the dearer branch, whichever is taken: apply must not depend on more than the request.

    etcd does not look into nested txns, and lets them fill a store that is full.
    """
    return max(sum(map(_op_cost, request.success)), sum(map(_op_cost, request.failure)))


def _op_cost(op: RequestOp) -> int:
    if op.HasField("request_put"):
        return put_cost(op.request_put)
    return txn_cost(op.request_txn) if op.HasField("request_txn") else 0
