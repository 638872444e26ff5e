"""What a front has served, by method and code: on both fronts, and for callers of this process."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from kvstore.errors import COMPACTED, Code, KvError
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb import rpc_pb2_grpc
from kvstore.rpc import FRONTS, ServerOptions, make_server
from kvstore.rpc.base import Call, Stream
from kvstore.rpc.local import Origin

PUT, WATCH, LIST, SNAPSHOT = (
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.Watch/Watch",
    "/etcdserverpb.Cluster/MemberList",
    "/etcdserverpb.Maintenance/Snapshot",
)
SECONDS = 20.0


class Watch:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def received(self, messages: list[bytes]) -> None:
        self._stream.send(messages * 2)

    def drained(self) -> None:
        pass

    def half_closed(self) -> None:
        self._stream.close(COMPACTED)

    def closed(self) -> None:
        pass


class Cluster(rpc_pb2_grpc.ClusterServicer):
    async def MemberList(self, request: pb.MemberListRequest, context: Any) -> pb.MemberListResponse:  # type: ignore[override]
        if request.linearizable:
            raise COMPACTED.fresh()
        return pb.MemberListResponse()


class Maintenance(rpc_pb2_grpc.MaintenanceServicer):
    async def Snapshot(self, request: pb.SnapshotRequest, context: Any) -> AsyncIterator[pb.SnapshotResponse]:  # type: ignore[override]
        for number in range(3):
            yield pb.SnapshotResponse(remaining_bytes=number)


class Served:
    def __init__(self, front: str, **options: Any) -> None:
        self.front = front
        self.server = make_server(ServerOptions(**options), front)
        self.held: list[Call] = []
        self.server.add_calls(PUT, self.put)
        self.server.add_stream(WATCH, Watch)
        self.server.add_servicer(rpc_pb2_grpc.add_ClusterServicer_to_server, Cluster())  # type: ignore[abstract]
        self.server.add_servicer(rpc_pb2_grpc.add_MaintenanceServicer_to_server, Maintenance())  # type: ignore[abstract]

    def put(self, calls: list[Call]) -> None:
        for call in calls:
            if call.request == b"hold":
                self.held.append(call)
            elif call.request == b"fail":
                call.fail(KvError(Code.NOT_FOUND, "no"))
            else:
                call.reply(b"")

    def counts(self, path: str) -> tuple[str, int, int, int, dict[str, int]]:
        [found] = [one for one in self.server.counts.served() if one.path == path]
        codes = {code.name: count for code, count in found.codes.items() if count}
        return found.kind, found.started, found.received, found.sent, codes


@pytest.fixture(params=FRONTS)
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    served = Served(request.param)
    [url] = await served.server.start(["http://127.0.0.1:0"])
    async with grpc.aio.insecure_channel(url.removeprefix("http://")) as channel:
        served.channel = channel  # type: ignore[attr-defined]
        yield served
    await served.server.stop(0)


async def until(served: Served, path: str, wanted: object) -> None:
    async with asyncio.timeout(SECONDS):
        while served.counts(path) != wanted:
            await asyncio.sleep(0.01)


async def test_unary_calls(served: Any) -> None:
    put = served.channel.unary_unary(PUT)
    for _ in range(5):
        await put(b"x")
    with pytest.raises(grpc.aio.AioRpcError):
        await put(b"fail")
    assert served.counts(PUT) == ("unary", 6, 6, 5, {"OK": 5, "NOT_FOUND": 1})
    held = put(b"hold")
    await asyncio.wait_for(_until_held(served), SECONDS)
    # What is under way has no end yet.
    assert served.counts(PUT) == ("unary", 7, 7, 5, {"OK": 5, "NOT_FOUND": 1})
    held.cancel()
    await until(served, PUT, ("unary", 7, 7, 5, {"OK": 5, "NOT_FOUND": 1, "CANCELLED": 1}))
    await served.server.local.call(PUT, b"x", Origin())
    assert served.counts(PUT) == ("unary", 8, 8, 6, {"OK": 6, "NOT_FOUND": 1, "CANCELLED": 1})


async def _until_held(served: Served) -> None:
    while not served.held:
        await asyncio.sleep(0.01)


async def test_streams(served: Any) -> None:
    watch = served.channel.stream_stream(WATCH)()
    await watch.write(b"a")
    assert [await watch.read(), await watch.read()] == [b"a", b"a"]
    assert served.counts(WATCH) == ("bidi_stream", 1, 1, 2, {})
    await watch.done_writing()
    assert await watch.code() is grpc.StatusCode.OUT_OF_RANGE
    await until(served, WATCH, ("bidi_stream", 1, 1, 2, {"OUT_OF_RANGE": 1}))
    watch = served.channel.stream_stream(WATCH)()
    await watch.write(b"a")
    await watch.read()
    watch.cancel()
    # grpcio tells of a client that has cancelled as of one that has said all.
    ends = {"OUT_OF_RANGE": 2} if served.front == "grpcio" else {"OUT_OF_RANGE": 1, "CANCELLED": 1}
    await until(served, WATCH, ("bidi_stream", 2, 2, 4, ends))


async def test_generated_code(served: Any) -> None:
    stub = rpc_pb2_grpc.ClusterStub(served.channel)
    await stub.MemberList(pb.MemberListRequest())
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.MemberList(pb.MemberListRequest(linearizable=True))
    await until(served, LIST, ("unary", 2, 2, 1, {"OK": 1, "OUT_OF_RANGE": 1}))
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.MemberAdd(pb.MemberAddRequest())
    await until(served, "/etcdserverpb.Cluster/MemberAdd", ("unary", 1, 1, 0, {"UNIMPLEMENTED": 1}))
    snapshot = rpc_pb2_grpc.MaintenanceStub(served.channel).Snapshot(pb.SnapshotRequest())
    assert len([one async for one in snapshot]) == 3
    await until(served, SNAPSHOT, ("server_stream", 1, 1, 3, {"OK": 1}))


async def test_versions_of_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by connection, with the type of the call; what is no version, or one too many, is unknown."""
    monkeypatch.setattr("kvstore.rpc.nghttp2.server.VERSIONS_MAX", 5)
    served = Served("nghttp2")
    [url] = await served.server.start(["http://127.0.0.1:0"])

    async def client(version: str, puts: int, watches: int) -> None:
        metadata = [("client-api-version", version)] if version else []
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(url.removeprefix("http://"), options=options) as channel:
            for _ in range(puts):
                await channel.unary_unary(PUT)(b"x", metadata=metadata)
            for _ in range(watches):
                watch = channel.stream_stream(WATCH)(metadata=metadata)
                await watch.write(b"a")
                await watch.read()
            if version == "3.5":
                snapshot = rpc_pb2_grpc.MaintenanceStub(channel).Snapshot(pb.SnapshotRequest(), metadata=metadata)
                assert len([one async for one in snapshot]) == 3
            assert served.server.counts.versions()["unary", version if version == "3.5" else "unknown"] >= puts

    await client("3.5", 3, 2)
    await client("3.5", 1, 0)
    await client("", 2, 1)
    await client('3.5"} 1', 1, 0)
    assert dict(served.server.counts.versions()) == {
        ("unary", "3.5"): 4,
        ("stream", "3.5"): 4,
        ("unary", "unknown"): 3,
        ("stream", "unknown"): 1,
    }
    for number in range(5):
        version = f"3.6.{number}"
        async with grpc.aio.insecure_channel(url.removeprefix("http://")) as channel:
            await channel.unary_unary(PUT)(b"x", metadata=[("client-api-version", version)])
    found = served.server.counts.versions()
    assert found.total() == 4 + 4 + 3 + 1 + 5
    assert len({version for _, version in found}) == 3, "one more fits"
    await served.server.stop(0)


