"""Leases in the store: their rows, which keys are bound to them, and what a large revoke leaves behind.

A lease is a row: its TTL, and what was left of it at the last checkpoint. When it expires is no part of the
state: that is the leader's business (kvstore/lease). A key's lease stands in its KeyValue; the row
LEASED + id + key leads from the lease to it.

    g id         -> TTL, remaining TTL
    k id key     -> empty: look at the key's KeyValue; bound if that names the lease
    m ended/ id  -> a revision R (below), or 0

So a row `k` too many does no harm, and a delete of a million keys need not remove theirs in the batch that
makes it visible: LeaseSweeper does it later.

A revoke deletes all keys of a lease in one revision. Up to some thousands are deleted like any others. Of
more, the rows of `latest` cannot leave in one batch: that would hold the loop for seconds, and they are no
interval that one tombstone could cover. Instead the batch that makes the revoke visible says that the
lease ended at revision R, and from then on every reader of `latest` passes over KeyValues that name this
lease and are not newer than R (`hides`). The sweeper removes these rows in slices, then the mark. A lease
that is granted again under the same id meanwhile binds keys that are newer than R.

As with compaction, how far the sweeper is shows in nothing that a client or a replica can see.
"""

from collections.abc import AsyncIterator, Iterator
from heapq import merge
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, final

from rocksdict import WriteBatch

from kvstore.mvcc import schema
from kvstore.pb.kv_pb2 import KeyValue

if TYPE_CHECKING:
    from kvstore.mvcc.engine import Engine, Scan
    from kvstore.mvcc.store import MvccStore, Reader

Ended = dict[int, int]  # lease -> revision R, or 0: only rows `k` are left of it. Replaced, never changed

_CHUNK: Final = 256
_ROW: Final = Struct(">qq")
_HEAD_BYTES: Final = 9  # of a row `k` before the key


class LeaseRow(NamedTuple):
    """What the state knows of a lease. Seconds."""

    ttl: int
    remaining: int  # at the last checkpoint; 0: no checkpoint since it was kept alive last

    def encode(self) -> bytes:
        return _ROW.pack(self.ttl, self.remaining)


def decode_row(row: bytes) -> LeaseRow:
    return LeaseRow(*_ROW.unpack(row))


def lease_of(kv: bytes) -> int:
    """The lease that an encoded KeyValue names; 0: none."""
    return KeyValue.FromString(kv).lease


def hides(ended: Ended, kv: bytes) -> bool:
    """Whether a row of `latest` is one that a large revoke has left behind."""
    message = KeyValue.FromString(kv)
    revision = ended.get(message.lease)
    return revision is not None and message.mod_revision <= revision


def load_ended(engine: "Engine") -> Ended:
    rows = engine.scan(schema.META_ENDED, schema.META_ENDED[:-1] + b"0").rest()
    return {schema.row_lease(row): schema.unpack_u64(value) for row, value in rows}


async def read_leases(reader: "Reader") -> AsyncIterator[list[tuple[int, LeaseRow]]]:
    """All leases of a view, a chunk at a time; pauses in between."""
    budget = reader.budget()
    scan = reader.scan(schema.LEASE, schema.after(schema.LEASE))
    while rows := scan.rows(_CHUNK):
        yield [(schema.row_lease(row), decode_row(value)) for row, value in rows]
        await budget.pause_if_spent()


async def keys_of(reader: "Reader", lease: int) -> list[bytes]:
    """The keys bound to a lease, in key order."""
    budget = reader.budget()
    found: list[bytes] = []
    scan = reader.scan(*schema.leased_rows(lease))
    while rows := scan.keys(_CHUNK):
        for row in rows:
            kv = reader.get_latest(row[_HEAD_BYTES:])
            if kv is not None and lease_of(kv) == lease:
                found.append(row[_HEAD_BYTES:])
        await budget.pause_if_spent()
    return found


class LeaseChange(NamedTuple):
    """What a group has done to a lease, for whoever keeps time."""

    lease: int
    row: LeaseRow | None  # None: it is gone
    granted: bool  # it is a new one


