"""History: every change of a range of keys with who, when and why, also from before the compaction point.

Events tell what changed, and the record of the log entry that a revision came from tells the rest. One
record covers all revisions of its entry and is stored under the last of them, so the first record at or
after a revision is the right one, and walking forward reads each record once.
"""

from collections.abc import AsyncGenerator
from typing import Final, final

from kvstore.mvcc import schema
from kvstore.mvcc.encoding import event_key
from kvstore.mvcc.store import Reader
from kvstore.pb.command_pb2 import EntryRecord, Origin
from kvstore.pb.history_pb2 import Change, ReadHistoryRequest
from kvstore.pb.kv_pb2 import Event

_CHUNK: Final = 256  # rows read at once
ANSWER_CHANGES: Final = 1024
ANSWER_BYTES: Final = 512 << 10


async def read_history(reader: Reader, request: ReadHistoryRequest) -> AsyncGenerator[list[Change], None]:
    """Lists of changes, oldest first, none empty; a list is about as large as one message should be.

    Revisions above the reader's current one do not exist yet: the answer ends with the current one.
    """
    low, high = schema.range_bounds(request.key, request.range_end)
    last = min(request.to_revision if request.to_revision > 0 else reader.current_revision, reader.current_revision)
    records = _Records(reader)
    budget = reader.budget()
    left = request.limit if request.limit > 0 else None
    changes: list[Change] = []
    size = 0
    scan = reader.scan(schema.event_from(max(request.from_revision, 0)), schema.event_from(max(last, 0) + 1))
    while rows := scan.rows(_CHUNK):
        for row, event in rows:
            if not schema.contains(low, high, event_key(event)):
                continue
            changes.append(records.change(schema.split_event(row)[0], event))
            size += len(event)
            if left is not None and len(changes) >= left:
                yield changes
                return
        if size >= ANSWER_BYTES or len(changes) >= ANSWER_CHANGES:
            yield changes
            left = None if left is None else left - len(changes)
            changes, size = [], 0
        await budget.pause_if_spent()
    if changes:
        yield changes


@final
class _Records:
    """The record of a revision's entry; revisions are asked for in ascending order."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._last = -1  # revision under which the record at hand is stored
        self._record = EntryRecord()
        self._origins: dict[int, Origin] = {}

    def change(self, revision: int, event: bytes) -> Change:
        if revision > self._last:
            self._read(revision)
        # The state that a restored cluster began with has one record without origins: nobody knows who and when.
        origin = self._origins[revision] if self._origins else Origin()
        return Change(
            event=Event.FromString(event),
            time=self._record.time,
            index=self._record.index,
            term=self._record.term,
            member=origin.member,
            user=origin.user,
            request_id=origin.request_id,
        )

    def _read(self, revision: int) -> None:
        rows = self._reader.scan(schema.record_row(revision), b"s").rows(1)
        assert rows, f"no record for revision {revision}"
        row, record = rows[0]
        self._last = schema.unpack_u64(row[1:])
        self._record = EntryRecord.FromString(record)
        self._origins = {origin.revision: origin for origin in self._record.origins}
