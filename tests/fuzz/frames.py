"""HTTP/2 connections that nobody should open: frames of every kind in any order, headers and bodies true and false."""

import socket
import struct

import hpack
from hypothesis import strategies as st

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
ANSWER_SECONDS = 0.01
BYTES_READ_MAX = 1 << 20


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind & 255, flags & 255]) + struct.pack(">I", stream) + payload


def framed(message: bytes, compressed: int = 0) -> bytes:
    """A gRPC message with its five bytes of head."""
    return struct.pack(">BI", compressed, len(message)) + message


def _block(fields: list[tuple[str, str]]) -> bytes:
    return hpack.Encoder().encode(fields)


@st.composite
def headers(draw: st.DrawFn, paths: list[str]) -> bytes:
    """A header block, mostly of a gRPC call with something wrong."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=60))
    fields = [
        (":method", draw(st.sampled_from(["POST", "POST", "POST", "GET", "CONNECT", ""]))),
        (":scheme", draw(st.sampled_from(["http", "http", "https", "x"]))),
        (":path", draw(st.one_of(st.sampled_from(paths), st.sampled_from(["", "/", "*", "/a", "/a/b/c", "x" * 9000])))),
        (":authority", draw(st.sampled_from(["localhost", "", "a b"]))),
        ("te", draw(st.sampled_from(["trailers", "x"]))),
        ("content-type", draw(st.sampled_from(["application/grpc", "application/grpc+proto", "text/html", ""]))),
        ("grpc-timeout", draw(st.sampled_from(["1S", "0m", "99999999H", "-1S", "x", "1n"]))),
        ("grpc-encoding", draw(st.sampled_from(["identity", "gzip", "no such"]))),
        ("token", draw(st.sampled_from(["", "x", "\u00e9", "t" * 5000]))),
        ("Bad Name", "x"),
    ]
    kept = [
        field for field in fields if draw(st.integers(0, 9)) > (5 if field[0] in ("Bad Name", "grpc-encoding") else 0)
    ]
    if draw(st.integers(0, 9)) == 0:
        kept = draw(st.permutations(kept))
    return _block(kept)


@st.composite
def connection(draw: st.DrawFn, paths: list[str], bodies: st.SearchStrategy[bytes]) -> bytes:
    """Everything that one client sends."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(max_size=400))
    out = PREFACE if kind > 1 else PREFACE[: draw(st.integers(0, len(PREFACE)))]
    if kind > 2:
        out += frame(SETTINGS, 0, 0, b"")
    streams = st.sampled_from([0, 1, 1, 1, 3, 3, 5, 2, (1 << 31) - 1])
    for _ in range(draw(st.integers(0, 8))):
        out += draw(_one(streams, paths, bodies))
    return out[: draw(st.integers(0, len(out)))] if draw(st.integers(0, 9)) == 0 else out


@st.composite
def _one(draw: st.DrawFn, streams: st.SearchStrategy[int], paths: list[str], bodies: st.SearchStrategy[bytes]) -> bytes:
    what = draw(st.sampled_from([HEADERS] * 6 + [DATA] * 5 + list(range(12))))
    stream, flags = draw(streams), draw(st.sampled_from([0, 1, 4, 4, 5, 5, 8, 0x20, 0xFF]))
    if what == HEADERS:
        return frame(what, flags, stream, draw(headers(paths)))
    if what == DATA:
        body = draw(bodies)
        compressed = draw(st.sampled_from([0, 0, 0, 0, 1, 7]))
        return frame(what, flags, stream, draw(st.sampled_from([framed(body, compressed), body, framed(body) * 3])))
    if what == SETTINGS:
        pairs = draw(
            st.lists(st.tuples(st.integers(0, 8), st.sampled_from([0, 1, 16384, 1 << 24, (1 << 32) - 1])), max_size=4)
        )
        return frame(
            what, flags & 1, stream if stream > 1 else 0, b"".join(struct.pack(">HI", *pair) for pair in pairs)
        )
    payload = draw(
        st.one_of(st.sampled_from([b"", bytes(4), bytes(8), b"\xff" * 4, b"\x7f\xff\xff\xff"]), st.binary(max_size=30))
    )
    return frame(what, flags, stream, payload)


def exchange(port: int, sent: bytes) -> bytes:
    """Send all, and read what comes at once. Whether there is an answer is not looked at: that others get one is."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.settimeout(ANSWER_SECONDS)
        try:
            connection.sendall(sent)
            while len(received) < BYTES_READ_MAX and (part := connection.recv(65536)):
                received += part
        except OSError:
            pass  # it was quiet, or it has had enough of us
    return received
