"""WriteGroup: what a list of entries changes, gathered until one WriteBatch makes all of it visible.

New rows of `versions` and `events` go to a RocksDB batch as they arise. Changes of `latest` stay in an
overlay until the commit, so that requests of the group see each other, and a hot key is written once:

    get_latest(key)  =  overlay[key]            put or deleted one by one, newest
                   else None                    in an interval that a big delete cleared
                   else the row in the database

`versions` and `events` rows of revisions that are not visible yet harm nobody (store.py), so a group that
grows too large writes them early, in slices (`spill`). Only the commit touches `latest` and the visible
numbers: readers see all of a group or nothing, and a crash leaves the state before it or after it.
"""

from bisect import bisect_left, insort
from typing import Final, final

from rocksdict import WriteBatch

from kvstore.auth.changes import AuthChanges
from kvstore.failpoints import fail_async
from kvstore.mvcc import schema
from kvstore.mvcc.encoding import delete_event, key_of, key_value, put_event, varint
from kvstore.mvcc.engine import Scan
from kvstore.mvcc.events import AppliedEvent, RevisionEvents
from kvstore.mvcc.leases import LeaseOverlay, hides, lease_of
from kvstore.mvcc.live import KEY_BYTES, LEASE_BYTES, mark_at, rows_bytes
from kvstore.mvcc.overlay import OverlayScan
from kvstore.mvcc.slices import Budget
from kvstore.mvcc.store import LatestScan, MvccStore, Reader, StateRow, latest_scan
from kvstore.mvcc.totals import Totals
from kvstore.pb.kv_pb2 import KeyValue

SPILL_BYTES: Final = 64 << 10  # of rows in a slice's batch: about 700 deletions, 1 ms in RocksDB with the GIL held
BIG_DELETE: Final = 10_000  # keys; above it a delete goes by interval and its events are not handed over
BIG_DELETE_BYTES: Final = 16 << 20  # or above this, of what it deletes
_CHUNK: Final = 256
_NEVER_SEEN: Final = (-1, -1)


