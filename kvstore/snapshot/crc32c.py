"""CRC-32C (Castagnoli), which etcd's hashes are, without a loop over bytes.

A CRC is the remainder of a polynomial over GF(2), so a long message may first be made shorter: its front half times
a power of x, taken modulo the generator and added to what follows, has the same remainder. On integers of Python that
is a handful of shifts of half the message; after some halvings a table does the rest. A hundred times as fast as the
table alone.

In a reflected CRC the first bit is the highest power, and the lowest bit of the integer.
"""

from functools import cache
from typing import Final

_GENERATOR: Final = 0x82F63B78  # reflected, without x^32
_BLOCK: Final = 1 << 16  # bytes: what is folded at once
_SHORT: Final = 64


def _byte(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (_GENERATOR if value & 1 else 0)
    return value


_TABLE: Final = [_byte(value) for value in range(256)]


def crc32c(data: bytes, value: int = 0) -> int:
    """Of `data` behind what `value` is the CRC of."""
    for start in range(0, len(data), _BLOCK):
        value = _block(data[start : start + _BLOCK], value)
    return value


def _block(data: bytes, value: int) -> int:
    value ^= 0xFFFFFFFF
    if len(data) >= 2 * _SHORT:
        # The state is added to the first four bytes; what is folded has a state of zero.
        message = int.from_bytes(data, "little") ^ value
        size = len(data)
        while size >= 2 * _SHORT:
            message, size = _fold(message, size)
        data, value = message.to_bytes(size, "little"), 0
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _fold(message: int, size: int) -> tuple[int, int]:
    """A message of fewer bytes with the same remainder."""
    front = size // 2 - 4  # bytes that go; 32 bits fewer than half, so that the product ends inside of what stays
    left = size - front
    low = message & (1 << 8 * front) - 1
    folded = message >> 8 * front
    for shift in _shifts(left * 8, front * 8):
        folded ^= low << shift
    return folded, left


@cache
def _shifts(power: int, front: int) -> list[int]:
    """Where the front half is added: one place for each power in x^power modulo the generator.

    x^j of it moves the front's bit i, which is x^(front - 1 - i), to x^(front - 1 - i + j), and that is the bit
    power - front + i - j of what stays.
    """
    remainder = 1 << 31  # x^0
    for _ in range(power):
        remainder = remainder >> 1 ^ (_GENERATOR if remainder & 1 else 0)
    return [power - front - j for j in range(32) if remainder >> (31 - j) & 1]
