"""gRPC's framing: one byte that says whether a message is compressed, four of its length, the message.

Frame bytes are made once and may be sent to a thousand streams.
A message is refused by its length before it is buffered, so a peer cannot make us hold more than the limit.
"""

import zlib
from struct import Struct
from typing import Final, final

from kvstore.errors import Code, KvError

HEAD_BYTES: Final = 5
IDENTITY, GZIP, DEFLATE = "identity", "gzip", "deflate"
ACCEPTED: Final = b"identity,deflate,gzip"

_HEAD: Final = Struct(">BI")
_WBITS: Final = {GZIP: 16 + zlib.MAX_WBITS, DEFLATE: zlib.MAX_WBITS}


def frame(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def too_large(size: int, bytes_max: int) -> KvError:
    return KvError(Code.RESOURCE_EXHAUSTED, f"grpc: received message larger than max ({size} vs. {bytes_max})")


@final
class Deframer:
    """The messages of one direction of one stream."""

    __slots__ = ("_bytes_max", "_encoding", "_head", "_is_compressed", "_missing", "_parts", "buffered_bytes")

    def __init__(self, bytes_max: int, encoding: str = IDENTITY) -> None:
        """bytes_max: of one message, compressed or not."""
        self._bytes_max = bytes_max
        self._encoding = encoding
        self._head = b""  # less than a whole head
        self._missing = -1  # bytes of the message under way that have not come; -1: its head has not come
        self._is_compressed = False
        self._parts: list[bytes] = []  # of the message under way
        self.buffered_bytes = 0  # of heads and messages that are not complete

    @property
    def is_between_messages(self) -> bool:
        return not self.buffered_bytes and self._missing < 0

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete with these bytes. Raises KvError; nothing can follow it on this stream."""
        if self._missing < 0 and not self._head and len(data) >= HEAD_BYTES:
            # Nearly all data is one whole message.
            flag, size = _HEAD.unpack_from(data)
            if size + HEAD_BYTES == len(data) and not flag and size <= self._bytes_max:
                return [data[HEAD_BYTES:]]
        return self._feed(data)

    def _feed(self, data: bytes) -> list[bytes]:
        messages: list[bytes] = []
        place, end = 0, len(data)
        while True:
            if self._missing < 0:
                wanted = HEAD_BYTES - len(self._head)
                self._head += data[place : place + wanted]
                place = min(place + wanted, end)
                if len(self._head) < HEAD_BYTES:
                    break
                flag, size = _HEAD.unpack(self._head)
                self._head = b""
                self._begin(flag, size)
            part = data[place : place + self._missing] if place or self._missing < end else data
            if part:
                self._parts.append(part)
                self._missing -= len(part)
                place += len(part)
            if self._missing:
                break
            messages.append(self._complete())
        self.buffered_bytes = len(self._head) + sum(map(len, self._parts)) if self._parts else len(self._head)
        return messages

    def _begin(self, flag: int, size: int) -> None:
        if flag > 1:
            raise KvError(Code.INTERNAL, f"grpc: received unexpected payload format {flag}")
        if size > self._bytes_max:
            raise too_large(size, self._bytes_max)
        if flag and self._encoding == IDENTITY:
            raise KvError(Code.INTERNAL, "grpc: compressed flag set with identity or empty encoding")
        self._is_compressed = bool(flag)
        self._missing = size

    def _complete(self) -> bytes:
        whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        self._missing = -1
        return self._inflated(whole) if self._is_compressed else whole

    def _inflated(self, whole: bytes) -> bytes:
        inflater = zlib.decompressobj(_WBITS[self._encoding])
        try:
            message = inflater.decompress(whole, self._bytes_max + 1)
        except zlib.error as error:
            raise KvError(Code.INTERNAL, f"grpc: failed to decompress the received message: {error}") from None
        if len(message) > self._bytes_max:
            raise too_large(len(message), self._bytes_max)
        if not inflater.eof:
            raise KvError(Code.INTERNAL, "grpc: failed to decompress the received message: it is cut off")
        return message