@final
class LeaseOverlay:
    """What a group changes of leases and of rows `k`, until its commit."""

    def __init__(self, store: "MvccStore") -> None:
        self._store = store
        self._rows: dict[int, LeaseRow | None] = {}
        self._bound: dict[int, dict[bytes, bool]] = {}  # lease -> key -> whether the row is to be there
        self._dropped: set[int] = set()  # leases whose rows `k` of before the group all go
        self._untidy: set[int] = set()  # leases of whose keys some were deleted without their rows `k`
        self._ended: Ended = {}
        self.changes: list[LeaseChange] = []

    def get(self, lease: int) -> LeaseRow | None:
        if lease in self._rows:
            return self._rows[lease]
        row = self._store.get(schema.lease_row(lease))
        return None if row is None else decode_row(row)

    def grant(self, lease: int, ttl: int) -> None:
        row = self._rows[lease] = LeaseRow(ttl, 0)
        self.changes.append(LeaseChange(lease, row, True))

    def checkpoint(self, lease: int, before: LeaseRow, remaining: int) -> None:
        row = self._rows[lease] = LeaseRow(before.ttl, remaining)
        self.changes.append(LeaseChange(lease, row, False))

    def bind(self, lease: int, key: bytes, bound: bool) -> None:
        self._bound.setdefault(lease, {})[key] = bound

    def deleted_unseen(self, lease: int) -> None:
        self._untidy.add(lease)

    def keys(self, lease: int) -> Iterator[bytes]:
        """Keys that may be bound to the lease, in key order, as of this call."""
        changed = self._bound.get(lease, {})
        added = sorted(key for key, bound in changed.items() if bound)
        if lease in self._dropped:
            return iter(added)
        stored = (key for key in _stored_keys(self._store.scan(*schema.leased_rows(lease))) if key not in changed)
        return merge(stored, added)

    def end(self, lease: int, hidden_from: int) -> None:
        """The lease is gone. hidden_from: a revision whose revoke leaves the keys' rows to the sweeper; else 0."""
        self._rows[lease] = None
        self.changes.append(LeaseChange(lease, None, False))
        if hidden_from:
            self._ended[lease] = hidden_from
        else:
            self._dropped.add(lease)
            self._bound.pop(lease, None)

    def write(self, batch: WriteBatch) -> None:
        """Add all of it to the group's last batch."""
        if not self._is_touched:
            return
        for lease, row in self._rows.items():
            if row is None:
                batch.delete(schema.lease_row(lease))
            else:
                batch.put(schema.lease_row(lease), row.encode())
        for lease in self._dropped:
            batch.delete_range(*schema.leased_rows(lease))
        for lease, keys in self._bound.items():
            for key, bound in keys.items():
                if bound:
                    batch.put(schema.leased_row(lease, key), b"")
                else:
                    batch.delete(schema.leased_row(lease, key))
        for lease, revision in self._new_marks().items():
            batch.put(schema.ended_row(lease), schema.pack_u64(revision))

    @property
    def _is_touched(self) -> bool:
        return bool(self._rows or self._bound or self._dropped or self._untidy or self._ended)

    def _new_marks(self) -> Ended:
        before = self._store.ended
        return {lease: before.get(lease, 0) for lease in sorted(self._untidy - self._dropped)} | self._ended

    def committed(self) -> None:
        marks = self._new_marks() if self._is_touched else None
        if marks:
            self._store.ended = self._store.ended | marks


def _stored_keys(scan: "Scan") -> Iterator[bytes]:
    while rows := scan.keys(_CHUNK):
        for row in rows:
            yield row[_HEAD_BYTES:]


@final
class LeaseSweeper:
    """Removes what large revokes and deletes leave behind. `run` when `pending`: after each batch, and at start."""

    def __init__(self, store: "MvccStore") -> None:
        self._store = store
        self._running = False

    @property
    def pending(self) -> bool:
        return bool(self._store.ended) and not self._running

    async def run(self) -> None:
        """Until nothing is left, what is added meanwhile included."""
        assert not self._running, "one run at a time"
        self._running = True
        try:
            while self._store.ended:
                await self._sweep(*next(iter(self._store.ended.items())))
        finally:
            self._running = False

    async def _sweep(self, lease: int, revision: int) -> None:
        store = self._store
        engine, budget = store.engine, store.budget()
        scan = store.scan(*schema.leased_rows(lease))
        while rows := scan.keys(_CHUNK):
            await engine.settle(budget)
            if store.engine is not engine:
                return  # another state has taken the place of this one, with marks of its own
            # From here to the write nothing is applied: what is looked at is what is removed.
            batch = engine.batch()
            for row in rows:
                key = row[_HEAD_BYTES:]
                kv = engine.get_latest(key)
                found = None if kv is None else KeyValue.FromString(kv)
                if found is None or found.lease != lease:
                    batch.delete(row)
                elif found.mod_revision <= revision:
                    batch.delete(row)
                    batch.delete(schema.LATEST + key)
            store.write(batch)
            await budget.pause_if_spent()
        if store.engine is engine and store.ended.get(lease) == revision:
            batch = engine.batch()
            batch.delete(schema.ended_row(lease))
            store.write(batch)
            store.ended = {other: at for other, at in store.ended.items() if other != lease}
