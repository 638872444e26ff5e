"""The nghttp2 channel's connection: attempts, back-off, windows, and how it notices that nobody is there."""

import asyncio
import socket
import ssl
from pathlib import Path

import grpc
import grpc.aio
import pytest

from kvstore.rpc import ChannelOptions, ChannelTls
from kvstore.rpc.nghttp2 import engine, framing
from kvstore.rpc.nghttp2.channel import Channel
from kvstore.rpc.nghttp2.client_session import ClientSession
from kvstore.rpc.nghttp2.engine import RequestReceived, StreamClosed
from kvstore.rpc.nghttp2.session import Session
from tests.certificates import Certificates
from tests.kvstore.rpc.scripted import HEAD, Peer, echo, scripted, silent
from tests.kvstore.rpc.test_channel_endings import FAST, failure

State = grpc.ChannelConnectivity
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
SMALL_WINDOWS = ChannelOptions(stream_window_bytes=65535, connection_window_bytes=131_072)
PATIENT = ChannelOptions(reconnect_backoff_ms_min=60_000, reconnect_backoff_ms_max=60_000)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def session_of(channel: Channel) -> ClientSession:
    session = channel._connector._session
    assert session is not None
    return session


async def test_a_refused_connection_says_so_and_then_calls_fail_fast() -> None:
    async with Channel(f"127.0.0.1:{free_port()}", PATIENT) as channel:
        assert channel.get_state() is State.IDLE
        for _ in range(3):
            error = await failure(channel.unary_unary("/x")(b""))
            assert error.code() is UNAVAILABLE
            assert error.details().startswith("failed to connect to all addresses")
            assert "Connection refused" in error.details()
            assert channel.get_state(try_to_connect=True) is State.TRANSIENT_FAILURE
        assert channel._connector._failures == 1, "failing fast makes no attempts"
        waiting = channel.unary_unary("/x")(b"", wait_for_ready=True, timeout=0.05)
        assert (await failure(waiting)).code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_attempts_go_on_until_the_server_is_there() -> None:
    port = free_port()
    async with Channel(f"127.0.0.1:{port}", FAST) as channel:
        patient = channel.unary_unary("/x")(b"", wait_for_ready=True)
        assert (await failure(channel.unary_unary("/x")(b""))).code() is UNAVAILABLE
        while channel._connector._failures < 3:
            assert channel.get_state() is State.TRANSIENT_FAILURE
            await asyncio.sleep(0)
        async with scripted(echo, port=port):
            assert await patient == b"/x"
            assert channel.get_state() is State.READY
            assert channel._connector._failures == 0


