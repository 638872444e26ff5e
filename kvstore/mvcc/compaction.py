"""Physical compaction: rows of `versions` that no read can reach any more are removed, in the background.

Compact(C) hides revisions below C at once (a number in the state row). What it leaves behind is removed
here, in slices: for each key, everything older than its newest version at or before C, and that one too
when it is a tombstone. Only a key that changed since the last compaction can have such rows, so the events
since then say where to look; the work is proportional to the changes, not to the keys.

Progress is a row of its own, written with the removals it covers, so a crash costs one slice at most.
Nothing that replicas compare depends on it: views are pinned, and reads at or above C never meet the rows.

When another state takes the place of this one (MvccStore.swap), a run ends, and begins anew on what that
state says of its own progress.

`events` stay: they are the history.
"""

from contextlib import suppress
from typing import Final, final

from rocksdict import WriteBatch

from kvstore.failpoints import fail_async
from kvstore.mvcc import schema
from kvstore.mvcc.encoding import event_key, event_kv, is_delete
from kvstore.mvcc.engine import Engine
from kvstore.mvcc.slices import Budget
from kvstore.mvcc.store import MvccStore
from kvstore.pb.kv_pb2 import KeyValue

_EVENTS: Final = 128  # per slice
_VERSIONS: Final = 256
_BATCH_BYTES: Final = 32 << 10
_HANDLED_MAX: Final = 50_000  # keys, some MB


class _Swapped(Exception):
    """The rows that a run is about are those of a database that is not in use any more."""


@final
class Compactor:
    """One per store. `run` when `pending`: after each batch that moved the compact revision, and at start."""

    def __init__(self, store: MvccStore) -> None:
        self._store = store
        self.running = False
        self.removed = 0  # rows, since the start
        self.reload()
        store.on_swap.append(self.reload)

    def reload(self) -> None:
        row = self._store.get(schema.META_COMPACTED)
        self._done = 0 if row is None else schema.unpack_u64(row)

    @property
    def done_revision(self) -> int:
        """`versions` holds nothing that is hidden below this compact revision."""
        return self._done

    @property
    def pending(self) -> bool:
        return not self.running and self._done < self._store.compact_revision

    async def run(self) -> None:
        """Until everything hidden is removed, compactions that come meanwhile included."""
        assert not self.running, "one run at a time"
        self.running = True
        try:
            while self._done < self._store.compact_revision:
                with suppress(_Swapped):
                    await self._run_to(self._store.compact_revision)
        finally:
            self.running = False

    async def _run_to(self, target: int) -> None:
        """Walk the events of (done, target]; their keys are the ones with something to remove."""
        store, engine, budget = self._store, self._store.engine, self._store.background_budget()
        handled: set[bytes] = set()  # keys that have nothing left to remove: up to the target all is done at once
        scan = store.scan(schema.event_from(self._done + 1), schema.event_from(target + 1))
        while rows := scan.rows(_EVENTS):
            # A revision is done only with its last event; a crash inside it repeats the revision.
            done = max(schema.split_event(rows[-1][0])[0] - 1, self._done)
            batch = engine.batch()
            if len(handled) > _HANDLED_MAX:
                handled.clear()
            for _, event in rows:
                if _creates(event) or (key := event_key(event)) in handled:
                    continue
                batch = await self._remove(engine, key, target, batch, budget)
                handled.add(key)
            await self._write(engine, batch, done, budget)
        await fail_async("compactBeforeFinish")
        await self._write(engine, engine.batch(), target, budget)

    async def _remove(self, engine: Engine, key: bytes, target: int, batch: WriteBatch, budget: Budget) -> WriteBatch:
        """Add the removals of one key; returns the batch to go on with."""
        # Bounded by the key: behind it may lie any number of rows that RocksDB has yet to forget.
        scan = self._store.scan(schema.version_from(key, target), schema.version_prefix(key)[:-1] + b"\x02")
        rows = scan.rows(_VERSIONS)
        if not rows:
            return batch
        newest, mark = rows.pop(0)
        while rows:
            for row, _ in rows:
                batch.delete(row)
            self.removed += len(rows)
            if batch.size_in_bytes() >= _BATCH_BYTES:
                await self._write(engine, batch, self._done, budget)
                batch = engine.batch()
            await budget.pause_if_spent()
            rows = scan.rows(_VERSIONS)
        if mark == schema.TOMBSTONE:
            # Last of all: without it, an older version that is still there would come back to life.
            batch.delete(newest)
            self.removed += 1
        return batch

    async def _write(self, engine: Engine, batch: WriteBatch, done: int, budget: Budget) -> None:
        await fail_async("compactBeforeBatch")
        await engine.settle(budget)
        if engine is not self._store.engine:
            raise _Swapped
        batch.put(schema.META_COMPACTED, schema.pack_u64(done))
        self._store.write(batch)
        self._done = done
        await fail_async("compactAfterBatch")
        await budget.pause_if_spent()


def _creates(event: bytes) -> bool:
    """Before a key's first version there is nothing, or a tombstone, which its own deletion takes care of."""
    return not is_delete(event) and KeyValue.FromString(event_kv(event)).version == 1
