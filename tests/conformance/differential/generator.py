"""Random cases: from a seed to a list of steps.

Keys are few, so that requests meet each other, and chosen to sit on edges: zero bytes, ff bytes, prefixes of one
another. Revisions lie around the newest one: a case says `BASE + n`, and the runner puts the revision at the case's
start for BASE, so that a case means the same whenever it is played.

Invalid requests are as frequent as clients' mistakes are interesting: about every eighth field is a bad one.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from kvstore.pb import rpc_pb2 as pb

BASE = 1 << 40
SIZE_MAX = 1536 * 1024  # --max-request-bytes
SYNC = "Sync"  # wait until every watch has got what it is owed
WATCH = "Watch"

KEYS = [b"a", b"b", b"a\0", b"aa", b"ab", b"b\xff", b"\0", b"\0\0", b"\0\xff", b"\xff", b"\xff\xff", b"a\0\x01", b"c"]
ENDS = [b"", b"", b"", b"\0", b"\0", b"b", b"c", b"a\0", b"aa", b"a\xff", b"\xff", b"\xff\xff", b"\0\0", b"\x01", b"a"]
VALUES = [b"", b"1", b"2", b"10", b"\0", b"\xff", b"a longer value"]
LEASES = [0, 0, 0, 0, 0, 0, 0, 1, -1, 77]
T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One thing to do on both sides. `call` is the name of an RPC, or SYNC, which has no message."""

    call: str
    message: Message


Case = list[Step]


