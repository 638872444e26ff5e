"""Who belongs to the cluster: rows that every member bootstraps alike, and that the log changes.

Ids are computed as etcd does (api/membership, ETCD_API 1.5), so that the same --initial-cluster gives the
same ids here and there: a member's from its peer URLs and the cluster's token, the cluster's from its
members'; that of a member added later from its URLs and the time, so that none comes twice.

    configuration entry of raft   its context, a MemberChange: add, remove, promote. The rows follow the final
                                  configuration (C_new) only; a joint one changes nothing here
    MemberUpdateRequest           other peer URLs: an ordinary request
    MemberPublish                 a started member's name, client URLs and instance

The instance tells a member from its own lost disk: a member that comes back with an empty directory would
have forgotten votes and entries that it acknowledged, so its publish is refused. The id of a removed member
is remembered for ever, and whoever comes with it is refused.

A member that joins later has to begin as the others did, or the same log would lead it elsewhere. So before
the first change the rows of that time are put aside: `first` gives them to whoever joins.
"""

from dataclasses import dataclass, replace
from hashlib import sha1
from typing import Final

from kvstore import errors
from kvstore.errors import Code, KvError
from kvstore.mvcc import schema
from kvstore.mvcc.store import MvccStore
from kvstore.mvcc.transaction import WriteGroup
from kvstore.pb import rpc_pb2
from kvstore.pb.command_pb2 import MemberChange, MemberPublish
from kvstore.state.command import UnknownRequest
from kvstore.state.txn import AppliedResult

_ID_ROW: Final = schema.CLUSTER + b"id"
_FIRST_ROW: Final = schema.CLUSTER + b"first"  # an encoded MemberListResponse; there once something has changed
_MEMBERS: Final = schema.CLUSTER + b"member/"  # + id, 8 bytes: instance, 8 bytes, then an encoded Member
_MEMBERS_END: Final = schema.CLUSTER + b"member0"
_REMOVED: Final = schema.CLUSTER + b"removed/"  # + id, 8 bytes: empty
_REMOVED_END: Final = schema.CLUSTER + b"removed0"

