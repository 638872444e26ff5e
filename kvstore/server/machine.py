"""Between the raft node and the state: the adapter that applies, and the housekeeper behind it.

The store has no log of its own, so what was applied since its last flush is in memory, and again in the
Raft log. The housekeeper flushes when that has become much, in entries or in bytes, and then lets the log
forget what is now durable in the store. Never the other way round: a log compacted before the flush would
lose what a crash takes from memory. The node itself keeps a window for members that are a little behind;
who is behind further gets a snapshot (snapshots.py).

It also runs the store's own compaction: what a Compact request has hidden is removed in the background.
"""

import asyncio
import time
from typing import Final, Protocol, final

import structlog

from kvstore.measure import APPLIES, COMPACTIONS
from kvstore.mvcc.compaction import Compactor
from kvstore.mvcc.leases import LeaseSweeper
from kvstore.mvcc.store import MvccStore
from kvstore.server.snapshots import Snapshots
from kvstore.state.applier import Applier
from raft.apply import StateMachine
from raft.snapshot import ReceivedSnapshot, SnapshotReader, SnapshotWriter
from raft.types import Entry, Index

log = structlog.get_logger(__name__)

APPLIED_BYTES_MAX: Final = 64 * 1024 * 1024  # bounds what a restart replays when entries are large


class LogCompactor(Protocol):
    """What the housekeeper needs of a raft.Node."""

    async def compact(self, index: Index) -> None: ...


@final
class Housekeeper:
    def __init__(
        self, store: MvccStore, compactor: Compactor, entries_max: int, bytes_max: int = APPLIED_BYTES_MAX
    ) -> None:
        self._store = store
        self._compactor = compactor
        self._sweeper = LeaseSweeper(store)
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._entries = 0  # applied since the last flush began
        self._bytes = 0
        self._due = asyncio.Event()
        self.compacted_at = 0.0  # seconds since 1970, for /metrics; 0: not since the start
        self._hidden = asyncio.Event()  # rows that no read can reach wait to be removed
        self.visible()

    def visible(self) -> None:
        """A batch has become visible; it may have hidden rows."""
        if self._compactor.pending or self._sweeper.pending:
            self._hidden.set()

    def applied(self, entries: list[Entry]) -> None:
        self._entries += len(entries)
        self._bytes += sum([len(entry.data) for entry in entries])
        if self._entries >= self._entries_max or self._bytes >= self._bytes_max:
            self._due.set()

    def installed(self) -> None:
        """The state is a snapshot now, and on the disk."""
        self._entries = self._bytes = 0
        self.visible()

    async def run(self, node: LogCompactor) -> None:
        """Until the node stops. An error of the flush is final."""
        while True:
            await self._due.wait()
            self._due.clear()
            self._entries = self._bytes = 0
            index = await self._store.flush()
            await node.compact(index)
            log.info("flushed the state and compacted the log", index=index)

    async def run_compaction(self) -> None:
        while True:
            await self._hidden.wait()
            self._hidden.clear()
            if self._compactor.pending:
                with COMPACTIONS.time():
                    await self._compactor.run()
                self.compacted_at = time.time()
            if self._sweeper.pending:
                await self._sweeper.run()


@final
class Machine(StateMachine):
    """The applier, as the node knows it."""

    def __init__(self, applier: Applier, housekeeper: Housekeeper, snapshots: Snapshots) -> None:
        self._applier = applier
        self._housekeeper = housekeeper
        self._snapshots = snapshots

    @property
    def applied_index(self) -> Index:
        return self._applier.applied_index

    async def apply(self, entries: list[Entry]) -> None:
        with APPLIES.time():
            await self._applier.apply(list(entries))
        self._housekeeper.applied(entries)
        self._snapshots.applied(self._applier.applied_index)

    async def take_snapshot(self) -> SnapshotReader:
        return await self._snapshots.take()

    def incoming(self) -> SnapshotWriter:
        return self._snapshots.incoming()

    async def install_snapshot(self, snapshot: ReceivedSnapshot) -> None:
        await self._snapshots.install(snapshot)
        self._housekeeper.installed()
