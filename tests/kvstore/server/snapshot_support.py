"""Stores that send and receive snapshots without a network."""

from collections.abc import Iterable
from pathlib import Path
from typing import final

from google.protobuf.message import Message

from kvstore.mvcc.slices import in_thread
from kvstore.mvcc.store import StoreOptions
from kvstore.pb.rpc_pb2 import PutRequest
from kvstore.server.snapshots import FolderWriter, Snapshots, configuration_of
from kvstore.server.state_folders import StateFolders
from kvstore.state.cluster import ClusterTable, Member
from raft.snapshot import ReceivedSnapshot, SnapshotReader
from raft.types import SnapshotMeta
from tests.kvstore.state.support import MEMBER, State

MEMBERS = [Member(id=number, name=f"m{number}", peer_urls=(f"http://m{number}:2380",)) for number in (5, 6, 7)]


@final
class Side:
    """A member's data directory with a store, and its snapshots."""

    def __init__(self, path: Path, options: StoreOptions | None = None) -> None:
        path.mkdir()
        self.path = path
        self.folders = StateFolders(path)
        self.state = State(self.folders.find(), options=options)
        self.store = self.state.store
        self.cluster = ClusterTable(self.store)
        self.cluster.bootstrap(MEMBERS)
        self.snapshots = Snapshots(self.store, self.folders, self.cluster.cluster_id)

    async def fill(self, keys: Iterable[int], size: int = 10) -> None:
        for key in keys:
            await self.apply(put(b"k%d" % key, b"%d" % key * size))

    async def apply(self, *requests: Message) -> None:
        seen = self.store.seen.get(MEMBER, (0, 0))[1]  # by a snapshot, maybe
        self.state.sequence = max(self.state.sequence, seen)
        await self.state.apply(*requests)

    def names(self) -> list[str]:
        return sorted(entry.name for entry in self.path.iterdir())

    async def close(self) -> None:
        await self.snapshots.stop()
        self.store.close()


def meta_of(reader: SnapshotReader, side: Side) -> SnapshotMeta:
    configuration, context = configuration_of(side.store)
    return SnapshotMeta(reader.index, reader.term, configuration, context)


async def copy(reader: SnapshotReader, writer: FolderWriter, meta: SnapshotMeta, piece: int = 4096) -> None:
    """What the two nodes do."""

    def work() -> None:
        here = writer.begin(meta, reader.files)
        for file in reader.files:
            for offset in range(here[file.name], file.size, piece):
                size = min(piece, file.size - offset)
                writer.write(file.name, offset, reader.read(file.name, offset, size))
        writer.finish()

    await in_thread(work)


async def transfer(sender: Side, receiver: Side) -> int:
    """A snapshot, all the way. Returns its index."""
    reader = await sender.snapshots.take()
    try:
        meta = meta_of(reader, sender)
        writer = receiver.snapshots.incoming()
        await copy(reader, writer, meta)
    finally:
        reader.close()
    await receiver.snapshots.install(ReceivedSnapshot(meta, writer))
    return meta.index


def put(key: bytes, value: bytes = b"v") -> PutRequest:
    return PutRequest(key=key, value=value)
