"""MvccStore: the replicated state in RocksDB, and the views that reads are served from.

`latest` answers reads of the newest revision, `versions` finds old ones, `events` holds what happened
(DESIGN.md). This module reads and keeps the few numbers that are the visible state; transaction.py is
the only writer of keys.

Visible is what the last whole batch made visible: rows of revisions above `current_revision` may lie in
the database already (slices of a big delete, or what a crash left of one), and every reader passes over
them. Replay writes the same rows again.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from struct import error as StructError
from types import TracebackType
from typing import Final, NamedTuple, final

from google.protobuf.message import DecodeError
from rocksdict import RdictIter, WriteBatch

from kvstore.auth.table import AuthTable
from kvstore.mvcc import leases, schema
from kvstore.mvcc.counts import COUNTS_MAX, WALKED_MIN, KeyCounts
from kvstore.mvcc.engine import (
    Engine,
    Scan,
    StoreDamaged,
    StoreError,
    StoreInUse,
    UnknownStoreFormat,
    open_read_only,
)
from kvstore.mvcc.live import load_live
from kvstore.mvcc.slices import (
    BACKGROUND_REST,
    BACKGROUND_SLICE_NS,
    BIG_WRITE_REST,
    BIG_WRITE_SLICE_NS,
    MONOTONIC,
    SLICE_NS,
    Budget,
    Clock,
)
from kvstore.mvcc.totals import Totals

__all__ = [
    "EngineReader",
    "MvccStore",
    "ReadView",
    "Reader",
    "StateRow",
    "StoreDamaged",
    "StoreError",
    "StoreInUse",
    "StoreOptions",
    "UnknownStoreFormat",
]

REVISION_EMPTY: Final = 1  # of a store that nothing was ever written to (etcd)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    slice_ns: int = SLICE_NS  # how long work may hold the loop before it pauses
    clock: Clock = MONOTONIC  # says when to pause, and nothing else
    engine: Callable[[Path], Engine] = Engine  # the simulator brings one in memory
    count_walked_min: int = WALKED_MIN  # keys that a count has to pass before their numbers are kept
    large_bytes: int = schema.LARGE_BYTES  # a smaller number is for tests
    peek: Callable[[Path], Engine] = open_read_only  # the same, to look and change nothing


class StateRow(NamedTuple):
    """The numbers that every batch carries, in one row."""

    applied_index: int = 0
    applied_term: int = 0
    revision: int = REVISION_EMPTY
    compact_revision: int = 0  # 0: never compacted
    entry_time: int = 0  # of the last entry, nanoseconds since 1970

    def encode(self) -> bytes:
        return _STATE.pack(*self)


_STATE: Final = Struct(">QQQQq")


def _decode_state(row: bytes) -> StateRow:
    return StateRow(*_STATE.unpack(row))


class Reader(ABC):
    """What ranges, events and hashes are read from: the store itself, a pinned view, or a write under way."""

    current_revision: int  # the newest revision that may be asked for by number
    compact_revision: int  # revisions below it can no longer be asked for
    ended: leases.Ended  # leases whose keys are gone though rows of `latest` may be left of them (leases.py)

    @property
    @abstractmethod
    def latest_revision(self) -> int:
        """The revision that `latest` shows: above `current_revision` only inside a write."""

    @abstractmethod
    def get_latest(self, key: bytes) -> bytes | None:
        """The encoded KeyValue of a live key."""

    @abstractmethod
    def scan_latest(self, low: bytes, high: bytes | None) -> "LatestScan":
        """The live keys of [low, high)."""

    @abstractmethod
    def has_lease(self, lease: int) -> bool:
        """Whether it is granted."""

    @abstractmethod
    def get(self, row: bytes) -> bytes | None:
        """One row that never changes once it is visible: of `events` or `records`."""

    @abstractmethod
    def scan(self, low: bytes, high: bytes) -> Scan:
        """Rows of any kind but `latest`."""

    @abstractmethod
    def budget(self) -> Budget: ...

    def count_latest(self, low: bytes, high: bytes | None) -> int | None:
        """How many live keys [low, high) holds, when that is known without a long walk."""
        return None

    def begin_counts(self, low: bytes, high: bytes | None) -> KeyCounts | None:
        """For who walks over all rows of [low, high) as they are in this very step."""
        return None


class LatestScan(ABC):
    """Chunks of live keys in key order, until `done`."""

    @property
    @abstractmethod
    def done(self) -> bool:
        """Nothing more will come."""

    @abstractmethod
    def rows(self, count: int) -> list[tuple[bytes, bytes]]:
        """(row key, encoded KeyValue), at most `count`; maybe none, also before the end."""

    @abstractmethod
    def count(self, count: int) -> int:
        """How many come next, at most `count`; maybe none, also before the end. Passes over them."""


def latest_scan(scan: Scan, ended: leases.Ended) -> LatestScan:
    """Of the rows of `latest` that are live."""
    return _HidingScan(scan, ended) if ended else _PlainScan(scan)


@final
class _HidingScan(LatestScan):
    """Passes over what large revokes have left behind."""

    def __init__(self, scan: Scan, ended: leases.Ended) -> None:
        self._scan = scan
        self._ended = ended

    @property
    def done(self) -> bool:
        return self._scan.done

    def rows(self, count: int) -> list[tuple[bytes, bytes]]:
        return [row for row in self._scan.rows(count) if not leases.hides(self._ended, row[1])]

    def count(self, count: int) -> int:
        return len(self.rows(count))


@final
class _PlainScan(LatestScan):
    def __init__(self, scan: Scan) -> None:
        self._scan = scan

    @property
    def done(self) -> bool:
        return self._scan.done

    def rows(self, count: int) -> list[tuple[bytes, bytes]]:
        return self._scan.rows(count)

    def count(self, count: int) -> int:
        return len(self._scan.keys(count))


class EngineReader(Reader):
    """A Reader whose rows are all in the engine."""

    def __init__(self, engine: Engine, options: StoreOptions) -> None:
        self._engine = engine
        self._options = options

    @property
    def latest_revision(self) -> int:
        return self.current_revision

    def get_latest(self, key: bytes) -> bytes | None:
        kv = self._engine.get_latest(key)
        return None if self.ended and kv is not None and leases.hides(self.ended, kv) else kv

    def scan_latest(self, low: bytes, high: bytes | None) -> LatestScan:
        return latest_scan(self.scan(*schema.latest_rows(low, high)), self.ended)

    def has_lease(self, lease: int) -> bool:
        return self._engine.get(schema.lease_row(lease)) is not None

    def get(self, row: bytes) -> bytes | None:
        return self._engine.get(row)

    def scan(self, low: bytes, high: bytes) -> Scan:
        return self._engine.scan(low, high)

    def budget(self) -> Budget:
        return Budget(self._options.clock, self._options.slice_ns)

    def background_budget(self) -> Budget:
        """For work that nobody waits for."""
        return Budget(self._options.clock, min(self._options.slice_ns, BACKGROUND_SLICE_NS), BACKGROUND_REST)

    def big_write_budget(self) -> Budget:
        """For work of many slices: writes, which every member does at once (slices.py), and snapshot files."""
        slice_ns = min(self._options.slice_ns, BIG_WRITE_SLICE_NS)
        return Budget(self._options.clock, slice_ns, BIG_WRITE_REST)


@final
class ReadView(EngineReader):
    """The store as it was when the view was made, whatever is applied or compacted since. Close it: it pins
    files and memory. Scans of one view may take turns; its iterator is moved by each."""

    def __init__(self, store: "MvccStore", engine: Engine, options: StoreOptions) -> None:
        super().__init__(engine, options)
        self.current_revision = store.current_revision
        self.compact_revision = store.compact_revision
        self.ended = store.ended
        self.auth = store.auth
        self._store = store
        self._writes = store.writes
        self._iterator: RdictIter | None = engine.iterator()

    def get_latest(self, key: bytes) -> bytes | None:
        if self._store.writes == self._writes:
            return super().get_latest(key)
        rows = self.scan_latest(key, key + b"\0").rows(1)
        return rows[0][1] if rows else None

    def has_lease(self, lease: int) -> bool:
        row = schema.lease_row(lease)
        return bool(self.scan(row, row + b"\0").keys(1))

    def scan(self, low: bytes, high: bytes) -> Scan:
        if self._store.writes == self._writes:
            return super().scan(low, high)  # nothing has changed: a bounded iterator is cheaper
        assert self._iterator is not None, "a closed view was read"
        return Scan(self._engine, self._iterator, low, high)

    def count_latest(self, low: bytes, high: bytes | None) -> int | None:
        return self._store.count_latest(low, high) if self._store.writes == self._writes else None

    def begin_counts(self, low: bytes, high: bytes | None) -> KeyCounts | None:
        return self._store.begin_counts(low, high) if self._store.writes == self._writes else None

    def close(self) -> None:
        self._iterator = None

    def __enter__(self) -> "ReadView":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@final
class MvccStore(EngineReader):
    """The open store. One loop uses it; nothing here is for other threads."""

    def __init__(self, engine: Engine, options: StoreOptions) -> None:
        super().__init__(engine, options)
        self.engine = engine
        self.options = options
        self.writes = 0  # grows with every batch; a view whose number is this one is the store itself
        # Called, in this order, when another state has taken the place of this one (`swap`): whoever keeps
        # something that was read from the store reads it again. Must not raise.
        self.on_swap: list[Callable[[], None]] = []
        self.totals = Totals()
        self._counts: list[KeyCounts] = []  # the newest first
        self._counting: KeyCounts | None = None  # those of a walk under way
        self._load()

    @classmethod
    def open(cls, path: Path, options: StoreOptions | None = None) -> "MvccStore":
        """Raises StoreError."""
        options = options or StoreOptions()
        engine = options.engine(path)
        try:
            return cls(engine, options)
        except BaseException:
            engine.close()
            raise

    def _load(self) -> None:
        engine = self.engine
        found = engine.get(schema.META_FORMAT)
        if found is None:
            if engine.scan(b"\0", b"\xff").keys(1):
                raise UnknownStoreFormat(f"{engine.path} holds a database that is not a store of kvstore")
            batch = engine.batch()
            batch.put(schema.META_FORMAT, schema.pack_u64(schema.FORMAT_1))
            self.write(batch)
        elif int.from_bytes(found, "big") not in (schema.FORMAT_1, schema.FORMAT_2):
            raise UnknownStoreFormat(
                f"the store in {engine.path} has format {int.from_bytes(found, 'big')}, this version knows "
                f"{schema.FORMAT_2}: start it with the version that wrote it, or a newer one"
            )
        row = engine.get(schema.META_STATE)
        try:
            self._show(StateRow() if row is None else _decode_state(row))
            self.seen = self._load_seen()
            self.ended = leases.load_ended(engine)
            self.live = load_live(engine)
            self.auth = AuthTable.load(engine)
        except (StructError, DecodeError, UnicodeDecodeError) as error:
            raise engine.unreadable(error) from error

    def _load_seen(self) -> dict[int, tuple[int, int]]:
        rows = self.engine.scan(schema.META_SEEN, schema.META_SEEN[:-1] + b"0").rest()
        return {schema.unpack_u64(key[-8:]): schema.unpack_pair(value) for key, value in rows}

    def _show(self, state: StateRow) -> None:
        self.state = state
        self.current_revision = state.revision
        self.compact_revision = state.compact_revision
        self.applied_index = state.applied_index
        self.applied_term = state.applied_term
        self.last_entry_time = state.entry_time

    def cluster_rows(self, low: bytes, high: bytes) -> list[tuple[bytes, bytes]]:
        """The rows of [low, high), of a kind that is few."""
        return self.scan(low, high).rest()

    def view(self) -> ReadView:
        return ReadView(self, self.engine, self.options)

    def write(self, batch: WriteBatch) -> None:
        """Rows that change nothing visible: slices, compaction, bootstrap."""
        self.engine.write(batch)
        self.writes += 1

    def commit(self, batch: WriteBatch, state: StateRow) -> None:
        """The batch that makes `state` visible, in one step."""
        assert state.applied_index >= self.applied_index, (
            f"applied index went back {self.applied_index} -> {state.applied_index}"
        )
        assert state.revision >= self.current_revision, (
            f"revision went back {self.current_revision} -> {state.revision}"
        )
        batch.put(schema.META_STATE, state.encode())
        self.write(batch)
        self._show(state)

    def count_latest(self, low: bytes, high: bytes | None) -> int | None:
        rows = schema.latest_rows(low, high)
        found = None if self.ended else next((one for one in self._counts if one.covers(*rows)), None)
        return None if found is None else found.count(self.engine, *rows)

    def begin_counts(self, low: bytes, high: bytes | None) -> KeyCounts | None:
        if self._counting is not None or self.ended:
            return None
        self._counting = KeyCounts(*schema.latest_rows(low, high), self._counted)
        return self._counting

    def _counted(self, counts: KeyCounts, passed: int) -> None:
        if counts is self._counting:
            self._counting = None
            if passed >= self.options.count_walked_min and not counts.dropped:
                counts.use()
                others = [one for one in self._counts if not counts.covers(one.low, one.high)]
                self._counts = [counts, *others[: COUNTS_MAX - 1]]

    def update_counts(self, born: list[bytes], died: list[bytes]) -> None:
        """A commit has made these keys live, and has ended those."""
        walks = [] if self._counting is None else [self._counting]
        if not self._counts and not walks:
            return
        changes = [(schema.LATEST + key, 1) for key in born] + [(schema.LATEST + key, -1) for key in died]
        for counts in self._counts + walks:
            counts.commit(self.engine, changes)

    def drop_counts(self) -> None:
        """`latest` was changed otherwise."""
        self._counts = []
        self._counting = None

    async def flush(self) -> int:
        """Make the state durable. Returns an applied index that is on the disk for certain."""
        # Taken before the flush: what is applied while it runs may not be in it.
        index = self.applied_index
        await self.engine.flush()
        return index

    def swap(self, other: "MvccStore") -> Engine:
        """Be the state of `other` from now on, which is newer and whose object is used up. Returns the engine
        that was in use.

        Everybody who holds this store reads the new state with the next call. Views and scans that began before
        go on in the old database: it is open for as long as somebody holds one of them, or the engine.
        """
        assert other.applied_index > self.applied_index, f"state {other.applied_index} is not newer"
        assert other.current_revision >= self.current_revision, (
            f"revision went back {self.current_revision} -> {other.current_revision}"
        )
        old = self.engine
        self.engine = self._engine = other.engine
        self.writes += 1  # no view of before is this store any more
        self.drop_counts()
        self.seen = other.seen
        self.ended = other.ended
        self.live = other.live
        self.auth = other.auth
        self._show(other.state)
        for reload in self.on_swap:
            reload()
        return old

    def size_bytes(self) -> tuple[int, int]:
        """(total, in use). In use is what the quota counts; it may be more than what the files take, for they are
        compressed, and then it is the total too."""
        return max(self.engine.size_bytes(), self.live.total), self.live.total

    def close(self) -> None:
        """Views must be closed before: a live iterator keeps the lock of the directory."""
        self.engine.close()
