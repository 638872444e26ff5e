"""What a client, or a thousand of them, may cost: streams, connections, time to say hello, calls, bytes not read."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import ngh2
import pytest

from tests.kvstore.rpc.ends import SECONDS, Ends, error_of, soon, until
from tests.kvstore.rpc.pairs import NGHTTP2
from tests.kvstore.rpc.raw import (
    CHAT,
    END_HEADERS,
    HEADERS,
    PREFACE,
    PROTOCOL,
    REFUSED,
    SETTINGS,
    Client,
    Socket,
    block,
    call,
    frame,
    headers,
    message,
)
from tests.kvstore.rpc.services import Front

Raw = Callable[..., Awaitable[Front]]


async def test_streams_of_a_connection(raw: Raw) -> None:
    """One more than it was told may be open is refused, or the connection ended: it has acknowledged the setting."""
    front = await raw(max_concurrent_streams=5)
    async with await Socket.open(front.port) as peer:
        await peer.until(lambda found: found.kind == SETTINGS and found.flags == 1)
        peer.send(frame(SETTINGS, 1))
        peer.send(*[headers(2 * number + 1, CHAT) for number in range(6)])
        assert await peer.verdict() in {("reset", REFUSED), ("goaway", PROTOCOL)}
        assert len(front.opened) == 5


async def test_streams_above_the_limit_wait_in_a_polite_client(ends: Ends) -> None:
    front = Front(ends, max_concurrent_streams=5)
    await ends.start_rpc(front.server)
    front.channel = ends.rpc_channel()
    chats = [front.chat() for _ in range(5)]
    for chat in chats:
        await chat.write(b"a")
        assert await chat.read() == b"a"
    waiting = [front.ask(b"%d" % number) for number in range(20)]
    assert front.batches == []
    for chat in chats:
        chat.cancel()
    wanted = [b"%d" % number for number in range(20)]
    answers = await soon(asyncio.gather(*waiting, return_exceptions=True))
    begun = [asked for batch in front.batches for asked in batch]
    if ends.pair.server == NGHTTP2:
        assert answers == wanted
    # grpcio's server counts a call until its handler is forgotten, which no client can see, so it refuses some of those
    # who come at once when another one has ended. Those are not begun.
    for answer, asked in zip(answers, wanted, strict=True):
        assert answer == asked or answer.code() is grpc.StatusCode.UNAVAILABLE
        assert begun.count(asked) == (answer == asked)


async def test_connections_of_a_server(raw: Raw) -> None:
    front = await raw(connections_max=3)
    peers = [await Socket.open(front.port) for _ in range(3)]
    for peer in peers:
        assert await peer.verdict() == ("fine", 0)
    async with await Socket.open(front.port) as fourth:
        assert await fourth.verdict() == ("closed", 0)
    for peer in peers:
        await peer.__aexit__(None, None, None)


@pytest.mark.parametrize("hello", [b"", PREFACE[:10], PREFACE[:-1]], ids=["nothing", "a part", "all but one byte"])
async def test_a_slow_preface(raw: Raw, hello: bytes) -> None:
    """S-72: a socket that does not say hello in time is closed."""
    front = await raw(handshake_timeout_ms=150)
    async with await Socket.open(front.port, hello) as peer:
        assert await peer.read() is None


async def test_many_idle_sockets(raw: Raw) -> None:
    """S-72: they cost nothing that others need, and are gone when their time is over."""
    front = await raw(handshake_timeout_ms=1000)
    sockets = [await asyncio.open_connection("127.0.0.1", front.port) for _ in range(300)]
    for number in range(20):
        assert await front.ask(b"%d" % number, timeout=SECONDS) == b"%d" % number
    for reader, writer in sockets:
        assert await soon(reader.read()) == b""
        writer.close()


async def test_a_slow_tls_handshake(files: Any) -> None:
    """S-72: bytes of a ClientHello that never ends."""
    from tests.kvstore.rpc.pairs import GRPCIO, NGHTTP2, Pair

    pair = Pair(NGHTTP2, GRPCIO, tls=True)
    if pair.missing is not None:
        pytest.skip(pair.missing)
    ends = Ends(pair, files)
    front = Front(ends, handshake_timeout_ms=300)
    await ends.start_rpc(front.server)
    front.channel = ends.rpc_channel()
    for hello in (b"", b"\x16\x03\x01\x02\x00\x01"):
        reader, writer = await asyncio.open_connection("127.0.0.1", ends.port)
        writer.write(hello)
        assert await front.ask(b"meanwhile") == b"meanwhile"
        assert await soon(reader.read()) == b""
        writer.close()
    await ends.close()


async def test_plain_text_on_a_tls_port(files: Any) -> None:
    from tests.kvstore.rpc.pairs import GRPCIO, NGHTTP2, Pair

    pair = Pair(NGHTTP2, GRPCIO, tls=True)
    if pair.missing is not None:
        pytest.skip(pair.missing)
    ends = Ends(pair, files)
    front = Front(ends)
    await ends.start_rpc(front.server)
    front.channel = ends.rpc_channel()
    reader, writer = await asyncio.open_connection("127.0.0.1", ends.port)
    writer.write(PREFACE + frame(SETTINGS) + call(1))
    while await soon(reader.read(1000)):
        continue
    writer.close()
    assert await front.ask(b"hello") == b"hello"
    assert front.batches == [[b"hello"]]
    await ends.close()


async def test_calls_of_a_server(raw: Raw) -> None:
    """S-66: begun and not answered; more are UNAVAILABLE at once, and are taken again when there is room."""
    front = await raw(pending_calls_max=3)
    held = [front.ask(b"hold") for _ in range(3)]
    await until(lambda: len(front.held) == 3)
    status = await error_of(front.ask(b"fourth"))
    assert status.code is grpc.StatusCode.UNAVAILABLE
    front.held[0].reply(b"done")
    assert await front.ask(b"fifth") == b"fifth"
    for pending in front.held[1:]:
        pending.reply(b"done")
    assert await soon(asyncio.gather(*held)) == [b"done"] * 3


async def test_cancelled_calls_give_their_place_back(raw: Raw) -> None:
    front = await raw(pending_calls_max=3)
    for _ in range(10):
        asked = [front.ask(b"hold") for _ in range(3)]
        await until(lambda: len(front.held) == 3)
        for one in asked:
            one.cancel()
        await until(lambda: all(pending.cancelled for pending in front.held))
        front.held.clear()
    assert await front.ask(b"next") == b"next"


async def test_connections_that_break_give_their_calls_back(raw: Raw) -> None:
    front = await raw(pending_calls_max=3)
    for _ in range(10):
        async with await Socket.open(front.port) as peer:
            peer.send(*[call(stream_id, b"hold") for stream_id in (1, 3, 5)])
            await until(lambda: len(front.held) == 3)
        await until(lambda: all(pending.cancelled for pending in front.held))
        front.held.clear()
    assert await front.ask(b"next") == b"next"


async def test_an_endless_header_block(raw: Raw) -> None:
    """CONTINUATION without end: the connection is ended before it costs much."""
    front = await raw()
    piece = block([(b"x-more", b"y" * 4000)])
    async with await Socket.open(front.port) as peer:
        peer.send(frame(HEADERS, 0, 1, block(CHAT)), *[frame(9, 0, 1, piece) for _ in range(2000)])
        kind, _ = await peer.verdict()
        assert kind in {"goaway", "closed"}
    assert not front.opened


async def test_a_header_bomb(raw: Raw) -> None:
    """HPACK: one large field in the table, named a thousand times by a byte each."""
    front = await raw()
    large = b"\x40" + bytes([6]) + b"x-bomb" + b"\x7f\x81\x1e" + b"b" * 3968  # with incremental indexing: entry 62
    async with await Socket.open(front.port) as peer:
        peer.send(frame(HEADERS, END_HEADERS | 1, 1, block(CHAT) + large + b"\xbe" * 8000))
        await peer.verdict()
    assert not front.opened


async def test_a_client_that_never_reads_its_socket(raw: Raw) -> None:
    """The kernel's buffers fill, the rest is counted; when it goes, nothing is left of it."""
    front = await raw()
    async with await Client.open(front.port, {4: 1 << 30}) as client:
        client.connection.set_local_window_size(1 << 30)
        ids = [client.ask(b"flood", CHAT, end=False) for _ in range(5)]
        await client.drain()
        await until(lambda: len(front.opened) == 5)
        await until(lambda: all(handler.stream.queued_bytes or handler.drained_count for handler in front.opened))
        assert len(ids) == 5
    for handler in front.opened:
        await soon(handler.is_closed.wait())
        assert handler.stream.queued_bytes == 0


