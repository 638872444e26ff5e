"""etcd's rows, as its 3.5 writes them (ETCD_API 1.10): both ways, and without a store.

    key              REVISION "_" SUB ["t"]        -> KeyValue; of a tombstone its key only
    lease            ID                            -> leasepb.Lease
    meta             consistent_index, term        -> u64
                     scheduledCompactRev, finishedCompactRev    -> REVISION "_" SUB
                     confState                     -> JSON
    members          id in hexadecimal             -> JSON       members_removed    id in hexadecimal -> "removed"
    alarm            AlarmMember                   -> ""
    auth             authEnabled, authRevision     authUsers, authRoles    NAME -> authpb.User, authpb.Role

There is no clusterVersion and no storageVersion: an etcd that begins with such a file decides both by itself, and
each from 3.4 on may.
"""

import json
from struct import Struct
from typing import Final

from kvstore.bbolt.reader import BboltError

ALARM: Final = b"alarm"
AUTH: Final = b"auth"
AUTH_ROLES: Final = b"authRoles"
AUTH_USERS: Final = b"authUsers"
CLUSTER: Final = b"cluster"
KEY: Final = b"key"
LEASE: Final = b"lease"
MEMBERS: Final = b"members"
MEMBERS_REMOVED: Final = b"members_removed"
META: Final = b"meta"
BUCKETS: Final = (ALARM, AUTH, AUTH_ROLES, AUTH_USERS, CLUSTER, KEY, LEASE, MEMBERS, MEMBERS_REMOVED, META)

CONSISTENT_INDEX: Final = b"consistent_index"
TERM: Final = b"term"
CONF_STATE: Final = b"confState"
SCHEDULED_COMPACTION: Final = b"scheduledCompactRev"
FINISHED_COMPACTION: Final = b"finishedCompactRev"
AUTH_ENABLED: Final = b"authEnabled"
AUTH_REVISION: Final = b"authRevision"
REMOVED: Final = b"removed"

_REVISION: Final = Struct(">Q1sQ")
_U64: Final = Struct(">Q")
_ID: Final = Struct(">q")
_TOMBSTONE: Final = b"t"
NUMBER_MAX: Final = 2**63 - 1

pack_u64 = _U64.pack


def revision_row(revision: int, sub: int) -> bytes:
    return _REVISION.pack(revision, b"_", sub)


def tombstone_row(revision: int, sub: int) -> bytes:
    return _REVISION.pack(revision, b"_", sub) + _TOMBSTONE


def split_revision(row: bytes) -> tuple[int, int, bool]:
    """(revision, sub, is a tombstone). Raises BboltError."""
    if len(row) == _REVISION.size or (len(row) == _REVISION.size + 1 and row.endswith(_TOMBSTONE)):
        revision, mark, sub = _REVISION.unpack_from(row)
        if mark == b"_" and 0 < revision <= NUMBER_MAX and sub < 2**32:
            return revision, sub, len(row) > _REVISION.size
    raise BboltError(f"{row[:64]!r} is no revision")


def split_u64(name: bytes, row: bytes) -> int:
    """Raises BboltError."""
    if len(row) != _U64.size:
        raise BboltError(f"{name.decode()} is {row[:64]!r}")
    value: int = _U64.unpack(row)[0]
    return value


def lease_row(lease: int) -> bytes:
    return _ID.pack(lease)


def conf_state(voters: list[int], learners: list[int]) -> bytes:
    state: dict[str, object] = {"voters": voters}
    if learners:
        state["learners"] = learners
    return _json({**state, "auto_leave": False})


def member_row(id_: int) -> bytes:
    return f"{id_:x}".encode()


def member(id_: int, name: str, peer_urls: tuple[str, ...], client_urls: tuple[str, ...], is_learner: bool) -> bytes:
    fields = {"id": id_, "peerURLs": peer_urls, "isLearner": is_learner, "name": name, "clientURLs": client_urls}
    return _json({field: value for field, value in fields.items() if value})


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
