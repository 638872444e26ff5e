"""HTTP/1.1 handed over from a port that sniffs, and on a port of its own: on both loops, plain and over TLS."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from kvstore.rpc.http1 import Http1Handover, Http1Limits, Http1Listener
from kvstore.rpc.tls import ServerTls
from tests.certificates import Certificates

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GET = b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n"
WAIT_SECONDS = 20.0  # bounds a test that hangs
QUICK = Http1Limits(request_seconds=0.1, unread_seconds=0.1)
BIG = 8 * 1024 * 1024


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[None]], None]:
    def run(test: Awaitable[None]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(WAIT_SECONDS):
                await test

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(bounded())

    return run


class App:
    """/x: 200 with the request's body. /wait: when `release` is set. /big: more than a socket holds."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.waiting = asyncio.Event()
        self.cancelled = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"] == "/wait":
            self.waiting.set()
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        if scope["path"] == "/big":
            body = b"x" * BIG
        length = str(len(body)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})


class Sniffer(asyncio.Protocol):
    """What a front does: looks at the first bytes and decides. HTTP/2 is answered "h2" here."""

    def __init__(self, handover: Http1Handover) -> None:
        self._handover = handover
        self._seen = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if self._seen.startswith(PREFACE):
            self._transport.write(b"h2")
        elif not PREFACE.startswith(self._seen):
            self._handover.take(self._transport, self._seen)


class BufferedSniffer(asyncio.BufferedProtocol):
    """The same for a front that reads into a buffer of its own."""

    def __init__(self, handover: Http1Handover) -> None:
        self._handover = handover
        self._buffer = bytearray(65536)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        self._handover.take(self._transport, bytes(self._buffer[:count]))


class Port:
    def __init__(self, certificates: Certificates | None, limits: Http1Limits | None, sniffer: Any) -> None:
        self.app = App()
        self.handover = Http1Handover(self.app, limits)
        self._certificates = certificates
        self._sniffer = sniffer

    async def open(self) -> None:
        context = None
        if self._certificates is not None:
            pair = self._certificates.server
            context = ServerTls(cert_file=pair.cert, key_file=pair.key).context()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: self._sniffer(self.handover), "127.0.0.1", 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        await self.handover.stop(0)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await connect(self.port, self._certificates)


@contextlib.asynccontextmanager
async def port(
    certificates: Certificates | None = None, limits: Http1Limits | None = None, sniffer: Any = Sniffer
) -> AsyncIterator[Port]:
    opened = Port(certificates, limits, sniffer)
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