async def test_an_attempt_given_up_as_it_connects_leaves_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop closes the transport of a create_connection that is cancelled, and does not tell the protocol."""
    made: list[ClientSession] = []

    def connection_made(session: ClientSession, transport: asyncio.BaseTransport) -> None:
        Session.connection_made(session, transport)
        made.append(session)
        dialing = session._connector._dialing
        assert dialing is not None
        dialing.cancel()

    monkeypatch.setattr(ClientSession, "connection_made", connection_made, raising=False)
    async with scripted(silent) as server, Channel(server.target, PATIENT) as channel:
        channel.get_state(try_to_connect=True)
        dialing = channel._connector._dialing
        assert dialing is not None
        await asyncio.wait([dialing])
        await server.until(lambda: bool(server.peers))
        await server.peers[0].lost.wait()
        assert made[0].is_closed


async def test_back_off_grows() -> None:
    options = ChannelOptions(reconnect_backoff_ms_min=1_000, reconnect_backoff_ms_max=3_000)
    async with Channel("127.0.0.1:1", options) as channel:
        connector = channel._connector
        delays = []
        for _ in range(6):
            began = connector.loop.time()
            connector._failed(began, OSError("no"), None)
            assert connector._retry is not None
            delays.append(round(connector._retry.when() - began, 3))  # uvloop's timers count milliseconds
            connector._retry.cancel()
        assert 0.8 <= delays[0] <= 1.2
        assert 1.28 <= delays[1] <= 1.92
        assert all(2.4 <= delay <= 3.6 for delay in delays[3:])


async def test_a_server_that_does_not_speak_is_given_up() -> None:
    never = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await never.wait()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Channel(f"127.0.0.1:{port}", ChannelOptions(connect_timeout_ms=30)) as channel:
        error = await failure(channel.unary_unary("/x")(b""))
        assert error.code() is UNAVAILABLE
        assert "timed out" in error.details()
    never.set()
    server.close()


async def test_states_are_announced_and_a_closed_channel_takes_nothing() -> None:
    async with scripted(silent) as server:
        channel = Channel(server.target, FAST)
        await channel.channel_ready()
        call = channel.unary_unary("/x")(b"")
        watching = asyncio.ensure_future(channel.wait_for_state_change(State.READY))
        await asyncio.sleep(0)
        await channel.close()
        await watching
        assert channel.get_state() is State.SHUTDOWN
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await call.code() is grpc.StatusCode.CANCELLED
        with pytest.raises(grpc.aio.UsageError):
            channel.unary_unary("/x")(b"")
        await server.peers[0].lost.wait()


async def test_close_waits_for_calls_as_long_as_it_was_told() -> None:
    async with scripted(silent) as server:
        channel = Channel(server.target, FAST)
        call = channel.unary_unary("/x")(b"")
        await server.until(lambda: bool(server.peers and server.peers[0].saw(RequestReceived)))
        closing = asyncio.ensure_future(channel.close(grace=30))
        await asyncio.sleep(0)
        assert not closing.done()
        server.peers[0].answer(1, b"done")
        await closing
        assert await call == b"done"


async def test_silence_is_noticed_while_there_are_calls() -> None:
    options = ChannelOptions(keepalive_time_ms=20, keepalive_timeout_ms=20)
    async with scripted(silent) as server, Channel(server.target, options) as channel:
        call = channel.unary_unary("/x")(b"")
        await server.until(lambda: bool(server.peers and server.peers[0].saw(RequestReceived)))
        server.peers[0].transport.pause_reading()
        error = await failure(call)
        assert error.code() is UNAVAILABLE
        assert "keepalive" in error.details()


async def test_an_answered_ping_keeps_the_connection_and_nobody_pings_for_nothing() -> None:
    options = ChannelOptions(keepalive_time_ms=20, keepalive_timeout_ms=20)
    async with scripted(echo) as server, Channel(server.target, options) as channel:
        await channel.unary_unary("/x")(b"")
        session = session_of(channel)
        session._check_alive()
        session._heard -= 1
        session._check_alive()
        assert not session._waits_for_pong, "nothing is asked: silence is what one expects"
        server.script = silent
        call = channel.unary_unary("/x")(b"")
        await server.until(lambda: len(server.peers[0].saw(engine.PingReceived)) >= 3)
        assert not call.done()


# Flow control


async def test_unread_messages_hold_the_sender_back_and_reading_lets_it_go_on() -> None:
    count = 64

    def script(peer: Peer, stream_id: int, path: str) -> None:
        if path == "/flood":
            engine.response_head(peer.connection, stream_id, HEAD)
            for number in range(count):
                engine.data(peer.connection, stream_id, framing.frame(bytes([number]) * 10_000))
            engine.trailers(peer.connection, stream_id, [(b"grpc-status", b"0")])
        else:
            echo(peer, stream_id, path)

    async with scripted(script) as server, Channel(server.target, SMALL_WINDOWS) as channel:
        stream = channel.unary_stream("/flood")(b"")
        await stream.initial_metadata()
        for _ in range(5):
            assert await channel.unary_unary("/other")(b"") == b"/other", "another stream has a window of its own"
        session = session_of(channel)
        assert 0 < session.outstanding <= 65535
        messages = [message async for message in stream]
        assert messages == [bytes([number]) * 10_000 for number in range(count)]
        assert session.outstanding == 0


@pytest.mark.parametrize("is_behind_another", [False, True])
async def test_a_message_larger_than_the_window_arrives(is_behind_another: bool) -> None:
    def script(peer: Peer, stream_id: int, path: str) -> None:
        engine.response_head(peer.connection, stream_id, HEAD)
        if is_behind_another:
            engine.data(peer.connection, stream_id, framing.frame(b"small"))
        engine.data(peer.connection, stream_id, framing.frame(b"x" * 1_000_000))
        engine.trailers(peer.connection, stream_id, [(b"grpc-status", b"0")])

    async with scripted(script) as server, Channel(server.target, SMALL_WINDOWS) as channel:
        stream = channel.unary_stream("/x")(b"")
        await stream.initial_metadata()
        sizes = [len(message) async for message in stream]
        assert sizes == ([5, 1_000_000] if is_behind_another else [1_000_000])
        assert session_of(channel).outstanding == 0


async def test_bytes_of_cancelled_streams_are_given_back() -> None:
    """Many windows' worth comes for streams that are cancelled before, while and after it comes."""

    def script(peer: Peer, stream_id: int, path: str) -> None:
        if path == "/echo":
            echo(peer, stream_id, path)
            return
        engine.response_head(peer.connection, stream_id, HEAD)
        engine.data(peer.connection, stream_id, framing.frame(b"x" * 9_000))
        peer.flush()
        engine.data(peer.connection, stream_id, framing.frame(b"x" * 9_000))

    async with scripted(script) as server, Channel(server.target, SMALL_WINDOWS) as channel:
        for round_ in range(100):
            stream = channel.unary_stream("/x")(b"")
            if round_ % 2:
                await stream.initial_metadata()
            else:
                await stream.read()
            stream.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stream.read()
        assert await channel.unary_unary("/echo")(b"") == b"/echo"
        assert session_of(channel).outstanding == 0
        assert not session_of(channel).streams


