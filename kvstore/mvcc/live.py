"""How much of the store the quota counts, known at any moment without a look at a single row.

Counted is what a client can still read: the keys as they were at the compact revision, and every change since. The
history behind the compact revision is not counted, and a key's value once, though it may stand in `latest` as well.

    total  =  keys and leases as of the compact revision  +  rows of `versions` and `events`, and leases, since

Writes keep two sums, which cost an addition each: the size of the keys as they are now (`keys`), and of the rows
written so far (`written`, taken from the batches). A compaction of revision C needs both as they were at C. When C is
the newest revision they are at hand; for older ones the store keeps a mark for every 64 KiB written, and the newest
mark at or before C is used: what was written between mark and C is counted until the next compaction.

    m live           -> keys, written, and both as of the compact revision
    m live/ ~REVISION -> keys, written              a mark

The grouping of entries shows in these rows (where marks fall, the size of a batch's head), so members may differ in
them. Nothing that apply decides looks at them.
"""

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from rocksdict import WriteBatch

from kvstore.mvcc import schema

if TYPE_CHECKING:
    from kvstore.mvcc.engine import Engine, Scan

KEY_BYTES: Final = 64  # of a live key beside its KeyValue: its rows' keys
LEASE_BYTES: Final = 64
MARK_BYTES: Final = 64 << 10
_CHUNK: Final = 1024

_LIVE: Final = Struct(">qqqq")
_MARK: Final = Struct(">qq")


class LiveBytes(NamedTuple):
    keys: int = 0  # of the live keys and the leases
    written: int = 0  # since the store began
    base_keys: int = 0  # as of the compact revision, or a little before it
    base_written: int = 0

    @property
    def total(self) -> int:
        return self.base_keys + self.written - self.base_written

    def compacted(self, mark: tuple[int, int]) -> "LiveBytes":
        """The same after a compaction. mark: `keys` and `written` as they were then."""
        return self if mark[1] < self.base_written else self._replace(base_keys=mark[0], base_written=mark[1])

    def put(self, batch: WriteBatch, before: "LiveBytes", revision: int, compact_revision: int | None) -> None:
        """Add the rows to the batch that makes `revision` visible. compact_revision: if it has moved."""
        batch.put(schema.META_LIVE, _LIVE.pack(*self))
        if compact_revision is not None:
            batch.delete_range(schema.live_mark_row(compact_revision), schema.LIVE_MARKS_END)
        if self.written // MARK_BYTES > before.written // MARK_BYTES:
            batch.put(schema.live_mark_row(revision), _MARK.pack(self.keys, self.written))


def rows_bytes(batch: WriteBatch) -> int:
    """An empty batch has a head, and an entry that writes nothing must count as nothing."""
    size: int = batch.size_in_bytes()
    return 0 if batch.is_empty() else size


def load_live(engine: "Engine") -> LiveBytes:
    row = engine.get(schema.META_LIVE)
    if row is not None:
        return LiveBytes(*_LIVE.unpack(row))
    # A store from before there was a quota. Once: the next commit writes the row.
    keys, scan = 0, engine.scan(*schema.latest_rows(b"", None))
    while rows := scan.rows(_CHUNK):
        keys += sum([len(kv) + KEY_BYTES for _, kv in rows])
    return LiveBytes(keys=keys, base_keys=keys)


def mark_at(scan: "Scan") -> tuple[int, int]:
    """The first mark of a scan that begins at `live_mark_row(revision)`; nothing at all where there is none."""
    rows = scan.rows(1)
    if not rows:
        return 0, -1
    keys, written = _MARK.unpack(rows[0][1])
    return keys, written
