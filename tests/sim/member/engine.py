"""MemoryEngine: the rows of a store in memory, with what a crash does to RocksDB without a WAL.

RocksDB writes its memtables out in order, so after a crash a prefix of what was written is there: all that was
flushed, and maybe some of the batches behind it. Views are pinned by copying: a write copies the rows if
an iterator still holds them, and a simulated store is small.

The rows of a directory live in a Rows object that outlasts the process; `crash` is called by whoever kills it. A file
in the directory names it, so that it moves along when the directory is renamed. A checkpoint is one file of rows, and
a directory that holds only that file begins with them.
"""

import sys
import weakref
from bisect import bisect_left, insort
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Any, Final, TypeAlias, final

from kvstore.mvcc.engine import LARGE, Scan, StoreError, StoreInUse, damaged, large_kv
from kvstore.mvcc.slices import Budget, in_thread
from raft.testing.sim.rng import SimRng
from tests.sim.member.loop import Process

CHECKPOINT: Final = "ROWS"
_NAME: Final = "NAME"
_LENGTHS: Final = Struct(">II")
_Change: TypeAlias = tuple[bytes, bytes | None]  # a put, or a deletion
_ROW_BYTES: Final = 20  # of bookkeeping, about what RocksDB counts


@final
class MemoryBatch:
    def __init__(self) -> None:
        self.changes: list[tuple[bytes, bytes | None, bytes | None]] = []  # low, high of a range deletion, value
        self._size = 12

    def put(self, key: bytes, value: bytes) -> None:
        self.changes.append((key, None, value))
        self._size += len(key) + len(value) + _ROW_BYTES

    def delete(self, key: bytes) -> None:
        self.changes.append((key, None, None))
        self._size += len(key) + _ROW_BYTES

    def delete_range(self, low: bytes, high: bytes) -> None:
        self.changes.append((low, high, None))
        self._size += len(low) + len(high) + _ROW_BYTES

    def size_in_bytes(self) -> int:
        return self._size

    def is_empty(self) -> bool:
        return not self.changes


@final
class Table:
    """Sorted rows."""

    def __init__(self, keys: list[bytes] | None = None, values: dict[bytes, bytes] | None = None) -> None:
        self.keys = keys or []
        self.values = values or {}

    def copy(self) -> "Table":
        return Table(self.keys[:], self.values.copy())

    def encode(self) -> bytes:
        return b"".join([_LENGTHS.pack(len(key), len(self.values[key])) + key + self.values[key] for key in self.keys])

    @classmethod
    def decode(cls, data: bytes) -> "Table":
        table = cls()
        at = 0
        while at < len(data):
            key_size, value_size = _LENGTHS.unpack_from(data, at)
            key = data[at + 8 : at + 8 + key_size]
            table.keys.append(key)
            table.values[key] = data[at + 8 + key_size : at + 8 + key_size + value_size]
            at += 8 + key_size + value_size
        return table

    def apply(self, batch: MemoryBatch) -> None:
        keys, values = self.keys, self.values
        for key, high, value in batch.changes:
            if value is not None:
                if key not in values:
                    if not keys or key > keys[-1]:
                        keys.append(key)
                    else:
                        insort(keys, key)
                values[key] = value
            elif high is None:
                if values.pop(key, None) is not None:
                    del keys[bisect_left(keys, key)]
            else:
                first, end = bisect_left(keys, key), bisect_left(keys, high)
                for gone in keys[first:end]:
                    del values[gone]
                del keys[first:end]


@final
class Rows:
    """What lies in one directory: it is there whether a process runs or not."""

    def __init__(self, table: Table) -> None:
        self.durable = table
        self.unflushed: list[MemoryBatch] = []
        self.open = False

    def crash(self, rng: SimRng) -> None:
        """The process is gone. Full memtables may have been written out, in order."""
        kept = rng.choice([0, 0, rng.below(len(self.unflushed) + 1)])
        self.flush(kept)
        self.unflushed = []
        self.open = False

    def flush(self, count: int) -> None:
        for batch in self.unflushed[:count]:
            self.durable.apply(batch)
        del self.unflushed[:count]


