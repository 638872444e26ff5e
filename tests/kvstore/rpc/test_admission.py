"""Who of those with a good certificate is let in, on each kind of listener, while the files change under it."""

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from cryptography import x509

from kvstore.rpc import (
    ChannelOptions,
    ChannelTls,
    ServerOptions,
    ServerTls,
    client_address,
    make_channel,
    make_peer_server,
    make_server,
)
from kvstore.rpc.admission import Allowed, read_revoked
from kvstore.rpc.base import Call
from kvstore.rpc.http1 import Http1Handover, Http1Listener
from kvstore.rpc.tls import TlsVersions
from kvstore.services import health
from tests.certificates import Certificates, Pair

SECONDS = 20.0
CHECK = "/grpc.health.v1.Health/Check"
Opened = Callable[..., Any]


@pytest.fixture
def own(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def tls_of(own: Certificates, **more: Any) -> ServerTls:
    pair = own.server
    return ServerTls(cert_file=pair.cert, key_file=pair.key, client_ca_file=own.ca, client_auth=True, **more)


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture(params=["gRPC's port", "the peers' port", "HTTP on gRPC's port", "HTTP on a port of its own"])
async def listener(request: pytest.FixtureRequest) -> AsyncIterator[Opened]:
    """`port, ask = await listener(tls)`; ask(port, own, pair) says whether pair was let in."""
    closing: list[Any] = []

    async def opened(tls: ServerTls) -> tuple[int, Any]:
        if request.param == "HTTP on a port of its own":
            handover = Http1Handover(app)
            listener = Http1Listener(handover, tls)
            [url] = await listener.start(["https://127.0.0.1:0"])
            closing.append(lambda: handover.stop(0))
            closing.append(listener)
            return int(url.rpartition(":")[2]), ask_http
        if request.param == "the peers' port":
            server = make_peer_server([], "nghttp2", tls)
            server.add_generic_rpc_handlers((_Health(),))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            closing.append(lambda: server.stop(0))
            return port, ask_grpc
        rpc = make_server(ServerOptions(tls=tls), "nghttp2")
        health.register(rpc)
        rpc.http1 = Http1Handover(app)
        [url] = await rpc.start(["https://127.0.0.1:0"])
        closing.append(lambda: rpc.stop(0))
        return int(url.rpartition(":")[2]), ask_grpc if request.param == "gRPC's port" else ask_http

    yield opened
    for one in reversed(closing):
        if isinstance(one, Http1Listener):
            one.close()
        else:
            await one()


class _Health(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    def service(self, details: grpc.HandlerCallDetails) -> Any:
        async def check(request: bytes, context: Any) -> bytes:
            return b""

        return grpc.unary_unary_rpc_method_handler(check)


async def ask_grpc(port: int, own: Certificates, pair: Pair) -> bool:
    tls = ChannelTls(ca_file=own.ca, cert_file=pair.cert, key_file=pair.key)
    async with make_channel(f"https://127.0.0.1:{port}", ChannelOptions(tls=tls), "nghttp2") as channel:
        call = channel.unary_unary(CHECK)(b"", timeout=SECONDS)
        code = await call.code()
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
        return code is grpc.StatusCode.OK


async def ask_http(port: int, own: Certificates, pair: Pair) -> bool:
    context = ssl.create_default_context(cafile=own.ca)
    context.load_cert_chain(pair.cert, pair.key)
    context.set_alpn_protocols(["http/1.1"])
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        line = await reader.readline()
    except (OSError, ssl.SSLError):
        return False
    writer.close()
    return line.startswith(b"HTTP/1.1 200")


async def test_s74_only_the_allowed_names(listener: Opened, own: Certificates) -> None:
    """A client's certificate of the same authority never speaks Raft."""
    port, ask = await listener(tls_of(own, allowed=Allowed(names=("member-1", "member-2"))))
    assert await ask(port, own, own.authority.sign("member-2"))
    assert not await ask(port, own, own.client)
    assert not await ask(port, own, own.other)


async def test_only_the_allowed_hosts(listener: Opened, own: Certificates) -> None:
    port, ask = await listener(tls_of(own, allowed=Allowed(hosts=("peer.example",))))
    assert not await ask(port, own, own.client)
    port, ask = await listener(tls_of(own, allowed=Allowed(hosts=("peer.example", "localhost"))))
    assert await ask(port, own, own.client)


async def test_s76_a_revoked_certificate_is_refused_without_a_restart(
    listener: Opened, own: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.rpc.nghttp2.server.RELOAD_SECONDS", 0.02)
    monkeypatch.setattr("kvstore.rpc.http1.RELOAD_SECONDS", 0.02)
    crl = own.revoke()
    port, ask = await listener(tls_of(own, crl_file=crl))
    other = own.authority.sign("other-client")
    assert await ask(port, own, own.client)
    own.revoke(own.client)
    async with asyncio.timeout(SECONDS):
        while await ask(port, own, own.client):
            await asyncio.sleep(0.01)
    assert await ask(port, own, other)
    # A list that cannot be read changes nothing.
    crl.write_text("nonsense")
    for _ in range(5):
        assert not await ask(port, own, own.client)
    own.revoke(other)
    async with asyncio.timeout(SECONDS):
        while not await ask(port, own, own.client) or await ask(port, own, other):
            await asyncio.sleep(0.01)


async def test_a_slow_lookup_holds_up_its_own_connection_only(
    own: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = threading.Event()
    asked: list[str] = []

    def names_of(host: str) -> list[str]:
        asked.append(host)
        assert known.wait(SECONDS)
        return ["other.invalid", "m1.peers.invalid"]

    def addresses_of(name: str) -> list[str]:
        raise OSError

    monkeypatch.setattr(client_address, "names_of", names_of)
    monkeypatch.setattr(client_address, "addresses_of", addresses_of)
    server = make_peer_server([], "nghttp2", tls_of(own, of_its_address=True))
    server.add_generic_rpc_handlers((_Health(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    names = {"m1": "m1.peers.invalid", "any": "*.peers.invalid", "none": "peers.invalid"}
    pairs = {name: own.authority.sign(name, names=[x509.DNSName(text)]) for name, text in names.items()}
    asking = {name: asyncio.create_task(ask_grpc(port, own, pair)) for name, pair in pairs.items()}
    async with asyncio.timeout(SECONDS):
        while len(asked) < len(asking):
            await asyncio.sleep(0.01)
    assert await ask_grpc(port, own, own.client), "its address is in its certificate"
    assert not any(task.done() for task in asking.values())
    known.set()
    assert {name: await task for name, task in asking.items()} == {"m1": True, "any": True, "none": False}
    assert set(asked) == {"127.0.0.1"}
    await server.stop(0)


async def test_a_lookup_without_end_ends_with_the_handshakes_time(
    own: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = threading.Event()
    monkeypatch.setattr(client_address, "names_of", lambda host: known.wait(SECONDS))
    options = ServerOptions(tls=tls_of(own, of_its_address=True), handshake_timeout_ms=300)
    server = make_server(options, "nghttp2")
    health.register(server)
    [url] = await server.start(["https://127.0.0.1:0"])
    pair = own.authority.sign("m1", names=[x509.DNSName("m1.peers.invalid")])
    try:
        assert not await ask_grpc(int(url.rpartition(":")[2]), own, pair)
    finally:
        known.set()
    await server.stop(0)


def test_a_list_of_revoked_certificates(own: Certificates, tmp_path: Path) -> None:
    crl = own.revoke(own.client, own.server)
    assert read_revoked(crl) == {own.client.serial, own.server.serial}
    wrong = tmp_path / "wrong"
    wrong.write_bytes(own.ca.read_bytes())
    with pytest.raises(ValueError, match=r"."):
        read_revoked(wrong)
    with pytest.raises(OSError, match=r"."):
        read_revoked(tmp_path / "absent")


@pytest.mark.parametrize(
    ("host", "names", "admitted"),
    [
        ("a.example", [("DNS", "A.example")], True),
        ("a.example", [("DNS", "*.example")], True),
        ("a.b.example", [("DNS", "*.example")], False),
        ("example", [("DNS", "*.example")], False),
        ("10.0.0.1", [("IP Address", "10.0.0.1")], True),
        ("10.0.0.1", [("DNS", "10.0.0.1")], False),
        ("::1", [("IP Address", "0:0:0:0:0:0:0:1")], True),
        ("a.example", [], False),
        ("10.0.0.1", [("IP Address", "<invalid>")], False),  # as Python tells a broken one
    ],
)
def test_host_names(host: str, names: list[tuple[str, str]], admitted: bool) -> None:
    certificate = {"subject": ((("commonName", host),),), "subjectAltName": tuple(names)}
    assert (Allowed(hosts=(host,)).refusal(certificate) == "") is admitted


def test_nothing_is_asked_and_nothing_is_shown() -> None:
    assert Allowed().refusal({}) == ""
    assert Allowed(names=("a",)).refusal({}) == "no certificate was shown"


@pytest.mark.parametrize(
    ("versions", "offered", "admitted"),
    [
        (TlsVersions(minimum=ssl.TLSVersion.TLSv1_3), ssl.TLSVersion.TLSv1_2, False),
        (TlsVersions(minimum=ssl.TLSVersion.TLSv1_3), ssl.TLSVersion.TLSv1_3, True),
        (TlsVersions(maximum=ssl.TLSVersion.TLSv1_2), ssl.TLSVersion.TLSv1_3, False),
        (TlsVersions(ciphers=("ECDHE-ECDSA-AES256-GCM-SHA384",)), ssl.TLSVersion.TLSv1_2, True),
        (TlsVersions(ciphers=("ECDHE-RSA-AES256-GCM-SHA384",)), ssl.TLSVersion.TLSv1_2, False),
    ],
)
async def test_versions_and_suites(
    listener: Opened, own: Certificates, versions: TlsVersions, offered: ssl.TLSVersion, admitted: bool
) -> None:
    port, _ = await listener(tls_of(own, versions=versions))
    context = ssl.create_default_context(cafile=own.ca)
    context.load_cert_chain(own.client.cert, own.client.key)
    context.minimum_version = context.maximum_version = offered
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    except (OSError, ssl.SSLError):
        assert not admitted
        return
    assert admitted
    writer.close()


async def test_who_is_dialled_must_be_allowed_too(own: Certificates) -> None:
    rpc = make_server(ServerOptions(tls=tls_of(own)), "nghttp2")
    health.register(rpc)
    [url] = await rpc.start(["https://127.0.0.1:0"])
    for names, admitted in ((("server",), True), (("member",), False)):
        tls = ChannelTls(
            ca_file=own.ca, cert_file=own.client.cert, key_file=own.client.key, allowed=Allowed(names=names)
        )
        async with make_channel(url, ChannelOptions(tls=tls), "nghttp2") as channel:
            call = channel.unary_unary(CHECK)(b"", timeout=SECONDS)
            if admitted:
                await call
            else:
                with pytest.raises(grpc.aio.AioRpcError, match="has none of the allowed names"):
                    await call
    await rpc.stop(0)


async def test_grpcio_reads_renewed_certificates_too(own: Certificates) -> None:
    def echo(calls: list[Call]) -> None:
        for call in calls:
            call.reply(call.request)

    rpc = make_server(ServerOptions(tls=tls_of(own)), "grpcio")
    rpc.add_calls("/t.T/Echo", echo)
    [url] = await rpc.start(["https://127.0.0.1:0"])
    port = int(url.rpartition(":")[2])

    def shown() -> int:
        from tests.certificates import serial_of

        return serial_of(ssl.get_server_certificate(("127.0.0.1", port)))

    before = await asyncio.to_thread(shown)
    assert before == own.server.serial
    own.renew_server()
    async with asyncio.timeout(SECONDS):
        while await asyncio.to_thread(shown) != own.server.serial:
            await asyncio.sleep(0.01)
    assert before != own.server.serial
    own.server.cert.write_text("nonsense")
    assert await asyncio.to_thread(shown), "what cannot be read changes nothing"
    await rpc.stop(0)
