"""CRC-32C against its definition, at every length where another way of computing it begins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.snapshot.crc32c import crc32c


def by_definition(data: bytes, value: int = 0) -> int:
    value ^= 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def test_the_check_value_of_the_catalogue() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@given(st.binary(max_size=2000), st.integers(0, 2**32 - 1))
def test_any(data: bytes, before: int) -> None:
    assert crc32c(data, before) == by_definition(data, before)


@pytest.mark.parametrize("size", [0, 1, 63, 127, 128, 129, 255, 256, 65_535, 65_536, 65_537, 131_200])
def test_sizes(size: int) -> None:
    data = bytes(number * 7 % 251 for number in range(size))
    assert crc32c(data, 5) == by_definition(data, 5)
    assert crc32c(data[size // 3 :], crc32c(data[: size // 3])) == crc32c(data)