def checkpoint_at(path: Path) -> Rows:
    """What a directory holds that no engine has been opened in yet."""
    file = path / CHECKPOINT
    return Rows(Table.decode(file.read_bytes()) if file.exists() else Table())


@final
class RowsOnDisk:
    """All directories of one machine."""

    def __init__(self) -> None:
        self._rows: dict[str, Rows] = {}

    def at(self, path: Path) -> Rows:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = path / _NAME
        if not name.exists():
            self._rows[str(len(self._rows))] = checkpoint_at(path)
            name.write_text(str(len(self._rows) - 1))
        return self._rows[name.read_text()]

    def crash(self, rng: SimRng) -> None:
        for rows in self._rows.values():
            rows.crash(rng)


@final
class MemoryIterator:
    """Pinned to the moment it was made."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._at = 0

    def seek(self, key: bytes) -> None:
        self._at = bisect_left(self._table.keys, key)

    def key(self) -> bytes | None:
        keys = self._table.keys
        return keys[self._at] if self._at < len(keys) else None

    def value(self) -> bytes:
        return self._table.values[self._table.keys[self._at]]

    def next(self) -> None:
        self._at += 1


@final
class MemoryEngine:
    """The face of kvstore.mvcc.engine.Engine."""

    def __init__(self, path: Path, rows: Rows, process: Process) -> None:
        if rows.open:
            raise StoreInUse(f"the store in {path} is in use")
        rows.open = True
        self.path = path
        self.read_only = False
        self._process = process
        self._rows = rows
        self._table = rows.durable.copy()

    def get(self, row: bytes) -> bytes | None:
        return self._table.values.get(row)

    def get_latest(self, key: bytes) -> bytes | None:
        kv = self.get(b"l" + key)
        return large_kv(self, kv) if kv is not None and kv[0] == LARGE else kv  # type: ignore[arg-type]

    def iterator(self) -> Any:
        return MemoryIterator(self._table)

    def scan(self, low: bytes, high: bytes) -> Scan:
        return Scan(self, self.iterator(), low, high)  # type: ignore[arg-type]

    def check(self, iterator: object) -> None:
        pass

    def unreadable(self, what: object) -> StoreError:
        return damaged(self.path, what)

    def batch(self) -> MemoryBatch:
        return MemoryBatch()

    def write(self, batch: MemoryBatch) -> None:
        if sys.getrefcount(self._table) > 2:  # ours and the argument's: without more, no iterator is pinned to it
            self._table = self._table.copy()
        self._table.apply(batch)
        self._rows.unflushed.append(batch)

    def crowded(self) -> bool:
        return False

    async def settle(self, budget: Budget) -> None:
        pass

    async def flush(self) -> None:
        await in_thread(self._flush)

    def _flush(self) -> None:
        self._rows.flush(len(self._rows.unflushed))

    async def hold_compactions(self) -> None:
        pass

    def checkpoint(self, path: Path) -> None:
        path.mkdir(mode=0o700)
        (path / CHECKPOINT).write_bytes(self._table.encode())

    def on_unused(self, call: Callable[[Callable[[], None]], None]) -> None:
        weakref.finalize(self, _unused, self._process, call, self._rows).atexit = False

    def size_bytes(self) -> int:
        return sum(map(len, self._table.keys)) + sum(map(len, self._table.values.values()))

    def close(self) -> None:
        _close(self._rows)


def _close(rows: Rows) -> None:
    rows.flush(len(rows.unflushed))
    rows.open = False


def _unused(process: Process, call: Callable[[Callable[[], None]], None], rows: Rows) -> None:
    """In whatever process let the last view go."""
    if process.alive:
        process.call_soon(call, lambda: _close(rows))
