"""Random requests of KV and Watch.

Keys are few, so that requests meet each other, and chosen to sit on edges: zero bytes, ff bytes, prefixes of one
another. Invalid requests are as frequent as clients' mistakes are interesting: about every eighth field is a bad one.
"""

from collections.abc import Iterator

from kvstore.pb import rpc_pb2 as pb
from tests.conformance.differential.cases import LEASE, Draw

KEYS = [b"a", b"b", b"a\0", b"aa", b"ab", b"b\xff", b"\0", b"\0\0", b"\0\xff", b"\xff", b"\xff\xff", b"a\0\x01", b"c"]
ENDS = [b"", b"", b"", b"\0", b"\0", b"b", b"c", b"a\0", b"aa", b"a\xff", b"\xff", b"\xff\xff", b"\0\0", b"\x01", b"a"]
VALUES = [b"", b"1", b"2", b"10", b"\0", b"\xff", b"a longer value"]
LEASES = [1, 1, 77, LEASE, LEASE, LEASE + 1, -1, 4711]


class KvRequests:
    """`leases`: how often a put names one."""

    def __init__(self, draw: Draw, leases: float = 0.04) -> None:
        self._draw = draw
        self._leases = leases

    # KV

    def range(self) -> pb.RangeRequest:
        request = pb.RangeRequest(key=self.key(), range_end=self.end())
        if self._draw.chance(0.3):
            request.limit = self._draw.pick([1, 1, 2, 3, 5, 100, -1, -(1 << 63)])
        if self._draw.chance(0.4):
            request.revision = self._draw.revision()
        if self._draw.chance(0.4):
            request.sort_order = self._draw.enum([0, 1, 2])
            request.sort_target = self._draw.enum([0, 1, 2, 3, 4])
        request.serializable = self._draw.chance(0.2)
        request.keys_only = self._draw.chance(0.2)
        request.count_only = self._draw.chance(0.15)
        for bound in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
            if self._draw.chance(0.1):
                setattr(request, bound, self._draw.revision())
        if self._draw.chance(0.02):
            request = pb.RangeRequest(key=b"a", sort_order=self._draw.enum([3, -1]))
        elif self._draw.chance(0.02):
            request = pb.RangeRequest(key=b"a", sort_target=self._draw.enum([5, -1]))
        return request

    def streamed(self) -> pb.RangeRequest:
        """What RangeStream answers: no order of the caller's own, no bounds of revisions."""
        request = self.range()
        return pb.RangeRequest(
            key=request.key,
            range_end=request.range_end,
            limit=request.limit,
            revision=request.revision,
            serializable=request.serializable,
            keys_only=request.keys_only,
            count_only=request.count_only,
        )

    def put(self) -> pb.PutRequest:
        return pb.PutRequest(
            key=self.key(),
            value=b"" if self._draw.chance(0.1) else self._draw.pick(VALUES),
            lease=self._draw.pick(LEASES) if self._draw.chance(self._leases) else 0,
            prev_kv=self._draw.chance(0.4),
            ignore_value=self._draw.chance(0.1),
            ignore_lease=self._draw.chance(0.1),
        )

    def delete(self) -> pb.DeleteRangeRequest:
        return pb.DeleteRangeRequest(key=self.key(), range_end=self.end(), prev_kv=self._draw.chance(0.5))

    def txn(self, depth: int = 0) -> pb.TxnRequest:
        if depth == 0 and self._draw.chance(0.02):
            return self._long_txn()
        reads_only = self._draw.chance(0.15)
        txn = pb.TxnRequest(
            compare=[self._compare() for _ in range(self._draw.pick([0, 0, 1, 1, 2]))],
            success=[self._op(depth, reads_only) for _ in range(self._draw.pick([0, 1, 1, 2, 2, 3]))],
            failure=[self._op(depth, reads_only) for _ in range(self._draw.pick([0, 0, 1, 2, 2]))],
        )
        if depth == 0 and any(op.request_delete_range.range_end == b"\0" for op in _operations(txn)):
            for op in _operations(txn):
                if op.HasField("request_put"):  # etcd dies of ignoring the value of a key deleted in the same txn
                    op.request_put.ignore_value = op.request_put.ignore_lease = False
        return txn

    def _long_txn(self) -> pb.TxnRequest:
        """Around the 128 operations that all levels share."""
        outer = self._draw.pick([1, 2, 126, 127, 128, 129])
        inner = max(0, self._draw.pick([127, 128, 129]) - outer)
        get = pb.RequestOp(request_range=pb.RangeRequest(key=b"a", count_only=True))
        nested = pb.RequestOp(request_txn=pb.TxnRequest(failure=[get] * inner))
        return pb.TxnRequest(success=[*([get] * (outer - 1)), nested if self._draw.chance(0.8) else get])

    def _op(self, depth: int, reads_only: bool) -> pb.RequestOp:
        kind = (
            "range" if reads_only else self._draw.pick(["range", "put", "put", "put", "delete", "delete", "txn", "txn"])
        )
        if kind == "txn" and depth < 3:
            return pb.RequestOp(request_txn=self.txn(depth + 1))
        if kind == "delete":
            return pb.RequestOp(request_delete_range=self.delete())
        if kind == "put":
            return pb.RequestOp(request_put=self.put())
        return pb.RequestOp() if self._draw.chance(0.04) else pb.RequestOp(request_range=self._range_of_txn())

    def _range_of_txn(self) -> pb.RangeRequest:
        request = self.range()
        if request.sort_order not in (0, 1, 2) or request.sort_target not in (0, 1, 2, 3, 4):
            return pb.RangeRequest(key=request.key)  # unknown ones are asked by themselves: see runner.py
        if self._draw.chance(0.6):
            request.revision = 0  # else hardly a txn would pass
        return request

    def _compare(self) -> pb.Compare:
        compare = pb.Compare(
            result=self._draw.enum([0, 1, 2, 3]),
            target=self._draw.enum([0, 1, 2, 3, 4]),
            key=self.key(),
            range_end=self.end() if self._draw.chance(0.4) else b"",
        )
        if self._draw.chance(0.03):
            compare.result = self._draw.enum([4, -1])
        if self._draw.chance(0.03):
            compare.target = self._draw.enum([5, -1])
        operand = ["version", "create_revision", "mod_revision", "value", "lease"][compare.target % 5]
        if self._draw.chance(0.1):
            operand = self._draw.pick(["version", "create_revision", "mod_revision", "value", "lease"])
        if operand == "value":
            compare.value = self._draw.pick(VALUES)
        elif self._draw.chance(0.95):
            numbers = [0, 0, 1, 1, 2, 3, -1, *([77, LEASE, LEASE + 1] if operand == "lease" else [])]
            number = self._draw.revision() if operand.endswith("revision") else self._draw.pick(numbers)
            setattr(compare, operand, number)
        return compare

    def compact(self) -> pb.CompactionRequest:
        return pb.CompactionRequest(revision=self._draw.revision(), physical=self._draw.chance(0.3))

    # Watch

    def watch(self) -> pb.WatchRequest:
        kind = self._draw.pick(["create", "create", "create", "create", "cancel", "progress", "nothing"])
        if kind == "cancel":
            cancel = pb.WatchCancelRequest(watch_id=self._draw.pick([0, 0, 1, 1, 2, 3, 100, 101, -1, 4711]))
            return pb.WatchRequest(cancel_request=cancel)
        if kind == "progress":
            return pb.WatchRequest(progress_request=pb.WatchProgressRequest())
        if kind == "nothing":
            return pb.WatchRequest()
        return self.create(b"" if self._draw.chance(0.2) else self.key(), self.end())

    def create(self, key: bytes, range_end: bytes, fragment: bool | None = None) -> pb.WatchRequest:
        request = pb.WatchCreateRequest(
            key=key,
            range_end=range_end,
            prev_kv=self._draw.chance(0.6),
            fragment=self._draw.chance(0.2) if fragment is None else fragment,
            progress_notify=self._draw.chance(0.2),
            filters=[self._draw.enum([0, 1, 0, 1, 7]) for _ in range(self._draw.pick([0, 0, 0, 1, 1, 2]))],
        )
        if self._draw.chance(0.4):
            request.start_revision = self._draw.revision()
        if self._draw.chance(0.15):
            request.watch_id = self._draw.pick([1, 2, 3, 100, 101, -7])  # not -1: etcd itself takes it for "none"
        return pb.WatchRequest(create_request=request)

    # Fields

    def key(self) -> bytes:
        return b"" if self._draw.chance(0.02) else self._draw.pick(KEYS)

    def end(self) -> bytes:
        return self._draw.pick(ENDS)


def _operations(txn: pb.TxnRequest) -> Iterator[pb.RequestOp]:
    """Of all levels and both branches."""
    for branch in (txn.success, txn.failure):
        for op in branch:
            yield op
            yield from _operations(op.request_txn)