async def connect(
    number: int, certificates: Certificates | None = None, alpn: tuple[str, ...] = ("http/1.1",)
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = None
    if certificates is not None:
        context = ssl.create_default_context(cafile=certificates.ca)
        context.set_alpn_protocols(list(alpn))
    return await asyncio.open_connection("127.0.0.1", number, ssl=context)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    """Status and body."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    assert b"date" in headers or not head.startswith(b"HTTP/1.1 200")
    return int(head.split()[1]), await reader.readexactly(int(headers.get(b"content-length", b"0")))


async def gone(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        await reader.read()


@pytest.mark.parametrize("sniffer", [Sniffer, BufferedSniffer])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_connection_is_handed_over_with_what_was_read(
    run: Callable[[Awaitable[None]], None], certificates: Certificates, tls: bool, sniffer: Any
) -> None:
    async def test() -> None:
        async with port(certificates if tls else None, sniffer=sniffer) as opened:
            reader, writer = await opened.connect()
            body = b"b" * 300_000
            post = b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            for request, expected in ((GET, b""), (post, body), (GET, b"")):  # and the connection is kept
                assert await ask(reader, writer, request) == (200, expected)
            assert opened.handover.connections == 1
            writer.close()

    run(test())


def test_first_bytes_may_come_one_by_one_and_http2_stays(run: Callable[[Awaitable[None]], None]) -> None:
    async def test() -> None:
        async with port() as opened:
            reader, writer = await opened.connect()
            for byte in b"PRI * HTTP/2.0\r":
                writer.write(bytes([byte]))
                await writer.drain()
            writer.write(PREFACE[15:])
            assert await reader.readexactly(2) == b"h2"
            assert opened.handover.connections == 0
            writer.close()
            reader, writer = await opened.connect()
            writer.write(b"P")
            assert await ask(reader, writer, b"OST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nb") == (200, b"b")
            writer.close()

    run(test())


def test_what_is_no_http_is_answered_400_and_closed_without_a_log_line(
    run: Callable[[Awaitable[None]], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with port() as opened:
            for garbage in (b"\x16\x03\x01\x00 not tls\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n"):
                reader, writer = await opened.connect()
                writer.write(garbage)
                assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
                writer.close()
            reader, writer = await opened.connect()
            upgrade = b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
            assert await ask(reader, writer, upgrade) == (200, b"")
            writer.close()

    run(test())
    assert caplog.text == ""


def test_a_head_over_the_limit_is_refused(run: Callable[[Awaitable[None]], None]) -> None:
    async def test() -> None:
        async with port(limits=Http1Limits(head_bytes_max=4096)) as opened:
            reader, writer = await opened.connect()
            writer.write(b"GET /x HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 10_000)
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
            writer.close()

    run(test())


def test_one_connection_too_many_is_answered_503(run: Callable[[Awaitable[None]], None]) -> None:
    async def test() -> None:
        async with port(limits=Http1Limits(connections_max=2)) as opened:
            kept = [await opened.connect() for _ in range(2)]
            for reader, writer in kept:
                assert (await ask(reader, writer, GET))[0] == 200
            reader, writer = await opened.connect()
            writer.write(GET)
            assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
            writer.close()
            kept[0][1].close()
            while opened.handover.connections == 2:
                await asyncio.sleep(0.01)
            reader, writer = await opened.connect()
            assert (await ask(reader, writer, GET))[0] == 200
            for _, open_writer in (*kept, (reader, writer)):
                open_writer.close()

    run(test())


@pytest.mark.parametrize(
    "part", [b"GET /x HT", b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nab"], ids=["head", "body"]
)
def test_a_request_that_does_not_arrive_is_cut(run: Callable[[Awaitable[None]], None], part: bytes) -> None:
    async def test() -> None:
        async with port(limits=QUICK) as opened:
            reader, writer = await opened.connect()
            assert (await ask(reader, writer, GET))[0] == 200
            writer.write(part)
            await gone(reader)
            while opened.handover.connections:
                await asyncio.sleep(0.01)
            writer.close()

    run(test())


def test_an_idle_connection_is_kept_and_a_slow_answer_too(run: Callable[[Awaitable[None]], None]) -> None:
    async def test() -> None:
        async with port(limits=QUICK) as opened:
            idle_reader, idle_writer = await opened.connect()
            assert (await ask(idle_reader, idle_writer, GET))[0] == 200
            reader, writer = await opened.connect()
            writer.write(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n")
            stuck_reader, stuck_writer = await opened.connect()
            stuck_writer.write(b"GET")
            await gone(stuck_reader)  # so a look has passed that cut what stood still
            assert opened.handover.connections == 2
            opened.app.release.set()
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert (await ask(idle_reader, idle_writer, GET))[0] == 200
            for one in (writer, idle_writer, stuck_writer):
                one.close()

    run(test())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_an_answer_that_nobody_reads_is_cut(
    run: Callable[[Awaitable[None]], None], certificates: Certificates, tls: bool
) -> None:
    def send(number: int) -> socket.socket:
        """By a plain socket: streams read ahead."""
        sender = socket.create_connection(("127.0.0.1", number))
        if tls:
            context = ssl.create_default_context(cafile=certificates.ca)
            sender = context.wrap_socket(sender, server_hostname="127.0.0.1")
        sender.sendall(b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n")
        return sender

    async def test() -> None:
        # Over TLS the layer between takes one answer whole: then it is the close that gets nowhere.
        limits = replace(QUICK, idle_seconds=1) if tls else QUICK
        async with port(certificates if tls else None, limits=limits) as opened:
            sender = await asyncio.to_thread(send, opened.port)
            while not opened.handover.connections:
                await asyncio.sleep(0.01)
            while opened.handover.connections:
                await asyncio.sleep(0.01)
            sender.close()

    run(test())


def test_stop_lets_a_request_end_and_closes_the_idle(run: Callable[[Awaitable[None]], None]) -> None:
    async def test() -> None:
        async with port() as opened:
            idle_reader, idle_writer = await opened.connect()
            assert (await ask(idle_reader, idle_writer, GET))[0] == 200
            reader, writer = await opened.connect()
            writer.write(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n")
            await opened.app.waiting.wait()
            stopping = asyncio.create_task(opened.handover.stop(WAIT_SECONDS))
            await gone(idle_reader)
            late_reader, late_writer = await opened.connect()
            late_writer.write(GET)
            assert (await late_reader.read()).startswith(b"HTTP/1.1 503 ")
            assert not stopping.done()
            opened.app.release.set()
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            await stopping
            for one in (writer, idle_writer, late_writer):
                one.close()

    run(test())


def test_stop_cuts_at_the_end_of_the_grace(run: Callable[[Awaitable[None]], None]) -> None:
    async def test() -> None:
        async with port() as opened:
            reader, writer = await opened.connect()
            writer.write(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n")
            await opened.app.waiting.wait()
            await opened.handover.stop(0.01)
            await gone(reader)
            assert opened.app.cancelled
            writer.close()

    run(test())


def test_a_port_of_its_own_over_tls_shows_a_renewed_certificate(
    run: Callable[[Awaitable[None]], None], tmp_path: Path
) -> None:
    certificates = Certificates(tmp_path)
    tls = ServerTls(
        cert_file=certificates.server.cert,
        key_file=certificates.server.key,
        client_ca_file=certificates.ca,
    )

    async def serial(number: int) -> int:
        """Of the certificate that a client is shown; one that offers HTTP/2 too, and has to do without."""
        reader, writer = await connect(number, certificates, ("h2", "http/1.1"))
        assert (await ask(reader, writer, GET))[0] == 200
        shown = writer.get_extra_info("ssl_object")
        assert shown.selected_alpn_protocol() == "http/1.1"
        found = int(shown.getpeercert()["serialNumber"], 16)
        writer.close()
        return found

    async def test() -> None:
        handover = Http1Handover(App())
        listener = Http1Listener(handover, tls)
        [url] = await listener.start(["https://127.0.0.1:0"])
        number = int(url.rpartition(":")[2])
        before = certificates.server.serial
        assert await serial(number) == before
        good = certificates.server.cert.read_bytes()
        certificates.server.cert.write_bytes(b"broken")
        certificates.renew_server()
        while await serial(number) == before:
            await asyncio.sleep(0.05)
        assert await serial(number) == certificates.server.serial
        assert good != certificates.server.cert.read_bytes()
        listener.close()
        await handover.stop(0)

    run(test())


def test_a_port_without_a_certificate_or_that_is_taken(
    run: Callable[[Awaitable[None]], None], certificates: Certificates
) -> None:
    tls = ServerTls(cert_file=certificates.server.cert, key_file=certificates.server.key)

    async def test() -> None:
        handover = Http1Handover(App())
        with pytest.raises(ValueError, match="needs a certificate"):
            await Http1Listener(handover).start(["https://127.0.0.1:0"])
        with pytest.raises(FileNotFoundError):
            await Http1Listener(handover, replace(tls, key_file=Path("other.key"))).start(["https://127.0.0.1:0"])
        listener = Http1Listener(handover)
        [url] = await listener.start(["http://127.0.0.1:0"])
        with pytest.raises(OSError, match="cannot listen on 127"):
            await Http1Listener(handover).start([url])
        listener.close()

    run(test())
