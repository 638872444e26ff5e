"""A server with a hot method of each kind and three generated services, for the tests of the seam and of raw peers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from kvstore.errors import COMPACTED, Code, KvError
from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from kvstore.rpc.base import Call, Stream
from tests.kvstore.rpc.ends import Ends

LIMIT = 100_000 + 512 * 1024  # of one message, with the options below


class EchoStream:
    """Answers each message with itself; some words do more."""

    def __init__(self, front: "Front", stream: Stream) -> None:
        self.stream = stream
        self.got: list[bytes] = []
        self.drained_count = 0
        self.half_closed_count = 0
        self.is_closed = asyncio.Event()
        front.opened.append(self)

    def received(self, messages: list[bytes]) -> None:
        self.got.extend(messages)
        for message in messages:
            match message:
                case b"boom":
                    raise RuntimeError("bug")
                case b"flood":
                    self.stream.send([b"x" * 65536] * 100)
                case b"error":
                    self.stream.send([b"last"] * 50)
                    self.stream.close(COMPACTED)
                    self.stream.send([b"after the end"])
                    self.stream.close()
                case b"refuse":
                    self.stream.close(COMPACTED)
                case _:
                    self.stream.send([message])

    def drained(self) -> None:
        self.drained_count += 1

    def half_closed(self) -> None:
        self.half_closed_count += 1
        self.stream.send([b"goodbye"])
        self.stream.close()

    def closed(self) -> None:
        assert not self.is_closed.is_set()
        self.is_closed.set()


class Cluster(rpc_pb2_grpc.ClusterServicer):
    async def MemberList(self, request: rpc_pb2.MemberListRequest, context: object) -> rpc_pb2.MemberListResponse:
        if request.linearizable:
            raise COMPACTED.fresh()
        return rpc_pb2.MemberListResponse(members=[rpc_pb2.Member(ID=7)])

    async def MemberAdd(self, request: rpc_pb2.MemberAddRequest, context: object) -> rpc_pb2.MemberAddResponse:
        raise RuntimeError("bug")

    async def MemberRemove(self, request: rpc_pb2.MemberRemoveRequest, context: Any) -> Any:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such member", (("x-id", str(request.ID)),))


class Maintenance(rpc_pb2_grpc.MaintenanceServicer):
    async def Snapshot(
        self, request: rpc_pb2.SnapshotRequest, context: object
    ) -> AsyncIterator[rpc_pb2.SnapshotResponse]:
        for number in range(5):
            yield rpc_pb2.SnapshotResponse(remaining_bytes=number, blob=b"x" * 50_000)
        raise COMPACTED.fresh()


class Lease(rpc_pb2_grpc.LeaseServicer):
    async def LeaseKeepAlive(
        self, requests: AsyncIterator[rpc_pb2.LeaseKeepAliveRequest], context: object
    ) -> AsyncIterator[rpc_pb2.LeaseKeepAliveResponse]:
        async for request in requests:
            yield rpc_pb2.LeaseKeepAliveResponse(ID=request.ID, TTL=request.ID + 1)


class Front:
    """A server with one method of each kind, and a channel to it."""

    def __init__(self, ends: Ends, **options: Any) -> None:
        self.batches: list[list[bytes]] = []
        self.held: list[Call] = []
        self.opened: list[EchoStream] = []
        self.server = ends.rpc_server(**{"max_request_bytes": 100_000, **options})
        self.server.add_calls("/t.T/Echo", self.echo)
        self.server.add_stream("/t.T/Chat", lambda stream: EchoStream(self, stream))
        self.server.add_servicer(rpc_pb2_grpc.add_ClusterServicer_to_server, Cluster())
        self.server.add_servicer(rpc_pb2_grpc.add_MaintenanceServicer_to_server, Maintenance())
        self.server.add_servicer(rpc_pb2_grpc.add_LeaseServicer_to_server, Lease())
        self.channel: Any = None
        self.port = 0

    def echo(self, calls: list[Call]) -> None:
        self.batches.append([call.request for call in calls])
        for call in calls:
            match call.request:
                case b"fail":
                    call.fail(COMPACTED)
                    call.reply(b"too late")
                case b"odd":
                    call.fail(KvError(Code.UNAVAILABLE, "é \n 100%"))
                case b"hold":
                    self.held.append(call)
                case b"boom":
                    raise RuntimeError("bug")
                case _:
                    call.reply(call.request)
                    call.reply(b"only the first answer counts")
                    call.fail(COMPACTED)

    def ask(self, message: bytes, **arguments: Any) -> Any:
        return self.channel.unary_unary("/t.T/Echo")(message, **arguments)

    def chat(self) -> Any:
        return self.channel.stream_stream("/t.T/Chat")()