async def test_a_stuck_stream_leaves_others_alone(raw: Raw) -> None:
    """S-67: watchers that do not read, on one connection, and one that does."""
    front = await raw()
    async with await Client.open(front.port, {4: 1000}) as client:
        stuck = [client.ask(b"flood", CHAT, end=False) for _ in range(10)]
        client.flush()
        await until(lambda: len(front.opened) == 10)
        good = client.ask(b"hello")
        await client.until(lambda: client.has_ended(good))
        assert client.body(good) == message(b"hello")
        assert all(handler.stream.queued_bytes > 4_000_000 for handler in front.opened)
        for stream_id in stuck:
            client.connection.reset_stream(stream_id, 8)
        client.flush()
        for handler in front.opened:
            await soon(handler.is_closed.wait())
        assert not client.of(ngh2.GoAwayReceived)


async def test_sockets_that_are_reset(raw: Raw) -> None:
    """A connection that ends with a TCP RST, calls under way."""
    front = await raw()
    for _ in range(20):
        sock = socket.create_connection(("127.0.0.1", front.port))
        sock.sendall(PREFACE + frame(SETTINGS) + call(1, b"hold") + headers(3, CHAT))
        count = len(front.held)
        await until(lambda count=count: len(front.held) > count or front.held)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        await until(lambda: all(pending.cancelled for pending in front.held))
        front.held.clear()
    for handler in front.opened:
        await soon(handler.is_closed.wait())
