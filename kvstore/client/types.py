"""What calls return: frozen values, and how they are made from messages. Keys and values are bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    # Only for annotations: kvctl prints these values, and must start without protobuf.
    from kvstore.pb import history_pb2, kv_pb2, rpc_pb2

Bytes: TypeAlias = str | bytes  # str is encoded as UTF-8


def to_bytes(data: Bytes) -> bytes:
    return data.encode() if isinstance(data, str) else data


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all keys that begin with `prefix`: its last byte plus one; "\\0" (no end) for 0xff only."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else b"\0"


def key_range(key: Bytes, range_end: Bytes | None, prefix: bool, from_key: bool) -> tuple[bytes, bytes]:
    """(key, range_end) as requests carry them. At most one of the last three may be given."""
    if prefix + from_key + (range_end is not None) > 1:
        raise ValueError("give at most one of range_end, prefix and from_key")
    first = to_bytes(key)
    if prefix:
        # The empty prefix is every key; "" is no valid key, so it begins at "\0".
        return (first, prefix_end(first)) if first else (b"\0", b"\0")
    if from_key:
        return first or b"\0", b"\0"
    return first, to_bytes(range_end) if range_end is not None else b""


@dataclass(frozen=True, slots=True)
class Header:
    cluster_id: int
    member_id: int  # that answered
    revision: int  # of its store when it did
    raft_term: int

    @classmethod
    def of(cls, message: rpc_pb2.ResponseHeader) -> Header:
        return cls(message.cluster_id, message.member_id, message.revision, message.raft_term)


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int

    @classmethod
    def of(cls, message: kv_pb2.KeyValue) -> KeyValue:
        return cls(
            message.key,
            message.value,
            message.create_revision,
            message.mod_revision,
            message.version,
            message.lease,
        )


@dataclass(frozen=True, slots=True)
class GetResult:
    header: Header
    kvs: tuple[KeyValue, ...]
    more: bool  # the limit cut the answer short
    count: int  # keys in the range, whatever the limit

    @property
    def value(self) -> bytes | None:
        """Of the first key; None when there is none."""
        return self.kvs[0].value if self.kvs else None

    @classmethod
    def of(cls, message: rpc_pb2.RangeResponse) -> GetResult:
        return cls(Header.of(message.header), tuple(KeyValue.of(kv) for kv in message.kvs), message.more, message.count)


@dataclass(frozen=True, slots=True)
class PutResult:
    header: Header
    prev_kv: KeyValue | None

    @classmethod
    def of(cls, message: rpc_pb2.PutResponse) -> PutResult:
        return cls(Header.of(message.header), KeyValue.of(message.prev_kv) if message.HasField("prev_kv") else None)


@dataclass(frozen=True, slots=True)
class DeleteResult:
    header: Header
    deleted: int
    prev_kvs: tuple[KeyValue, ...]

    @classmethod
    def of(cls, message: rpc_pb2.DeleteRangeResponse) -> DeleteResult:
        return cls(Header.of(message.header), message.deleted, tuple(KeyValue.of(kv) for kv in message.prev_kvs))


@dataclass(frozen=True, slots=True)
class TxnResult:
    header: Header
    succeeded: bool
    responses: tuple[OpResult, ...]  # of the branch taken, in its order

    @classmethod
    def of(cls, message: rpc_pb2.TxnResponse) -> TxnResult:
        return cls(Header.of(message.header), message.succeeded, tuple(_op_result(op) for op in message.responses))


OpResult: TypeAlias = GetResult | PutResult | DeleteResult | TxnResult


def _op_result(message: rpc_pb2.ResponseOp) -> OpResult:
    kind = message.WhichOneof("response")
    if kind == "response_range":
        return GetResult.of(message.response_range)
    if kind == "response_put":
        return PutResult.of(message.response_put)
    if kind == "response_delete_range":
        return DeleteResult.of(message.response_delete_range)
    return TxnResult.of(message.response_txn)


@dataclass(frozen=True, slots=True)
class CompactResult:
    header: Header


@dataclass(frozen=True, slots=True)
class Event:
    type: Literal["PUT", "DELETE"]
    kv: KeyValue  # of a DELETE: key and mod_revision only
    prev_kv: KeyValue | None

    @classmethod
    def of(cls, message: kv_pb2.Event) -> Event:
        return cls(
            "DELETE" if message.type else "PUT",
            KeyValue.of(message.kv),
            KeyValue.of(message.prev_kv) if message.HasField("prev_kv") else None,
        )


@dataclass(frozen=True, slots=True)
class WatchResponse:
    """Events in revision order, a revision never divided between responses. Without events: a progress report."""

    header: Header
    events: tuple[Event, ...] = ()

    @property
    def is_progress(self) -> bool:
        return not self.events


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the history."""

    event: Event
    time_ns: int  # since 1970, of the log entry
    index: int  # of the log entry
    term: int
    member_id: int  # that took the request
    user: str
    request_id: str

    @property
    def revision(self) -> int:
        return self.event.kv.mod_revision

    @classmethod
    def of(cls, message: history_pb2.Change) -> Change:
        return cls(
            Event.of(message.event),
            message.time,
            message.index,
            message.term,
            message.member,
            message.user,
            message.request_id,
        )


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    header: Header
    id: int
    ttl: int  # seconds; a TTL below the server's least is raised to it

    @classmethod
    def of(cls, message: rpc_pb2.LeaseGrantResponse) -> LeaseGrant:
        return cls(Header.of(message.header), message.ID, message.TTL)


