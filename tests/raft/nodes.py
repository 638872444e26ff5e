"""Clusters of real nodes for the tests of the driver: over memory or gRPC, with clocks and disks to hold."""

import asyncio
import json
import random
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from raft.config import Config
from raft.messages import Message
from raft.node import Node, NodeConfig, ProposalSource, StateMachine
from raft.runtime import Runtime, SeededRng
from raft.snapshot import (
    MemorySnapshot,
    MemoryWriter,
    ReceivedSnapshot,
    SnapshotFile,
    SnapshotReader,
    SnapshotWriter,
)
from raft.storage.base import LogStorage
from raft.storage.memory import MemoryStorage
from raft.transport.base import Transport
from raft.transport.grpc import GrpcTransport, PeerIdentity
from raft.transport.memory import MemoryNetwork, MemoryTransport
from raft.types import Configuration, Entry, EntryKind, Index, NodeId, Role, SnapshotMeta, Term


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits for a condition; the bound only ends a test that hangs."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


async def turns(count: int = 50) -> None:
    """Let everything happen that can happen without a timer."""
    for _ in range(count):
        await asyncio.sleep(0)


class Reader(SnapshotReader):
    """A MemorySnapshot that counts."""

    def __init__(self, snapshot: MemorySnapshot) -> None:
        self.index, self.term, self.files = snapshot.index, snapshot.term, snapshot.files
        self.bytes_read = 0
        self.closed = False
        self._snapshot = snapshot

    def read(self, name: str, offset: int, size: int) -> bytes:
        assert not self.closed
        self.bytes_read += size
        return self._snapshot.read(name, offset, size)

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Writer(SnapshotWriter):
    """A MemoryWriter that a test can stop or break."""

    def __init__(self) -> None:
        self.memory = MemoryWriter()
        self.on_write: Callable[[int], None] = lambda offset: None
        self.on_finish: Callable[[], None] = lambda: None

    def begin(self, meta: SnapshotMeta, files: list[SnapshotFile]) -> dict[str, int]:
        return self.memory.begin(meta, files)

    def write(self, name: str, offset: int, data: bytes) -> None:
        self.on_write(offset)
        self.memory.write(name, offset, data)

    def finish(self) -> None:
        self.on_finish()
        self.memory.finish()

    def discard(self) -> None:
        self.memory.discard()