async def test_a_connection_whose_window_has_shrunk_is_replaced() -> None:
    """The binding forgets what it holds of a half received frame when its stream is reset."""
    pieces: list[bytes] = []

    def script(peer: Peer, stream_id: int, path: str) -> None:
        if path == "/echo":
            echo(peer, stream_id, path)
            return
        engine.response_head(peer.connection, stream_id, HEAD)
        peer.flush()
        engine.data(peer.connection, stream_id, framing.frame(b"x" * 16_000))
        frame = peer.connection.data_to_send()
        peer.transport.write(frame[:15_000])
        pieces.append(frame[15_000:])

    async with scripted(script) as server, Channel(server.target, SMALL_WINDOWS) as channel:
        await channel.channel_ready()
        first = session_of(channel)
        for _ in range(40):
            if first.is_draining:
                break
            stream = channel.unary_stream("/x")(b"")
            before = first.connection.local_window_size
            while first.connection.local_window_size > before - 14_000:  # until the piece is there
                await asyncio.sleep(0)
            stream.cancel()
            peer = server.peers[0]
            closed = len(peer.saw(StreamClosed))
            await server.until(lambda peer=peer, closed=closed: len(peer.saw(StreamClosed)) > closed)  # type: ignore[misc]
            peer.transport.write(pieces.pop())
            assert await channel.unary_unary("/echo")(b"") == b"/echo"
        assert first.is_draining
        await server.peers[0].lost.wait()
        assert await channel.unary_unary("/echo")(b"") == b"/echo"
        assert len(server.peers) == 2
        assert session_of(channel).connection.local_window_size > SMALL_WINDOWS.connection_window_bytes // 2


async def test_writers_wait_for_the_peer_and_leave_when_the_call_ends() -> None:
    async with scripted(silent, window=1000) as server, Channel(server.target, FAST) as channel:
        call = channel.stream_stream("/x")()
        await call.wait_for_connection()
        # Auto window updates of the scripted server are its reading: it stops.
        server.peers[0].transport.pause_reading()
        written = 0

        async def write() -> None:
            nonlocal written
            while True:
                await call.write(b"x" * 10_000)
                written += 1

        writing = asyncio.ensure_future(write())
        while not session_of(channel).blocked:
            await asyncio.sleep(0)
        assert 6 <= written <= 8
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing


# TLS


@pytest.mark.parametrize("protocols", [["h2"], ["http/1.1"], []])
async def test_tls_must_agree_on_http2(tmp_path: Path, protocols: list[str]) -> None:
    certificates = Certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server.cert, certificates.server.key)
    context.set_alpn_protocols(protocols)
    options = ChannelOptions(tls=ChannelTls(ca_file=certificates.ca))
    async with scripted(echo, tls=context) as server, Channel(f"https://{server.target}", options) as channel:
        if "h2" in protocols:
            assert await channel.unary_unary("/x")(b"") == b"/x"
            return
        error = await failure(channel.unary_unary("/x")(b""))
        assert error.code() is UNAVAILABLE
        assert "ALPN" in error.details()


async def test_a_server_that_cannot_be_believed_is_refused(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server.cert, certificates.server.key)
    context.set_alpn_protocols(["h2"])
    options = ChannelOptions(tls=ChannelTls(ca_file=certificates.other_ca))
    async with scripted(echo, tls=context) as server, Channel(f"https://{server.target}", options) as channel:
        error = await failure(channel.unary_unary("/x")(b""))
        assert error.code() is UNAVAILABLE
        assert "certificate" in error.details()
