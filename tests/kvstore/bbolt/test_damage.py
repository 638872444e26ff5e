"""Files that are damaged, or made to do harm: a BboltError, soon, and nothing else."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from struct import Struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore.bbolt import format as fmt
from kvstore.bbolt import reader as reader_module
from kvstore.bbolt.format import BRANCH_ELEMENT, LEAF_ELEMENT, PAGE, PAGE_BYTES, PageKind
from kvstore.bbolt.reader import BboltError, BboltReader
from tests.kvstore.bbolt.files import decode, encode

GOOD = encode(
    {
        b"many": {b"%04d" % number: b"v" * (number % 50) for number in range(600)},
        b"large": {b"k": b"v" * 9000, b"l": b"w" * 20_000},
        b"none": {},
    }
)
U16, U32, U64 = Struct("<H"), Struct("<I"), Struct("<Q")


def sealed(data: bytearray) -> bytes:
    """With the checksums of its metas set right, so that what they say is believed."""
    for start in (PAGE.size, PAGE_BYTES + PAGE.size):
        if len(data) >= start + fmt.META.size + 8:
            meta = bytes(data[start : start + fmt.META.size])
            fmt.CHECKSUM.pack_into(data, start + fmt.META.size, fmt.checksum(meta))
    return bytes(data)


def read_all(path: Path, data: bytes) -> int:
    """How many bytes of rows came out. Raises BboltError."""
    path.write_bytes(data)
    total = sum(len(key) + len(value) for rows in decode(path).values() for key, value in rows.items())
    assert total <= len(data), "rows were copied again and again"
    return total


MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, len(GOOD) - 1),
        st.sampled_from([1, 2, 4, 8]),
        st.one_of(
            st.sampled_from([0, 1, 2, 3, 0x7FFF, 0xFFFF, 2**31, 2**32 - 1, 2**63, 2**64 - 1]), st.integers(0, 20)
        ),
    ),
    min_size=1,
    max_size=6,
)
# Where a change means something: heads of pages, and the elements behind them.
HEADS = st.integers(0, len(GOOD) // PAGE_BYTES - 1).flatmap(
    lambda page: st.integers(0, 80).map(lambda at: page * PAGE_BYTES + at)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.one_of(
        MUTATIONS, st.lists(st.tuples(HEADS, st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)), max_size=6)
    ),
    end=st.one_of(st.none(), st.integers(0, len(GOOD))),
    seal=st.booleans(),
)
def test_fuzz(tmp_path: Path, changes: list[tuple[int, int, int]], end: int | None, seal: bool) -> None:
    data = bytearray(GOOD)
    for at, size, value in changes:
        data[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    data = data[:end]
    with suppress(BboltError):
        read_all(tmp_path / "file", sealed(data) if seal else bytes(data))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=10_000), meta=st.booleans())
def test_fuzz_of_noise(tmp_path: Path, data: bytes, meta: bool) -> None:
    if meta:
        data = GOOD[: 2 * PAGE_BYTES] + data
    with pytest.raises(BboltError):
        read_all(tmp_path / "file", data)


def page(id_: int, kind: int, elements: list[bytes], bodies: bytes = b"", overflow: int = 0) -> bytes:
    data = PAGE.pack(id_, kind, len(elements), overflow) + b"".join(elements) + bodies
    return data.ljust((1 + overflow) * PAGE_BYTES, b"\0")


def file_of(*pages: bytes, root: int = 3) -> bytes:
    """With one bucket `b`, whose root is page 4, when `root` is 3 and pages begin with 4."""
    bucket = page(3, PageKind.LEAF, [LEAF_ELEMENT.pack(1, 16, 1, 16)], b"b" + fmt.BUCKET.pack(4, 0))
    body = bucket + b"".join(pages)
    metas = bytearray(GOOD[: 3 * PAGE_BYTES])
    for number in range(2):
        total = 3 + len(body) // PAGE_BYTES
        meta = fmt.META.pack(fmt.MAGIC, fmt.VERSION, PAGE_BYTES, 0, root, 0, 2, total, number)
        start = number * PAGE_BYTES + PAGE.size
        metas[start : start + len(meta)] = meta
    return sealed(metas) + body


def branch(id_: int, *children: int) -> bytes:
    count = len(children)
    elements = [BRANCH_ELEMENT.pack(16 * (count - at) + at, 1, child) for at, child in enumerate(children)]
    return page(id_, PageKind.BRANCH, elements, bytes(range(1, count + 1)))


def leaf(id_: int, *keys: bytes) -> bytes:
    count = len(keys)
    elements, at = [], 16 * count
    for key in keys:
        elements.append(LEAF_ELEMENT.pack(0, at, len(key), 0))
        at += len(key) - 16
    return page(id_, PageKind.LEAF, elements, b"".join(keys))


HOSTILE: dict[str, tuple[bytes, str]] = {
    "a page below itself": (file_of(branch(4, 4)), "levels deep"),
    "a ring": (file_of(branch(4, 5), branch(5, 4)), "levels deep"),
    "every child the same": (file_of(branch(4, *[5] * 200), branch(5, *[6] * 200), leaf(6, b"a")), "ascend"),
    "every child the same and empty": (file_of(branch(4, *[5] * 200), branch(5, *[6] * 200), leaf(6)), "is empty"),
    "a branch without children": (file_of(branch(4)), "is empty"),
    "a leaf of another bucket": (file_of(branch(4, 5, 5), leaf(5, b"a", b"b")), "ascend"),
    "keys that descend": (file_of(leaf(4, b"b", b"a")), "ascend"),
    "keys that repeat": (file_of(leaf(4, b"a", b"a")), "ascend"),
    "an empty key": (file_of(leaf(4, b"")), "ascend"),
    "a meta page as a root": (file_of(page(4, PageKind.META, [])), "neither branch nor leaf"),
    "page 0 as a root": (file_of(root=0), "is not one of"),
    "a page behind the end": (file_of(branch(4, 77)), "is not one of"),
    "another page's number": (file_of(leaf(5, b"a")), "says that it is page 5"),
    "more elements than fit": (
        file_of(PAGE.pack(4, PageKind.LEAF, 0xFFFF, 0).ljust(PAGE_BYTES, b"\1")),
        "cannot hold",
    ),
    "a value outside of the page": (
        file_of(page(4, PageKind.LEAF, [LEAF_ELEMENT.pack(0, 16, 1, 2**32 - 1)], b"a")),
        "overlap",
    ),
    "a key in front of the elements": (file_of(page(4, PageKind.LEAF, [LEAF_ELEMENT.pack(0, 0, 1, 0)])), "outside"),
    "values that overlap": (
        file_of(
            page(
                4,
                PageKind.LEAF,
                [LEAF_ELEMENT.pack(0, 16 * (100 - at) + at, 1, 2000) for at in range(100)],
                bytes(range(1, 101)),
            )
        ),
        "overlap",
    ),
    "an overflow behind the end": (file_of(leaf(4, b"a")[:12] + U32.pack(9) + leaf(4, b"a")[16:]), "overflows"),
    "a bucket in a bucket": (
        file_of(page(4, PageKind.LEAF, [LEAF_ELEMENT.pack(1, 16, 1, 16)], b"a" + fmt.BUCKET.pack(4, 0))),
        "another bucket",
    ),
    "a row where a bucket belongs": (file_of(leaf(4, b"a"), root=4), "is no bucket"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(tmp_path: Path, name: str) -> None:
    data, reason = HOSTILE[name]
    with pytest.raises(BboltError, match=reason):
        read_all(tmp_path / "file", data)


def test_the_files_of_these_tests_are_good_but_for_what_they_say(tmp_path: Path) -> None:
    assert read_all(tmp_path / "file", file_of(branch(4, 5, 6), leaf(5, b"a", b"b"), leaf(6, b"c"))) == 3


def test_a_sparse_file_does_not_become_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that says it goes on for a terabyte, in a file that is as long and takes no space."""
    monkeypatch.setattr(reader_module.os, "pread", counted(os.pread))
    pages = 1 << 28
    data = bytearray(file_of(page(4, PageKind.LEAF, [LEAF_ELEMENT.pack(0, 16, 1, 1)], b"ab")))
    U32.pack_into(data, 4 * PAGE_BYTES + 12, pages - 10)
    for number in range(2):
        U64.pack_into(data, number * PAGE_BYTES + PAGE.size + 40, pages)
    path = tmp_path / "file"
    path.write_bytes(sealed(data))
    os.truncate(path, pages * PAGE_BYTES)
    with BboltReader(path) as reader, pytest.raises(BboltError, match="overflows into"):
        list(reader.rows(b"b"))


def counted(pread: Callable[[int, int, int], bytes]) -> Callable[[int, int, int], bytes]:
    def read(descriptor: int, size: int, offset: int) -> bytes:
        assert size <= reader_module.SPAN_BYTES_MAX, f"{size} bytes at once"
        return pread(descriptor, size, offset)

    return read


def test_a_file_that_becomes_shorter_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(GOOD)
    with BboltReader(path) as reader:
        os.truncate(path, 5 * PAGE_BYTES)
        with pytest.raises(BboltError, match="ends inside"):
            list(reader.rows(b"many"))


def test_one_damaged_meta_is_no_harm_and_two_are(tmp_path: Path) -> None:
    for first, second in ((True, False), (False, True)):
        data = bytearray(GOOD)
        data[20] ^= first
        data[PAGE_BYTES + 20] ^= second
        assert read_all(tmp_path / "file", bytes(data)) == read_all(tmp_path / "file", GOOD)
    data[20] ^= 1
    with pytest.raises(BboltError, match="no valid meta page"):
        read_all(tmp_path / "file", bytes(data))


def test_no_file_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"no bbolt")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with pytest.raises(BboltError):
            BboltReader(path)
    assert len(os.listdir("/proc/self/fd")) == before