@dataclass(frozen=True, slots=True)
class LeaseTtl:
    header: Header
    id: int
    ttl: int  # seconds left; -1: there is no such lease
    granted_ttl: int
    keys: tuple[bytes, ...]  # bound to it, where they were asked for

    @classmethod
    def of(cls, message: rpc_pb2.LeaseTimeToLiveResponse) -> LeaseTtl:
        return cls(Header.of(message.header), message.ID, message.TTL, message.grantedTTL, tuple(message.keys))


@dataclass(frozen=True, slots=True)
class LeaseKept:
    header: Header
    id: int
    ttl: int  # seconds from now on

    @classmethod
    def of(cls, message: rpc_pb2.LeaseKeepAliveResponse) -> LeaseKept:
        return cls(Header.of(message.header), message.ID, message.TTL)


@dataclass(frozen=True, slots=True)
class LeaseRevoked:
    header: Header


@dataclass(frozen=True, slots=True)
class LeaseList:
    header: Header
    ids: tuple[int, ...]  # as the asked member knows them

    @classmethod
    def of(cls, message: rpc_pb2.LeaseLeasesResponse) -> LeaseList:
        return cls(Header.of(message.header), tuple(lease.ID for lease in message.leases))


@dataclass(frozen=True, slots=True)
class Member:
    id: int
    name: str  # empty until it has started once
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool

    @classmethod
    def of(cls, message: rpc_pb2.Member) -> Member:
        return cls(message.ID, message.name, tuple(message.peerURLs), tuple(message.clientURLs), message.isLearner)


@dataclass(frozen=True, slots=True)
class MemberList:
    header: Header
    members: tuple[Member, ...]

    @classmethod
    def of(
        cls,
        message: rpc_pb2.MemberListResponse
        | rpc_pb2.MemberRemoveResponse
        | rpc_pb2.MemberUpdateResponse
        | rpc_pb2.MemberPromoteResponse,
    ) -> MemberList:
        return cls(Header.of(message.header), tuple(Member.of(member) for member in message.members))


@dataclass(frozen=True, slots=True)
class MemberAdded:
    header: Header
    member: Member
    members: tuple[Member, ...]

    @classmethod
    def of(cls, message: rpc_pb2.MemberAddResponse) -> MemberAdded:
        return cls(
            Header.of(message.header),
            Member.of(message.member),
            tuple(Member.of(member) for member in message.members),
        )


@dataclass(frozen=True, slots=True)
class Status:
    header: Header
    version: str
    db_size: int  # bytes
    db_size_in_use: int
    leader: int  # 0: none
    raft_index: int
    raft_term: int
    raft_applied_index: int
    is_learner: bool
    errors: tuple[str, ...] = field(default=())
    db_size_quota: int = 0  # negative: no limit; 0: the server does not say
    storage_version: str = ""
    downgrade: str = ""  # the version that a downgrade goes to, while there is one

    @property
    def is_leader(self) -> bool:
        return self.leader == self.header.member_id

    @classmethod
    def of(cls, message: rpc_pb2.StatusResponse) -> Status:
        return cls(
            Header.of(message.header),
            message.version,
            message.dbSize,
            message.dbSizeInUse,
            message.leader,
            message.raftIndex,
            message.raftTerm,
            message.raftAppliedIndex,
            message.isLearner,
            tuple(message.errors),
            message.dbSizeQuota,
            message.storageVersion,
            message.downgradeInfo.targetVersion if message.downgradeInfo.enabled else "",
        )


@dataclass(frozen=True, slots=True)
class HashKv:
    header: Header
    hash: int
    compact_revision: int

    @classmethod
    def of(cls, message: rpc_pb2.HashKVResponse) -> HashKv:
        return cls(Header.of(message.header), message.hash, message.compact_revision)


@dataclass(frozen=True, slots=True)
class SnapshotPart:
    blob: bytes
    remaining: int  # bytes that are still to come, without the SHA-256
    version: str  # of the server's storage; empty: an etcd before 3.6

    @classmethod
    def of(cls, message: rpc_pb2.SnapshotResponse) -> SnapshotPart:
        return cls(message.blob, message.remaining_bytes, message.version)


@dataclass(frozen=True, slots=True)
class Alarm:
    member_id: int
    type: str  # "NOSPACE" or "CORRUPT"

    @classmethod
    def of(cls, message: rpc_pb2.AlarmMember) -> Alarm:
        return cls(message.memberID, {1: "NOSPACE", 2: "CORRUPT"}.get(message.alarm, "NONE"))


@dataclass(frozen=True, slots=True)
class AlarmList:
    header: Header
    alarms: tuple[Alarm, ...]

    @classmethod
    def of(cls, message: rpc_pb2.AlarmResponse) -> AlarmList:
        return cls(Header.of(message.header), tuple(map(Alarm.of, message.alarms)))


@dataclass(frozen=True, slots=True)
class Downgrade:
    header: Header
    version: str  # of the cluster, before the downgrade: "3.6"

    @classmethod
    def of(cls, message: rpc_pb2.DowngradeResponse) -> Downgrade:
        return cls(Header.of(message.header), message.version)