class Generator:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._explicit_id = 100

    def case(self, length: int = 40) -> Case:
        """Mostly puts and txns with a few watches over them; now and then requests near the size limit."""
        if self._chance(0.02):
            return self._big_case()
        steps = [self._step() for _ in range(self._random.randint(length // 2, length))]
        return [*steps, Step(SYNC, pb.WatchProgressRequest())]

    # Steps

    def _step(self) -> Step:
        makers = {
            "Put": (22, self._put),
            "Range": (20, self._range),
            "DeleteRange": (10, self._delete),
            "Txn": (26, self._txn),
            "Compact": (3, self._compact),
            WATCH: (12, self._watch),
            "HashKV": (2, self._hash_kv),
            "Status": (1, pb.StatusRequest),
            "Alarm": (1, pb.AlarmRequest),
            "MemberList": (1, self._member_list),
            SYNC: (2, pb.WatchProgressRequest),
        }
        call = self._random.choices(list(makers), [weight for weight, _ in makers.values()])[0]
        return Step(call, makers[call][1]())

    def _big_case(self) -> Case:
        steps = [Step(WATCH, self._create(b"\0", b"\0", fragment=True)), Step(WATCH, self._create(b"\0", b"\0"))]
        for _ in range(self._random.randint(2, 5)):
            size = self._pick([SIZE_MAX // 3, SIZE_MAX // 2, SIZE_MAX - 4096, SIZE_MAX + 1, SIZE_MAX + 4096])
            put = pb.PutRequest(key=self._key(), value=b"v" * size, prev_kv=self._chance(0.5))
            if self._chance(0.3):
                ops = [pb.RequestOp(request_put=put), pb.RequestOp(request_put=self._put())]
                steps.append(Step("Txn", pb.TxnRequest(success=ops)))
            else:
                steps.append(Step("Put", put))
        steps.append(Step("Range", self._range()))
        steps.append(Step("DeleteRange", pb.DeleteRangeRequest(key=b"\0", range_end=b"\0", prev_kv=True)))
        return [*steps, Step(SYNC, pb.WatchProgressRequest())]

    # KV

    def _range(self) -> pb.RangeRequest:
        request = pb.RangeRequest(key=self._key(), range_end=self._end())
        if self._chance(0.3):
            request.limit = self._pick([1, 1, 2, 3, 5, 100, -1, -(1 << 63)])
        if self._chance(0.4):
            request.revision = self._revision()
        if self._chance(0.4):
            request.sort_order = self._enum([0, 1, 2])
            request.sort_target = self._enum([0, 1, 2, 3, 4])
        request.serializable = self._chance(0.2)
        request.keys_only = self._chance(0.2)
        request.count_only = self._chance(0.15)
        for bound in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
            if self._chance(0.1):
                setattr(request, bound, self._revision())
        if self._chance(0.02):
            request = pb.RangeRequest(key=b"a", sort_order=self._enum([3, -1]))
        elif self._chance(0.02):
            request = pb.RangeRequest(key=b"a", sort_target=self._enum([5, -1]))
        return request

    def _put(self) -> pb.PutRequest:
        return pb.PutRequest(
            key=self._key(),
            value=b"" if self._chance(0.1) else self._pick(VALUES),
            lease=self._pick(LEASES) if self._chance(0.15) else 0,
            prev_kv=self._chance(0.4),
            ignore_value=self._chance(0.1),
            ignore_lease=self._chance(0.1),
        )

    def _delete(self) -> pb.DeleteRangeRequest:
        return pb.DeleteRangeRequest(key=self._key(), range_end=self._end(), prev_kv=self._chance(0.5))

    def _txn(self, depth: int = 0) -> pb.TxnRequest:
        if depth == 0 and self._chance(0.02):
            return self._long_txn()
        reads_only = self._chance(0.15)
        txn = pb.TxnRequest(
            compare=[self._compare() for _ in range(self._pick([0, 0, 1, 1, 2]))],
            success=[self._op(depth, reads_only) for _ in range(self._pick([0, 1, 1, 2, 2, 3]))],
            failure=[self._op(depth, reads_only) for _ in range(self._pick([0, 0, 1, 2, 2]))],
        )
        if depth == 0 and any(op.request_delete_range.range_end == b"\0" for op in _operations(txn)):
            for op in _operations(txn):
                if op.HasField("request_put"):  # etcd dies of ignoring the value of a key deleted in the same txn
                    op.request_put.ignore_value = op.request_put.ignore_lease = False
        return txn

    def _long_txn(self) -> pb.TxnRequest:
        """Around the 128 operations that all levels share."""
        outer = self._pick([1, 2, 126, 127, 128, 129])
        inner = max(0, self._pick([127, 128, 129]) - outer)
        get = pb.RequestOp(request_range=pb.RangeRequest(key=b"a", count_only=True))
        nested = pb.RequestOp(request_txn=pb.TxnRequest(failure=[get] * inner))
        return pb.TxnRequest(success=[*([get] * (outer - 1)), nested if self._chance(0.8) else get])

    def _op(self, depth: int, reads_only: bool) -> pb.RequestOp:
        kind = "range" if reads_only else self._pick(["range", "put", "put", "put", "delete", "delete", "txn", "txn"])
        if kind == "txn" and depth < 3:
            return pb.RequestOp(request_txn=self._txn(depth + 1))
        if kind == "delete":
            return pb.RequestOp(request_delete_range=self._delete())
        if kind == "put":
            return pb.RequestOp(request_put=self._put())
        return pb.RequestOp() if self._chance(0.04) else pb.RequestOp(request_range=self._range_of_txn())

    def _range_of_txn(self) -> pb.RangeRequest:
        request = self._range()
        if request.sort_order not in (0, 1, 2) or request.sort_target not in (0, 1, 2, 3, 4):
            return pb.RangeRequest(key=request.key)  # unknown ones are asked by themselves: see runner.py
        if self._chance(0.6):
            request.revision = 0  # else hardly a txn would pass
        return request

    def _compare(self) -> pb.Compare:
        compare = pb.Compare(
            result=self._enum([0, 1, 2, 3]),
            target=self._enum([0, 1, 2, 3, 4]),
            key=self._key(),
            range_end=self._end() if self._chance(0.4) else b"",
        )
        if self._chance(0.03):
            compare.result = self._enum([4, -1])
        if self._chance(0.03):
            compare.target = self._enum([5, -1])
        operand = ["version", "create_revision", "mod_revision", "value", "lease"][compare.target % 5]
        if self._chance(0.1):
            operand = self._pick(["version", "create_revision", "mod_revision", "value", "lease"])
        if operand == "value":
            compare.value = self._pick(VALUES)
        elif self._chance(0.95):
            number = self._revision() if operand.endswith("revision") else self._pick([0, 0, 1, 1, 2, 3, -1])
            setattr(compare, operand, number)
        return compare

    def _compact(self) -> pb.CompactionRequest:
        return pb.CompactionRequest(revision=self._revision(), physical=self._chance(0.3))

    # Watch

    def _watch(self) -> pb.WatchRequest:
        kind = self._pick(["create", "create", "create", "create", "cancel", "progress", "nothing"])
        if kind == "cancel":
            cancel = pb.WatchCancelRequest(watch_id=self._pick([0, 0, 1, 1, 2, 3, 100, 101, -1, 4711]))
            return pb.WatchRequest(cancel_request=cancel)
        if kind == "progress":
            return pb.WatchRequest(progress_request=pb.WatchProgressRequest())
        if kind == "nothing":
            return pb.WatchRequest()
        return self._create(b"" if self._chance(0.2) else self._key(), self._end())

    def _create(self, key: bytes, range_end: bytes, fragment: bool | None = None) -> pb.WatchRequest:
        request = pb.WatchCreateRequest(
            key=key,
            range_end=range_end,
            prev_kv=self._chance(0.6),
            fragment=self._chance(0.2) if fragment is None else fragment,
            progress_notify=self._chance(0.2),
            filters=[self._enum([0, 1, 0, 1, 7]) for _ in range(self._pick([0, 0, 0, 1, 1, 2]))],
        )
        if self._chance(0.4):
            request.start_revision = self._revision()
        if self._chance(0.15):
            request.watch_id = self._pick([1, 2, 3, 100, 101, -7])  # not -1: etcd itself takes it for "none"
        return pb.WatchRequest(create_request=request)

    # The rest

    def _hash_kv(self) -> pb.HashKVRequest:
        return pb.HashKVRequest(revision=self._pick([0, self._revision()]))

    def _member_list(self) -> pb.MemberListRequest:
        return pb.MemberListRequest(linearizable=self._chance(0.5))

    # Fields

    def _key(self) -> bytes:
        return b"" if self._chance(0.02) else self._pick(KEYS)

    def _end(self) -> bytes:
        return self._pick(ENDS)

    def _revision(self) -> int:
        """Around the case's own revisions; sometimes long ago, far away or none at all."""
        if self._chance(0.1):
            return self._pick([1, -1, 0, 2, (1 << 63) - 1, -(1 << 63)])
        return BASE + self._pick([-3, -1, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 8, 10, 12, 15, 30])

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _enum(self, numbers: list[int]) -> Any:
        """Numbers of an enum, known to it or not."""
        return self._pick(numbers)

    def _pick(self, choices: list[T]) -> T:
        return self._random.choice(choices)


def _operations(txn: pb.TxnRequest) -> Iterator[pb.RequestOp]:
    """Of all levels and both branches."""
    for branch in (txn.success, txn.failure):
        for op in branch:
            yield op
            yield from _operations(op.request_txn)


def resolved(message: Message, base: int) -> Message:
    """A copy in which BASE is the revision `base`."""
    found = type(message)()
    found.CopyFrom(message)
    _resolve(found, base)
    return found


def _resolve(message: Message, base: int) -> None:
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for child in [value] if isinstance(value, Message) else value:
                _resolve(child, base)
        elif field.type == field.TYPE_INT64 and BASE // 2 < value < 2 * BASE:
            setattr(message, field.name, value - BASE + base)
