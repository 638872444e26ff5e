"""RocksDB, as this store uses it: one column family, no WAL, bounded memory. The only importer of rocksdict.

After a crash RocksDB comes back as a prefix of what was written (memtables are flushed in order), and the
Raft log is replayed from the applied index found in it. That is why every batch carries the applied index
and why nothing here is ever synced except by `flush`.

What has to be known of rocksdict 0.3.29, each point tried:
- `write`, `get` and iterators hold the GIL, `flush` releases it. A write that RocksDB stalls would freeze the
  process, so `settle` waits, off the loop's back, before the memtables are all full.
- Iterators of a Snapshot object do not see the snapshot but the newest state; only its point reads do. An
  iterator of the database itself is pinned to the moment it was made, and may be moved at will: it is our view.
- An iterator ends in silence on damage, until `status` is asked.
- `compact_range` holds the GIL until everything is merged. `merging` is how it is done instead.
- A checkpoint holds the GIL for all of it, its fsync too: 4 to 24 ms for 1 GB of 64 KiB values right after a
  flush. It flushes what is in memory by then, so without that flush it holds the GIL for as long as that takes.
- The type stub calls `WriteOptions.disable_wal` a method; it is a property.
"""

import asyncio
import mmap
import os
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, final

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    Checkpoint,
    DbClosedError,
    DBCompressionType,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    WriteBatch,
)
from rocksdict import WriteOptions as RocksWriteOptions

from kvstore.failpoints import fail, fail_async
from kvstore.measure import COMMITS
from kvstore.mvcc import schema
from kvstore.mvcc.encoding import event_kv
from kvstore.mvcc.slices import Budget, in_thread

_BUFFER_BYTES: Final = 32 << 20
_BUFFERS_MAX: Final = 3  # one being written, two being flushed
_CACHE_BYTES: Final = 32 << 20
_FILES_MERGED: Final = 8  # of level 0; fewer wait for more
_HOLD_SECONDS: Final = 5.0
_LEVEL0_HELD_MAX: Final = 20  # files; half of what slows writes down
_CHUNK_BYTES: Final = 256 << 10  # values may be large: a chunk of rows ends here too
_SIZES: Final = ("rocksdb.cur-size-all-mem-tables", "rocksdb.total-sst-files-size", "rocksdb.total-blob-file-size")
LARGE: Final = schema.EVENT[0]  # how the row of `latest` of a large KeyValue begins


class StoreError(Exception):
    """The store cannot be used. The message says what to do.

    StoreError               the disk does not take or give what it is asked for
     +- UnknownStoreFormat   written by a newer version, or by something else
     +- StoreInUse           another process has it open
     +- StoreDamaged         RocksDB refuses it, or a row is not what it must be
    """


class UnknownStoreFormat(StoreError):
    pass


class StoreInUse(StoreError):
    pass


class StoreDamaged(StoreError):
    pass


def damaged(path: Path | str, what: object) -> StoreDamaged:
    return StoreDamaged(
        f"the store in {path} is damaged ({what}). Stop this member and move its data directory away; "
        "do not start it again on this directory. A copy of the cluster's data is on the other members."
    )


def _unreadable(path: Path, what: object) -> StoreError:
    """A disk that fails is not a damaged store: what is on it may be whole, and must not be thrown away."""
    text = str(what)
    if not text.startswith("IO error") or "No such file" in text:  # a file that is gone is damage
        return damaged(path, text)
    return StoreError(
        f"cannot read the store in {path} ({text}): see to the disk, its mount and its permissions, "
        "then start this member again"
    )


def large_kv(engine: "Engine", event_row: bytes) -> bytes:
    """The KeyValue of a row of `latest` that only says which event holds it. Events stay as they are, so it does not
    matter from which moment on the row is looked at. Raises StoreDamaged."""
    event = engine.get(event_row)
    if event is None:
        raise engine.unreadable(f"a live key's event is gone: {event_row!r}")
    return event_kv(event)


