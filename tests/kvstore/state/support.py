"""Entries, sinks and whole-state hashes for tests of the replicated state."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import final

from google.protobuf.message import Message

from kvstore.mvcc import leases, schema
from kvstore.mvcc.engine import LARGE, large_kv
from kvstore.mvcc.events import RevisionEvents
from kvstore.mvcc.live import KEY_BYTES, LEASE_BYTES
from kvstore.mvcc.store import MvccStore, StoreOptions
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.command_pb2 import ClusterVersion, LeaseCheckpoints, LeaseRevoke
from kvstore.state.applier import AppliedResult, Applier, LogEntry, Result
from kvstore.state.command import Op, encode_batch, encode_request

MEMBER = 7
OPS: dict[type[Message], Op] = {
    pb.PutRequest: Op.PUT,
    pb.DeleteRangeRequest: Op.DELETE_RANGE,
    pb.TxnRequest: Op.TXN,
    pb.CompactionRequest: Op.COMPACTION,
    pb.LeaseGrantRequest: Op.LEASE_GRANT,
    pb.LeaseRevokeRequest: Op.LEASE_REVOKE,
    LeaseRevoke: Op.LEASE_REVOKE,
    LeaseCheckpoints: Op.LEASE_CHECKPOINT,
    pb.AlarmRequest: Op.ALARM,
    pb.DowngradeRequest: Op.DOWNGRADE,
    ClusterVersion: Op.CLUSTER_VERSION,
}
RESPONSES: dict[type[Message], type[Message]] = {
    pb.PutRequest: pb.PutResponse,
    pb.DeleteRangeRequest: pb.DeleteRangeResponse,
    pb.TxnRequest: pb.TxnResponse,
    pb.CompactionRequest: pb.CompactionResponse,
    pb.LeaseGrantRequest: pb.LeaseGrantResponse,
    pb.LeaseRevokeRequest: pb.LeaseRevokeResponse,
    pb.AlarmRequest: pb.AlarmResponse,
    pb.DowngradeRequest: pb.DowngradeResponse,
}


@final
class Entry:
    def __init__(self, index: int, data: bytes, term: int = 1, kind: int = 0) -> None:
        self.index = index
        self.term = term
        self.data = data
        self.kind = kind


@final
class Sinks:
    def __init__(self) -> None:
        self.revisions: list[RevisionEvents] = []
        self.answers: dict[int, Result] = {}
        self.index = 0

    def members(self) -> None:
        pass

    def events(self, batch: list[RevisionEvents]) -> None:
        self.revisions += batch

    def results(self, results: list[tuple[int, Result]]) -> None:
        for sequence, result in results:
            assert sequence not in self.answers or self.answers[sequence] is not None
            self.answers[sequence] = result

    def applied(self, index: int, term: int) -> None:
        self.index = index


def entry(index: int, first_sequence: int, requests: Sequence[Message], member: int = MEMBER, boot: int = 1) -> Entry:
    wrapped = [
        encode_request(OPS[type(request)], request.SerializeToString(), member, boot, first_sequence + at)
        for at, request in enumerate(requests)
    ]
    return Entry(index, encode_batch(1000 + index, wrapped))


@final
class State:
    """A store with its applier, fed request by request."""

    def __init__(self, path: Path, member: int = MEMBER, options: StoreOptions | None = None) -> None:
        self.store = MvccStore.open(path, options)
        self.sinks = Sinks()
        self.applier = Applier(self.store, member, 1, self.sinks)
        self.sequence = 0

    async def apply(self, *requests: Message) -> list[Result]:
        """One entry with all of them; their results."""
        first = self.sequence + 1
        self.sequence += len(requests)
        await self.feed([entry(self.store.applied_index + 1, first, requests)])
        return [self.sinks.answers[first + at] for at in range(len(requests))]

    async def feed(self, entries: Sequence[Entry]) -> None:
        given: list[LogEntry] = list(entries)
        await self.applier.apply(given)

    async def put(self, key: bytes, value: bytes = b"v") -> int:
        (result,) = await self.apply(pb.PutRequest(key=key, value=value))
        assert isinstance(result, AppliedResult)
        return result.revision

    async def delete(self, key: bytes, range_end: bytes = b"") -> int:
        (result,) = await self.apply(pb.DeleteRangeRequest(key=key, range_end=range_end))
        assert isinstance(result, AppliedResult)
        return result.revision

    def close(self) -> None:
        self.store.close()


def response(request: Message, result: Result) -> Message:
    """The whole response as a client would parse it."""
    assert isinstance(result, AppliedResult), result
    message = RESPONSES[type(request)].FromString(result.body)
    message.header.revision = result.revision  # type: ignore[attr-defined]
    return message


def state_hash(store: MvccStore) -> str:
    """Of everything that replicas must agree on: all visible rows but what physical compaction may have removed."""
    digest = hashlib.sha256()
    settled = b""
    scan = store.engine.scan(b"\0", b"\xff")
    while rows := scan.rows(1000):
        for key, value in rows:
            if key in (schema.META_COMPACTED, schema.META_FORMAT) or key.startswith(schema.META_LIVE):
                continue
            if key.startswith(schema.META_ENDED):
                continue
            if key[:1] == schema.LATEST and leases.hides(store.ended, _whole(store, value)):
                continue
            if key[:1] == schema.LEASED and not _binds(store, key):
                continue
            if key[:1] == schema.EVENT and schema.split_event(key)[0] > store.current_revision:
                continue
            if key[:1] == schema.RECORD and schema.unpack_u64(key[1:]) > store.current_revision:
                continue
            if key[:1] == schema.VERSION:
                prefix, revision, _ = schema.split_version(key)
                if revision > store.current_revision or prefix == settled:
                    continue
                if revision <= store.compact_revision:
                    settled = prefix
                    if value == schema.TOMBSTONE:
                        continue
            shown = _whole(store, value) if key[:1] == schema.LATEST else value
            digest.update(b"%d %b %d %b" % (len(key), key, len(shown), shown))
    return digest.hexdigest()


def _whole(store: MvccStore, kv: bytes) -> bytes:
    return large_kv(store.engine, kv) if kv[0] == LARGE else kv


def _binds(store: MvccStore, row: bytes) -> bool:
    """Whether the row that leads from a lease to a key is one that the key confirms."""
    kv = store.get_latest(row[9:])
    return kv is not None and schema.leased_row(leases.lease_of(kv), row[9:]) == row


def live_bytes(store: MvccStore) -> int:
    """LiveBytes.keys, from the rows."""
    total = sum(
        len(kv) + KEY_BYTES
        for _, kv in store.engine.scan(*schema.latest_rows(b"", None)).rest()
        if not leases.hides(store.ended, kv)
    )
    return total + LEASE_BYTES * len(store.engine.scan(schema.LEASE, schema.after(schema.LEASE)).rest())
