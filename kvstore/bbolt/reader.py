"""Rows of a bbolt file that nobody vouches for.

Every page is checked before it is believed: where it is, what it is, and that its elements lie inside it and do not
overlap. Keys must ascend over a whole bucket, and no page but a root may be empty; so no leaf is read twice and no
loop of pages goes on for long, whatever the file says. One page is in memory at a time.

The file is read, not mapped: one that becomes shorter meanwhile would otherwise kill the process.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import Final, NamedTuple, Self, final

from kvstore.bbolt import format as fmt
from kvstore.bbolt.format import BRANCH_ELEMENT, LEAF_ELEMENT, PAGE, PageKind

Row = tuple[bytes, bytes]

PAGE_SIZES: Final = [1 << bits for bits in range(9, 18)]
SPAN_BYTES_MAX: Final = 256 << 20  # of a page with what it overflows into: far above any value etcd takes
DEPTH_MAX: Final = 32
_META_BYTES: Final = PAGE.size + fmt.META.size + fmt.CHECKSUM.size


class BboltError(Exception):
    """The file is no bbolt file, or a damaged one. The text says where."""


class _Meta(NamedTuple):
    page_size: int
    root: int
    pages: int
    txid: int


@dataclass(frozen=True, slots=True)
class _Page:
    id: int
    kind: int
    count: int
    data: bytes  # header included


@final
class BboltReader:
    """A context manager. Everything here blocks. Raises BboltError, OSError.

    size: of the part of the file that is bbolt's, in bytes; None: all of it.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._size = os.fstat(self._file).st_size if size is None else size
            self._meta = self._read_meta()
            self._buckets = self._read_buckets()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def size_bytes(self) -> int:
        """Of all pages, those that are free included."""
        return self._meta.pages * self._meta.page_size

    @property
    def buckets(self) -> list[bytes]:
        """Their names, in order."""
        return list(self._buckets)

    def rows(self, bucket: bytes) -> Iterator[list[Row]]:
        """The rows of a bucket in key order, a page's at a time; none for a bucket that is not there."""
        value = self._buckets.get(bucket)
        if value is None:
            return
        root, _ = fmt.BUCKET.unpack_from(value)
        found = self._inline(bucket, value) if root == 0 else self._leaves(root)
        for elements in found:
            for flags, key, _ in elements:
                if flags:
                    raise BboltError(f"bucket {bucket!r} holds another bucket, {key[:64]!r}")
            yield [(key, row) for _, key, row in elements]

    # ---- the front of the file

    def _read_meta(self) -> _Meta:
        """The newest valid one. Where the second one stands follows from the page size, which the first one has."""
        found: list[_Meta] = []
        for offset in (0, *PAGE_SIZES):
            with suppress(BboltError):
                meta = self._meta_at(offset)
                if offset in {0, meta.page_size}:
                    found.append(meta)
        if not found:
            raise BboltError("no valid meta page: this is no bbolt file, or its front is damaged")
        newest = max(found, key=lambda meta: meta.txid)
        if newest.pages * newest.page_size > self._size:
            raise BboltError(
                f"it has {newest.pages} pages of {newest.page_size} bytes, and only {self._size} bytes are here"
            )
        return newest

    def _meta_at(self, offset: int) -> _Meta:
        data = self._pread(offset, _META_BYTES)
        body = data[PAGE.size : PAGE.size + fmt.META.size]
        magic, version, page_size, _, root, _, _, pages, txid = fmt.META.unpack(body)
        _, kind, _, _ = PAGE.unpack_from(data)
        stored = fmt.CHECKSUM.unpack_from(data, PAGE.size + fmt.META.size)[0]
        if kind != PageKind.META or (magic, version) != (fmt.MAGIC, fmt.VERSION) or stored != fmt.checksum(body):
            raise BboltError("not a valid meta page")
        if page_size not in PAGE_SIZES:
            raise BboltError(f"pages of {page_size} bytes")
        return _Meta(page_size, root, pages, txid)

    def _read_buckets(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for elements in self._leaves(self._meta.root):
            for flags, name, value in elements:
                if flags != fmt.IS_BUCKET or len(value) < fmt.BUCKET.size:
                    raise BboltError(f"{name[:64]!r} is no bucket")
                found[name] = value
        return found

    # ---- pages

    def _pread(self, offset: int, size: int) -> bytes:
        data = os.pread(self._file, size, offset) if offset + size <= self._size else b""
        if len(data) != size:
            raise BboltError(f"the file ends inside of what begins at byte {offset}")
        return data

    def _page(self, id_: int) -> _Page:
        size = self._meta.page_size
        if not 2 <= id_ < self._meta.pages:
            raise BboltError(f"page {id_} is not one of the {self._meta.pages} that there are")
        data = self._pread(id_ * size, size)
        found, kind, count, overflow = PAGE.unpack_from(data)
        if found != id_:
            raise BboltError(f"page {id_} says that it is page {found}")
        if overflow:
            span = (1 + overflow) * size
            if id_ + overflow >= self._meta.pages or span > SPAN_BYTES_MAX:
                raise BboltError(f"page {id_} overflows into {overflow} more")
            data += self._pread((id_ + 1) * size, span - size)
        return _Page(id_, kind, count, data)

    def _leaves(self, root: int) -> Iterator[list[tuple[int, bytes, bytes]]]:
        """Elements of a tree's leaves, none of them empty: (flags, key, value)."""
        last = b""
        waiting = [(root, 0)]  # pages to read, the next one at the end, with their depth
        while waiting:
            id_, depth = waiting.pop()
            if depth > DEPTH_MAX:
                raise BboltError(f"page {id_} lies more than {DEPTH_MAX} levels deep")
            page = self._page(id_)
            if page.kind == PageKind.BRANCH:
                below = [child for _, child in self._branch(page)]
                waiting += [(child, depth + 1) for child in reversed(below)]
                continue
            if page.kind != PageKind.LEAF:
                raise BboltError(f"page {id_} is neither branch nor leaf: its flags are {page.kind:#x}")
            if page.count:
                elements = _leaf(page, last)
                last = elements[-1][1]
                yield elements
            elif depth:
                raise BboltError(f"page {id_} is empty")

    def _branch(self, page: _Page) -> list[tuple[bytes, int]]:
        if not page.count:
            raise BboltError(f"page {page.id} is empty")
        found: list[tuple[bytes, int]] = []
        last = b""
        for at, (pos, ksize, child) in _heads(page, BRANCH_ELEMENT):
            key = _slice(page, at + pos, ksize)
            if found and key <= last:
                raise BboltError(f"the keys of page {page.id} do not ascend")
            last = key
            found.append((key, child))
        return found

    def _inline(self, bucket: bytes, value: bytes) -> Iterator[list[tuple[int, bytes, bytes]]]:
        """A small bucket whose page stands in the value."""
        data = value[fmt.BUCKET.size :]
        if len(data) < PAGE.size:
            raise BboltError(f"bucket {bucket!r} has no page")
        _, kind, count, overflow = PAGE.unpack_from(data)
        if kind != PageKind.LEAF or overflow:
            raise BboltError(f"the page inside of bucket {bucket!r} is no leaf")
        if count:
            yield _leaf(_Page(0, kind, count, data), b"")


def _heads(page: _Page, element: Struct) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(offset, fields) of a page's elements."""
    end = PAGE.size + page.count * element.size
    if end > len(page.data):
        raise BboltError(f"page {page.id} cannot hold {page.count} elements")
    fields = element.iter_unpack(page.data[PAGE.size : end])
    return zip(range(PAGE.size, end, element.size), fields, strict=True)


def _slice(page: _Page, start: int, size: int) -> bytes:
    if start < PAGE.size + 16 * page.count or start + size > len(page.data):
        raise BboltError(f"an element of page {page.id} lies outside of it")
    return page.data[start : start + size]


def _leaf(page: _Page, last: bytes) -> list[tuple[int, bytes, bytes]]:
    """Its elements, whose keys must be above `last`."""
    found: list[tuple[int, bytes, bytes]] = []
    left = len(page.data)  # elements that lie on top of each other would be copied again and again
    for at, (flags, pos, ksize, vsize) in _heads(page, LEAF_ELEMENT):
        left -= ksize + vsize
        if left < 0:
            raise BboltError(f"the elements of page {page.id} overlap")
        both = _slice(page, at + pos, ksize + vsize)
        key = both[:ksize]
        if key <= last:
            raise BboltError(f"the keys of page {page.id} do not ascend")
        last = key
        found.append((flags, key, both[ksize:]))
    return found
