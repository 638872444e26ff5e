"""Client.snapshot: the same stream from etcd and from us; a file that is not whole is an error."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvstore.client import Client, SnapshotPart, errors
from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from tests.kvstore.bbolt.files import decode
from tests.kvstore.client.clusters import Cluster

BLOBS = [b"a" * 512, b"b" * 512]
HASH = hashlib.sha256(b"".join(BLOBS)).digest()


async def test_a_whole_file(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "file"
    async with Client(cluster.endpoints) as client:
        revision = (await client.put("snapshot", b"v" * 200_000)).header.revision
        parts: list[SnapshotPart] = [part async for part in client.snapshot(cluster.endpoints[0])]
    path.write_bytes(b"".join(part.blob for part in parts))
    rest = [part.remaining for part in parts]
    assert rest == sorted(rest, reverse=True)
    assert len(parts[0].blob) + rest[0] == path.stat().st_size - 32
    assert rest[-2:] == [0, 0]
    assert revision.to_bytes(8, "big") + b"_" + bytes(8) in decode(path, path.stat().st_size - 32)[b"key"]


class Member(rpc_pb2_grpc.MaintenanceServicer):
    """Sends what it is told to, and then breaks off."""

    def __init__(self, blobs: list[bytes], *, breaks: bool = False) -> None:
        self.blobs, self.breaks = blobs, breaks
        self.server = grpc.aio.server()
        rpc_pb2_grpc.add_MaintenanceServicer_to_server(self, self.server)
        self.url = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    async def __aenter__(self) -> "Member":
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop(None)

    async def Snapshot(self, request: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        for blob in self.blobs:
            yield rpc_pb2.SnapshotResponse(blob=blob, version="3.6.0")
        if self.breaks:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


def member(blobs: list[bytes], *, breaks: bool = False) -> Member:
    return Member(blobs, breaks=breaks)  # type: ignore[abstract]  # what is missing is UNIMPLEMENTED


@pytest.mark.parametrize(
    "blobs",
    [BLOBS, [*BLOBS, b"x" * 32], [BLOBS[0], HASH], [*BLOBS, HASH, b""], []],
    ids=["no hash", "another hash", "a piece is missing", "more behind the hash", "nothing"],
)
async def test_what_is_not_whole(blobs: list[bytes]) -> None:
    async with member(blobs) as one, Client([one.url]) as client:
        with pytest.raises(errors.DataLoss, match="arrived damaged"):
            [part async for part in client.snapshot()]


async def test_a_stream_that_breaks_does_not_go_on_elsewhere() -> None:
    """Another member's file is another file."""
    async with (
        member(BLOBS[:1], breaks=True) as one,
        member([*BLOBS, HASH]) as other,
        Client([one.url, other.url]) as client,
    ):
        with pytest.raises(errors.Unavailable):
            [part async for part in client.snapshot()]
        assert [part.blob for part in [part async for part in client.snapshot()]] == [*BLOBS, HASH]
