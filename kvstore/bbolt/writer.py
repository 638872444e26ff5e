"""A bbolt file from rows in key order, written once from front to back.

Trees grow bottom-up: a full leaf is a page at once, its first key goes into the branch above, and so on. So memory
holds one page of each level and what has not been taken yet, however large the file is. Pages 0 to 2 come last,
since they say where the root is; they stand at the front, so the file must be seekable.

    writer = BboltWriter()
    writer.begin(b"key")
    writer.add(key, value) ...          write writer.take() now and then, from HEAD_BYTES of the file on
    head = writer.finish()              write the last writer.take(), then `head` at 0
"""

from typing import Final, final

from kvstore.bbolt import format as fmt
from kvstore.bbolt.format import BRANCH_ELEMENT, LEAF_ELEMENT, PAGE, PAGE_BYTES, PageKind

HEAD_BYTES: Final = 3 * PAGE_BYTES  # two metas and the freelist
_FREELIST: Final = 2
_ROOM: Final = PAGE_BYTES - PAGE.size


@final
class _Level:
    """The page of one level of a tree that is being filled: its elements, and their size."""

    __slots__ = ("items", "size")

    def __init__(self) -> None:
        self.items: list[tuple[bytes, bytes | int, int]] = []  # key, value or page, flags
        self.size = 0


@final
class BboltWriter:
    """Rows must come in ascending order of their keys, bucket by bucket. Raises ValueError for rows that do not."""

    def __init__(self) -> None:
        self._pages = HEAD_BYTES // PAGE_BYTES
        self._ready: list[bytes] = []
        self._roots: dict[bytes, int] = {}
        self._bucket: bytes | None = None
        self._levels = [_Level()]  # leaves first
        self._last = b""  # key
        self.ready_bytes = 0  # that `take` would return

    @property
    def size_bytes(self) -> int:
        """Of the file, as far as it has got."""
        return self._pages * PAGE_BYTES

    def begin(self, bucket: bytes) -> None:
        """What is added from now on belongs to this bucket."""
        if bucket in self._roots or bucket == self._bucket:
            raise ValueError(f"bucket {bucket!r} comes twice")
        self._end_bucket()
        self._bucket = bucket

    def add(self, key: bytes, value: bytes) -> None:
        assert self._bucket is not None, "rows belong to a bucket"
        self._add(key, value, 0)

    def _add(self, key: bytes, value: bytes, flags: int) -> None:
        if not self._last < key:
            raise ValueError(f"key {key[:64]!r} is empty, or not above the one before it")
        if len(key) > fmt.KEY_BYTES_MAX or len(value) > fmt.VALUE_BYTES_MAX:
            raise ValueError(f"the row of key {key[:64]!r} is larger than bbolt can hold")
        leaves = self._levels[0]
        size = len(key) + len(value) + 16
        if leaves.size + size > _ROOM and leaves.items:
            self._flush(0)
        self._last = key
        leaves.items.append((key, value, flags))
        leaves.size += size

    def _flush(self, number: int) -> None:
        """The page of a level is full: write it, and tell the level above."""
        level = self._levels[number]
        page = self._write(level, leaf=number == 0)
        first = level.items[0][0]
        level.items, level.size = [], 0
        if number + 1 == len(self._levels):
            self._levels.append(_Level())
        above = self._levels[number + 1]
        size = len(first) + 16
        if above.size + size > _ROOM and len(above.items) > 1:
            self._flush(number + 1)
        above.items.append((first, page, 0))
        above.size += size

    def _write(self, level: _Level, *, leaf: bool) -> int:
        """Returns the page's id."""
        at = 16 * len(level.items)  # from an element to its key
        heads: list[bytes] = []
        bodies: list[bytes] = []
        for key, value, flags in level.items:
            if isinstance(value, int):
                heads.append(BRANCH_ELEMENT.pack(at, len(key), value))
                bodies.append(key)
                at += len(key) - 16
            else:
                heads.append(LEAF_ELEMENT.pack(flags, at, len(key), len(value)))
                bodies += (key, value)
                at += len(key) + len(value) - 16
        pages = -(-(PAGE.size + level.size) // PAGE_BYTES)
        id_ = self._pages
        self._pages += pages
        kind = PageKind.LEAF if leaf else PageKind.BRANCH
        parts = [PAGE.pack(id_, kind, len(level.items), pages - 1), *heads, *bodies]
        page = b"".join(parts).ljust(pages * PAGE_BYTES, b"\0")
        self._ready.append(page)
        self.ready_bytes += len(page)
        return id_

    def _end_bucket(self) -> None:
        if self._bucket is not None:
            self._roots[self._bucket] = self._end_tree()
            self._bucket = None

    def _end_tree(self) -> int:
        """Returns the root's page."""
        number = 0
        while number + 1 < len(self._levels):
            self._flush(number)  # may add a level
            number += 1
        root = self._write(self._levels[number], leaf=number == 0)
        self._levels = [_Level()]
        self._last = b""
        return root

    def take(self) -> bytes:
        """The pages that have become ready since the last call; they follow those."""
        ready = b"".join(self._ready)
        self._ready = []
        self.ready_bytes = 0
        return ready

    def finish(self) -> bytes:
        """No more rows. Returns the first HEAD_BYTES of the file; `take` has the last of the rest."""
        self._end_bucket()
        for name, page in sorted(self._roots.items()):
            self._add(name, fmt.BUCKET.pack(page, 0), fmt.IS_BUCKET)
        root = self._end_tree()
        return (
            self._meta(root, 0)
            + self._meta(root, 1)
            + PAGE.pack(_FREELIST, PageKind.FREELIST, 0, 0).ljust(PAGE_BYTES, b"\0")
        )

    def _meta(self, root: int, number: int) -> bytes:
        """Alike but for the transaction: as a file that bbolt has just made."""
        meta = fmt.META.pack(fmt.MAGIC, fmt.VERSION, PAGE_BYTES, 0, root, 0, _FREELIST, self._pages, number)
        page = PAGE.pack(number, PageKind.META, 0, 0) + meta + fmt.CHECKSUM.pack(fmt.checksum(meta))
        return page.ljust(PAGE_BYTES, b"\0")
