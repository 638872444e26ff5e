"""HTTP/2 that is no gRPC: pages and the JSON gateway for clients such as curl, over TLS and nowhere else."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest

from kvstore.gateway.access import Access
from kvstore.gateway.rpc import Gateway
from kvstore.pb import rpc_pb2 as pb
from kvstore.rpc import ChannelOptions, ChannelTls, ServerOptions, ServerTls, make_channel, make_server
from kvstore.rpc.base import Call, Stream
from kvstore.rpc.http1 import Http1Handover
from kvstore.rpc.nghttp2 import engine
from tests.certificates import Certificates

SECONDS = 20.0
GRPC = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]


class Client(asyncio.Protocol):
    """One connection; what comes is kept by stream."""

    def __init__(self) -> None:
        self.connection = engine.client_connection(
            header_bytes_max=65536, stream_window=1 << 20, connection_window=1 << 24
        )
        self.heads: dict[int, dict[bytes, bytes]] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.changed = asyncio.Event()
        self.is_lost = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        self.changed.set()

    def data_received(self, data: bytes) -> None:
        self.connection.receive_data(data)
        for event in self.connection.events():
            if isinstance(event, engine.ResponseReceived):
                self.heads[event.stream_id] = dict(event.headers)
            elif isinstance(event, engine.DataReceived):
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                engine.acknowledge(self.connection, event.stream_id, len(event.data))
            elif isinstance(event, engine.StreamClosed):
                self.ended.add(event.stream_id)
        self.flush()
        self.changed.set()

    def flush(self) -> None:
        while data := self.connection.data_to_send():
            self.transport.write(data)

    def ask(self, method: str, path: str, body: bytes | None = None, more: Any = (), end: bool = True) -> int:
        head = [
            (b":method", method.encode()),
            (b":scheme", b"https"),
            (b":authority", b"localhost"),
            (b":path", path.encode()),
            *more,
        ]
        stream_id = engine.open_stream(self.connection, head)
        if body:
            engine.data(self.connection, stream_id, body)
        if end:
            engine.end(self.connection, stream_id)
        self.flush()
        return stream_id

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():
                assert not self.is_lost
                self.changed.clear()
                await self.changed.wait()

    async def answer(self, stream_id: int) -> tuple[int, bytes]:
        await self.until(lambda: stream_id in self.ended)
        return int(self.heads[stream_id][b":status"]), self.bodies.get(stream_id, b"")


class Echo:
    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.is_closed = asyncio.Event()

    def received(self, messages: list[bytes]) -> None:
        self.stream.send([pb.WatchResponse(watch_id=len(messages)).SerializeToString()] * len(messages))

    def drained(self) -> None:
        pass

    def half_closed(self) -> None:
        pass

    def closed(self) -> None:
        self.is_closed.set()


class Port:
    def __init__(self, certificates: Certificates, secure: bool) -> None:
        pair = certificates.server
        self.certificates = certificates
        self.secure = secure
        self.streams: list[Echo] = []
        self.rpc = make_server(ServerOptions(tls=ServerTls(cert_file=pair.cert, key_file=pair.key)), "nghttp2")
        self.rpc.add_calls("/etcdserverpb.KV/Put", self.put)
        self.rpc.add_stream("/etcdserverpb.Watch/Watch", self.watch)
        self.rpc.http1 = Http1Handover(Access(pages, Gateway(self.rpc.local, 1 << 20)))

    def put(self, calls: list[Call]) -> None:
        for call in calls:
            call.reply(pb.PutResponse(header=pb.ResponseHeader(revision=len(call.request))).SerializeToString())

    def watch(self, stream: Stream) -> Echo:
        self.streams.append(Echo(stream))
        return self.streams[-1]

    async def start(self) -> None:
        scheme = "https" if self.secure else "http"
        [self.url] = await self.rpc.start([f"{scheme}://127.0.0.1:0"])

    async def connect(self) -> Client:
        context = None
        if self.secure:
            context = ssl.create_default_context(cafile=self.certificates.ca)
            context.set_alpn_protocols(["h2", "http/1.1"])
        port = int(self.url.rpartition(":")[2])
        _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port, ssl=context)
        return client


async def pages(scope: Any, receive: Any, send: Any) -> None:
    """Says what it was asked; /big says more than a window holds, /bug nothing."""
    if scope["path"] == "/bug":
        raise RuntimeError("bug")
    body = f"{scope['method']} {scope['path']} {scope['query_string'].decode()}".encode()
    if scope["path"] == "/big":
        body = b"x" * 5_000_000
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def served(certificates: Certificates, secure: bool = True) -> AsyncIterator[Port]:
    port = Port(certificates, secure)
    await port.start()
    try:
        yield port
    finally:
        await port.rpc.stop(0)


async def test_pages_and_calls_on_one_connection(certificates: Certificates) -> None:
    async with served(certificates) as port:
        client = await port.connect()
        assert await client.answer(client.ask("GET", "/a%20b?c=d")) == (200, b"GET /a b c=d")
        assert await client.answer(client.ask("HEAD", "/a")) == (200, b"")
        assert await client.answer(client.ask("OPTIONS", "/a")) == (200, b"")
        status, body = await client.answer(client.ask("POST", "/v3/kv/put", b'{"key":"YQ=="}'))
        assert (status, json.loads(body)) == (200, {"header": {"revision": "3"}})
        assert (await client.answer(client.ask("POST", "/v3/kv/put", b"{")))[0] == 400
        assert await client.answer(client.ask("GET", "/big")) == (200, b"x" * 5_000_000)
        call = client.ask("POST", "/etcdserverpb.KV/Put", b"\0\0\0\0\1x", GRPC)
        assert (await client.answer(call))[0] == 200
        assert client.heads[call][b"content-type"] == b"application/grpc"
        assert (await client.answer(client.ask("GET", "/a")))[0] == 200
        client.transport.close()


async def test_a_stream_goes_on_and_ends_with_its_reader(certificates: Certificates) -> None:
    async with served(certificates) as port:
        client = await port.connect()
        watch = client.ask("POST", "/v3/watch", b'{"create_request":{}}', end=False)
        line = b'{"result":{"watch_id":"1"}}\n'
        await client.until(lambda: client.bodies.get(watch) == line)
        engine.data(client.connection, watch, b'{"create_request":{}}')
        client.flush()
        await client.until(lambda: client.bodies.get(watch) == line * 2)
        engine.reset(client.connection, watch, engine.ErrorCode.CANCEL)
        client.flush()
        await asyncio.wait_for(port.streams[0].is_closed.wait(), SECONDS)
        # A lost connection ends it too.
        watch = client.ask("POST", "/v3/watch", b'{"create_request":{}}')
        await client.until(lambda: client.bodies.get(watch) == line)
        client.transport.abort()
        await asyncio.wait_for(port.streams[1].is_closed.wait(), SECONDS)


async def test_what_is_wrong_is_one_streams_end(certificates: Certificates) -> None:
    async with served(certificates) as port:
        client = await port.connect()
        broken = client.ask("GET", "/bug")
        await client.until(lambda: broken in client.ended)
        assert broken not in client.heads
        long = client.ask("GET", "/a", more=[(b"x-long", b"x" * 70_000)])
        assert (await client.answer(long))[0] == 431
        assert (await client.answer(client.ask("GET", "/a")))[0] == 200
        client.transport.close()


async def test_a_request_that_does_not_arrive_is_cut(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.rpc.nghttp2.pages.REQUEST_SECONDS", 0.05)
    async with served(certificates) as port:
        client = await port.connect()
        late = client.ask("POST", "/v3/kv/put", b"{", end=False)
        await client.until(lambda: late in client.ended)
        assert late not in client.heads
        client.transport.close()


async def test_a_stop_does_not_wait_for_streams(certificates: Certificates) -> None:
    async with served(certificates) as port:
        client = await port.connect()
        watch = client.ask("POST", "/v3/watch", b'{"create_request":{}}')
        await client.until(lambda: client.bodies.get(watch))
        await asyncio.wait_for(port.rpc.stop(60), SECONDS)
        assert port.streams[0].is_closed.is_set()


async def test_without_tls_http2_is_grpc(certificates: Certificates) -> None:
    async with served(certificates, secure=False) as port:
        client = await port.connect()
        assert (await client.answer(client.ask("GET", "/a")))[0] == 405
        assert (await client.answer(client.ask("POST", "/v3/kv/put", b"{}")))[0] == 415
        client.transport.close()


async def test_clients_of_grpc_notice_nothing(certificates: Certificates) -> None:
    async with served(certificates) as port:
        tls = ChannelTls(ca_file=certificates.ca)
        async with make_channel(port.url, ChannelOptions(tls=tls), "nghttp2") as channel:
            assert await channel.unary_unary("/etcdserverpb.KV/Put")(b"xx") == b"\n\x02\x18\x02"
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/etcdserverpb.KV/Nope")(b"")
