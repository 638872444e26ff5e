"""A load generator's end of a gRPC connection: unary calls only, as cheap as Python allows.

A general client spends more per call than the servers under test do, and on a small machine it would be what is
measured. This one knows in advance what it will send: the header block of a method is encoded once, without
compression state, and a request is two frames around the message's bytes. Of an answer it reads the frame headers:
a unary call that succeeded has a message, one that failed has only trailers.

It stays inside of the peer's flow control by its size: calls in flight times their bytes per connection is far below
the 64 KiB that HTTP/2 starts with, and it asserts so.
"""

import asyncio
import struct
import time
from collections.abc import Callable
from typing import cast

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
WINDOW_START = 65535  # of the connection, whatever the settings say (RFC 9113 section 6.9.2)
WINDOW_BIG = 2**30
FRAME = struct.Struct(">HBBBI")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return FRAME.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def text(value: str) -> bytes:
    """A string of HPACK, not Huffman-coded; below 127 bytes."""
    assert len(value) < 127
    return bytes([len(value)]) + value.encode()


def header_block(authority: str, path: str) -> bytes:
    """Headers of a gRPC call as HPACK (RFC 7541): indexed where the static table has them, else literal, not stored."""
    return b"".join(
        [
            b"\x83\x86",  # :method POST, :scheme http
            b"\x04" + text(path),
            b"\x01" + text(authority),
            b"\x0f\x10" + text("application/grpc"),  # content-type is name 31: 15 + 16
            b"\x00" + text("te") + text("trailers"),
        ]
    )


class Connection(asyncio.Protocol):
    """`call(path, message, done)`: done(seconds, ok) when the answer is complete. Calls of a tick leave in one write.

    When the connection is lost, every open call ends with ok false.
    """

    def __init__(self, authority: str) -> None:
        self._authority = authority
        self._blocks: dict[str, bytes] = {}
        self._stream = 1
        self._calls: dict[int, tuple[float, Callable[[float, bool], None]]] = {}  # stream -> when sent, done
        self._answered: set[int] = set()  # open streams on which a message came
        self._out: list[bytes] = []
        self._buffer = b""
        self._send_window = WINDOW_START
        self._received = 0  # bytes of DATA since the last window update

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without being a subclass
        # No header table: then equal headers are equal bytes. No push. Windows that never stop the server.
        settings = struct.pack(">HIHIHI", 1, 0, 2, 0, 4, WINDOW_BIG)
        update = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW_BIG))
        self._transport.write(PREFACE + frame(SETTINGS, 0, 0, settings) + update)

    def connection_lost(self, error: Exception | None) -> None:
        self._answered.clear()
        for stream in list(self._calls):
            self._finish(stream)

    def call(self, path: str, message: bytes, done: Callable[[float, bool], None]) -> None:
        block = self._blocks.get(path)
        if block is None:
            block = self._blocks[path] = header_block(self._authority, path)
        stream = self._stream
        self._stream += 2
        size = len(message) + 5
        self._send_window -= size
        assert self._send_window >= 0, "more in flight on one connection than its window: use more connections"
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out += [
            frame(HEADERS, END_HEADERS, stream, block),
            FRAME.pack(size >> 8, size & 0xFF, DATA, END_STREAM, stream),
            struct.pack(">BI", 0, len(message)),
            message,
        ]
        self._calls[stream] = (time.perf_counter(), done)

    def close(self) -> None:
        self._transport.close()

    def _flush(self) -> None:
        self._transport.write(b"".join(self._out))
        self._out.clear()

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        place, end = 0, len(data)
        while end - place >= 9:
            high, low, kind, flags, stream = FRAME.unpack_from(data, place)
            size = high << 8 | low
            if end - place < 9 + size:
                break
            self._frame(kind, flags, stream, data, place + 9, size)
            place += 9 + size
        self._buffer = data[place:]

    def _frame(self, kind: int, flags: int, stream: int, data: bytes, start: int, size: int) -> None:
        if kind == DATA:
            if size:
                self._answered.add(stream)
                self._received += size
                if self._received > WINDOW_BIG // 2:
                    self._transport.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received)))
                    self._received = 0
            if flags & END_STREAM:
                self._finish(stream)
        elif kind == HEADERS:
            if flags & END_STREAM:
                self._finish(stream)
        else:
            self._control(kind, flags, stream, data[start : start + size])

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE and stream == 0:
            self._send_window += int.from_bytes(payload, "big")
        elif kind in {SETTINGS, PING} and not flags & ACK:
            self._transport.write(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == RST_STREAM:
            self._answered.discard(stream)
            self._finish(stream)
        elif kind == GOAWAY:
            self._transport.close()

    def _finish(self, stream: int) -> None:
        call = self._calls.pop(stream, None)
        if call is not None:
            sent, done = call
            ok = stream in self._answered
            self._answered.discard(stream)
            done(time.perf_counter() - sent, ok)