def _options() -> Options:
    table = BlockBasedOptions()
    table.set_block_cache(Cache(_CACHE_BYTES))
    table.set_bloom_filter(10, False)  # whole keys: most gets of new keys end here
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(_BUFFER_BYTES)
    options.set_max_write_buffer_number(_BUFFERS_MAX)
    options.set_max_background_jobs(2)
    options.set_memtable_prefix_bloom_ratio(0.05)
    options.set_memtable_whole_key_filtering(True)  # a get of a new key does not search the memtables
    # Compactions share the cores with the loops. Of a put's CPU on all three members they took a third, half of it
    # zstd's; without it, and from twice as many files of twice the size, a tenth. The first two levels are written
    # anew so soon that compressing them costs more than it saves: 2.1 us of a put on each member, 1.3 without.
    options.set_compression_per_level([DBCompressionType.none()] * 2 + [DBCompressionType.lz4()] * 5)
    options.set_level_zero_file_num_compaction_trigger(_FILES_MERGED)
    # Compactions do not write large values anew. Blob files are not collected, for there is no garbage in them:
    # events, which hold all large values, stay.
    options.set_enable_blob_files(True)
    options.set_min_blob_size(schema.LARGE_BYTES)
    # Generous, since a slowed-down write holds the GIL; `settle` is the back-pressure.
    options.set_level_zero_slowdown_writes_trigger(40)
    options.set_level_zero_stop_writes_trigger(80)
    options.set_keep_log_file_num(4)
    options.set_max_open_files(512)
    return options


def writes_past_page_cache(path: Path) -> bool:
    """Whether the file system can. Else the kernel gathers a whole memtable and writes it out in one go, and an
    fdatasync of the log waits behind it: 64 KiB puts had a p99 of 45 ms, and 22 without."""
    if not hasattr(os, "O_DIRECT"):
        return False
    probe = path / ".direct"
    try:
        file = os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o600)
        try:
            os.write(file, mmap.mmap(-1, mmap.PAGESIZE))  # which is aligned; some accept the flag and no write
        finally:
            os.close(file)
            probe.unlink()
    except OSError:
        return False
    return True


@final
class Scan:
    """Rows of [low, high) in key order, a chunk at a time, as of the moment its iterator was made.

    All of one kind. Rows of `latest` come with their KeyValue, also where it is large and stands elsewhere.
    """

    __slots__ = ("_at", "_engine", "_high", "_iterator", "_of_latest", "done")

    def __init__(self, engine: "Engine", iterator: RdictIter, low: bytes, high: bytes) -> None:
        self._engine = engine
        self._iterator = iterator
        self._at = low
        self._high = high
        self._of_latest = low[:1] == schema.LATEST
        self.done = low >= high  # nothing more will come

    def rows(self, count: int) -> list[tuple[bytes, bytes]]:
        """The next rows, at most `count` and about 256 KiB; none only at the end."""
        found: list[tuple[bytes, bytes]] = []
        if self.done:
            return found
        iterator, high, of_latest = self._iterator, self._high, self._of_latest
        key_of, value_of, move = iterator.key, iterator.value, iterator.next
        iterator.seek(self._at)
        size = 0
        while len(found) < count and size < _CHUNK_BYTES:
            key = key_of()
            if key is None or key >= high:  # None: behind the last row
                break
            value = value_of()
            if of_latest and value[0] == LARGE:
                value = large_kv(self._engine, value)
            found.append((key, value))
            size += len(value)
            move()
        self._advance(found[-1][0] if found else None, len(found) == count or size >= _CHUNK_BYTES)
        return found

    def rest(self) -> list[tuple[bytes, bytes]]:
        """All that is left, in one piece: for kinds of rows that are few."""
        found: list[tuple[bytes, bytes]] = []
        while rows := self.rows(1024):
            found += rows
        return found

    def keys(self, count: int) -> list[bytes]:
        """The same without the values: much cheaper."""
        found: list[bytes] = []
        if self.done:
            return found
        iterator, high = self._iterator, self._high
        key_of, move = iterator.key, iterator.next
        iterator.seek(self._at)
        while len(found) < count:
            key = key_of()
            if key is None or key >= high:
                break
            found.append(key)
            move()
        self._advance(found[-1] if found else None, len(found) == count)
        return found

    def _advance(self, last: bytes | None, more: bool) -> None:
        # Every chunk seeks anew: the iterator of a view serves several scans in turn.
        if last is not None:
            self._at = last + b"\0"
        if not more:
            self.done = True
            self._engine.check(self._iterator)


