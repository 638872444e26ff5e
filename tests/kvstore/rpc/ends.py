"""Both ends of a pair: servers and channels of its fronts, closed after the test.

The tiny service /t.T has a method for each arity, named by it: `await ends.connect(unary_unary=echo)` serves the
behaviour and gives a channel to it, `method(channel, "unary_unary")` the multi-callable.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from kvstore.rpc import (
    ChannelOptions,
    ChannelTls,
    ServerOptions,
    ServerTls,
    make_channel,
    make_peer_channel,
    make_peer_server,
    make_server,
)
from kvstore.rpc.base import RpcServer
from tests.kvstore.rpc.certificates import Identity
from tests.kvstore.rpc.pairs import Pair

Arguments = list[tuple[str, Any]]
Behaviour = Callable[..., Any]

EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs
ARITIES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
SECONDS = 20.0  # for what happens at once on an idle machine

# Quick to come back, one connection for each channel.
CLIENT_ARGUMENTS: Arguments = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True)
class Files:
    """Certificates."""

    ca_file: Path
    server: Identity
    client: Identity
    stranger: Identity


@dataclass(frozen=True)
class Status:
    """How a call ended."""

    code: grpc.StatusCode
    details: str | None
    initial: list[tuple[str, str | bytes]]
    trailing: list[tuple[str, str | bytes]]


class Ends:
    def __init__(self, pair: Pair, files: Files) -> None:
        self.pair = pair
        self.files = files
        self.port = 0  # of the newest server
        self._servers: list[Any] = []
        self._channels: list[Any] = []

    @property
    def url(self) -> str:
        return f"{'https' if self.pair.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def server_tls(self) -> ServerTls | None:
        if not self.pair.tls:
            return None
        return ServerTls(cert_file=self.files.server.cert_file, key_file=self.files.server.key_file)

    def channel_tls(self) -> ChannelTls | None:
        return ChannelTls(ca_file=self.files.ca_file) if self.pair.tls else None

    def server(self, arguments: Arguments | None = None, **behaviours: Behaviour) -> Any:
        """Not started."""
        arguments = [("grpc.so_reuseport", 0), *(arguments or [])]
        server = make_peer_server(arguments, self.pair.server, self.server_tls())
        handlers = {arity: handler(arity, behaviour) for arity, behaviour in behaviours.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
        self._servers.append(server)
        return server

    async def start(self, server: Any, port: int = 0) -> None:
        self.port = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()

    async def serve(self, arguments: Arguments | None = None, **behaviours: Behaviour) -> Any:
        server = self.server(arguments, **behaviours)
        await self.start(server)
        return server

    def channel(self, arguments: Arguments | None = None, port: int | None = None) -> Any:
        chosen = {name: None for name, _ in arguments or []}
        defaults = [(name, value) for name, value in CLIENT_ARGUMENTS if name not in chosen]
        target = self.target if port is None else f"127.0.0.1:{port}"
        made = make_peer_channel(target, [*defaults, *(arguments or [])], self.pair.client, self.channel_tls())
        self._channels.append(made)
        return made

    async def connect(self, **behaviours: Behaviour) -> Any:
        await self.serve(**behaviours)
        return self.channel()

    def rpc_server(self, **options: Any) -> RpcServer:
        """Of the seam; not started."""
        server = make_server(ServerOptions(tls=self.server_tls(), **options), self.pair.server)
        self._servers.append(server)
        return server

    async def start_rpc(self, server: RpcServer, port: int = 0) -> None:
        scheme = "https" if self.pair.tls else "http"
        [url] = await server.start([f"{scheme}://127.0.0.1:{port}"])
        self.port = int(url.rpartition(":")[2])
        assert url == self.url

    def rpc_channel(self, **options: Any) -> Any:
        made = make_channel(self.url, ChannelOptions(tls=self.channel_tls(), **options), self.pair.client)
        self._channels.append(made)
        return made

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        for server in self._servers:
            await server.stop(0)


def handler(arity: str, behaviour: Behaviour) -> Any:
    return getattr(grpc, f"{arity}_rpc_method_handler")(behaviour)


def method(channel: Any, arity: str, name: str | None = None) -> Any:
    return getattr(channel, arity)(f"/t.T/{name or arity}")


def pairs_of(metadata: Any) -> list[tuple[str, str | bytes]]:
    return [(key, value) for key, value in metadata or ()]


def own(metadata: Any) -> list[tuple[str, str | bytes]]:
    """Without what the fronts themselves say, such as user-agent."""
    return [(key, value) for key, value in metadata or () if key.startswith("x-")]


async def error_of(call: Any) -> Status:
    """What an awaited call or reading raises."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return Status(
            error.code(), error.details(), pairs_of(error.initial_metadata()), pairs_of(error.trailing_metadata())
        )
    raise AssertionError("no error")


async def status_of(call: Any) -> Status:
    """Of a call object, by its own methods."""
    return Status(
        await call.code(),
        await call.details(),
        pairs_of(await call.initial_metadata()),
        pairs_of(await call.trailing_metadata()),
    )


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Let the loop run until it holds."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.001)
    assert condition(), what


async def soon(awaitable: Any) -> Any:
    """What must come without anything else to happen first."""
    return await asyncio.wait_for(awaitable, SECONDS)


async def echo(request: bytes, context: Any) -> bytes:
    return request
