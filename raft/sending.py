"""Sending: a leader's side of the snapshots that its members need.

The core names the members (Ready.snapshots_to_send). Each gets a task of its own, `snapshots_at_once` at a
time. They share one reader: the state is not taken again for every member, nor for every attempt, and a
transfer that was cut off can go on. The log is kept from the reader's index on, so that what comes next is
there when the snapshot has arrived; only up to a bound, so that a member that takes for ever costs no disk.

Nothing that fails here touches the node: it is logged, and the core asks again later.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, final

from raft.apply import StateMachine
from raft.core.progress import ProgressState
from raft.core.raw_node import RawNode
from raft.node_config import NodeConfig
from raft.runtime import Runtime
from raft.snapshot import SnapshotFailed, SnapshotHeader, SnapshotReader
from raft.transport.base import Transport
from raft.types import Index, NodeId, Role, SnapshotMeta, Term

logger = logging.getLogger("raft.node")

KEEP_SECONDS: Final = 60.0  # how long a reader waits for a transfer to be resumed
RETRY_SECONDS: Final = 0.1  # after a first failure, twice as long after each that follows ...
RETRY_SECONDS_MAX: Final = 30.0  # ... as the reason may be one that time does not heal, such as a full disk


@final
class Sending:
    def __init__(
        self,
        config: NodeConfig,
        state_machine: StateMachine,
        transport: Transport,
        runtime: Runtime,
        wake: Callable[[], None],
    ) -> None:
        self._config = config
        self._state_machine = state_machine
        self._transport = transport
        self._runtime = runtime
        self._wake = wake
        self._term = 0  # in which we send
        self._waiting: dict[NodeId, None] = {}  # a dict, as its order is fixed
        self._tasks: dict[NodeId, asyncio.Task[None]] = {}
        self._ended: list[NodeId] = []
        self._retry_seconds: dict[NodeId, float] = {}  # of those whose last transfer failed
        self._kept: _Kept | None = None
        self._taking: asyncio.Task[_Kept] | None = None
        self._pin: Index | None = None  # while the snapshot is being taken
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def pinned(self) -> Index | None:
        """The log after it should stay."""
        return self._kept.meta.index if self._kept is not None else self._pin

    def turn(self, raw: RawNode, peers: list[NodeId]) -> None:
        """Once in a turn of the driver. `peers`: those who need a snapshot now."""
        if raw.role is not Role.LEADER or raw.term != self._term:
            if self._tasks or self._kept is not None:
                self._give_up()
            self._term = raw.term
            self._waiting.clear()
            self._ended.clear()
            self._retry_seconds.clear()
        for peer in self._ended:
            raw.snapshot_failed(peer)
        self._ended.clear()
        for peer in peers:
            self._waiting[peer] = None
        kept = self._kept
        if kept is not None and kept.is_useless(raw, self._runtime.clock(), bool(self._tasks or self._waiting)):
            self._ended += list(self._tasks)  # the core asks for another
            self._give_up()
        while self._waiting and len(self._tasks) < self._config.snapshots_at_once:
            peer = next(iter(self._waiting))
            del self._waiting[peer]
            self._tasks[peer] = asyncio.get_running_loop().create_task(self._send(raw, peer))

    async def stop(self) -> None:
        if self._taking is not None:
            await asyncio.gather(self._taking, return_exceptions=True)
        self._give_up()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _give_up(self) -> None:
        """End every transfer, close the reader once they have ended."""
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        kept, self._kept = self._kept, None
        if tasks or kept is not None:
            closing = asyncio.get_running_loop().create_task(self._close(tasks, kept))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _close(self, tasks: list[asyncio.Task[None]], kept: "_Kept | None") -> None:
        await asyncio.gather(*tasks, return_exceptions=True)
        if kept is not None:
            try:
                await self._runtime.run_aside(kept.reader.close)
            except OSError as error:
                logger.warning("%x cannot remove a snapshot: %s", self._config.core.node_id, error)

    # One transfer

    async def _send(self, raw: RawNode, peer: NodeId) -> None:
        own = self._config.core.node_id
        term = self._term
        kept: _Kept | None = None
        try:
            kept = await self._take(raw)
            kept.used_ns = self._runtime.clock()
            header = SnapshotHeader(kept.meta, own, term, kept.reader.files)
            logger.info("%x sends %x the snapshot at %s, %d bytes", own, peer, kept.meta, header.size)
            await self._transport.send_snapshot(peer, header, kept.reader)
            kept.wanted = False  # unless another transfer of it fails
            self._retry_seconds.pop(peer, None)
            await self._until_it_says_so(raw, peer)
        except SnapshotFailed as error:
            if kept is not None:
                kept.wanted = True
            self._retry_seconds[peer] = min(self._retry_seconds.get(peer, RETRY_SECONDS / 2) * 2, RETRY_SECONDS_MAX)
            logger.warning("%x could not send %x a snapshot: %s", own, peer, error)
        except Exception as error:  # of a state machine that we do not know; the next attempt has a new reader
            logger.error("%x could not take or read a snapshot: %r", own, error)
            if kept is not None and kept is self._kept:
                self._kept = None
                await self._close([], kept)
        finally:
            if self._tasks.get(peer) is asyncio.current_task():
                del self._tasks[peer]
                if kept is not None:
                    kept.used_ns = self._runtime.clock()
                # Until then the core does not ask for this peer again.
                wait = self._retry_seconds.get(peer, 0.0)
                asyncio.get_running_loop().call_later(wait, self._end, peer, term)

    def _end(self, peer: NodeId, term: Term) -> None:
        if term == self._term:
            self._ended.append(peer)
        self._wake()

    async def _take(self, raw: RawNode) -> "_Kept":
        """The reader that all share, or a new one. Taking it goes on when the transfer is given up."""
        if self._kept is not None:
            return self._kept
        if self._taking is None:
            self._taking = asyncio.get_running_loop().create_task(self._open(raw))
        return await asyncio.shield(self._taking)

    async def _open(self, raw: RawNode) -> "_Kept":
        self._pin = raw.applied_index  # the snapshot will not be older
        try:
            reader = await self._state_machine.take_snapshot()
            configuration, context = raw.configuration_at(reader.index)
            meta = SnapshotMeta(reader.index, reader.term, configuration, context)
            self._kept = _Kept(reader, meta, self._runtime.clock())
            return self._kept
        finally:
            self._pin = None
            self._taking = None

    async def _until_it_says_so(self, raw: RawNode, peer: NodeId) -> None:
        """Its acknowledgement comes as a message, and may be lost: then the core has to ask it again."""
        for _ in range(self._config.core.election_ticks):
            progress = raw.status().progress.get(peer)
            if progress is None or progress.state is not ProgressState.SNAPSHOT:
                return
            await asyncio.sleep(self._config.tick_seconds)


@final
class _Kept:
    """A reader that is open."""

    def __init__(self, reader: SnapshotReader, meta: SnapshotMeta, now_ns: int) -> None:
        self.reader = reader
        self.meta = meta
        self.used_ns = now_ns  # when a transfer last began or ended
        self.wanted = True  # a transfer of it did not succeed, or has not ended

    def is_useless(self, raw: RawNode, now_ns: int, busy: bool) -> bool:
        if self.meta.index < raw.raft.log.first_index - 1:
            return True  # whoever installs it would need a newer one
        return not busy and (not self.wanted or now_ns - self.used_ns > KEEP_SECONDS * 1e9)