@final
class WriteGroup(Reader):
    """One at a time. A group that is not committed leaves nothing visible."""

    def __init__(self, store: MvccStore) -> None:
        self._store = store
        self._engine_get_latest = store.engine.get_latest
        self._rows = store.engine.batch()
        self._versions: list[bytes] = []  # rows of puts, apart: RocksDB takes neighbours in a row faster
        self._overlay: dict[bytes, bytes | None] = {}
        self._large_bytes = store.options.large_bytes
        self._large: dict[bytes, bytes] = {}  # keys whose newest KeyValue is large -> the row of its event
        self._sorted: list[bytes] | None = None  # of the overlay's keys, once somebody scans
        self._cleared: list[tuple[bytes, bytes | None]] = []
        self._born: list[bytes] = []  # keys that became live, and that ended, one by one: for KeyCounts
        self._died: list[bytes] = []
        self._live = store.live  # bytes, without what this group has changed (live.py):
        self._live_keys = store.live.keys
        self._written = store.live.written
        self.leases = LeaseOverlay(store)
        self.auth = AuthChanges(store.auth)
        self.ended = store.ended
        self._cluster: dict[bytes, bytes | None] = {}  # rows of the member table; None: deleted
        self._seen: dict[int, tuple[int, int]] = {}
        self.current_revision = store.current_revision
        self.compact_revision = store.compact_revision
        self.entry_time = store.last_entry_time
        self.events: list[RevisionEvents] = []
        self._changes: list[AppliedEvent] = []  # of the request under way
        self._sub = 0  # changes of the request under way
        self._has_put = False  # the request under way
        self._stored = False  # the request under way holds a big delete
        self._mod = varint(self.current_revision + 1)
        self.revision_varint = b""  # of the last request that changed something: its revision, encoded
        self.spills = 0
        self.deletes = self.txns = self._puts = 0  # for Totals

    # -- reading -------------------------------------------------------------------------------------

    @property
    def latest_revision(self) -> int:
        return self.current_revision + 1 if self._sub else self.current_revision

    def get_latest(self, key: bytes) -> bytes | None:
        if key in self._overlay:
            return self._overlay[key]
        return self._get_stored(key)

    def _get_stored(self, key: bytes) -> bytes | None:
        if self._cleared and any(schema.contains(low, high, key) for low, high in self._cleared):
            return None
        kv = self._engine_get_latest(key)
        return None if self.ended and kv is not None and hides(self.ended, kv) else kv

    def scan_stored(self, low: bytes, high: bytes | None) -> LatestScan:
        """The live keys of the database, without what this group has put, deleted or cleared."""
        return latest_scan(self._store.scan(*schema.latest_rows(low, high)), self.ended)

    def scan_latest(self, low: bytes, high: bytes | None) -> LatestScan:
        if not self._overlay and not self._cleared:
            return self.scan_stored(low, high)
        return OverlayScan(self, self._overlay, self._changed_in(low, high), self._cleared, low, high)

    def has_lease(self, lease: int) -> bool:
        return self.leases.get(lease) is not None

    def _changed_in(self, low: bytes, high: bytes | None) -> list[bytes]:
        if self._sorted is None:
            self._sorted = sorted(self._overlay)
        first = bisect_left(self._sorted, low)
        return self._sorted[first : None if high is None else max(first, bisect_left(self._sorted, high))]

    def get(self, row: bytes) -> bytes | None:
        return self._store.get(row)

    def scan(self, low: bytes, high: bytes) -> Scan:
        return self._store.scan(low, high)

    def budget(self) -> Budget:
        return self._store.budget()

    def seen(self, member: int) -> tuple[int, int]:
        """The newest (boot, sequence) of the member that was applied; boots grow."""
        return self._seen.get(member) or self._store.seen.get(member) or _NEVER_SEEN

    # -- writing -------------------------------------------------------------------------------------

    def see(self, member: int, identity: tuple[int, int]) -> None:
        self._seen[member] = identity

    def _set(self, key: bytes, kv: bytes | None) -> None:
        if self._sorted is not None and key not in self._overlay:
            insort(self._sorted, key)
        self._overlay[key] = kv

    def put(self, key: bytes, value: bytes, lease: int, prev: bytes | None) -> None:
        """`prev`: what get_latest(key) says now."""
        mod = self._mod
        if prev is None:
            kv = key_value(key, mod, mod, 1, value, lease)
            self._born.append(key)
            self._live_keys += len(kv) + KEY_BYTES
        else:
            before = KeyValue.FromString(prev)
            kv = key_value(key, varint(before.create_revision), mod, before.version + 1, value, lease)
            self._live_keys += len(kv) - len(prev)
            if before.lease and before.lease != lease:
                self.leases.bind(before.lease, key, False)
        if lease:
            self.leases.bind(lease, key, True)
        event = put_event(kv)
        revision, sub = self.current_revision + 1, self._sub
        self._versions.append(schema.version_key(key, revision, sub))
        row = schema.event_row(revision, sub)
        self._rows.put(row, event)
        if len(kv) >= self._large_bytes:
            self._large[key] = row
        self._set(key, kv)
        self._changes.append(AppliedEvent(key, event, False, prev))
        self._has_put = True
        self._sub = sub + 1

    def put_plain(self, key: bytes, value: bytes) -> int:
        """A request that is one put without a lease or options: get_latest, put and end_request in one step, since
        nearly all requests are this one. Returns its revision."""
        overlay = self._overlay
        prev = overlay[key] if key in overlay else self._get_stored(key)
        mod = self._mod
        revision = self.current_revision + 1
        if prev is None:
            kv = key_value(key, mod, mod, 1, value, 0)
            self._born.append(key)
            self._live_keys += len(kv) + KEY_BYTES
        else:
            before = KeyValue.FromString(prev)
            kv = key_value(key, varint(before.create_revision), mod, before.version + 1, value, 0)
            self._live_keys += len(kv) - len(prev)
            if before.lease:
                self.leases.bind(before.lease, key, False)
        event = put_event(kv)
        self._versions.append(schema.version_key(key, revision, 0))
        row = schema.event_row(revision, 0)
        self._rows.put(row, event)
        if len(kv) >= self._large_bytes:
            self._large[key] = row
        if self._sorted is None:
            overlay[key] = kv
        else:
            self._set(key, kv)
        self.events.append(RevisionEvents(revision, [AppliedEvent(key, event, False, prev)]))
        self.current_revision = revision
        self.revision_varint = mod
        self._mod = varint(revision + 1)
        return revision

    def _delete_rows(self, key: bytes, kv: bytes) -> bytes:
        """`kv`: what the key was."""
        event = delete_event(key, self._mod)
        revision, sub = self.current_revision + 1, self._sub
        self._rows.put(schema.version_key(key, revision, sub), schema.TOMBSTONE)
        self._rows.put(schema.event_row(revision, sub), event)
        self._live_keys -= len(kv) + KEY_BYTES
        self._sub = sub + 1
        return event

    def delete(self, key: bytes, prev: bytes) -> None:
        """One live key, whose encoded KeyValue is `prev`."""
        event = self._delete_rows(key, prev)
        self._set(key, None)
        self._died.append(key)
        lease = lease_of(prev)
        if lease:
            self.leases.bind(lease, key, False)
        before = self._before_request(key, prev) if self._has_put else prev
        self._changes.append(AppliedEvent(key, event, True, before))

    def _before_request(self, key: bytes, now: bytes) -> bytes | None:
        """The KeyValue at the revision before: what a watch shows, also if the request itself has put the key."""
        if KeyValue.FromString(now).mod_revision <= self.current_revision:
            return now
        return next(change.prev for change in self._changes if change.key == key)

    async def delete_range(self, low: bytes, high: bytes | None, prevs: list[bytes] | None) -> int:
        """Delete the live keys of [low, high); their KeyValues are added to `prevs` where one is given.

        In slices. Nothing of the group may read or write meanwhile: apply is one coroutine.
        """
        budget = self._store.big_write_budget()
        scan = self.scan_latest(low, high)
        waiting: list[list[bytes]] = []  # encoded KeyValues, while the delete may still be small
        count, size, big = 0, 0, False
        while not scan.done:
            rows = scan.rows(_CHUNK)
            waiting.append([kv for _, kv in rows])
            count += len(rows)
            if prevs is not None:
                prevs += waiting[-1]
            size += sum(map(len, waiting[-1]))
            big = big or self._sub + count > BIG_DELETE or size > BIG_DELETE_BYTES
            if big:
                await self._delete_unseen(waiting, budget)
                waiting = []
            await budget.pause_if_spent()
        if big:
            self._clear(low, high)
        for chunk in waiting:
            for kv in chunk:
                self.delete(key_of(kv), kv)
            await self.spill_if_large(budget)
            await budget.pause_if_spent()
        return count

    async def _delete_unseen(self, chunks: list[list[bytes]], budget: Budget) -> None:
        """Rows that nobody sees before the commit; `latest` follows by `_clear`."""
        await self._store.engine.hold_compactions()
        for chunk in chunks:
            for kv in chunk:
                self._delete_rows(key_of(kv), kv)
                lease = lease_of(kv)
                if lease:
                    self.leases.deleted_unseen(lease)
            await self.spill_if_large(budget)
            await budget.pause_if_spent()

    def _clear(self, low: bytes, high: bytes | None) -> None:
        """All keys of [low, high) are gone from `latest`, by one range tombstone at the commit."""
        self._stored = True
        self._cleared.append((low, high))
        for key in self._changed_in(low, high):
            del self._overlay[key]
        self._sorted = None

    async def revoke(self, lease: int) -> None:
        """End a lease and delete the keys bound to it, in key order. In slices, as delete_range."""
        budget = self.budget()
        waiting: list[bytes] = []  # encoded KeyValues, while they may still be few
        # What an earlier revoke of this id has hidden and not yet removed must stay hidden.
        size, big = 0, bool(self.ended.get(lease))
        for key in self.leases.keys(lease):
            kv = self.get_latest(key)
            if kv is not None and lease_of(kv) == lease:
                waiting.append(kv)
                size += len(kv)
            # Many small leases in one group are as much as a large one.
            big = big or len(self._overlay) + len(waiting) > BIG_DELETE or size > BIG_DELETE_BYTES
            if big and len(waiting) >= _CHUNK:
                await self._hide(waiting, budget)
                waiting = []
            await budget.pause_if_spent()
        if big:
            await self._hide(waiting, budget)
            self._stored = self._sub > 0
            self.ended = self.ended | {lease: self.current_revision + 1}
        else:
            self.deletes += len(waiting)
            for at in range(0, len(waiting), _CHUNK):
                for kv in waiting[at : at + _CHUNK]:
                    self.delete(key_of(kv), kv)
                await self.spill_if_large(budget)
                await budget.pause_if_spent()
        self.leases.end(lease, self.current_revision + 1 if big else 0)

    async def _hide(self, kvs: list[bytes], budget: Budget) -> None:
        """Rows of deletions that nobody sees before the commit; their rows of `latest` are hidden, not removed."""
        self.deletes += len(kvs)
        for at in range(0, len(kvs), _CHUNK):
            for kv in kvs[at : at + _CHUNK]:
                key = key_of(kv)
                self._delete_rows(key, kv)
                if key in self._overlay:  # what the group has put itself is not in the database yet
                    self._set(key, None)
            await self.spill_if_large(budget)
            await budget.pause_if_spent()

    def compact(self, revision: int) -> None:
        assert self.compact_revision < revision <= self.current_revision
        self.compact_revision = revision
        if revision == self.current_revision:
            mark = self._live_keys, self._written + rows_bytes(self._rows_so_far())
        else:
            mark = mark_at(self._store.scan(schema.live_mark_row(revision), schema.LIVE_MARKS_END))
        self._live = self._live.compacted(mark)

    @property
    def has_cluster_rows(self) -> bool:
        """This group changes the member table."""
        return bool(self._cluster)

    def get_cluster_row(self, row: bytes) -> bytes | None:
        return self._cluster[row] if row in self._cluster else self._store.get(row)

    def cluster_rows(self, low: bytes, high: bytes) -> list[tuple[bytes, bytes]]:
        """The rows of [low, high), in their order."""
        rows: dict[bytes, bytes | None] = dict(self._store.cluster_rows(low, high))
        rows.update({row: value for row, value in self._cluster.items() if low <= row < high})
        return [(row, value) for row, value in sorted(rows.items()) if value is not None]

    def put_cluster_row(self, row: bytes, value: bytes) -> None:
        self._cluster[row] = value

    def delete_cluster_row(self, row: bytes) -> None:
        self._cluster[row] = None

    def end_request(self) -> bool:
        """All changes since the last call are one revision. True when there are any."""
        if not self._sub:
            return False
        self.current_revision += 1
        self.events.append(RevisionEvents(self.current_revision, [] if self._stored else self._changes, self._stored))
        self._changes = []
        self._sub = 0
        self._has_put = False
        self._stored = False
        self.revision_varint = self._mod
        self._mod = varint(self.current_revision + 1)
        return True

    def put_record(self, record: bytes) -> None:
        """The EntryRecord of an entry whose last revision is the current one."""
        self._rows.put(schema.record_row(self.current_revision), record)

    # -- to the engine -------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """Of the rows not yet written, without the overlay."""
        size: int = self._rows.size_in_bytes()
        return size

    async def spill(self, budget: Budget) -> None:
        """Write the rows gathered so far. They stay invisible until the commit."""
        if self._rows.is_empty():
            return
        await self._store.engine.settle(budget)
        await fail_async("applyBeforeSpill")
        rows = self._rows_so_far()
        self._written += rows_bytes(rows)
        self._store.write(rows)
        self._rows = self._store.engine.batch()
        self.spills += 1

    def _rows_so_far(self) -> WriteBatch:
        put = self._rows.put
        self._puts += len(self._versions)
        for row in self._versions:
            put(row, b"")
        self._versions = []
        return self._rows

    async def spill_if_large(self, budget: Budget) -> None:
        if self._rows.size_in_bytes() >= SPILL_BYTES:
            await self.spill(budget)

    def _count(self, totals: Totals) -> None:
        totals.puts += self._puts
        totals.deletes += self.deletes
        totals.txns += self.txns
        totals.rows_bytes += self._written - self._store.live.written

    async def commit(self, applied_index: int, applied_term: int) -> None:
        """Everything becomes visible. The group is used up."""
        await self._store.engine.settle(self.budget())
        batch = self._rows_so_far()
        self._written += rows_bytes(batch)
        self._count(self._store.totals)
        for low, high in self._cleared:
            batch.delete_range(*schema.latest_rows(low, high))
        # After the intervals: the overlay is newer than all of them.
        put, large_bytes = batch.put, self._large_bytes
        for key, kv in self._overlay.items():
            if kv is None:
                batch.delete(b"l" + key)
            else:
                put(b"l" + key, kv if len(kv) < large_bytes else self._large[key])
        if self._large:
            put(schema.META_FORMAT, schema.pack_u64(schema.FORMAT_2))
        self.leases.write(batch)
        for row, value in (*self._cluster.items(), *self.auth.rows.items()):
            if value is None:
                batch.delete(row)
            else:
                put(row, value)
        for member, (boot, sequence) in self._seen.items():
            batch.put(schema.seen_row(member), schema.pack_pair(boot, sequence))
        granted = LEASE_BYTES * sum([one.granted for one in self.leases.changes])
        self._written += granted
        self._live_keys += granted - LEASE_BYTES * sum([one.row is None for one in self.leases.changes])
        live = self._live._replace(keys=self._live_keys, written=self._written)
        compacted = self.compact_revision if self.compact_revision != self._store.compact_revision else None
        live.put(batch, self._store.live, self.current_revision, compacted)
        self._store.commit(
            batch,
            StateRow(
                applied_index=applied_index,
                applied_term=applied_term,
                revision=self.current_revision,
                compact_revision=self.compact_revision,
                entry_time=self.entry_time,
            ),
        )
        if self._cleared or self.ended is not self._store.ended:
            self._store.drop_counts()
        else:
            self._store.update_counts(self._born, self._died)
        self.leases.committed()
        self._store.live = live
        self._store.auth = self.auth.table
        self._store.seen.update(self._seen)
