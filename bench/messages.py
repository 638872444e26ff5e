"""The requests of the hot rows as bytes, and what is looked at in their responses.

Keys are numbered from 0 in the order of their puts and never used twice, so that a put is always one of a key that
was not there, and a get always one of a key that is.
"""

import itertools
import random
from collections.abc import Callable
from typing import Final

from bench.load import Operation

VALUE_BYTES: Final = 256
STRIDE: Final = 7919  # shares no factor with most counts: gets visit keys in no pattern that a cache would like
UNSURE: Final = 2000  # of the newest keys, whose puts may not have been answered yet
POOL: Final = random.Random(1).randbytes(4 << 20)
STEP: Final = 257  # between the beginnings of two values: those of keys that lie together do not overlap
PUT, RANGE, TXN = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Txn"
SUCCEEDED: Final = b"\x10\x01"  # field 2 of TxnResponse, right after the header
MIX_WRITES: Final = 0.2


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def field(number: int, value: bytes) -> bytes:
    """A bytes field, or a message in a message."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """The fields of a message that has numbers and bytes only, in their order."""
    found: list[tuple[int, int | bytes]] = []
    place = 0
    while place < len(message):
        tag, place = _read_varint(message, place)
        number, place = _read_varint(message, place)
        if tag & 7 == 2:
            found.append((tag >> 3, message[place : place + number]))
            place += number
        else:
            found.append((tag >> 3, number))
    return found


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
        shift += 7


class Keys:
    """The keys of one cluster, and the operations on them."""

    def __init__(self, prefix: bytes = b"bench/") -> None:
        self.prefix = prefix
        self._written = itertools.count()
        self.count = 0  # puts begun
        self._read = itertools.count()

    def key(self, number: int) -> bytes:
        return self.prefix + b"%012d" % number

    def fresh(self) -> bytes:
        """A key that was not used."""
        number = next(self._written)
        self.count = number + 1
        return self.key(number)

    def known(self) -> bytes:
        """A key that was put."""
        return self.key(next(self._read) * STRIDE % max(1, self.count - UNSURE))

    def put(self, value_bytes: int = VALUE_BYTES) -> Operation:
        head, starts = field(2, b"v" * value_bytes)[:-value_bytes], len(POOL) - value_bytes

        def message() -> bytes:
            key = self.fresh()
            start = self.count * STEP % starts
            return field(1, key) + head + POOL[start : start + value_bytes]

        return Operation(PUT, message, writes=1)

    def get(self, *, serializable: bool = False) -> Operation:
        tail = b"\x38\x01" if serializable else b""
        return Operation(RANGE, lambda: field(1, self.known()) + tail, right=_has_value)

    def mix(self) -> Callable[[], Operation]:
        """One put in five, the others linearizable gets."""
        put, get, chance = self.put(), self.get(), random.Random(1).random
        return lambda: put if chance() < MIX_WRITES else get

    def txn(self) -> Operation:
        """If the key was never put, put it."""
        put = self.put()

        def message() -> bytes:
            request = put.message()
            compare = field(3, self.key(self.count - 1)) + b"\x20\x00"  # version == 0; EQUAL, VERSION are defaults
            return field(1, compare) + field(2, field(2, request))

        return Operation(TXN, message, writes=1, right=_succeeded)

    def range(self, count: int) -> Operation:
        """All of so many keys that follow one another."""
        starts = itertools.count()
        floor = count * (VALUE_BYTES + len(self.key(0)))  # bytes that the answer must have at least
        last = b"\x20" + varint(count)  # its last field: how many keys there are

        def message() -> bytes:
            start = next(starts) * STRIDE % max(1, self.count - UNSURE - count)
            return field(1, self.key(start)) + field(2, self.key(start + count))

        return Operation(RANGE, message, right=lambda response: len(response) > floor and response.endswith(last))

    def total(self, expected: int) -> Operation:
        """How many keys have the prefix."""
        end = self.prefix[:-1] + bytes([self.prefix[-1] + 1])
        message = field(1, self.prefix) + field(2, end) + b"\x48\x01"
        return Operation(RANGE, lambda: message, right=lambda response: (4, expected) in fields(response))


def _has_value(response: bytes) -> bool:
    return len(response) > VALUE_BYTES


def _succeeded(response: bytes) -> bool:
    header = response[1] + 2  # field 1, shorter than 128 bytes
    return response[header : header + 2] == SUCCEEDED
