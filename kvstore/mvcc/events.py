"""Events: what happened, by revision. Watch catches up from here, and history reads from here.

An event's bytes are encoded once, by apply; they are stored, sent to watchers and read back as they are.
Compaction leaves `events` alone: history outlives it. That a watch may not begin before the compaction
point is the watch's rule, not this module's.
"""

from typing import Final, final

from kvstore.mvcc import schema
from kvstore.mvcc.encoding import event_key, event_kv, is_delete
from kvstore.mvcc.store import Reader

_CHUNK: Final = 256


@final
class AppliedEvent:
    """One change of one key. Not changed once made; shared by all watchers."""

    __slots__ = ("event", "is_delete", "key", "prev")

    def __init__(self, key: bytes, event: bytes, is_delete: bool, prev: bytes | None) -> None:
        self.key = key
        self.event = event  # encoded mvccpb.Event without prev_kv
        self.is_delete = is_delete
        # The encoded KeyValue before; None at creation. Events that are read back from the store never
        # have it: ask prev_kv() for it.
        self.prev = prev

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AppliedEvent) and self.event == other.event

    def __hash__(self) -> int:
        return hash(self.event)

    def __repr__(self) -> str:
        return f"AppliedEvent({'delete' if self.is_delete else 'put'} {self.key!r})"


@final
class RevisionEvents:
    """All events of one revision, in order of their sub-revisions."""

    __slots__ = ("events", "revision", "stored")

    def __init__(self, revision: int, events: list[AppliedEvent], stored: bool = False) -> None:
        self.revision = revision
        self.events = events
        # True only from apply, after a big delete: `events` is empty, since hundreds of thousands of
        # objects are no hand-over. Whoever wants them reads them back with read_events.
        self.stored = stored

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RevisionEvents) and self.revision == other.revision and self.events == other.events

    def __hash__(self) -> int:
        return hash(self.revision)

    def __repr__(self) -> str:
        return f"RevisionEvents({self.revision}, {self.events}{' stored' if self.stored else ''})"


async def read_events(
    reader: Reader,
    low: int,
    high: int,
    *,
    bytes_max: int | None = None,
    key: bytes = b"\0",
    range_end: bytes = b"\0",
) -> list[RevisionEvents]:
    """Events of revisions [low, high] on keys of [key, range_end), oldest first, revisions whole.

    Stops after the revision that brings the events' bytes to `bytes_max`: go on after the last revision of
    the answer until an answer is empty. An empty answer means that there is none up to `high`. Revisions
    without a matching event are left out. Works below the compaction point.
    """
    high = min(high, reader.current_revision)  # rows above it are not visible
    first, end = schema.range_bounds(key, range_end)
    everything = first == b"\0" and end is None
    found: list[RevisionEvents] = []
    size = 0
    budget = reader.budget()
    scan = reader.scan(schema.event_from(max(low, 0)), schema.event_from(high + 1))
    while rows := scan.rows(_CHUNK):
        for row, event in rows:
            event_on = event_key(event)
            if not everything and not schema.contains(first, end, event_on):
                continue
            revision, _ = schema.split_event(row)
            if not found or found[-1].revision != revision:
                if bytes_max is not None and size >= bytes_max:
                    return found
                found.append(RevisionEvents(revision, []))
            found[-1].events.append(AppliedEvent(event_on, event, is_delete(event), None))
            size += len(event)
        await budget.pause_if_spent()
    return found


def version_at(reader: Reader, key: bytes, revision: int) -> tuple[int, int, bool] | None:
    """(revision, sub, is a tombstone) of the newest change of `key` at or before `revision`."""
    prefix = schema.version_prefix(key)
    rows = reader.scan(schema.version_from(key, revision), prefix[:-1] + b"\x02").rows(1)
    if not rows:
        return None
    _, found, sub = schema.split_version(rows[0][0])
    return found, sub, rows[0][1] == schema.TOMBSTONE


def kv_at(reader: Reader, key: bytes, revision: int) -> bytes | None:
    """The encoded KeyValue of `key` as of `revision`; None when it did not exist then."""
    version = version_at(reader, key, revision)
    if version is None or version[2]:
        return None
    return stored_kv(reader, version[0], version[1])


def stored_kv(reader: Reader, revision: int, sub: int) -> bytes:
    event = reader.get(schema.event_row(revision, sub))
    assert event is not None, f"a version points to a missing event {revision}.{sub}"
    return event_kv(event)


def prev_kv(reader: Reader, key: bytes, revision: int) -> bytes | None:
    """The encoded KeyValue of `key` before `revision`; None when it was absent or is compacted."""
    if revision - 1 < reader.compact_revision:
        return None
    return kv_at(reader, key, revision - 1)
