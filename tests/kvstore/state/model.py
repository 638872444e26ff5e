"""What etcd's API promises, as a dictionary: the reference for the store. Slow, whole copies, no cleverness."""

from collections.abc import Iterator

from kvstore import errors
from kvstore.errors import KvError
from kvstore.pb import kv_pb2
from kvstore.pb import rpc_pb2 as pb

Keys = dict[bytes, kv_pb2.KeyValue]


def within(key: bytes, range_end: bytes, candidate: bytes) -> bool:
    if not range_end:
        return candidate == key
    return candidate >= key and (range_end == b"\0" or candidate < range_end)


class Model:
    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self.past: dict[int, Keys] = {1: {}}  # all keys as of each revision
        self.events: dict[int, list[kv_pb2.Event]] = {}
        self.keys: Keys = {}
        self.changes: list[kv_pb2.Event] = []
        self.leases: dict[int, int] = {}  # id -> TTL

    # -- reads

    def range(self, request: pb.RangeRequest, now: bool = False) -> pb.RangeResponse:
        if request.revision > self.revision:
            raise errors.FUTURE_REVISION.fresh()
        if 0 < request.revision < self.compacted:
            raise errors.COMPACTED.fresh()
        keys = self.keys if request.revision <= 0 else self.past[request.revision]
        kvs = [keys[key] for key in sorted(keys) if within(request.key, request.range_end, key)]
        answer = pb.RangeResponse(count=len(kvs))
        answer.header.revision = self.revision + (1 if now and self.changes else 0)
        if request.count_only:
            return answer
        if request.max_mod_revision:
            kvs = [kv for kv in kvs if kv.mod_revision <= request.max_mod_revision]
        if request.min_mod_revision:
            kvs = [kv for kv in kvs if kv.mod_revision >= request.min_mod_revision]
        if request.max_create_revision:
            kvs = [kv for kv in kvs if kv.create_revision <= request.max_create_revision]
        if request.min_create_revision:
            kvs = [kv for kv in kvs if kv.create_revision >= request.min_create_revision]
        if request.limit > 0 and request.sort_order == pb.RangeRequest.NONE and not self.bounded(request):
            kvs = kvs[: request.limit + 1]  # without an order only these are sorted
        field = ["key", "version", "create_revision", "mod_revision", "value"][request.sort_target]
        kvs.sort(key=lambda kv: getattr(kv, field), reverse=request.sort_order == pb.RangeRequest.DESCEND)
        if 0 < request.limit < len(kvs):
            kvs, answer.more = kvs[: request.limit], True
        for kv in kvs:
            answer.kvs.add().CopyFrom(kv)
            if request.keys_only:
                answer.kvs[-1].ClearField("value")
        return answer

    def bounded(self, request: pb.RangeRequest) -> bool:
        bounds = ("max_mod_revision", "min_mod_revision", "max_create_revision", "min_create_revision")
        return any(getattr(request, bound) for bound in bounds)

    # -- writes; each returns its response or raises before it changed anything

    def apply(self, request: object) -> object:
        self.changes = []
        answer: (
            pb.PutResponse
            | pb.DeleteRangeResponse
            | pb.TxnResponse
            | pb.CompactionResponse
            | pb.LeaseGrantResponse
            | pb.LeaseRevokeResponse
        )
        if isinstance(request, pb.PutRequest):
            self.check_put(request)
            answer = self.put(request)
        elif isinstance(request, pb.DeleteRangeRequest):
            answer = self.delete(request)
        elif isinstance(request, pb.CompactionRequest):
            answer = self.compact(request.revision)
        elif isinstance(request, pb.LeaseGrantRequest):
            answer = self.grant(request)
        elif isinstance(request, pb.LeaseRevokeRequest):
            answer = self.revoke(request)
        else:
            assert isinstance(request, pb.TxnRequest)
            answer = self.txn(request)
        if self.changes:
            self.revision += 1
            self.events[self.revision] = self.changes
            self.past[self.revision] = dict(self.keys)
        answer.header.revision = self.revision
        return answer

    def check_put(self, request: pb.PutRequest) -> None:
        if request.lease and request.lease not in self.leases:
            raise errors.LEASE_NOT_FOUND.fresh()
        if (request.ignore_value or request.ignore_lease) and request.key not in self.keys:
            raise errors.KEY_NOT_FOUND.fresh()

    def put(self, request: pb.PutRequest) -> pb.PutResponse:
        answer = pb.PutResponse()
        before = self.keys.get(request.key)
        kv = kv_pb2.KeyValue(key=request.key, value=request.value, mod_revision=self.revision + 1, lease=request.lease)
        kv.create_revision = before.create_revision if before else self.revision + 1
        kv.version = before.version + 1 if before else 1
        if before and request.ignore_value:
            kv.value = before.value
        if before and request.ignore_lease:
            kv.lease = before.lease
        if before and request.prev_kv:
            answer.prev_kv.CopyFrom(before)
        self.keys[request.key] = kv
        self.changes.append(kv_pb2.Event(kv=kv))
        answer.header.revision = self.revision + 1
        return answer

    def delete(self, request: pb.DeleteRangeRequest) -> pb.DeleteRangeResponse:
        answer = pb.DeleteRangeResponse()
        for key in sorted(self.keys):
            if within(request.key, request.range_end, key):
                kv = self.keys.pop(key)
                answer.deleted += 1
                if request.prev_kv:
                    answer.prev_kvs.add().CopyFrom(kv)
                gone = kv_pb2.KeyValue(key=key, mod_revision=self.revision + 1)
                self.changes.append(kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=gone))
        answer.header.revision = self.revision + (1 if self.changes else 0)
        return answer

    def grant(self, request: pb.LeaseGrantRequest) -> pb.LeaseGrantResponse:
        if request.TTL > 9_000_000_000:
            raise errors.LEASE_TTL_TOO_LARGE.fresh()
        if request.ID in self.leases:
            raise errors.LEASE_EXISTS.fresh()
        self.leases[request.ID] = request.TTL
        return pb.LeaseGrantResponse(ID=request.ID, TTL=request.TTL)

    def keys_of(self, lease: int) -> list[bytes]:
        return sorted(key for key, kv in self.keys.items() if kv.lease == lease)

    def revoke(self, request: pb.LeaseRevokeRequest) -> pb.LeaseRevokeResponse:
        if request.ID not in self.leases:
            raise errors.LEASE_NOT_FOUND.fresh()
        for key in self.keys_of(request.ID):
            del self.keys[key]
            gone = kv_pb2.KeyValue(key=key, mod_revision=self.revision + 1)
            self.changes.append(kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=gone))
        del self.leases[request.ID]
        return pb.LeaseRevokeResponse()

    def compact(self, revision: int) -> pb.CompactionResponse:
        if revision > self.revision:
            raise errors.FUTURE_REVISION.fresh()
        if revision <= self.compacted:
            raise errors.COMPACTED.fresh()
        self.compacted = revision
        return pb.CompactionResponse()

    def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        path: list[bool] = []
        self.choose(request, path)
        self.deleted: list[bytes] = []  # keys that deletes with an open end begin at
        self.check_ops(request, iter(path))
        return self.run(request, iter(path))

    def choose(self, request: pb.TxnRequest, path: list[bool]) -> None:
        won = all(self.holds(compare) for compare in request.compare)
        path.append(won)
        for op in request.success if won else request.failure:
            if op.HasField("request_txn"):
                self.choose(op.request_txn, path)

    def check_ops(self, request: pb.TxnRequest, path: Iterator[bool]) -> None:
        for op in request.success if next(path) else request.failure:
            if op.HasField("request_put"):
                self.check_put(op.request_put)
                ignores = op.request_put.ignore_value or op.request_put.ignore_lease
                if ignores and any(key <= op.request_put.key for key in self.deleted):
                    raise errors.KEY_NOT_FOUND.fresh()
            elif op.HasField("request_delete_range") and op.request_delete_range.range_end == b"\0":
                self.deleted.append(op.request_delete_range.key)
            elif op.HasField("request_txn"):
                self.check_ops(op.request_txn, path)
            elif op.HasField("request_range"):
                if op.request_range.revision < (0 if self.compacted else -1):
                    raise errors.COMPACTED.fresh()
                self.range(op.request_range)

    def holds(self, compare: pb.Compare) -> bool:
        kvs = [kv for key, kv in self.keys.items() if within(compare.key, compare.range_end, key)]
        if not kvs and compare.target == pb.Compare.VALUE:
            return False
        for kv in kvs or [kv_pb2.KeyValue()]:
            left, right = [
                (kv.version, compare.version),
                (kv.create_revision, compare.create_revision),
                (kv.mod_revision, compare.mod_revision),
                (kv.value, compare.value),
                (kv.lease, compare.lease),
            ][compare.target]
            if not [left == right, left > right, left < right, left != right][compare.result]:  # type: ignore[operator]
                return False
        return True

    def run(self, request: pb.TxnRequest, path) -> pb.TxnResponse:  # type: ignore[no-untyped-def]
        answer = pb.TxnResponse(succeeded=next(path))
        answer.header.SetInParent()
        for op in request.success if answer.succeeded else request.failure:
            if op.HasField("request_put"):
                answer.responses.add().response_put.CopyFrom(self.put(op.request_put))
            elif op.HasField("request_delete_range"):
                answer.responses.add().response_delete_range.CopyFrom(self.delete(op.request_delete_range))
            elif op.HasField("request_range"):
                answer.responses.add().response_range.CopyFrom(self.range(op.request_range, now=True))
            else:
                answer.responses.add().response_txn.CopyFrom(self.run(op.request_txn, path))
        return answer


def refused(call) -> KvError | None:  # type: ignore[no-untyped-def]
    try:
        call()
    except KvError as error:
        return error
    return None
