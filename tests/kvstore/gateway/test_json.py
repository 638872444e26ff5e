"""The JSON gateway: what is read and written, whom it calls and for how long, and who may ask."""

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from kvstore.errors import COMPACTED, Code, KvError
from kvstore.gateway.access import Access
from kvstore.gateway.documents import Documents
from kvstore.gateway.mapping import MappingError, document_of, parse
from kvstore.gateway.routes import ROUTES
from kvstore.gateway.rpc import Gateway
from kvstore.pb import rpc_pb2 as pb
from kvstore.rpc.base import Call, Gate, Stream
from kvstore.rpc.http1 import Http1Handover, Http1Limits, Http1Listener
from kvstore.rpc.local import LocalMethods
from tests.websocket import WebSocket

SECONDS = 20.0
LIMIT = 1000


async def soon(condition: Any) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


def gate(path: str) -> Gate:
    """Nobody is asked who it is; a txn is not served."""
    refusals = {"/etcdserverpb.KV/Txn": COMPACTED}
    server: Any = SimpleNamespace(
        refusal=refusals.get, guard=None, is_leaderless=lambda: False, declares=lambda path: True
    )
    return Gate(server, path)


class Methods:
    """Put is answered at once, Range when it is asked to; Watch says back what it hears."""

    def __init__(self) -> None:
        self.local = LocalMethods()
        self.calls: list[Call] = []
        self.streams: list[Echo] = []
        self.local.add_calls("/etcdserverpb.KV/Put", self.put, gate("/etcdserverpb.KV/Put"))
        self.local.add_calls("/etcdserverpb.KV/Range", self.calls.extend, gate("/etcdserverpb.KV/Range"))
        self.local.add_calls("/etcdserverpb.KV/Txn", self.put, gate("/etcdserverpb.KV/Txn"))
        self.local.add_stream("/etcdserverpb.Watch/Watch", self.watch, gate("/etcdserverpb.Watch/Watch"))

    def put(self, calls: list[Call]) -> None:
        self.calls += calls
        for call in calls:
            call.reply(pb.PutResponse(header=pb.ResponseHeader(revision=7)).SerializeToString())

    def watch(self, stream: Stream) -> "Echo":
        self.streams.append(Echo(stream))
        return self.streams[-1]


class Echo:
    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.heard: list[pb.WatchRequest] = []
        self.is_half_closed = False
        self.is_closed = False

    def received(self, messages: list[bytes]) -> None:
        for message in messages:
            request = pb.WatchRequest.FromString(message)
            self.heard.append(request)
            if request.cancel_request.watch_id == 9:
                self.stream.close(COMPACTED)
                return
            answer = pb.WatchResponse(watch_id=request.create_request.watch_id, created=True)
            self.stream.send([answer.SerializeToString()])

    def drained(self) -> None:
        pass

    def half_closed(self) -> None:
        self.is_half_closed = True

    def closed(self) -> None:
        self.is_closed = True


@pytest.fixture
def methods() -> Methods:
    return Methods()


@pytest.fixture
async def port(methods: Methods) -> AsyncIterator[int]:
    app = Access(None, Gateway(methods.local, LIMIT))
    handover = Http1Handover(app, Http1Limits(request_seconds=5))
    listener = Http1Listener(handover)
    [url] = await listener.start(["http://127.0.0.1:0"])
    yield int(url.rpartition(":")[2])
    listener.close()
    await handover.stop(0)