@pytest.mark.parametrize("front", FRONTS)
async def test_how_long_unary_calls_take(front: str) -> None:
    """Only when it is asked for; of each call once, also of those that fail and of this process's own."""
    assert Served(front).server.counts.seconds == {}
    served = Served(front, measure_calls=True)
    [url] = await served.server.start(["http://127.0.0.1:0"])
    async with grpc.aio.insecure_channel(url.removeprefix("http://")) as channel:
        await channel.unary_unary(PUT)(b"x", metadata=[("a", "b")])
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary(PUT)(b"fail")
        held = channel.unary_unary(PUT)(b"hold", metadata=[("a", "b")])
        await asyncio.wait_for(_until_held(served), SECONDS)
        [call] = served.held
        assert (call.text("a"), call.metadata["a"], call.cancelled) == ("b", "b", False)
        assert call.peer.startswith("ipv4:127.0.0.1:")
        took = served.server.counts.seconds
        assert sum(took[PUT].counts) == 2
        call.reply(b"")
        call.reply(b"")
        await held
        await served.server.local.call(PUT, b"x", Origin())
        await rpc_pb2_grpc.ClusterStub(channel).MemberList(pb.MemberListRequest())
        assert (sum(took[PUT].counts), sum(took[LIST].counts)) == (4, 1)
        assert took[PUT].total > 0
        assert WATCH not in took
    await served.server.stop(0)
