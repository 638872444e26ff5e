"""How calls end on the nghttp2 channel when the server, or the connection, does something out of the ordinary."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import grpc
import grpc.aio
import pytest

from kvstore.rpc import ChannelOptions
from kvstore.rpc.nghttp2 import engine, framing
from kvstore.rpc.nghttp2.channel import Channel
from kvstore.rpc.nghttp2.engine import Connection, StreamClosed
from tests.kvstore.rpc.scripted import HEAD, OK, Peer, echo, scripted, silent

FAST = ChannelOptions(reconnect_backoff_ms_min=5, reconnect_backoff_ms_max=20)
S = grpc.StatusCode
Ending = Callable[[Connection, int], object]


async def failure(call: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value


def message_then(body: bytes, end: list[tuple[bytes, bytes]]) -> Ending:
    return lambda c, sid: engine.unary_response(c, sid, HEAD, body, end)


def head_only(*headers: tuple[bytes, bytes]) -> Ending:
    return lambda c, sid: engine.headers_only(c, sid, list(headers))


def reset_with(code: int) -> Ending:
    return lambda c, sid: engine.reset(c, sid, code)


def body_without_status(connection: Connection, stream_id: int) -> None:
    engine.response_head(connection, stream_id, HEAD)
    engine.message(connection, stream_id, framing.frame(b"x"))


@pytest.mark.parametrize(
    ("ending", "code", "text"),
    [
        (head_only(*HEAD, (b"grpc-status", b"9"), (b"grpc-message", b"a%20b%C3%A9")), S.FAILED_PRECONDITION, "a bé"),
        (head_only(*HEAD, (b"grpc-status", b"99")), S.UNKNOWN, ""),
        (head_only(*HEAD, (b"grpc-status", b"x")), S.UNKNOWN, ""),
        (head_only(*HEAD), S.INTERNAL, "without sending trailers"),
        (head_only(*HEAD, *OK), S.INTERNAL, "without a message"),
        (head_only((b":status", b"404")), S.UNIMPLEMENTED, "404"),
        (head_only((b":status", b"401")), S.UNAUTHENTICATED, "401"),
        (head_only((b":status", b"503")), S.UNAVAILABLE, "503"),
        (head_only((b":status", b"500")), S.UNKNOWN, "500"),
        (head_only((b":status", b"200"), (b"content-type", b"text/html")), S.UNKNOWN, "text/html"),
        (body_without_status, S.INTERNAL, "without sending trailers"),
        (message_then(framing.frame(b"x") * 2, OK), S.INTERNAL, "more than one message"),
        (message_then(framing.frame(b"xyz")[:-1], OK), S.INTERNAL, "within a message"),
        (message_then(b"\7\0\0\0\0", OK), S.INTERNAL, "payload format 7"),
        (message_then(framing.frame(b"x" * 1001), OK), S.RESOURCE_EXHAUSTED, "larger than max (1001 vs. 1000)"),
        (message_then(b"", [(b"grpc-status", b"5")]), S.NOT_FOUND, ""),
        (reset_with(8), S.CANCELLED, "error code 8"),
        (reset_with(0), S.INTERNAL, "without sending trailers"),
        (reset_with(2), S.INTERNAL, "error code 2"),
        (reset_with(11), S.RESOURCE_EXHAUSTED, "error code 11"),
        (reset_with(12), S.PERMISSION_DENIED, "error code 12"),
    ],
)
async def test_an_ending_becomes_a_status(ending: Ending, code: grpc.StatusCode, text: str) -> None:
    def script(peer: Peer, stream_id: int, path: str) -> None:
        if path == "/echo":
            echo(peer, stream_id, path)
        else:
            ending(peer.connection, stream_id)

    async with scripted(script) as server, Channel(server.target, ChannelOptions(receive_bytes_max=1000)) as channel:
        error = await failure(channel.unary_unary("/bad")(b""))
        assert error.code() is code
        assert text in error.details()
        stream = channel.unary_stream("/bad")(b"")
        with suppress(grpc.aio.AioRpcError):
            while await stream.read() is not grpc.aio.EOF:
                pass
        is_good_stream = "message" in text and "within" not in text  # of no messages, or of two
        assert await stream.code() is (S.OK if is_good_stream else code)
        assert await channel.unary_unary("/echo")(b"") == b"/echo", "the connection is as good as before"
        assert len(server.peers) == 1


async def test_a_response_that_cannot_be_parsed_is_internal() -> None:
    def parse(_: bytes) -> object:
        raise ValueError("bad")

    async with scripted(echo) as server, Channel(server.target, FAST) as channel:
        error = await failure(channel.unary_unary("/x", None, parse)(b""))
        assert (error.code(), error.details()) == (S.INTERNAL, "Exception deserializing response!")
        stream = channel.unary_stream("/x", None, parse)(b"")
        assert (await failure(stream.read())).code() is S.INTERNAL
        assert await stream.code() is S.INTERNAL


async def test_a_lost_connection_ends_its_calls_and_the_next_call_makes_another() -> None:
    async with scripted(silent) as server, Channel(server.target, FAST) as channel:
        call = channel.unary_unary("/x")(b"")
        stream = channel.stream_stream("/x")()
        await server.until(lambda: len(server.peers) == 1 and len(server.peers[0].saw(engine.RequestReceived)) == 2)
        server.peers[0].transport.abort()
        for error in (await failure(call), await failure(stream.read())):
            assert error.code() is S.UNAVAILABLE
            assert error.details().startswith("Socket closed")
        assert channel.get_state() is grpc.ChannelConnectivity.IDLE
        server.script = echo
        assert await channel.unary_unary("/y")(b"") == b"/y"


async def test_after_goaway_open_calls_finish_and_others_go_elsewhere() -> None:
    held: list[tuple[Peer, int]] = []

    def script(peer: Peer, stream_id: int, path: str) -> None:
        if path == "/hold":
            held.append((peer, stream_id))
        else:
            echo(peer, stream_id, path)

    async with scripted(script) as server, Channel(server.target, FAST) as channel:
        call = channel.unary_unary("/hold")(b"")
        await server.until(lambda: len(held) == 1)
        first = server.peers[0]
        first.connection.send_goaway(0, last_stream_id=held[0][1])
        first.flush()
        await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        assert await channel.unary_unary("/y")(b"") == b"/y"
        assert len(server.peers) == 2
        first.answer(held[0][1], b"late")
        assert await call == b"late"
        await first.lost.wait()
        assert not server.peers[1].lost.is_set()


async def test_calls_that_goaway_leaves_unprocessed_are_sent_again_unless_something_would_be_lost() -> None:
    async with scripted(silent) as server, Channel(server.target, FAST) as channel:
        unary = channel.unary_unary("/u")(b"")
        idle = channel.stream_stream("/idle")()
        begun = channel.stream_stream("/begun")()
        await begun.write(b"kept nowhere")
        await server.until(lambda: len(server.peers[0].saw(engine.DataReceived)) == 2)
        server.script = echo
        server.peers[0].connection.send_goaway(0, last_stream_id=0)
        server.peers[0].flush()
        assert await unary == b"/u"
        assert await idle.read() == b"/idle"
        assert (await failure(begun.read())).code() is S.UNAVAILABLE
        assert len(server.peers) == 2


async def test_a_refused_call_is_sent_again_once() -> None:
    refusals = []

    def script(peer: Peer, stream_id: int, path: str) -> None:
        refusals.append(path)
        if path == "/never" or refusals.count(path) == 1:
            engine.reset(peer.connection, stream_id, engine.ErrorCode.REFUSED_STREAM)
        else:
            echo(peer, stream_id, path)

    async with scripted(script) as server, Channel(server.target, FAST) as channel:
        assert await channel.unary_unary("/once")(b"") == b"/once"
        assert (await failure(channel.unary_unary("/never")(b""))).code() is S.UNAVAILABLE
        assert refusals == ["/once"] * 2 + ["/never"] * 2


async def test_calls_wait_for_the_peers_limit_of_streams() -> None:
    held: list[int] = []
    async with (
        scripted(lambda peer, stream_id, path: held.append(stream_id), streams_max=2) as server,
        Channel(server.target, FAST) as channel,
    ):
        await channel.channel_ready()
        calls = [channel.unary_unary("/x")(b"") for _ in range(5)]
        dropped = channel.unary_unary("/x")(b"")
        for position in range(5):
            await server.until(lambda wanted=position + 1: len(held) >= wanted)  # type: ignore[misc]
            assert len(held) <= position + 2
            dropped.cancel()
            server.peers[0].answer(held[position], b"%d" % position)
        assert await asyncio.gather(*calls) == [b"0", b"1", b"2", b"3", b"4"]
        assert len(held) == 5


async def test_a_dropped_stream_is_cancelled() -> None:
    def script(peer: Peer, stream_id: int, path: str) -> None:
        engine.response_head(peer.connection, stream_id, HEAD)
        engine.data(peer.connection, stream_id, framing.frame(b"x"))

    async with scripted(script) as server, Channel(server.target, FAST) as channel:
        async for message in channel.unary_stream("/x")(b""):
            assert message == b"x"
            break
        gc.collect()
        await server.until(lambda: bool(server.peers[0].saw(StreamClosed)))
        [closed] = server.peers[0].saw(StreamClosed)
        assert isinstance(closed, StreamClosed)
        assert closed.error_code == engine.ErrorCode.CANCEL


async def test_early_status_stops_the_writer() -> None:
    def script(peer: Peer, stream_id: int, path: str) -> None:
        engine.headers_only(peer.connection, stream_id, [*HEAD, (b"grpc-status", b"8")])

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10_000

    async with scripted(script) as server, Channel(server.target, FAST) as channel:
        error = await failure(channel.stream_unary("/x")(endless()))
        assert error.code() is S.RESOURCE_EXHAUSTED
        call = channel.stream_stream("/x")()
        assert (await failure(call.read())).code() is S.RESOURCE_EXHAUSTED
        with pytest.raises(asyncio.InvalidStateError):
            await call.write(b"x")


async def test_large_metadata_ends_its_call_only() -> None:
    def script(peer: Peer, stream_id: int, path: str) -> None:
        big = (b"big", b"x" * 60_000)
        if path == "/head":
            engine.unary_response(peer.connection, stream_id, [*HEAD, big, big], framing.frame(b""), OK)
        elif path == "/trailers":
            engine.unary_response(peer.connection, stream_id, HEAD, framing.frame(b""), [*OK, big, big])
        elif path == "/fits":
            engine.unary_response(peer.connection, stream_id, [*HEAD, big], framing.frame(b"fits"), OK)

    async with scripted(script, header_bytes_max=50_000) as server, Channel(server.target, FAST) as channel:
        await channel.channel_ready()
        other = channel.unary_unary("/silent")(b"")
        for path, metadata in (("/head", None), ("/trailers", None), ("/fits", [("k", "v" * 51_000)])):
            error = await failure(channel.unary_unary(path)(b"", metadata=metadata))
            assert error.code() is S.RESOURCE_EXHAUSTED, path
            assert "metadata size exceeds" in error.details()
        assert await channel.unary_unary("/fits")(b"", metadata=[("k", "v" * 40_000)]) == b"fits"
        assert not other.done()
        assert len(server.peers) == 1
