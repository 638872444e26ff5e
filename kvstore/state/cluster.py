"""Who belongs to the cluster: rows that every member bootstraps alike, and that publishing completes.

Ids are computed as etcd does (api/membership, ETCD_API 1.5), so that the same --initial-cluster gives the
same ids here and there: a member's from its peer URLs and the cluster's token, the cluster's from its
members'. Name, client URLs and the instance of the data directory come through the log when the member
has started (MemberPublish).

The instance tells a member from its own lost disk: a member that comes back with an empty directory would
have forgotten votes and entries that it acknowledged, so its publish is refused.
"""

from dataclasses import dataclass
from hashlib import sha1
from typing import Final

from rocksdict import WriteBatch

from kvstore import errors
from kvstore.errors import Code, KvError
from kvstore.mvcc import schema
from kvstore.mvcc.engine import damaged
from kvstore.mvcc.store import MvccStore
from kvstore.mvcc.transaction import WriteGroup
from kvstore.pb import rpc_pb2
from kvstore.pb.command_pb2 import MemberPublish
from kvstore.state.txn import AppliedResult

_ID_ROW: Final = schema.CLUSTER + b"id"
_MEMBERS: Final = schema.CLUSTER + b"member/"  # + id, 8 bytes: instance, 8 bytes, then an encoded Member

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


def member_id(peer_urls: list[str], token: str) -> int:
    """The id of a member that is there from the cluster's beginning."""
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
    message = rpc_pb2.Member.FromString(row[8:])
    return Member(
        id=message.ID,
        name=message.name,
        peer_urls=tuple(message.peerURLs),
        client_urls=tuple(message.clientURLs),
        instance=schema.unpack_u64(row[:8]),
        is_learner=message.isLearner,
    )


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
        rows = self._store.scan(_MEMBERS, _MEMBERS[:-1] + b"0").rest()
        try:
            return [_decode(row) for _, row in rows]
        except Exception as error:
            raise damaged(self._store.engine.path, error) from error

    def member(self, id_: int) -> Member | None:
        row = self._store.get(_row(id_))
        return None if row is None else _decode(row)

    def bootstrap(self, members: list[Member]) -> None:
        """The first rows of a new cluster, the same on every member. Not through the log: they say who has one.

        Like everything else they are durable with the next flush. A crash before it leaves no rows and an
        applied index of 0, and the member bootstraps again.
        """
        assert self._store.applied_index == 0, "only an empty store is bootstrapped"
        batch = WriteBatch(raw_mode=True)
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
    group.put_cluster_row(
        _row(known.id),
        _encode(
            Member(
                id=known.id,
                peer_urls=known.peer_urls,
                name=publish.name,
                client_urls=tuple(publish.client_urls),
                instance=publish.instance,
                is_learner=known.is_learner,
            )
        ),
    )
    return AppliedResult(group.current_revision, b"")
