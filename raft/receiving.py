"""Receiving: a node's side of an arriving snapshot.

    begin, write ... write, finish (verified and durable)   at the pace of the sender and of the disk, in a thread
    InstallSnapshot -> core -> Ready.snapshot               the driver's turn, once nothing waits to be applied
    state machine, then log                                 Ready.snapshot is handled

One transfer at a time: a newer one ends the older. What has arrived stays until a snapshot is begun that is
another, so a transfer that was cut off goes on where it was. A snapshot that fails to arrive costs nothing but
itself; one that fails to be installed ends the node.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import final

from raft.apply import StateMachine
from raft.core.raw_node import RawNode
from raft.errors import ConfigError
from raft.failpoints import fail_async
from raft.messages import InstallSnapshot, Message
from raft.runtime import Runtime
from raft.snapshot import (
    ReceivedSnapshot,
    SnapshotArrival,
    SnapshotFailed,
    SnapshotHeader,
    SnapshotReceiver,
    SnapshotWriter,
)
from raft.storage.base import LogStorage
from raft.types import NodeId, SnapshotMeta

logger = logging.getLogger("raft.node")


@final
class Receiving(SnapshotReceiver):
    def __init__(
        self,
        node_id: NodeId,
        state_machine: StateMachine,
        runtime: Runtime,
        receive: Callable[[list[Message]], None],
        wake: Callable[[], None],
    ) -> None:
        """`receive` puts messages into the node's inbox."""
        self.whole: Whole | None = None  # arrived, and not yet installed
        self._node_id = node_id
        self._state_machine = state_machine
        self._runtime = runtime
        self._receive = receive
        self._wake = wake
        self._raw: RawNode | None = None
        self._arrival: _Arrival | None = None  # the newest; only it is heard
        self._writing = asyncio.Lock()  # a writer is used by one at a time
        self._stopped = False

    def start(self, raw: RawNode) -> None:
        self._raw = raw

    # What the transport calls

    async def begin(self, header: SnapshotHeader) -> SnapshotArrival:
        raw = self._raw
        if raw is None or self._stopped:
            raise SnapshotFailed(f"{self._node_id:x} does not run")
        if header.term < raw.term:
            raise SnapshotFailed(f"{self._node_id:x} is in term {raw.term}, not in {header.term}")
        if self.whole is not None:
            raise SnapshotFailed(f"{self._node_id:x} installs a snapshot just now")
        if header.meta.index <= raw.commit_index:
            self._receive([self._message(header)])  # its answer tells the leader what we have
            raise SnapshotFailed(f"{self._node_id:x} has everything up to {raw.commit_index}")
        arrival = self._arrival = _Arrival(self, header)
        async with self._writing:
            self.check(arrival)
            try:
                writer = self._state_machine.incoming()
                here = await self._runtime.run_aside(writer.begin, header.meta, header.files)
            except (OSError, ConfigError) as error:
                logger.error("%x cannot take a snapshot: %s", self._node_id, error)
                raise SnapshotFailed(f"{self._node_id:x} cannot take it: {error}") from error
        arrival.writer = writer
        arrival.offsets = [here.get(file.name, 0) for file in header.files]
        logger.info("%x takes the snapshot at %s of %x", self._node_id, header.meta, header.sender)
        return arrival

    def check(self, arrival: "_Arrival") -> None:
        """Raises SnapshotFailed when this transfer is not heard any more."""
        if self._stopped or arrival is not self._arrival:
            raise SnapshotFailed("the node has stopped" if self._stopped else "a newer snapshot has begun")

    async def write(self, arrival: "_Arrival", name: str, offset: int, data: bytes) -> None:
        async with self._writing:
            self.check(arrival)
            assert arrival.writer is not None, "begin() gives the arrival"
            try:
                await fail_async("snapshotBeforeWrite")
                await self._runtime.run_aside(arrival.writer.write, name, offset, data)
            except OSError as error:
                raise SnapshotFailed(f"{self._node_id:x} cannot store it: {error}") from error

    async def finish(self, arrival: "_Arrival") -> None:
        async with self._writing:
            self.check(arrival)
            writer = arrival.writer
            assert writer is not None, "begin() gives the arrival"
            try:
                await fail_async("snapshotBeforeFinish")
                await self._runtime.run_aside(writer.finish)
            except (OSError, SnapshotFailed) as error:
                # Bytes that are wrong once stay wrong, and so may those that an fsync has failed for.
                await self._runtime.run_aside(writer.discard)
                raise SnapshotFailed(f"{self._node_id:x} threw it away: {error}") from error
            self.check(arrival)
            self._arrival = None
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            received = ReceivedSnapshot(arrival.header.meta, writer)
            self.whole = Whole(self._message(arrival.header), received, done)
        self._wake()
        # Whoever waits may go away: what has arrived is installed all the same.
        await asyncio.shield(done)

    def abandon(self, arrival: "_Arrival") -> None:
        if arrival is self._arrival:
            self._arrival = None

    def _message(self, header: SnapshotHeader) -> InstallSnapshot:
        meta = header.meta
        return InstallSnapshot(
            self._node_id, header.sender, header.term, meta.index, meta.term, meta.configuration, meta.context
        )

    # What the driver calls

    async def install(self, snapshot: SnapshotMeta, storage: LogStorage) -> None:
        """The core wants `whole`, and nothing waits to be applied.

        State first: a log ahead of its state would be replayed from the wrong place; a state ahead of its log is
        found by the next start (repair_log). Any error is final.
        """
        whole = self.whole
        assert whole is not None, f"{snapshot} has not arrived"
        assert whole.received.meta == snapshot, f"{snapshot} is not {whole.received.meta}"
        await fail_async("raftBeforeSnapshotInstall")
        await self._state_machine.install_snapshot(whole.received)
        applied = self._state_machine.applied_index
        assert applied == snapshot.index, f"the state machine is at {applied} after the snapshot at {snapshot}"
        meta = (snapshot.index, snapshot.term, snapshot.configuration, snapshot.context)
        await fail_async("raftBeforeLogReset")
        await self._runtime.run(storage.reset, *meta)
        await fail_async("raftAfterSnapshotInstall")
        logger.info("%x has installed the snapshot at %s", self._node_id, snapshot)

    async def settle(self, installed: bool) -> None:
        """The core was given `whole`: it is installed, or it is not wanted."""
        whole, self.whole = self.whole, None
        assert whole is not None, "settle() without a snapshot"
        if not installed:
            await self._runtime.run_aside(whole.received.writer.discard)
        if whole.done.done():
            return
        if installed:
            whole.done.set_result(None)
        else:
            whole.fail(f"{self._node_id:x} did not want it")

    def stop(self, reason: str) -> None:
        self._stopped = True
        whole, self.whole = self.whole, None
        if whole is not None and not whole.done.done():
            whole.fail(reason)


@final
class Whole:
    """A snapshot that has arrived."""

    def __init__(self, message: InstallSnapshot, received: ReceivedSnapshot, done: "asyncio.Future[None]") -> None:
        self.message = message
        self.received = received
        self.done = done  # what `finish` waits for

    def fail(self, reason: str) -> None:
        self.done.set_exception(SnapshotFailed(reason))
        self.done.exception()  # seen: nobody may wait any more


@final
class _Arrival(SnapshotArrival):
    def __init__(self, receiving: Receiving, header: SnapshotHeader) -> None:
        self.header = header
        self.offsets: list[int] = []
        self.writer: SnapshotWriter | None = None
        self._receiving = receiving

    async def write(self, file: int, offset: int, data: bytes) -> None:
        await self._receiving.write(self, self.header.files[file].name, offset, data)

    async def finish(self) -> None:
        await self._receiving.finish(self)

    def abandon(self) -> None:
        self._receiving.abandon(self)
