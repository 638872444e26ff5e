"""Segment: one file of the log, and where each of its live entries lies in it.

The index takes 16 bytes per entry. Truncation cuts it; the records stay in the file, dead. Reads come
from the loop while a save may run in a thread: it appends to the index only after its fsync, and cuts
only what no reader may ask for.
"""

from array import array
from pathlib import Path
from typing import Final, final
from zlib import crc32

from raft.errors import Corrupt
from raft.storage.file_system import File
from raft.storage.record import ENTRY, HEAD, HEAD_SIZE
from raft.types import Entry, EntryKind, Index

_GAP_MAX: Final = 4096  # dead bytes that one read may take along rather than being split in two


def damaged(path: Path, offset: int, what: str) -> Corrupt:
    return Corrupt(
        f"{path}: {what} at byte {offset}. What this member has acknowledged can no longer be read, so it must not "
        "take part. Restore it from the others: remove it from the cluster and add it again with an empty directory"
    )


@final
class Segment:
    __slots__ = ("begin", "end", "file", "filled", "lengths", "offsets", "path", "segment_id", "start", "tag", "terms")

    def __init__(self, segment_id: int, tag: int, path: Path, file: File, start: Index, end: int, filled: int) -> None:
        self.segment_id = segment_id
        self.tag = tag
        self.path = path
        self.file = file
        self.start = start  # index of the first live entry, or of the next one when there is none
        self.begin = end  # where its first record goes
        self.end = end  # where the next record goes
        self.filled = filled  # size of the file; zeros from `end` to here
        self.terms = array("Q")  # of entry start + i
        self.offsets = array("I")
        self.lengths = array("I")

    @property
    def last_index(self) -> Index:
        return self.start + len(self.terms) - 1

    def cut(self, index: Index) -> None:
        """Entries beyond `index` are dead."""
        keep = max(index + 1 - self.start, 0)
        del self.terms[keep:], self.offsets[keep:], self.lengths[keep:]
        self.start = min(self.start, index + 1)

    def bytes_after(self, index: Index) -> int:
        """What lies in the file behind entry `index`; all of it when index < start."""
        following = index + 1 - self.start
        if following >= len(self.offsets) or not self.offsets:
            return 0
        return self.end - (self.offsets[following] if following > 0 else self.begin)

    def read(self, low: Index, high: Index, bytes_max: int) -> list[Entry]:
        """Entries low..high, or fewer, but at least one: as many as one read brings and `bytes_max` allows."""
        offsets, lengths = self.offsets, self.lengths
        i = low - self.start
        begin = offsets[i]
        end = begin + HEAD_SIZE + lengths[i]
        size = lengths[i]
        for j in range(i + 1, high - self.start + 1):
            size += lengths[j]
            if size > bytes_max or offsets[j] - end > _GAP_MAX:
                high = self.start + j - 1
                break
            end = offsets[j] + HEAD_SIZE + lengths[j]
        data = self.file.pread(end - begin, begin)
        return [self._decode(data, begin, index) for index in range(low, high + 1)]

    def _decode(self, data: bytes, begin: int, index: Index) -> Entry:
        i = index - self.start
        offset = self.offsets[i]
        start = offset - begin
        stop = start + HEAD_SIZE + self.lengths[i]
        if stop > len(data):
            raise damaged(self.path, offset, f"entry {index} is cut off")
        crc, _, tag, _, length, type_, kind, _, found_index, term = HEAD.unpack_from(data, start)
        if (
            crc32(memoryview(data)[start + 4 : stop]) != crc
            or (tag, length, type_, found_index) != (self.tag, self.lengths[i], ENTRY, index)
            or term != self.terms[i]
        ):
            raise damaged(self.path, offset, f"entry {index} is not what was written")
        return Entry(index, term, data[start + HEAD_SIZE : stop], EntryKind(kind))
