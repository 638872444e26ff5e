"""Snapshot files of a store, for tests."""

from contextlib import aclosing
from pathlib import Path

from kvstore.mvcc.store import MvccStore
from kvstore.snapshot.save import SnapshotFiles, blobs
from kvstore.state.cluster import ClusterTable, Member

MEMBERS = [
    Member(id=0xA1, name="m1", peer_urls=("http://p:1",), client_urls=("http://c:1",)),
    Member(id=0xB2, peer_urls=("http://p:2", "http://p:3"), is_learner=True),
]


async def save(store: MvccStore, path: Path) -> None:
    """What a client of Maintenance.Snapshot would write."""
    files = SnapshotFiles(store, ClusterTable(store), path.parent)
    with path.open("wb") as out:
        async with files.file() as spooled, aclosing(blobs(spooled)) as pieces:
            async for blob, _ in pieces:
                out.write(blob)
