"""Worlds of transports of one kind, for the suites that run over each of them."""

import asyncio
from collections.abc import Callable

from raft.messages import Heartbeat, Message
from raft.snapshot import SnapshotReceiver
from raft.transport.base import Transport
from raft.transport.grpc import GrpcTransport, PeerIdentity
from raft.transport.memory import MemoryNetwork, MemoryTransport
from raft.types import NodeId

CLUSTER = 0xC1


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for a condition; the bound only ends a test that hangs."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


class World:
    """Makes transports of one kind, restarts them and lets one of them stop reading."""

    def __init__(self) -> None:
        self.received: dict[NodeId, list[Message]] = {}
        self.transports: dict[NodeId, Transport] = {}
        self.receivers: dict[NodeId, SnapshotReceiver] = {}

    def make(self, node_id: NodeId, queue_bytes_max: int) -> Transport:
        raise NotImplementedError

    def urls(self, node_id: NodeId) -> list[str]:
        return []

    async def start(self, node_id: NodeId, queue_bytes_max: int = 1 << 20) -> Transport:
        received = self.received.setdefault(node_id, [])
        transport = self.transports[node_id] = self.make(node_id, queue_bytes_max)
        await transport.start(received.extend, self.receivers.get(node_id))
        return transport

    def introduce(self) -> None:
        """Everybody learns where everybody is."""
        for transport in self.transports.values():
            transport.set_peers({other: self.urls(other) for other in self.transports})

    async def connect(self, *node_ids: NodeId) -> None:
        for node_id in node_ids:
            await self.start(node_id)
        self.introduce()
        await self.joined()

    async def joined(self) -> None:
        for node_id, transport in self.transports.items():
            others = frozenset(self.transports) - {node_id}
            await until(lambda transport=transport, others=others: transport.connected() == others)  # type: ignore[misc]

    async def stop(self, node_id: NodeId) -> None:
        await self.transports.pop(node_id).stop()

    def commits(self, node_id: NodeId) -> list[int]:
        return [m.commit for m in self.received[node_id] if isinstance(m, Heartbeat)]


class MemoryWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.network = MemoryNetwork()

    def make(self, node_id: NodeId, queue_bytes_max: int) -> Transport:
        return MemoryTransport(self.network, node_id, queue_bytes_max=queue_bytes_max)


class GrpcWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.ports: dict[NodeId, int] = {}

    def make(self, node_id: NodeId, queue_bytes_max: int) -> Transport:
        url = f"http://127.0.0.1:{self.ports.get(node_id, 0)}"
        return GrpcTransport(PeerIdentity(CLUSTER, node_id, 1), [url], queue_bytes_max=queue_bytes_max)

    async def start(self, node_id: NodeId, queue_bytes_max: int = 1 << 20) -> Transport:
        transport = await super().start(node_id, queue_bytes_max)
        assert isinstance(transport, GrpcTransport)
        self.ports[node_id] = int(transport.listening[0].rpartition(":")[2])
        return transport

    def urls(self, node_id: NodeId) -> list[str]:
        return [f"http://127.0.0.1:{self.ports[node_id]}"]


def beat(to: NodeId, sender: NodeId, number: int) -> Heartbeat:
    return Heartbeat(to, sender, 1, number)
