"""Row keys: one column family, one leading byte per kind of row. DESIGN.md draws them together.

One column family, because a flush covers one column family only: with two, a kill after the flush of
the first leaves an applied index that is ahead of the data of the second.
"""

from struct import Struct
from typing import Final

# In 1 every row of `latest` holds its KeyValue, in 2 not the large ones. A store is of 1 until the first of these is
# written, so that a build that knows no other can go on with it.
FORMAT_1: Final = 1
FORMAT_2: Final = 2
REVISION_MAX: Final = 2**63 - 1
_SUB_MAX: Final = 2**32 - 1

AUTH: Final = b"a"  # users and roles (kvstore/auth/table.py)
LATEST: Final = b"l"  # the KeyValue, or, from LARGE_BYTES on, the key of the event's row, which holds it too
LARGE_BYTES: Final = 4 << 10
VERSION: Final = b"v"
EVENT: Final = b"e"
RECORD: Final = b"r"
META: Final = b"m"
CLUSTER: Final = b"c"
LEASE: Final = b"g"  # granted: + id
LEASED: Final = b"k"  # + id + key: the key may be bound to the lease; its KeyValue says whether it is (leases.py)

TOMBSTONE: Final = b"t"  # value of a `versions` row that is a deletion; empty for a put

META_FORMAT: Final = META + b"format"
META_STATE: Final = META + b"state"
META_COMPACTED: Final = META + b"compacted"  # `versions` is physically compacted up to this revision
META_CONFIGURATION: Final = META + b"configuration"  # data of the newest configuration entry applied, joint or not
META_ENDED: Final = META + b"ended/"  # + id of a lease: rows of keys that were bound to it are left (leases.py)
META_LIVE: Final = META + b"live"  # what the quota counts (live.py)
LIVE_MARKS_END: Final = META_LIVE + b"0"  # marks: META_LIVE + "/" + a revision, inverted: the newest comes first
META_SEEN: Final = META + b"seen/"  # + member, 8 bytes: (boot, sequence) of its newest request

_REVISION_SUB: Final = Struct(">QI")
_EVENT_ROW: Final = Struct(">cQI")
_VERSION_TAIL: Final = Struct(">2sQI")  # the end of an escaped key, revision and sub inverted
_U64: Final = Struct(">Q")
_PAIR: Final = Struct(">QQ")
_ID: Final = Struct(">q")  # of a lease: clients may choose negative ones

pack_u64 = _U64.pack
pack_pair = _PAIR.pack


def unpack_u64(row: bytes) -> int:
    value: int = _U64.unpack(row)[0]
    return value


def unpack_pair(row: bytes) -> tuple[int, int]:
    first, second = _PAIR.unpack(row)
    return first, second


def range_bounds(key: bytes, range_end: bytes) -> tuple[bytes, bytes | None]:
    """etcd's range convention as a half-open interval of keys; None: no upper end. A single key is [key, key+0)."""
    if not range_end:
        return key, key + b"\0"
    return key, None if range_end == b"\0" else range_end


def contains(low: bytes, high: bytes | None, key: bytes) -> bool:
    return low <= key and (high is None or key < high)


def latest_rows(low: bytes, high: bytes | None) -> tuple[bytes, bytes]:
    return LATEST + low, b"m" if high is None else LATEST + high


def escape(key: bytes) -> bytes:
    """Order-preserving and prefix-free: what follows an escaped key never changes the order of keys.

    Ends in 00 01, and a 00 inside becomes 00 ff, so that "a" and all its versions sort before "a" 00.
    """
    return key.replace(b"\0", b"\0\xff") + b"\0\x01"


def version_key(key: bytes, revision: int, sub: int) -> bytes:
    """Newest first: revision and sub are inverted."""
    if b"\0" in key:
        key = key.replace(b"\0", b"\0\xff")
    return b"v" + key + _VERSION_TAIL.pack(b"\0\x01", REVISION_MAX - revision, _SUB_MAX - sub)


def version_prefix(key: bytes) -> bytes:
    """Of all versions of a key."""
    return VERSION + escape(key)


def version_from(key: bytes, revision: int) -> bytes:
    """Seek here for a key's newest version at or before `revision`."""
    return b"v%b\0\x01%b" % (key.replace(b"\0", b"\0\xff"), _U64.pack(REVISION_MAX - revision))


def version_rows(low: bytes, high: bytes | None) -> tuple[bytes, bytes]:
    """All versions of all keys in [low, high). Cutting the terminator off keeps [key, key+0) right as well:
    the escape of key+0 is key 00 ff, which is above key's own rows (key 00 01)."""
    return (
        VERSION + low.replace(b"\0", b"\0\xff"),
        b"w" if high is None else VERSION + high.replace(b"\0", b"\0\xff"),
    )


def split_version(row: bytes) -> tuple[bytes, int, int]:
    """(prefix of the key's versions, revision, sub)."""
    revision, sub = _REVISION_SUB.unpack_from(row, len(row) - 12)
    return row[:-12], REVISION_MAX - revision, _SUB_MAX - sub


def version_user_key(prefix: bytes) -> bytes:
    return prefix[1:-2].replace(b"\0\xff", b"\0")


def event_row(revision: int, sub: int) -> bytes:
    return _EVENT_ROW.pack(b"e", revision, sub)


def event_from(revision: int) -> bytes:
    return b"e" + _U64.pack(revision)


def split_event(row: bytes) -> tuple[int, int]:
    revision, sub = _REVISION_SUB.unpack_from(row, 1)
    return revision, sub


def record_row(last_revision: int) -> bytes:
    """Of an entry's record: the first at or after a revision is the one that tells about it."""
    return b"r" + _U64.pack(last_revision)


def live_mark_row(revision: int) -> bytes:
    return META_LIVE + b"/" + _U64.pack(REVISION_MAX - revision)


def seen_row(member: int) -> bytes:
    return META_SEEN + _U64.pack(member)


def lease_row(lease: int) -> bytes:
    return LEASE + _ID.pack(lease)


def leased_row(lease: int, key: bytes) -> bytes:
    return LEASED + _ID.pack(lease) + key


def leased_rows(lease: int) -> tuple[bytes, bytes]:
    """Of all keys that may be bound to a lease."""
    low = LEASED + _ID.pack(lease)
    return low, after(low)


def after(prefix: bytes) -> bytes:
    """The first row behind all that begin with `prefix`, whose first byte is not ff."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes((head[-1] + 1,))


def ended_row(lease: int) -> bytes:
    return META_ENDED + _ID.pack(lease)


def row_lease(row: bytes) -> int:
    """The id in a row of LEASE or META_ENDED."""
    lease: int = _ID.unpack_from(row, len(row) - 8)[0]
    return lease
