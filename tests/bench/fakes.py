"""A member that is no store: a grpcio server in this process that counts puts and can be told to misbehave."""

import contextlib
import os
import ssl
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from bench.clusters import State
from kvstore.pb import rpc_pb2 as pb


def identity(message: bytes) -> bytes:
    return message


class FakeMember(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Put moves the revision, Echo methods give back what they get. Every `fail_each`th put is an error instead."""

    def __init__(self) -> None:
        self.revision = 1
        self.puts = 0
        self.fail_each = 0
        self.forget_each = 0  # puts that are answered and not done
        self.details = "etcdserver: leader changed"

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        kinds: dict[str, Any] = {
            "/etcdserverpb.KV/Put": grpc.unary_unary_rpc_method_handler(self._put, identity, identity),
            "/test/Echo": grpc.unary_unary_rpc_method_handler(self._echo, identity, identity),
            "/test/Size": grpc.unary_unary_rpc_method_handler(self._size, identity, identity),
            "/test/Large": grpc.unary_unary_rpc_method_handler(self._large, identity, identity),
            "/test/Stream": grpc.stream_stream_rpc_method_handler(self._stream, identity, identity),
            "/test/Flood": grpc.unary_stream_rpc_method_handler(self._flood, identity, identity),
        }
        return kinds.get(details.method)

    async def _put(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        self.puts += 1
        if self.fail_each and self.puts % self.fail_each == 0:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self.details)
        if not (self.forget_each and self.puts % self.forget_each == 0):
            self.revision += 1
        return pb.PutResponse(header=pb.ResponseHeader(revision=self.revision)).SerializeToString()

    async def _echo(self, request: bytes, context: object) -> bytes:
        return request

    async def _size(self, request: bytes, context: object) -> bytes:
        return str(len(request)).encode()

    async def _large(self, request: bytes, context: object) -> bytes:
        return b"x" * int(request)

    async def _stream(self, requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    async def _flood(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield number.to_bytes(4, "big") * (1 << 18)  # 1 MiB


@contextlib.asynccontextmanager
async def serving(member: FakeMember) -> AsyncIterator[str]:
    """Its URL."""
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=limits)
    server.add_generic_rpc_handlers([member])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


class FakeMembers:
    """What measurements want of bench.clusters.Members, over one fake member."""

    size = 1
    context: ssl.SSLContext | None = None

    def __init__(self, member: FakeMember, url: str) -> None:
        self._member = member
        self.urls = [url]
        self.pids = [os.getpid()]

    async def state(self, number: int, seconds: float = 2) -> State:
        revision = self._member.revision
        return State(1, 1, revision, term=2, raft_index=revision, applied=revision)

    def rss_bytes(self) -> float:
        return 1e6

    def log_tail(self, number: int | None = None) -> str:
        return ""
