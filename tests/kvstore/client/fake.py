"""A member whose every answer a test scripts: it counts what arrives, and dies on request."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from kvstore.pb import rpc_pb2, rpc_pb2_grpc

Script = Callable[["FakeMember", Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]


class FakeMember(rpc_pb2_grpc.KVServicer, rpc_pb2_grpc.WatchServicer):
    """`script` answers unary calls; `watch` gets each stream as (requests, send)."""

    def __init__(self, script: Script | None = None, watch: Callable[..., Awaitable[None]] | None = None) -> None:
        self.arrived: list[Any] = []
        self.arrival = asyncio.Event()
        self.watch_streams = 0
        self._script = script or answer
        self._watch = watch
        self.server = grpc.aio.server()
        rpc_pb2_grpc.add_KVServicer_to_server(self, self.server)
        rpc_pb2_grpc.add_WatchServicer_to_server(self, self.server)
        self.url = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    async def __aenter__(self) -> "FakeMember":
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop(None)

    async def _unary(self, request: Any, context: Any) -> Any:
        self.arrived.append(request)
        self.arrival.set()
        return await self._script(self, request, context)

    Range = Put = DeleteRange = Txn = Compact = _unary  # type: ignore[assignment]

    async def RangeStream(self, request: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        raise NotImplementedError
        yield

    async def Watch(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        self.watch_streams += 1
        assert ("hasleader", "true") in context.invocation_metadata()
        assert self._watch is not None
        await self._watch(self, request_iterator, context)


async def answer(_: FakeMember, request: Any, __: Any) -> Any:
    kinds = {
        rpc_pb2.PutRequest: rpc_pb2.PutResponse,
        rpc_pb2.RangeRequest: rpc_pb2.RangeResponse,
        rpc_pb2.DeleteRangeRequest: rpc_pb2.DeleteRangeResponse,
        rpc_pb2.TxnRequest: rpc_pb2.TxnResponse,
        rpc_pb2.CompactionRequest: rpc_pb2.CompactionResponse,
    }
    return kinds[type(request)]()


async def die(member: FakeMember, _: Any, __: Any) -> Any:
    """The connection breaks after the request has arrived."""
    asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(member.server.stop(None)))
    await asyncio.Event().wait()


async def hang(_: FakeMember, __: Any, ___: Any) -> Any:
    await asyncio.Event().wait()


def refuse(code: grpc.StatusCode, text: str) -> Script:
    async def script(_: FakeMember, __: Any, context: Any) -> Any:
        await context.abort(code, text)

    return script
