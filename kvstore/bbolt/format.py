"""What stands in a bbolt file, all of it little-endian.

    page 0, 1   meta: the root's page, how many pages there are, a checksum; the valid one with the higher txid counts
    others      freelist; branch and leaf pages of trees. A page that needs more room takes the next `overflow` too

    page        id u64, flags u16, count u16, overflow u32, then the elements, then their keys and values
    leaf        flags u32 (1: a bucket), pos u32, ksize u32, vsize u32      pos: from the element to its key
    branch      pos u32, ksize u32, page u64                                the first key below that page
    bucket      the value of a leaf's element: root u64, sequence u64; root 0: its one page follows right here

The root is a tree whose keys are the names of the buckets.
"""

from enum import IntEnum
from struct import Struct
from typing import Final

MAGIC: Final = 0xED0CDAED
VERSION: Final = 2
PAGE_BYTES: Final = 4096  # what we write, and what etcd writes on nearly all machines

PAGE: Final = Struct("<QHHI")
LEAF_ELEMENT: Final = Struct("<IIII")
BRANCH_ELEMENT: Final = Struct("<IIQ")
BUCKET: Final = Struct("<QQ")
# magic, version, page size, flags, root, sequence of the root, freelist, pages, txid; then the checksum
META: Final = Struct("<IIIIQQQQQ")
CHECKSUM: Final = Struct("<Q")

KEY_BYTES_MAX: Final = 32768
VALUE_BYTES_MAX: Final = 2**31 - 2

IS_BUCKET: Final = 1  # flag of a leaf's element


class PageKind(IntEnum):
    BRANCH = 0x01
    LEAF = 0x02
    META = 0x04
    FREELIST = 0x10


def checksum(meta: bytes) -> int:
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in meta:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value
