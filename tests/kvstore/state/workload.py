"""Seeded random requests over few keys, so that they meet: every option, nested txns, old revisions."""

from random import Random

from kvstore.errors import KvError
from kvstore.pb import rpc_pb2 as pb
from kvstore.state.checks import check_txn

KEYS = [b"a", b"a\0", b"a\0\0", b"a\0\xff", b"a\x01", b"ab", b"b", b"b\xff", b"\xff", b"\xff\xff", b"c" * 200]
LEASES = [1, 5, -7, 1 << 62]
Request = (
    pb.PutRequest
    | pb.DeleteRangeRequest
    | pb.TxnRequest
    | pb.CompactionRequest
    | pb.LeaseGrantRequest
    | pb.LeaseRevokeRequest
)


def key(rng: Random) -> bytes:
    return rng.choice(KEYS)


def range_end(rng: Random) -> bytes:
    return rng.choice([b"", b"", b"\0", rng.choice(KEYS), b"b", b"z"])


def revision(rng: Random, current: int) -> int:
    return rng.choice([0, 0, -1, current, current + 1, rng.randint(0, current)])


def a_range(rng: Random, current: int) -> pb.RangeRequest:
    request = pb.RangeRequest(key=key(rng), range_end=range_end(rng), revision=revision(rng, current))
    if rng.random() < 0.3:
        request.limit = rng.randint(-1, 4)
    if rng.random() < 0.4:
        request.sort_order = rng.choice(pb.RangeRequest.SortOrder.values())
        request.sort_target = rng.choice(pb.RangeRequest.SortTarget.values())
    request.keys_only = rng.random() < 0.2
    request.count_only = rng.random() < 0.2
    for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
        if rng.random() < 0.1:
            setattr(request, name, rng.randint(0, current + 1))
    return request


def a_put(rng: Random) -> pb.PutRequest:
    request = pb.PutRequest(key=key(rng), prev_kv=rng.random() < 0.3)
    request.ignore_value = rng.random() < 0.1
    request.ignore_lease = rng.random() < 0.1
    if not request.ignore_value:
        request.value = rng.choice([b"", b"x", b"y" * rng.randint(1, 300)])
    if rng.random() < 0.4 and not request.ignore_lease:
        request.lease = rng.choice(LEASES)
    return request


def a_delete(rng: Random) -> pb.DeleteRangeRequest:
    return pb.DeleteRangeRequest(key=key(rng), range_end=range_end(rng), prev_kv=rng.random() < 0.4)


def a_compare(rng: Random, current: int) -> pb.Compare:
    compare = pb.Compare(key=key(rng), range_end=rng.choice([b"", b"", b"\0", b"z"]))
    compare.result = rng.choice(pb.Compare.CompareResult.values())
    compare.target = rng.choice(pb.Compare.CompareTarget.values())
    union = rng.choice(["version", "create_revision", "mod_revision", "value", "lease", None])
    if union == "value":
        compare.value = rng.choice([b"", b"x"])
    elif union is not None:
        setattr(compare, union, rng.choice([0, 1, 2, current, 1 << 62]))
    return compare


def _txn(rng: Random, current: int, depth: int) -> pb.TxnRequest:
    request = pb.TxnRequest(compare=[a_compare(rng, current) for _ in range(rng.choice([0, 0, 1, 2]))])
    for branch in (request.success, request.failure):
        for _ in range(rng.randint(0, 3)):
            op = branch.add()
            kind = rng.randint(0, 3 if depth else 2)
            if kind == 0:
                op.request_put.CopyFrom(a_put(rng))
            elif kind == 1:
                op.request_delete_range.CopyFrom(a_delete(rng))
            elif kind == 2:
                wanted = a_range(rng, current)
                wanted.revision = wanted.revision if rng.random() < 0.3 else 0
                op.request_range.CopyFrom(wanted)
            else:
                op.request_txn.CopyFrom(_txn(rng, current, depth - 1))
    return request


def a_txn(rng: Random, current: int) -> pb.TxnRequest:
    while True:
        request = _txn(rng, current, 2)
        try:
            check_txn(request, 128)
        except KvError:
            continue
        return request


def a_write(rng: Random, current: int, compacted: int) -> Request:
    chance = rng.random()
    if chance < 0.4:
        return a_put(rng)
    if chance < 0.46:
        return pb.LeaseGrantRequest(ID=rng.choice(LEASES), TTL=rng.choice([2, 60, 9_000_000_001]))
    if chance < 0.5:
        return pb.LeaseRevokeRequest(ID=rng.choice(LEASES))
    if chance < 0.65:
        return a_delete(rng)
    if chance < 0.97:
        return a_txn(rng, current)
    return pb.CompactionRequest(revision=rng.randint(max(compacted, current - 20), current + 1))
