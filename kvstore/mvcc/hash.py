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
from kvstore.mvcc.encoding import event_kv
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


async def damaged_key(reader: Reader) -> bytes | None:
    """The first key whose row of `latest` is not what its newest event says, or whose event is gone; None: all is well.

    A small value stands twice, and `hash_kv` sees one of the two. Both kinds of row have one order, so it is one walk.
    """
    budget = reader.budget()
    versions = reader.scan(*schema.version_rows(b"", None))
    latest = reader.scan_latest(b"", None)
    live: list[tuple[bytes, bytes]] = []  # rows of `latest` not met yet, the last one first
    seen = b""
    while rows := versions.rows(_CHUNK):
        for row, mark in rows:
            prefix, at, _ = schema.split_version(row)
            if prefix == seen or at > reader.current_revision:
                continue
            seen = prefix
            if mark == schema.TOMBSTONE:
                continue
            while not live and not latest.done:
                live = latest.rows(_CHUNK)[::-1]
            key, event = schema.version_user_key(prefix), reader.get(_event_row(row))
            if event is None or not live or live.pop() != (schema.LATEST + key, event_kv(event)):
                return key
            await budget.pause_if_spent()
        await budget.pause_if_spent()
    while not live and not latest.done:
        live = latest.rows(_CHUNK)[::-1]
    return live[-1][0][1:] if live else None


def _event_row(row: bytes) -> bytes:
    _, revision, sub = schema.split_version(row)
    return schema.event_row(revision, sub)
