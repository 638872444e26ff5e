"""Which events a compaction leaves: found by keys, needed by revisions, and too many to sort.

Of each key it leaves the newest change at or before the compact revision C, if that is a put; and a deletion at C
itself, which a watch from C on has to see (etcd #19179). The rows of `versions` tell that key by key; a file has them
by revision. In between stands a bit per revision. Blocks of revisions without a bit take nothing.
"""

from collections.abc import Iterator
from typing import Final, final

from kvstore.mvcc import schema
from kvstore.mvcc.events import version_at
from kvstore.mvcc.slices import Budget
from kvstore.mvcc.store import Reader

_BLOCK: Final = 4096  # revisions
_CHUNK: Final = 256
_GAP: Final = 64  # revisions that are cheaper to read and pass over than to jump across


@final
class RevisionSet:
    """A set of revisions that takes about a bit for each number between its members."""

    def __init__(self) -> None:
        self._blocks: dict[int, bytearray] = {}

    def add(self, revision: int) -> None:
        block = self._blocks.get(revision // _BLOCK)
        if block is None:
            block = self._blocks[revision // _BLOCK] = bytearray(_BLOCK // 8)
        block[revision % _BLOCK >> 3] |= 1 << (revision & 7)

    def __contains__(self, revision: int) -> bool:
        block = self._blocks.get(revision // _BLOCK)
        return block is not None and bool(block[revision % _BLOCK >> 3] & 1 << (revision & 7))

    def __iter__(self) -> Iterator[int]:
        """Ascending."""
        for number in sorted(self._blocks):
            for at, byte in enumerate(self._blocks[number]):
                if byte:
                    first = number * _BLOCK + at * 8
                    yield from [first + bit for bit in range(8) if byte & 1 << bit]

    def intervals(self) -> Iterator[tuple[int, int]]:
        """[low, high) that together hold all members, and not much else; short, so that none takes long to find."""
        low = high = -1
        for revision in self:
            if low < 0:
                low = revision
            elif revision > high + _GAP or revision >= low + _BLOCK:
                yield low, high
                low = revision
            high = revision + 1
        if low >= 0:
            yield low, high


@final
class Survivors:
    """Of the events at or before the compact revision, those that a compaction leaves."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._compact = reader.compact_revision
        self._first = RevisionSet()  # revisions whose change with sub-revision 0 is left
        self._later = RevisionSet()  # revisions of which others are left
        self.revisions = RevisionSet()  # revisions of which any is left, or may be

    async def find(self, budget: Budget) -> None:
        """Walk over all keys."""
        if not self._compact:
            return
        settled = b""
        scan = self._reader.scan(*schema.version_rows(b"", None))
        while rows := scan.rows(_CHUNK):
            for row, mark in rows:
                prefix, revision, sub = schema.split_version(row)
                if prefix == settled or revision > self._compact:
                    continue
                settled = prefix
                if mark != schema.TOMBSTONE:
                    (self._later if sub else self._first).add(revision)
                    self.revisions.add(revision)
            await budget.pause_if_spent()
        self.revisions.add(self._compact)

    def holds(self, key: bytes, revision: int, sub: int, is_delete: bool) -> bool:
        """Whether this event is one of them."""
        if revision > self._compact:
            return True
        if is_delete:
            return revision == self._compact
        if not sub:
            return revision in self._first
        return revision in self._later and version_at(self._reader, key, self._compact) == (revision, sub, False)
