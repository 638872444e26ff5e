"""Frames that RFC 9113 forbids, as h2spec has them: what breaks a rule of the connection ends it, what breaks one of a
stream ends that stream, and the server serves on."""

import struct
from collections.abc import Awaitable, Callable

import pytest

from tests.kvstore.rpc.raw import (
    ACK,
    CANCEL,
    CHAT,
    COMPRESSION,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL,
    FRAME_SIZE,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FLAG,
    PROTOCOL,
    PUSH,
    REQUEST,
    RST,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW,
    Socket,
    block,
    call,
    data,
    frame,
    headers,
    message,
)
from tests.kvstore.rpc.services import Front


@pytest.fixture
async def front(raw: Callable[..., Awaitable[Front]]) -> Front:
    return await raw()


def setting(key: int, value: int) -> bytes:
    return struct.pack("!HI", key, value)


def without(name: bytes) -> list[tuple[bytes, bytes]]:
    return [pair for pair in REQUEST if pair[0] != name]


def with_more(*more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return [*REQUEST, *more]


WHOLE = END_STREAM | END_HEADERS
SPLIT = block(REQUEST)

# name: (frames after a good preface, what of the server's is right)
OF_THE_CONNECTION: dict[str, tuple[bytes, set[int]]] = {
    "DATA on stream 0": (data(0, b"x"), {PROTOCOL}),
    "HEADERS on stream 0": (headers(0), {PROTOCOL}),
    "RST_STREAM on stream 0": (frame(RST, 0, 0, b"\0\0\0\x08"), {PROTOCOL}),
    "SETTINGS on a stream": (frame(SETTINGS, 0, 1), {PROTOCOL}),
    "PING on a stream": (frame(PING, 0, 1, b"12345678"), {PROTOCOL}),
    "GOAWAY on a stream": (frame(GOAWAY, 0, 1, bytes(8)), {PROTOCOL}),
    "CONTINUATION on stream 0": (frame(CONTINUATION, END_HEADERS, 0, b""), {PROTOCOL}),
    "a frame over SETTINGS_MAX_FRAME_SIZE": (headers(1) + data(1, bytes(16385)), {FRAME_SIZE}),
    "HEADERS over SETTINGS_MAX_FRAME_SIZE": (frame(HEADERS, END_HEADERS, 1, bytes(16385)), {FRAME_SIZE}),
    "padding as long as the payload": (headers(1) + frame(DATA, PADDED, 1, b"\x06" + bytes(5)), {PROTOCOL}),
    "padding of HEADERS beyond the payload": (frame(HEADERS, PADDED | END_HEADERS, 1, b"\xff" + SPLIT), {PROTOCOL}),
    "HEADERS on an even stream": (headers(2), {PROTOCOL}),
    "DATA on an idle stream": (data(1, b"x"), {PROTOCOL, STREAM_CLOSED}),
    "RST_STREAM on an idle stream": (frame(RST, 0, 1, b"\0\0\0\x08"), {PROTOCOL}),
    "WINDOW_UPDATE on an idle stream": (frame(WINDOW, 0, 1, b"\0\0\0\x01"), {PROTOCOL}),
    "WINDOW_UPDATE of 0 on the connection": (frame(WINDOW, 0, 0, bytes(4)), {PROTOCOL}),
    "WINDOW_UPDATE over 2**31-1 on the connection": (
        frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff") * 2,
        {FLOW_CONTROL},
    ),
    # Of a stream by the letter; more strictness is allowed (section 5.4.2).
    "WINDOW_UPDATE of 0 on a stream": (headers(1, CHAT) + frame(WINDOW, 0, 1, bytes(4)), {PROTOCOL}),
    "WINDOW_UPDATE over 2**31-1 on a stream": (
        headers(1, CHAT) + frame(WINDOW, 0, 1, b"\x7f\xff\xff\xff") * 2,
        {FLOW_CONTROL},
    ),
    "WINDOW_UPDATE of 3 bytes": (frame(WINDOW, 0, 0, bytes(3)), {FRAME_SIZE}),
    "RST_STREAM of 3 bytes": (headers(1) + frame(RST, 0, 1, bytes(3)), {FRAME_SIZE}),
    "PING of 7 bytes": (frame(PING, 0, 0, bytes(7)), {FRAME_SIZE}),
    "GOAWAY of 4 bytes": (frame(GOAWAY, 0, 0, bytes(4)), {FRAME_SIZE}),
    "SETTINGS whose length is no multiple of 6": (frame(SETTINGS, 0, 0, bytes(5)), {FRAME_SIZE}),
    "SETTINGS ACK with a payload": (frame(SETTINGS, ACK, 0, setting(1, 1)), {FRAME_SIZE}),
    "ENABLE_PUSH of 2": (frame(SETTINGS, 0, 0, setting(2, 2)), {PROTOCOL}),
    "INITIAL_WINDOW_SIZE over 2**31-1": (frame(SETTINGS, 0, 0, setting(4, 2**31)), {FLOW_CONTROL}),
    "MAX_FRAME_SIZE below 2**14": (frame(SETTINGS, 0, 0, setting(5, 16383)), {PROTOCOL}),
    "MAX_FRAME_SIZE over 2**24-1": (frame(SETTINGS, 0, 0, setting(5, 2**24)), {PROTOCOL}),
    "INITIAL_WINDOW_SIZE that overflows a stream": (
        headers(1, CHAT) + frame(WINDOW, 0, 1, b"\x7f\xff\0\0") + frame(SETTINGS, 0, 0, setting(4, 2**31 - 1)),
        {FLOW_CONTROL},
    ),
    "PUSH_PROMISE from a client": (headers(1) + frame(PUSH, END_HEADERS, 1, b"\0\0\0\x02" + SPLIT), {PROTOCOL}),
    "CONTINUATION without HEADERS": (frame(CONTINUATION, END_HEADERS, 1, SPLIT), {PROTOCOL}),
    "CONTINUATION after the end of HEADERS": (
        headers(1) + frame(CONTINUATION, END_HEADERS, 1, SPLIT),
        {PROTOCOL},
    ),
    "CONTINUATION of another stream": (
        frame(HEADERS, 0, 1, SPLIT[:20]) + frame(CONTINUATION, END_HEADERS, 3, SPLIT[20:]),
        {PROTOCOL},
    ),
    "DATA between HEADERS and CONTINUATION": (
        frame(HEADERS, 0, 1, SPLIT[:20]) + data(1, b"x") + frame(CONTINUATION, END_HEADERS, 1, SPLIT[20:]),
        {PROTOCOL},
    ),
    "PING between HEADERS and CONTINUATION": (
        frame(HEADERS, 0, 1, SPLIT[:20]) + frame(PING, 0, 0, bytes(8)),
        {PROTOCOL},
    ),
    "a header block that HPACK cannot read": (frame(HEADERS, WHOLE, 1, b"\xff\xff\xff\xff\xff\xff"), {COMPRESSION}),
    "an index that HPACK does not have": (frame(HEADERS, WHOLE, 1, b"\xfe"), {COMPRESSION}),
}

# name: (frames, what the stream may end with)
OF_A_STREAM: dict[str, tuple[bytes, set[int]]] = {
    "no :method": (headers(1, without(b":method"), WHOLE), {PROTOCOL}),
    "no :path": (headers(1, without(b":path"), WHOLE), {PROTOCOL}),
    "no :scheme": (headers(1, without(b":scheme"), WHOLE), {PROTOCOL}),
    ":path twice": (headers(1, [*REQUEST[:3], (b":path", b"/x"), *REQUEST[3:]], WHOLE), {PROTOCOL}),
    "an unknown pseudo header": (headers(1, [(b":other", b"x"), *REQUEST], WHOLE), {PROTOCOL}),
    "a pseudo header after others": (headers(1, [*without(b":path"), (b":path", b"/t.T/Echo")], WHOLE), {PROTOCOL}),
    "a response's pseudo header": (headers(1, [(b":status", b"200"), *REQUEST], WHOLE), {PROTOCOL}),
    "an upper case name": (headers(1, with_more((b"X-Upper", b"1")), WHOLE), {PROTOCOL}),
    "a connection header": (headers(1, with_more((b"connection", b"keep-alive")), WHOLE), {PROTOCOL}),
    "te that is not trailers": (headers(1, [*without(b"te"), (b"te", b"gzip")], WHOLE), {PROTOCOL}),
    "an empty :path": (headers(1, [*without(b":path")[:2], (b":path", b""), *REQUEST[3:]], WHOLE), {PROTOCOL}),
    "a content-length that is not the body's": (
        headers(1, with_more((b"content-length", b"1"))) + data(1, message(b"hello")),
        {PROTOCOL},
    ),
}

# name: frames that change nothing
IGNORED: dict[str, bytes] = {
    "a frame of an unknown kind": frame(0x16, 0xFF, 0, b"whatever"),
    "a frame of an unknown kind on a stream": headers(1, CHAT) + frame(0x16, 0xFF, 1, b"whatever"),
    "unknown flags": frame(PING, ACK | 0x16, 0, b"12345678"),
    "unknown settings": frame(SETTINGS, 0, 0, setting(0xFF, 1)),
    "a PING answer nobody asked for": frame(PING, ACK, 0, b"12345678"),
    "PRIORITY on stream 0": frame(PRIORITY, 0, 0, b"\0\0\0\0\x10"),  # libnghttp2 reads none of them
    "PRIORITY of a stream on itself": headers(1, CHAT) + frame(PRIORITY, 0, 1, b"\0\0\0\x01\x10"),
    # libnghttp2 takes it for a stream that has just been closed.
    "HEADERS on a stream below the last": headers(5, flags=WHOLE) + headers(3),
    "PRIORITY on an idle stream": frame(PRIORITY, 0, 77, b"\0\0\0\0\x10"),
    "padding": headers(1, CHAT) + frame(DATA, PADDED, 1, b"\x03" + message(b"x") + bytes(3)),
    "HEADERS with a priority": frame(HEADERS, END_HEADERS | PRIORITY_FLAG, 1, b"\0\0\0\0\x10" + block(CHAT)),
    "CONTINUATION in many pieces": frame(HEADERS, 0, 1, block(CHAT)[:10])
    + frame(CONTINUATION, 0, 1, block(CHAT)[10:20])
    + frame(CONTINUATION, END_HEADERS, 1, block(CHAT)[20:]),
    "WINDOW_UPDATE on a stream that has ended": call(1) + frame(WINDOW, 0, 1, b"\0\0\0\x01"),
    "RST_STREAM on a stream that has ended": call(1) + frame(RST, 0, 1, b"\0\0\0\x08") * 2,
    "RST_STREAM right behind HEADERS": headers(1, CHAT) + frame(RST, 0, 1, CANCEL.to_bytes(4, "big")),
}


@pytest.mark.parametrize("name", OF_THE_CONNECTION)
async def test_it_ends_the_connection(front: Front, name: str) -> None:
    frames, codes = OF_THE_CONNECTION[name]
    async with await Socket.open(front.port) as peer:
        peer.send(frames)
        kind, code = await peer.verdict()
        while kind == "reset":  # a stream on the way
            kind, code = await peer.verdict()
        assert kind == "goaway"
        assert code in codes
        while await peer.read() is not None:
            continue  # and the connection is closed behind it


@pytest.mark.parametrize("name", OF_A_STREAM)
async def test_it_ends_the_stream(front: Front, name: str) -> None:
    frames, codes = OF_A_STREAM[name]
    async with await Socket.open(front.port) as peer:
        peer.send(frames)
        kind, code = await peer.verdict()
        assert kind == "reset"
        assert code in codes
        await answers(peer, 7)


@pytest.mark.parametrize("name", IGNORED)
async def test_it_is_ignored(front: Front, name: str) -> None:
    async with await Socket.open(front.port) as peer:
        peer.send(IGNORED[name])
        assert await peer.verdict() == ("fine", 0)
        await answers(peer, 7)


async def answers(peer: Socket, stream_id: int) -> None:
    """A call on the same connection."""
    peer.send(call(stream_id))
    found = await peer.until(lambda found: found.kind == DATA and found.stream_id == stream_id)
    assert found.payload == message(b"hello")


@pytest.mark.parametrize(
    "hello",
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", b"PRI * HTTP/3.0\r\n\r\n", bytes(24)],
    ids=repr,
)
async def test_a_wrong_preface_ends_the_connection(front: Front, hello: bytes) -> None:
    async with await Socket.open(front.port, hello) as peer:
        peer.send_end()
        while await peer.read() is not None:
            continue


async def test_a_preface_without_settings(front: Front) -> None:
    async with await Socket.open(front.port, PREFACE + frame(PING, 0, 0, bytes(8))) as peer:
        assert await peer.verdict() == ("goaway", PROTOCOL)


async def test_a_preface_in_pieces(front: Front) -> None:
    whole = PREFACE + frame(SETTINGS)
    async with await Socket.open(front.port, b"") as peer:
        for position in range(len(whole)):
            peer.send(whole[position : position + 1])
            await front.ask(b"meanwhile")
        await answers(peer, 1)


@pytest.mark.parametrize(
    "end", [data(1, message(b"x")), frame(RST, 0, 1, b"\0\0\0\x08") + data(1, message(b"x"))], ids=["ended", "reset"]
)
async def test_data_on_a_closed_stream(front: Front, end: bytes) -> None:
    """An error of the stream or of the connection, as the server still knows it or not; or nothing, behind a reset."""
    async with await Socket.open(front.port) as peer:
        peer.send(headers(1), end, data(1, message(b"x")))
        assert await peer.verdict() in {("goaway", STREAM_CLOSED), ("reset", STREAM_CLOSED), ("fine", 0)}


@pytest.mark.parametrize(("length", "ok"), [(0, True), (5, False)], ids=["empty", "of a PING's"])
async def test_settings_are_acknowledged(front: Front, length: int, ok: bool) -> None:
    async with await Socket.open(front.port) as peer:
        peer.send(frame(SETTINGS, 0, 0, bytes(length)))
        if ok:
            for _ in range(2):
                await peer.until(lambda found: found.kind == SETTINGS and found.flags & ACK == ACK)
        else:
            assert await peer.verdict() == ("goaway", FRAME_SIZE)


async def test_a_ping_is_answered_with_its_bytes(front: Front) -> None:
    async with await Socket.open(front.port) as peer:
        peer.send(frame(PING, 0, 0, b"\x00\xffdigits"))
        found = await peer.until(lambda found: found.kind == PING)
        assert (found.flags, found.payload) == (ACK, b"\x00\xffdigits")