OTHER_INSTANCE: Final = KvError(
    Code.FAILED_PRECONDITION, "etcdserver: the member has started from another data directory before"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    id: int
    peer_urls: tuple[str, ...]
    name: str = ""  # empty until the member has started
    client_urls: tuple[str, ...] = ()
    instance: int = 0  # of its data directory; 0 until it has started
    is_learner: bool = False

    def message(self) -> rpc_pb2.Member:
        """As MemberList answers it."""
        return rpc_pb2.Member(
            ID=self.id,
            name=self.name,
            peerURLs=self.peer_urls,
            clientURLs=self.client_urls,
            isLearner=self.is_learner,
        )

    @staticmethod
    def of(message: rpc_pb2.Member, instance: int = 0) -> "Member":
        return Member(
            id=message.ID,
            name=message.name,
            peer_urls=tuple(message.peerURLs),
            client_urls=tuple(message.clientURLs),
            instance=instance,
            is_learner=message.isLearner,
        )


def member_id(peer_urls: list[str], token: str) -> int:
    """The id of a member that is there from the cluster's beginning. `token`: of one added later, the time."""
    digest = sha1(("".join(sorted(peer_urls)) + token).encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big")


def cluster_id(member_ids: list[int]) -> int:
    joined = b"".join(schema.pack_u64(one) for one in sorted(member_ids))
    return int.from_bytes(sha1(joined, usedforsecurity=False).digest()[:8], "big")


def _row(id_: int) -> bytes:
    return _MEMBERS + schema.pack_u64(id_)


def _encode(member: Member) -> bytes:
    return schema.pack_u64(member.instance) + member.message().SerializeToString(deterministic=True)


def _decode(row: bytes) -> Member:
    return Member.of(rpc_pb2.Member.FromString(row[8:]), schema.unpack_u64(row[:8]))


def _first_of(members: list[Member]) -> list[Member]:
    """What was bootstrapped of them: the rest came through the log."""
    return [Member(id=one.id, name=one.name, peer_urls=one.peer_urls) for one in members]


class ClusterTable:
    """The members as this store knows them: as of its applied index. Reads the rows; there are few."""

    def __init__(self, store: MvccStore) -> None:
        self._store = store

    @property
    def cluster_id(self) -> int:
        """0 before `bootstrap`."""
        row = self._store.get(_ID_ROW)
        return 0 if row is None else schema.unpack_u64(row)

    def members(self) -> list[Member]:
        """In id order."""
        rows = self._store.scan(_MEMBERS, _MEMBERS_END).rest()
        try:
            return [_decode(row) for _, row in rows]
        except Exception as error:
            raise self._store.engine.unreadable(error) from error

    def removed(self) -> list[int]:
        """Ids that never come back, in their order."""
        rows = self._store.scan(_REMOVED, _REMOVED_END).rest()
        return [schema.unpack_u64(row[len(_REMOVED) :]) for row, _ in rows]

    def first(self) -> list[Member]:
        """Whom the cluster began with: the rows of `bootstrap`."""
        row = self._store.get(_FIRST_ROW)
        if row is None:
            return _first_of(self.members())
        return [Member.of(message) for message in rpc_pb2.MemberListResponse.FromString(row).members]

    def member(self, id_: int) -> Member | None:
        row = self._store.get(_row(id_))
        return None if row is None else _decode(row)

    def bootstrap(self, members: list[Member]) -> None:
        """The first rows of a new cluster, the same on every member. Not through the log: they say who has one.

        Like everything else they are durable with the next flush. A crash before it leaves no rows and an
        applied index of 0, and the member bootstraps again.
        """
        assert self._store.applied_index == 0, "only an empty store is bootstrapped"
        batch = self._store.engine.batch()
        batch.put(_ID_ROW, schema.pack_u64(cluster_id([member.id for member in members])))
        for member in members:
            batch.put(_row(member.id), _encode(member))
        self._store.write(batch)


def apply_publish(group: WriteGroup, publish: MemberPublish) -> AppliedResult | KvError:
    row = group.get_cluster_row(_row(publish.member))
    if row is None:
        return errors.MEMBER_NOT_FOUND
    known = _decode(row)
    if known.instance not in {0, publish.instance}:
        return OTHER_INSTANCE
    changed = replace(known, name=publish.name, client_urls=tuple(publish.client_urls), instance=publish.instance)
    group.put_cluster_row(_row(known.id), _encode(changed))
    return AppliedResult(group.current_revision, b"")


def apply_update(group: WriteGroup, request: rpc_pb2.MemberUpdateRequest) -> AppliedResult | KvError:
    members = _members(group)
    known = members.get(request.ID)
    if known is None:
        return errors.MEMBER_NOT_FOUND
    taken = {url for member in members.values() if member.id != known.id for url in member.peer_urls}
    if not taken.isdisjoint(request.peerURLs):
        return errors.PEER_URL_EXISTS
    _keep_first(group, members)
    group.put_cluster_row(_row(known.id), _encode(replace(known, peer_urls=tuple(request.peerURLs))))
    return AppliedResult(group.current_revision, b"")


def apply_configuration(group: WriteGroup, data: bytes, context: bytes, joint: bool) -> None:
    """`data`: the entry's own, kept for snapshots. Nothing can be refused any more: the leader has checked."""
    group.put_cluster_row(schema.META_CONFIGURATION, data)
    if joint or not context:
        return
    change = MemberChange.FromString(context)
    members = _members(group)
    _keep_first(group, members)
    row = _row(change.member.ID)
    if change.op == MemberChange.ADD:
        group.put_cluster_row(row, _encode(Member.of(change.member)))
    elif change.op == MemberChange.PROMOTE:
        group.put_cluster_row(row, _encode(replace(members[change.member.ID], is_learner=False)))
    elif change.op == MemberChange.REMOVE:
        group.delete_cluster_row(row)
        group.put_cluster_row(_REMOVED + schema.pack_u64(change.member.ID), b"")
    else:
        raise UnknownRequest(f"a change of members of type {change.op}: upgrade this member")


def _members(group: WriteGroup) -> dict[int, Member]:
    members = [_decode(row) for _, row in group.cluster_rows(_MEMBERS, _MEMBERS_END)]
    return {member.id: member for member in members}


def _keep_first(group: WriteGroup, members: dict[int, Member]) -> None:
    if group.get_cluster_row(_FIRST_ROW) is None:
        first = rpc_pb2.MemberListResponse(members=[one.message() for one in _first_of(list(members.values()))])
        group.put_cluster_row(_FIRST_ROW, first.SerializeToString(deterministic=True))
