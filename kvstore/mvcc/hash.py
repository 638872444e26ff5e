"""hash_kv: one number for everything that reads between two revisions can see.

Members compare it to find out that one of them has diverged, so it must be equal on all that have the
same (revision, compact revision), however far each has got with removing what compaction hides, and
however its database is arranged. It therefore covers what is visible by definition and nothing else: of
each key the versions in (compact, revision], and the newest at or before the compact revision when it is
live there, each with its event, in key order, newest first.

Only equality matters (ETCD_API 1.6), so zlib's crc32 does.
"""

from typing import Final
from zlib import crc32

from kvstore.mvcc import schema
from kvstore.mvcc.range import check_revision
from kvstore.mvcc.store import Reader

_CHUNK: Final = 128


async def hash_kv(reader: Reader, revision: int) -> tuple[int, int, int]:
    """(hash, compact revision, revision); revision 0: the newest. Raises KvError: FUTURE_REVISION, COMPACTED."""
    check_revision(reader, revision)
    high = revision if revision > 0 else reader.current_revision
    compact = reader.compact_revision
    budget = reader.budget()
    scan = reader.scan(*schema.version_rows(b"", None))
    settled = b""  # prefix of the key whose newest version at or before `compact` has been seen
    value = crc32(b"key")
    while rows := scan.rows(_CHUNK):
        visible: list[bytes] = []
        for row, mark in rows:
            prefix, at, _ = schema.split_version(row)
            if at > high or prefix == settled:
                continue
            if at <= compact:
                settled = prefix
                if mark == schema.TOMBSTONE:
                    continue
            visible.append(row)
        for row in visible:
            event = reader.get(_event_row(row))
            assert event is not None, f"a version points to a missing event: {row!r}"
            value = crc32(event, crc32(row, value))
            await budget.pause_if_spent()
        await budget.pause_if_spent()
    return value, compact, high


def _event_row(row: bytes) -> bytes:
    _, revision, sub = schema.split_version(row)
    return schema.event_row(revision, sub)
