"""Clients that send an :authority that libnghttp2 takes for an error are served like others."""

import itertools

import pytest
from hpack import Decoder, Encoder

from kvstore.rpc.nghttp2.authority import STAND_IN, AuthorityFilter
from kvstore.rpc.nghttp2.engine import (
    PREFACE,
    DataReceived,
    RequestReceived,
    server_connection,
)

BAD = ["http://127.0.0.1:2379", "#initially=[127.0.0.1:2379]", "unix:///tmp/x", ""]
GOOD = ["127.0.0.1:2379", "[::1]:2379", "host"]
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


class Client:
    """Its blocks use one table, so each can only be read after those before it."""

    def __init__(self, authority: str, *, pieces: int = 1, padded: bool = False) -> None:
        self._encoder = Encoder()
        self._authority = authority
        self._pieces = pieces
        self._padded = padded

    def call(self, stream: int, message: bytes, extra: str = "") -> bytes:
        headers = [(":method", "POST"), (":scheme", "http"), (":path", "/t.T/Echo"), (":authority", self._authority)]
        headers += [("content-type", "application/grpc"), ("te", "trailers"), ("extra", extra)]
        block = self._encoder.encode(headers)
        size = -(-len(block) // self._pieces)
        parts = [block[at : at + size] for at in range(0, len(block), size)]
        out = b""
        for number, part in enumerate(parts):
            end = 0x4 if number == len(parts) - 1 else 0
            if number:
                out += frame(9, end, stream, part)
            elif self._padded:
                out += frame(1, end | 0x8 | 0x20, stream, b"\x03" + b"\0\0\0\0\x07" + part + b"\0\0\0")
            else:
                out += frame(1, end, stream, part)
        return out + frame(0, 1, stream, message)


def received(pieces: list[bytes]) -> tuple[list[dict[bytes, bytes]], list[bytes], AuthorityFilter]:
    """What a server's connection hears of it through the filter: heads, messages."""
    connection = server_connection(
        streams_max=100, header_bytes_max=1 << 16, stream_window=1 << 20, connection_window=1 << 20
    )
    connection.data_to_send()
    filter_ = AuthorityFilter()
    for piece in pieces:
        connection.receive_data(filter_.feed(piece) if filter_.is_needed else piece)
    events = connection.events()
    heads = [dict(event.headers) for event in events if isinstance(event, RequestReceived)]
    return heads, [event.data for event in events if isinstance(event, DataReceived)], filter_


@pytest.mark.parametrize(
    ("authority", "shape"),
    list(itertools.product(BAD + GOOD, [{}, {"pieces": 3}, {"padded": True}, {"pieces": 2, "padded": True}])),
)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_every_call_arrives(authority: str, shape: dict[str, int], step: int) -> None:
    client = Client(authority, **shape)  # type: ignore[arg-type]
    calls = [(2 * number + 1, b"message %d" % number, "x" * number) for number in range(5)]
    data = PREFACE + SETTINGS + b"".join([client.call(*call) for call in calls])
    # An Acceptor hands over nothing before the whole preface is there.
    pieces = [data[: len(PREFACE)], *[data[at : at + step] for at in range(len(PREFACE), len(data), step)]]
    heads, messages, filter_ = received(pieces)
    assert messages == [message for _, message, _ in calls]
    assert [head[b"extra"] for head in heads] == [extra.encode() for _, _, extra in calls]
    wanted = STAND_IN if authority in BAD else authority.encode()
    assert [head.get(b":authority", b"") for head in heads] == [wanted] * 5
    assert filter_.is_needed == (authority in BAD)


def test_without_the_filter_the_stream_is_reset() -> None:
    """When libnghttp2, or a switch of its binding, lets such clients in, the filter can go."""
    connection = server_connection(
        streams_max=100, header_bytes_max=1 << 16, stream_window=1 << 20, connection_window=1 << 20
    )
    connection.receive_data(PREFACE + SETTINGS + Client(BAD[0]).call(1, b"message"))
    assert not [event for event in connection.events() if isinstance(event, RequestReceived)]
    assert b"\0\0\4\3\0\0\0\0\1\0\0\0\1" in connection.data_to_send(), "RST_STREAM, PROTOCOL_ERROR"


def test_large_blocks_are_written_in_several_frames() -> None:
    client = Client(BAD[0], pieces=4)
    data = PREFACE + SETTINGS + client.call(1, b"m", "y" * 40_000)
    filter_ = AuthorityFilter()
    out = filter_.feed(data)
    heads, messages, _ = received([data])
    assert (len(heads[0][b"extra"]), messages) == (40_000, [b"m"])
    assert (
        max(int.from_bytes(out[at : at + 3], "big") for at in frame_starts(out[len(PREFACE) :], len(PREFACE))) <= 16384
    )


def frame_starts(data: bytes, offset: int) -> list[int]:
    starts, place = [], 0
    while place < len(data):
        starts.append(place + offset)
        place += 9 + int.from_bytes(data[place : place + 3], "big")
    return starts


@pytest.mark.parametrize(
    "junk",
    [
        b"\xff" * 40,
        frame(1, 4, 1, b"\xff\xff\xff\xff\xff\xff"),
        frame(9, 4, 1, b"x"),
        frame(1, 0, 1, b"\x82") + SETTINGS,
    ],
)
def test_what_is_no_http2_reaches_libnghttp2(junk: bytes) -> None:
    filter_ = AuthorityFilter()
    out = filter_.feed(PREFACE + SETTINGS + junk)
    while filter_.is_needed and len(out) < len(PREFACE + SETTINGS + junk):
        more = filter_.feed(b"\0" * 1024)
        assert len(more) < 1 << 20
        out += more
    assert (PREFACE + SETTINGS + junk).startswith(out[: len(PREFACE + SETTINGS + junk)])


def test_the_stand_in_decodes() -> None:
    out = AuthorityFilter().feed(PREFACE + SETTINGS + Client(BAD[1]).call(1, b"m"))
    at = len(PREFACE + SETTINGS)
    size = int.from_bytes(out[at : at + 3], "big")
    assert (":authority", STAND_IN.decode()) in Decoder().decode(out[at + 9 : at + 9 + size])
