"""An HTTP/2 server that does what a test tells it to, right or wrong."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

from kvstore.rpc.nghttp2 import engine, framing
from kvstore.rpc.nghttp2.engine import Event, RequestReceived

HEAD = [(b":status", b"200"), (b"content-type", b"application/grpc")]
OK = [(b"grpc-status", b"0")]


class Peer(asyncio.Protocol):
    """One connection that a client made."""

    def __init__(self, server: "ScriptedServer") -> None:
        self.server = server
        self.connection = engine.server_connection(
            streams_max=server.streams_max,
            header_bytes_max=server.header_bytes_max,
            stream_window=server.window,
            connection_window=max(server.window, 65535),
        )
        self.events: list[Event] = []
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.server.peers.append(self)
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        self.connection.receive_data(data)
        for event in self.connection.events():
            self.events.append(event)
            if isinstance(event, RequestReceived):
                self.server.script(self, event.stream_id, dict(event.headers)[b":path"].decode())
        self.server.news.set()
        self.flush()

    def flush(self) -> None:
        data = self.connection.data_to_send()
        if data:
            self.transport.write(data)

    def answer(self, stream_id: int, message: bytes) -> None:
        assert engine.unary_response(self.connection, stream_id, HEAD, framing.frame(message), OK)
        self.flush()

    def saw(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


Script = Callable[[Peer, int, str], None]


class ScriptedServer:
    def __init__(self, script: Script, window: int, streams_max: int, header_bytes_max: int) -> None:
        self.script = script
        self.window = window
        self.streams_max = streams_max
        self.header_bytes_max = header_bytes_max
        self.peers: list[Peer] = []
        self.news = asyncio.Event()
        self.target = ""

    async def until(self, condition: Callable[[], bool]) -> None:
        """Something that a client sends makes it true."""
        while not condition():
            self.news.clear()
            await self.news.wait()


@asynccontextmanager
async def scripted(
    script: Script,
    *,
    window: int = 65535,
    streams_max: int = 100,
    header_bytes_max: int = 65536,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer(script, window, streams_max, header_bytes_max)
    listening = await asyncio.get_running_loop().create_server(lambda: Peer(server), "127.0.0.1", port, ssl=tls)
    server.target = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()
        for peer in server.peers:
            peer.transport.abort()


def echo(peer: Peer, stream_id: int, path: str) -> None:
    peer.answer(stream_id, path.encode())


def silent(peer: Peer, stream_id: int, path: str) -> None:
    pass
