"""A network within one process: what tests and embedded clusters use in place of sockets.

Messages are handed over as they are (nobody changes a message once it is made), in order per link, in
a later turn of the loop. `cut`, `heal`, `hold` and `delay` are its faults. A snapshot goes in pieces; a cut
ends its way in between.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from raft.codec import size_of
from raft.messages import Message
from raft.snapshot import PIECE_BYTES, SnapshotFailed, SnapshotHeader, SnapshotReader, SnapshotReceiver, pieces
from raft.transport.base import Pace, Receive, Transport, by_peer
from raft.types import NodeId

QUEUE_BYTES_MAX: Final = 64 * 1024 * 1024

Link = tuple[NodeId, NodeId]  # from, to


class MemoryNetwork:
    """Who is there, and what happens on each link."""

    def __init__(self) -> None:
        self.delay: Callable[[Message], float | None] | None = None  # seconds on the way; None loses it
        self.piece_bytes = PIECE_BYTES  # of a snapshot
        self._nodes: dict[NodeId, MemoryTransport] = {}
        self._cut: set[Link] = set()
        self._held: dict[Link, list[Message]] = {}
        self._held_bytes: dict[Link, int] = {}

    def cut(self, one: NodeId, other: NodeId, *, one_way: bool = False) -> None:
        """Lose what `one` sends to `other`; and the other way round, unless one_way."""
        self._cut.add((one, other))
        if not one_way:
            self._cut.add((other, one))

    def isolate(self, node_id: NodeId) -> None:
        """Cut one node off from all others."""
        for other in self._nodes:
            if other != node_id:
                self.cut(node_id, other)

    def heal(self) -> None:
        """Undo every cut and release what is held."""
        self._cut.clear()
        for link in list(self._held):
            self.release(*link)

    def hold(self, sender: NodeId, to: NodeId) -> None:
        """A peer that does not read: what is sent waits in the sender's queue, up to its bound."""
        self._held.setdefault((sender, to), [])
        self._held_bytes.setdefault((sender, to), 0)

    def release(self, sender: NodeId, to: NodeId) -> None:
        """Deliver what was held."""
        messages = self._held.pop((sender, to), [])
        self._held_bytes.pop((sender, to), None)
        self._deliver(to, messages)

    def is_open(self, sender: NodeId, to: NodeId) -> bool:
        return to in self._nodes and (sender, to) not in self._cut

    def join(self, transport: "MemoryTransport") -> None:
        if transport.node_id in self._nodes:
            raise OSError(f"node {transport.node_id:x} is on this network already")
        self._nodes[transport.node_id] = transport

    def leave(self, transport: "MemoryTransport") -> None:
        """Its process has ended: whoever had a stream to it finds its address refused."""
        if self._nodes.get(transport.node_id) is not transport:
            return
        del self._nodes[transport.node_id]
        for node_id, other in self._nodes.items():
            if not {(node_id, transport.node_id), (transport.node_id, node_id)} & self._cut:
                asyncio.get_running_loop().call_soon(other.unreachable, transport.node_id)

    def carry(self, sender: NodeId, to: NodeId, messages: list[Message], queue_bytes_max: int) -> None:
        """One frame on its way."""
        if not self.is_open(sender, to):
            return
        held = self._held.get((sender, to))
        if held is not None:
            for message in messages:
                if self._held_bytes[sender, to] + size_of(message) <= queue_bytes_max:
                    held.append(message)
                    self._held_bytes[sender, to] += size_of(message)
            return
        if self.delay is None:
            self._deliver(to, messages)
            return
        loop = asyncio.get_running_loop()
        for message in messages:
            seconds = self.delay(message)
            if seconds is not None:
                loop.call_later(seconds, self._deliver_now, to, [message])

    async def carry_snapshot(self, to: NodeId, header: SnapshotHeader, reader: SnapshotReader, pace: Pace) -> None:
        """One snapshot, piece by piece. Raises SnapshotFailed."""
        sender = header.sender
        receiver = self._snapshot_receiver(sender, to)
        arrival = await receiver.begin(header)
        try:
            for position, offset, size in pieces(header.files, arrival.offsets, self.piece_bytes):
                await pace.spend(size)
                data = reader.read(header.files[position].name, offset, size)
                if self._snapshot_receiver(sender, to) is not receiver:
                    raise SnapshotFailed(f"{to:x} has started anew")
                await arrival.write(position, offset, data)
            await arrival.finish()
        except BaseException:
            arrival.abandon()
            raise

    def _snapshot_receiver(self, sender: NodeId, to: NodeId) -> SnapshotReceiver:
        transport = self._nodes.get(to) if self.is_open(sender, to) else None
        if transport is None or transport.receive_snapshot is None:
            raise SnapshotFailed(f"there is no way to {to:x}")
        return transport.receive_snapshot

    def _deliver(self, to: NodeId, messages: list[Message]) -> None:
        if messages:
            asyncio.get_running_loop().call_soon(self._deliver_now, to, messages)

    def _deliver_now(self, to: NodeId, messages: list[Message]) -> None:
        transport = self._nodes.get(to)
        if transport is None:
            return
        open_now = [message for message in messages if (message.sender, to) not in self._cut]
        if open_now:
            transport.receive(open_now)


class MemoryTransport(Transport):
    """One node's end of a MemoryNetwork."""

    def __init__(self, network: MemoryNetwork, node_id: NodeId, *, queue_bytes_max: int = QUEUE_BYTES_MAX) -> None:
        self.node_id = node_id
        self._network = network
        self._queue_bytes_max = queue_bytes_max
        self._receive: Receive | None = None
        self._peers: list[NodeId] = []
        self.receive_snapshot: SnapshotReceiver | None = None

    async def start(self, receive: Receive, receive_snapshot: SnapshotReceiver | None = None) -> None:
        self._receive = receive
        self.receive_snapshot = receive_snapshot
        self._network.join(self)

    def send(self, messages: list[Message]) -> None:
        for to, frame in by_peer(messages).items():
            if to in self._peers:
                self._network.carry(self.node_id, to, frame, self._queue_bytes_max)

    async def send_snapshot(self, to: NodeId, header: SnapshotHeader, reader: SnapshotReader) -> None:
        if to not in self._peers:
            raise SnapshotFailed(f"{to:x} is no peer")
        await self._network.carry_snapshot(to, header, reader, Pace(self.snapshot_bytes_per_second))

    def set_peers(self, peers: dict[NodeId, list[str]]) -> None:
        self._peers = [peer for peer in peers if peer != self.node_id]

    def connected(self) -> frozenset[NodeId]:
        return frozenset([peer for peer in self._peers if self._network.is_open(self.node_id, peer)])

    async def stop(self) -> None:
        if self._receive is not None:
            self._receive = None
            self._network.leave(self)

    def unreachable(self, node_id: NodeId) -> None:
        """Called by the network."""
        if self._receive is not None and self.on_unreachable is not None and node_id in self._peers:
            self.on_unreachable(node_id)

    def receive(self, messages: list[Message]) -> None:
        """Called by the network."""
        if self._receive is not None:
            self._receive(messages)