async def begin(port: int, path: str, body: bytes, **headers: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = [
        f"POST {path} HTTP/1.1",
        "host: a",
        *[f"{name.replace('_', '-')}: {text}" for name, text in headers.items()],
    ]
    if "transfer_encoding" not in headers:
        head.append(f"content-length: {len(body)}")
    writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
    return reader, writer


async def finish(reader: asyncio.StreamReader) -> tuple[int, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


async def line(reader: asyncio.StreamReader) -> Any:
    """Of an answer that goes on: each line is a chunk of its own."""
    size = int(await reader.readline(), 16)
    content = await reader.readexactly(size + 2)
    assert content.endswith(b"\n\r\n")
    return json.loads(content)


async def post(port: int, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
    reader, writer = await begin(port, path, body, **headers)
    try:
        async with asyncio.timeout(SECONDS):
            return await finish(reader)
    finally:
        writer.close()


def test_every_path_of_the_table_is_an_rpc_with_that_name() -> None:
    assert len(ROUTES) == 51
    assert ROUTES["/v3/kv/put"].method == "/etcdserverpb.KV/Put"
    assert {path for path, route in ROUTES.items() if route.asks_many} == {"/v3/watch", "/v3/lease/keepalive"}
    many = {"/v3/watch", "/v3/lease/keepalive", "/v3/maintenance/snapshot", "/v3/election/observe"}
    assert {path for path, route in ROUTES.items() if route.answers_many} == many


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        (b"", pb.RangeRequest()),
        (b"null", pb.RangeRequest()),
        (b' {"key":"Zm9v","limit":"5"} and more', pb.RangeRequest(key=b"foo", limit=5)),
        (b'{"key":"_-8","limit":5.0}', pb.RangeRequest(key=b"\xff\xef", limit=5)),
        (b'{"key":"/+8=","rangeEnd":null}', pb.RangeRequest(key=b"\xff\xef")),
        (b'{"sort_order":"DESCEND","sortTarget":3,"nope":[{}]}', pb.RangeRequest(sort_order=2, sort_target=3)),  # type: ignore[arg-type]
        (b'{"sort_order":77}', pb.RangeRequest(sort_order=77)),  # type: ignore[arg-type]
    ],
)
def test_what_is_read(document: bytes, wanted: pb.RangeRequest) -> None:
    assert parse(pb.RangeRequest, document) == wanted


@pytest.mark.parametrize(
    "document",
    [
        *(b"{", b"[]", b"5", b'"x"', b"\xff", b'{"key":NaN}', b'{"key":5}', b'{"key":[1]}', b'{"key":"Z!"}'),
        *(b'{"key":"Z=9v"}', b'{"key":"A"}', b'{"limit":"x"}', b'{"limit":1.5}', b'{"limit":99999999999999999999}'),
        *(b'{"sort_order":"NOPE"}', b'{"sort_order":true}', b'{"sort_order":1.5}', b'{"serializable":"true"}'),
        *(b"[" * 100_000, b'{"a":' * 100_000, b'{"key":"\\ud800"}'),
    ],
)
def test_what_is_refused(document: bytes) -> None:
    with pytest.raises(MappingError):
        parse(pb.RangeRequest, document)


@pytest.mark.parametrize(
    "document", [b'{"compare":"x"}', b'{"compare":["x"]}', b'{"success":[[]]}', b'{"success":[5]}']
)
def test_a_message_is_an_object(document: bytes) -> None:
    with pytest.raises(MappingError):
        parse(pb.TxnRequest, document)


def test_a_txn_may_not_be_too_deep() -> None:
    deep = b'{"success":[{"request_txn":' * 200 + b"{}" + b"}]}" * 200
    with pytest.raises(MappingError):
        parse(pb.TxnRequest, deep)


async def test_what_is_written() -> None:
    kv = {"key": b"\xff\xef", "version": 2**62}
    message = pb.RangeResponse(kvs=[kv], count=1, header=pb.ResponseHeader(member_id=2**64 - 1))  # type: ignore[list-item]
    document = await document_of(pb.RangeResponse, message.SerializeToString())
    assert document == (
        b'{"header":{"member_id":"18446744073709551615"},"kvs":[{"key":"/+8=","version":"4611686018427387904"}],'
        b'"count":"1"}'
    )
    assert await document_of(pb.PutResponse, b"", "result") == b'{"result":{}}'
    big = pb.RangeResponse(kvs=[{"key": b"x" * 100_000}]).SerializeToString()  # type: ignore[list-item]
    assert len(await document_of(pb.RangeResponse, big)) > 130_000


def test_documents_come_in_pieces() -> None:
    text = b' {"a":"}{\\"]\\\\"} \n[{"b":{}}]{}{"c":"\\\\"}'
    whole = [b' {"a":"}{\\"]\\\\"}', b' \n[{"b":{}}]', b"{}", b'{"c":"\\\\"}']
    for size in range(1, len(text) + 1):
        documents = Documents(1000)
        found = [one for at in range(0, len(text), size) for one in documents.feed(text[at : at + size])]
        assert found == whole
        assert documents.rest() == b""
    assert Documents(1000).feed(b"x{") == []
    with pytest.raises(KvError):
        Documents(10).feed(b'{"a":"bbbbbbbb')


async def test_a_call_is_told_who_calls(port: int, methods: Methods) -> None:
    headers = {"authorization": "Bearer secret", "grpc_metadata_hasleader": "true", "grpc_timeout": "50S"}
    assert await post(port, "/v3/kv/put", b'{"key":"YQ=="}', **headers) == (200, {"header": {"revision": "7"}})
    [call] = methods.calls
    assert pb.PutRequest.FromString(call.request).key == b"a"
    assert (call.text("token"), call.text("authorization")) == ("secret", "secret")
    assert call.metadata["hasleader"] == "true"
    assert "grpcgateway-accept" in call.metadata
    assert call.peer.startswith("ipv4:127.0.0.1:")
    assert call.time_remaining is not None
    assert 0 < call.time_remaining <= 50
    await post(port, "/v3beta/kv/put", b"{}", authorization="bare")
    assert methods.calls[1].text("token") == "bare"
    assert methods.calls[1].time_remaining is None


async def test_errors_have_every_field(port: int) -> None:
    text = COMPACTED.message
    wanted = {"error": text, "message": text, "code": 11, "details": []}
    assert await post(port, "/v3/kv/txn", b"{}") == (400, wanted)
    status, body = await post(port, "/v3/kv/compaction", b"{}")
    assert (status, body["code"], body["message"]) == (501, 12, "unknown service etcdserverpb.KV")
    assert (await post(port, "/v3/kv/put", b"{}", grpc_timeout="soon"))[1]["message"] == "invalid grpc-timeout: soon"


async def test_a_deadline_ends_a_call(port: int, methods: Methods) -> None:
    status, body = await post(port, "/v3/kv/range", b"{}", grpc_timeout="10m")
    assert (status, body["message"]) == (504, "context deadline exceeded")
    assert methods.calls[0].cancelled


async def test_a_client_that_goes_away_cancels_its_call(port: int, methods: Methods) -> None:
    _, writer = await begin(port, "/v3/kv/range", b"{}")
    await soon(lambda: methods.calls)
    assert not methods.calls[0].cancelled
    writer.close()
    await soon(lambda: methods.calls[0].cancelled)


@pytest.mark.parametrize("size", [LIMIT + 200, 10 * LIMIT])
async def test_a_request_that_is_too_large(port: int, methods: Methods, size: int) -> None:
    body = json.dumps({"key": "YQ==", "value": "A" * (size // 4 * 4)}).encode()
    status, answer = await post(port, "/v3/kv/put", body.replace(b"A" * 1200, b"A" * 1600))
    assert (status, answer["code"]) == (429, Code.RESOURCE_EXHAUSTED)
    assert answer["message"].startswith("grpc: received message larger than max (")
    assert not methods.calls


async def test_a_stream_is_line_by_line_and_asks_on(port: int, methods: Methods) -> None:
    """Answers come while the client still sends, and its end is heard."""
    reader, writer = await begin(port, "/v3/watch", b"", transfer_encoding="chunked")
    async with asyncio.timeout(SECONDS):
        for number in range(1, 4):
            part = b'{"create_request":{"watch_id":%d}}' % number
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            if number == 1:
                assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            assert await line(reader) == {"result": {"created": True, "watch_id": str(number)}}
        [stream] = methods.streams
        assert not stream.is_half_closed
        writer.write(b"0\r\n\r\n")
        await soon(lambda: stream.is_half_closed)
    assert not stream.is_closed
    assert stream.stream.queued_bytes == 0
    writer.close()
    await soon(lambda: stream.is_closed)


async def test_a_stream_ends_with_its_error(port: int, methods: Methods) -> None:
    body = b'{"create_request":{}} {"cancel_request":{"watch_id":9}}'
    reader, writer = await begin(port, "/v3/watch", body)
    async with asyncio.timeout(SECONDS):
        await reader.readuntil(b"\r\n\r\n")
        assert "result" in await line(reader)
        last = await reader.readexactly(int(await reader.readline(), 16))
    error = json.loads(last)["error"]
    assert (error["grpc_code"], error["http_code"], error["http_status"]) == (11, 400, "Bad Request")
    assert (error["code"], error["message"]) == (11, COMPACTED.message)
    assert methods.streams[0].is_closed
    writer.close()


async def test_a_client_that_goes_away_in_the_middle_of_its_body(port: int, methods: Methods) -> None:
    body = b'{"create_request":{}}'
    _, writer = await begin(port, "/v3/watch", b"%x\r\n%b\r\n" % (len(body), body), transfer_encoding="chunked")
    await soon(lambda: methods.streams)
    writer.close()
    await soon(lambda: methods.streams[0].is_closed)


async def test_websocket(port: int, methods: Methods) -> None:
    def talk() -> None:
        with WebSocket("127.0.0.1", port, "/v3/watch", ["Bearer", "secret"]) as spoken:
            assert spoken.subprotocol == "Bearer"
            for number in (1, 2):
                spoken.send(json.dumps({"create_request": {"watch_id": number}}))
                answer = {"result": {"created": True, "watch_id": str(number)}}
                assert json.loads(spoken.receive() or "") == answer

    await asyncio.to_thread(talk)
    [stream] = methods.streams
    assert stream.stream.metadata["token"] == "secret"
    await soon(lambda: stream.is_closed)


async def test_websocket_that_is_closed_by_us(port: int) -> None:
    def talk() -> list[str | None]:
        with WebSocket("127.0.0.1", port, "/v3/kv/put") as spoken:
            assert spoken.subprotocol is None
            spoken.send('{"key":"YQ=="}')
            return [spoken.receive(), spoken.receive()]

    assert await asyncio.to_thread(talk) == ['{"header":{"revision":"7"}}', None]


@pytest.mark.parametrize(
    ("path", "origin", "status"), [("/v3/nope", None, 404), ("/v3/watch", "http://evil.example", 403)]
)
async def test_websocket_refused(port: int, path: str, origin: str | None, status: int) -> None:
    """A page of another origin would be let in by the browser: WebSockets know no CORS."""
    with pytest.raises(ConnectionRefusedError) as refused:
        await asyncio.to_thread(WebSocket, "127.0.0.1", port, path, None, origin)
    assert refused.value.args == (status,)


async def test_a_websocket_that_nobody_reads_is_cut() -> None:
    methods = Methods()
    handover = Http1Handover(Access(None, Gateway(methods.local, 1 << 20)), Http1Limits(unread_seconds=0.1))
    listener = Http1Listener(handover)
    [url] = await listener.start(["http://127.0.0.1:0"])

    def deaf() -> WebSocket:
        spoken = WebSocket("127.0.0.1", int(url.rpartition(":")[2]), "/v3/watch")
        spoken.send('{"create_request":{"watch_id":1}}')
        return spoken

    spoken = await asyncio.to_thread(deaf)
    await soon(lambda: methods.streams and methods.streams[0].heard)
    filler = pb.WatchResponse(cancel_reason="x" * 60_000).SerializeToString()
    methods.streams[0].stream.send([filler] * 400)
    await soon(lambda: methods.streams[0].is_closed)
    assert handover.connections == 0
    await asyncio.to_thread(spoken.close)
    listener.close()
    await handover.stop(0)


async def ask(app: Access, path: str = "/v3/kv/put", method: str = "POST", scheme: str = "http", **headers: str) -> Any:
    """Status and headers."""
    found: list[Any] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"{}", "more_body": False} if not found else await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            found.extend([message["status"], dict(message["headers"])])

    scope = {"type": "http", "path": path, "method": method, "scheme": scheme, "client": None}
    pairs = [(name.encode(), text.encode()) for name, text in headers.items()]
    await app({**scope, "headers": pairs}, receive, send)
    return found


async def test_who_may_ask(methods: Methods) -> None:
    gateway = Gateway(methods.local, LIMIT)
    open_ = Access(None, gateway)
    assert (await ask(open_, host="anything"))[0] == 200
    listed = Access(None, gateway, hosts=frozenset(("localhost", "::1")))
    for host, status in (("localhost", 200), ("localhost:9", 200), ("[::1]:9", 200), ("evil.example", 421), ("", 421)):
        assert (await ask(listed, host=host))[0] == status, host
    assert (await ask(listed, host="evil.example", scheme="https"))[0] == 200
    assert (await ask(Access(None, gateway, hosts=frozenset()), host="x"))[0] == 200
    # A page of another host gets nothing done, and is shown nothing.
    before = len(methods.calls)
    status, headers = await ask(open_, host="h:1", origin="http://evil.example")
    assert status == 403
    assert b"access-control-allow-origin" not in headers
    assert len(methods.calls) == before
    assert (await ask(open_, host="h:1", origin="http://h:1"))[0] == 200
    for origins, answered in (({"*"}, b"*"), ({"http://a:1"}, b"http://a:1")):
        app = Access(None, gateway, origins=frozenset(origins))
        status, headers = await ask(app, host="h", origin="http://a:1")
        assert (status, headers[b"access-control-allow-origin"]) == (200, answered)
    status, headers = await ask(Access(None, gateway, origins=frozenset({"http://a:1"})), origin="http://b:1")
    assert (status, headers.get(b"access-control-allow-origin")) == (403, None)
    assert (await ask(open_, method="OPTIONS", path="/nope"))[0] == 200