class Machine(StateMachine):
    """Remembers the commands, and waits while `gate` is closed. It is durable if the test keeps it."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []
        self.entries: list[Entry] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = False
        self.on_apply: Callable[[list[Entry]], None] = lambda entries: None
        self.readers: list[Reader] = []
        self.snapshots_fail = 0
        self.writer = Writer()
        self._applied: Index = 0
        self._term: Term = 0
        self._installed: SnapshotMeta | None = None

    @property
    def applied_index(self) -> Index:
        return self._applied

    @property
    def installed(self) -> SnapshotMeta | None:
        return self._installed

    async def take_snapshot(self) -> SnapshotReader:
        if self.snapshots_fail:
            self.snapshots_fail -= 1
            raise OSError("no space left for a checkpoint")
        state = json.dumps([command.hex() for command in self.commands]).encode()
        self.readers.append(Reader(MemorySnapshot(self._applied, self._term, state)))
        return self.readers[-1]

    def incoming(self) -> SnapshotWriter:
        return self.writer

    async def install_snapshot(self, snapshot: ReceivedSnapshot) -> None:
        assert snapshot.meta.index > self._applied
        self.commands = [bytes.fromhex(command) for command in json.loads(self.writer.memory.state)]
        self._installed = snapshot.meta
        self._applied, self._term = snapshot.meta.index, snapshot.meta.term

    async def apply(self, entries: list[Entry]) -> None:
        assert entries[0].index == self._applied + 1, f"gap: {entries[0]} after {self._applied}"
        self.on_apply(entries)
        await self.gate.wait()
        if self.fails:
            raise OSError("no space left for the state")
        self.commands += [entry.data for entry in entries if entry.kind is EntryKind.COMMAND]
        self.entries += entries
        self._applied, self._term = entries[-1].index, entries[-1].term


class HandClock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class HeldExecutor(Executor):
    """Runs what it is given at once, or when the test releases it: a disk of any slowness, without threads."""

    def __init__(self) -> None:
        self.holding = False
        self.held: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.held.append((future, lambda: fn(*args, **kwargs)))
        if not self.holding:
            self.release()
        return future

    def release(self) -> None:
        """Run what is held, in order."""
        while self.held:
            future, call = self.held.pop(0)
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except Exception as error:
                future.set_exception(error)


class RecordingTransport(MemoryTransport):
    """Tells the test what leaves, before it leaves."""

    def __init__(self, network: MemoryNetwork, node_id: NodeId) -> None:
        super().__init__(network, node_id)
        self.sent: list[Message] = []
        self.on_send: Callable[[Message], None] = lambda message: None

    def send(self, messages: list[Message]) -> None:
        for message in messages:
            self.sent.append(message)
            self.on_send(message)
        super().send(messages)


class Member:
    def __init__(self, node: Node, machine: Machine, storage: LogStorage, transport: Transport) -> None:
        self.node = node
        self.machine = machine
        self.storage = storage
        self.transport = transport


class Cluster:
    """Members by id. With `clock`, no tick happens but by `tick()`; with `hold`, saves go through executors."""

    def __init__(
        self,
        size: int = 3,
        *,
        kind: str = "memory",
        clock: bool = False,
        hold: bool = False,
        storage: Callable[[NodeId, Configuration], LogStorage] = lambda node_id, configuration: MemoryStorage(
            configuration
        ),
        source: Callable[[NodeId], ProposalSource | None] = lambda node_id: None,
        seed: int = 1,
        node: dict[str, Any] | None = None,
        **core: Any,
    ) -> None:
        self.ids = list(range(1, size + 1))
        self.members: dict[NodeId, Member] = {}
        self.network = MemoryNetwork()
        self.clocks = {node_id: HandClock() for node_id in self.ids}
        self.executors = {node_id: HeldExecutor() for node_id in self.ids}
        self.storages = {node_id: storage(node_id, Configuration(tuple(self.ids))) for node_id in self.ids}
        self._kind = kind
        self._clock = clock
        self._hold = hold
        self._source = source
        self._random = random.Random(seed)
        self._core = core
        self._node = node or {}
        self.machines: dict[NodeId, Machine] = {}  # those that are here outlive their node
        self._urls: dict[NodeId, list[str]] = {}

    async def __aenter__(self) -> "Cluster":
        for node_id in self.ids:
            await self.start(node_id)
        return self

    async def __aexit__(self, *_: object) -> None:
        for executor in self.executors.values():
            executor.holding = False
            executor.release()
        for node_id in list(self.members):
            await self.stop(node_id)

    def config(self, node_id: NodeId) -> NodeConfig:
        return NodeConfig(
            core=Config(node_id=node_id, **self._core),
            tick_seconds=0.02,
            sync="thread" if self._hold else "inline",
            **self._node,
        )

    async def join(self, node_id: NodeId, prepare: Callable[[Node], None] = lambda node: None) -> Member:
        """A node that knows nothing yet. `prepare` is called before its start."""
        self.clocks[node_id] = HandClock()
        self.executors[node_id] = HeldExecutor()
        self.storages[node_id] = MemoryStorage(Configuration(()))
        member = self.build(node_id)
        prepare(member.node)
        return await self.run(node_id, member)

    async def start(self, node_id: NodeId) -> Member:
        return await self.run(node_id, self.build(node_id))

    def build(self, node_id: NodeId) -> Member:
        transport = self._transport(node_id)
        runtime = Runtime(
            clock=self.clocks[node_id] if self._clock else Runtime().clock,
            rng=SeededRng(self._random.random().__hash__()),
            executor=self.executors[node_id] if self._hold else None,
        )
        machine = self.machines.get(node_id) or Machine()
        node = Node(
            self.config(node_id),
            self.storages[node_id],
            machine,
            transport,
            proposals=self._source(node_id),
            runtime=runtime,
        )
        return Member(node, machine, self.storages[node_id], transport)

    async def run(self, node_id: NodeId, member: Member) -> Member:
        self.members[node_id] = member
        transport = member.transport
        await member.node.start()
        if isinstance(transport, GrpcTransport):
            self._urls[node_id] = transport.listening
        else:
            self._urls[node_id] = []
        for other in self.members.values():
            other.transport.set_peers(self._urls)
        return member

    def _transport(self, node_id: NodeId) -> Transport:
        if self._kind == "memory":
            return RecordingTransport(self.network, node_id)
        urls = self._urls.get(node_id) or ["http://127.0.0.1:0"]
        return GrpcTransport(PeerIdentity(7, node_id, 1), urls)

    async def stop(self, node_id: NodeId) -> None:
        await self.members.pop(node_id).node.stop()

    async def crash(self, node_id: NodeId) -> None:
        """Gone in the middle of whatever it was doing; what was not saved is lost."""
        member = self.members.pop(node_id)
        self.executors[node_id].held.clear()
        self.executors[node_id].holding = False  # the next process opens the disk anew
        node = member.node
        node._end(None)
        for task in node._tasks:
            task.cancel()
        await asyncio.gather(*node._tasks, return_exceptions=True)
        await node._sending.stop()
        await member.transport.stop()

    def sent(self, node_id: NodeId) -> list[Message]:
        transport = self.members[node_id].transport
        assert isinstance(transport, RecordingTransport)
        return transport.sent

    async def tick(self, *node_ids: NodeId, count: int = 1) -> None:
        """With a clock of ours: one tick at a time, and everything that follows from it."""
        for _ in range(count):
            for node_id in node_ids or tuple(self.members):
                self.clocks[node_id].now += 20_000_000
                if node_id in self.members:
                    self.members[node_id].node.wake()
            await turns()

    def leaders(self) -> list[NodeId]:
        return [i for i, member in self.members.items() if member.node.status().role is Role.LEADER]

    async def leader(self) -> Member:
        """Waits until one leads and all who can be asked agree."""

        def agreed() -> bool:
            leading = self.leaders()
            known = {member.node.status().leader_id for member in self.members.values()}
            return len(leading) == 1 and known == set(leading)

        if self._clock:
            for _ in range(500):
                if agreed():
                    break
                await self.tick()
        await until(agreed)
        return self.members[self.leaders()[0]]

    async def settled(self) -> Member:
        """The leader, once it has committed an entry of its term: before that it refuses changes."""
        leader = await self.leader()
        await leader.node.wait_applied(await leader.node.read_index())
        return leader

    def followers(self) -> list[Member]:
        leading = self.leaders()
        return [member for node_id, member in self.members.items() if node_id not in leading]