@final
class Engine:
    """The open database."""

    def __init__(
        self, path: Path, *, read_only: bool = False, on_unreadable: Callable[[StoreError], object] | None = None
    ) -> None:
        """Raises StoreError. With read_only, nothing is made, locked or written: for a look at what is there.

        on_unreadable: called in any thread before a read raises StoreError. A member ends there: of all that wait for
        something of the store, none shall be answered by whatever its handler makes of the error.
        """
        self.path = path
        self.read_only = read_only
        self._on_unreadable = on_unreadable
        self._write_options = RocksWriteOptions()
        self._write_options.disable_wal = True  # type: ignore[method-assign, assignment]
        try:
            if read_only:
                self._db = Rdict(str(path), _options(), access_type=AccessType.read_only())
            else:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                options = _options()
                options.set_use_direct_io_for_flush_and_compaction(writes_past_page_cache(path))
                self._db = Rdict(str(path), options)
        except Exception as error:  # rocksdict has no class of its own for these
            text = str(error)
            if "lock hold by current process" in text or "Resource temporarily unavailable" in text:
                raise StoreInUse(f"the store in {path} is in use by another process: stop it first") from error
            raise _unreadable(path, text) from error
        self._db_get = self._db.get
        self._property = self._db.property_int_value
        self._holds = False  # compactions
        self._hold_until = 0.0  # of the loop's clock

    def get(self, row: bytes) -> bytes | None:
        try:
            value: bytes | None = self._db_get(row)
        except Exception as error:
            raise self.unreadable(error) from error
        return value

    def get_latest(self, key: bytes) -> bytes | None:
        """The encoded KeyValue of a live key."""
        try:
            kv: bytes | None = self._db_get(b"l" + key)
        except Exception as error:
            raise self.unreadable(error) from error
        return large_kv(self, kv) if kv is not None and kv[0] == LARGE else kv

    def unreadable(self, what: object) -> StoreError:
        """To be raised by who has read something that cannot be."""
        if isinstance(what, DbClosedError):  # a straggler, when the member stops
            return StoreError(f"the store in {self.path} is closed")
        error = _unreadable(self.path, what)
        if self._on_unreadable is not None:
            self._on_unreadable(error)
        return error

    def iterator(self) -> RdictIter:
        """Pinned to this moment, over everything. While it lives, so does the lock of a closed database."""
        return self._db.iter()

    def scan(self, low: bytes, high: bytes) -> Scan:
        """Pinned to this moment. The bound keeps RocksDB from wading through deleted rows behind the range."""
        options = ReadOptions()
        options.set_iterate_upper_bound(high)
        return Scan(self, self._db.iter(options), low, high)

    def check(self, iterator: RdictIter) -> None:
        try:
            iterator.status()
        except Exception as error:
            raise self.unreadable(error) from error

    def batch(self) -> WriteBatch:
        """An empty one, for `write`."""
        return WriteBatch(raw_mode=True)

    def write(self, batch: WriteBatch) -> None:
        """All or nothing, also after a crash. Consumes the batch. Raises StoreError: the member must stop."""
        try:
            fail("storeBeforeWrite")
            began = COMMITS.now()
            self._db.write(batch, self._write_options)
            COMMITS.observe(COMMITS.now() - began)
            fail("storeAfterWrite")
        except Exception as error:
            raise self._failed(error) from error

    def crowded(self) -> bool:
        """One more full memtable would stall writers."""
        return (self._property("rocksdb.num-immutable-mem-table") or 0) >= _BUFFERS_MAX - 1

    async def settle(self, budget: Budget) -> None:
        """Return when a write will not stall. Raises StoreError when it would for ever."""
        while self.crowded():
            if self._property("rocksdb.background-errors"):
                raise self._failed("RocksDB could not write a file")
            await budget.stall()

    async def hold_compactions(self) -> None:
        """Begin none for a while: a long write calls it again and again.

        A compaction takes a whole core for seconds, and every member begins one at the same moment, beside loops
        that have as much to do; half of its work would have to be done again for the rows that follow.
        """
        if (self._property("rocksdb.num-files-at-level0") or 0) >= _LEVEL0_HELD_MAX:
            return
        loop = asyncio.get_running_loop()
        self._hold_until = loop.time() + _HOLD_SECONDS
        if self._holds:
            return
        self._holds = True
        await in_thread(lambda: self._set_holding(True))
        loop.call_at(self._hold_until, self._release)

    def _release(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._hold_until:
            loop.call_at(self._hold_until, self._release)
        else:
            loop.run_in_executor(None, self._set_holding, False).add_done_callback(self._released)

    def _released(self, done: "asyncio.Future[None]") -> None:
        """Held for ever, files would pile up until writes stall: try again, a disk that is broken shows elsewhere."""
        if done.exception() is None:
            self._holds = False
        else:
            self._hold_until += _HOLD_SECONDS
            self._release()

    def _set_holding(self, hold: bool) -> None:
        with suppress(DbClosedError):
            self._db.set_options({"disable_auto_compactions": "true" if hold else "false"})

    @asynccontextmanager
    async def merging(self) -> AsyncIterator[None]:
        """Inside, RocksDB's threads merge all files that wait for more of them, deleted rows go, and writes go on.

        Its own call for that, compact_range, holds the GIL for all of it.
        """
        await in_thread(lambda: self._set_files_merged(1))
        try:
            # Only a new file makes RocksDB look at its levels.
            batch = self.batch()
            batch.put(schema.META_FORMAT, self.get(schema.META_FORMAT) or schema.pack_u64(schema.FORMAT_1))
            self.write(batch)
            await self.flush()
            yield
        finally:
            await in_thread(lambda: self._set_files_merged(_FILES_MERGED))

    def _set_files_merged(self, count: int) -> None:
        with suppress(DbClosedError):
            self._db.set_options({"level0_file_num_compaction_trigger": str(count)})

    @property
    def merges_left(self) -> bool:
        return bool(self._property("rocksdb.num-running-compactions") or self._property("rocksdb.compaction-pending"))

    async def flush(self) -> None:
        """Everything written before the call is on the disk when it returns."""
        try:
            await fail_async("flushBefore")
            await in_thread(self._db.flush)
            await fail_async("flushAfter")
        except Exception as error:
            raise self._failed(error) from error

    def checkpoint(self, path: Path) -> None:
        """Make `path`, a database of its own with everything written before the call; hard links, so it takes no
        space by itself and must be on the same disk. Flush just before (above). Raises StoreError."""
        try:
            Checkpoint(self._db).create_checkpoint(str(path))
        except Exception as error:
            raise StoreError(
                f"cannot make a checkpoint in {path} ({error}): free or replace the disk, then restart"
            ) from error

    def _failed(self, what: object) -> StoreError:
        return StoreError(f"cannot write to the store in {self.path} ({what}): free or replace the disk, then restart")

    def size_bytes(self) -> int:
        """On disk and in memtables."""
        return sum([self._property(name) or 0 for name in _SIZES])

    def close(self) -> None:
        self._db.close()

    def on_unused(self, call: Callable[[Callable[[], None]], None]) -> None:
        """`call(close)` once nobody holds this object any more, and with it no view and no scan; in any thread.

        `close` blocks. Without it the database would be closed on the spot, with the GIL held.
        """
        weakref.finalize(self, call, self._db.close).atexit = False


def open_read_only(path: Path) -> Engine:
    """Raises StoreError."""
    return Engine(path, read_only=True)
