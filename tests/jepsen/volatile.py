"""A member whose disk loses its power when the process is killed: `python -m tests.jepsen.volatile serve ...`.

It is `kvstore serve ...`, but what it writes to its log stays in this process, page by page, until fdatasync; some
pages reach the disk earlier, in no order, as a kernel's write-back does it. SIGKILL takes the rest: lost writes, holes,
torn ones. RocksDB's files are as always: it has in memory what is not durable, and the log has it too. Names are
durable at once; raft/testing/disk.py loses those as well.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable

from raft.storage import file_system
from raft.storage.file_system import Buffer, File, OsFile

PAGE = 4096
SYNC_SECONDS = 0.02  # what a sync takes at most: so long everything written is at risk, and not everywhere alike
EARLY = 0.2  # the chance of a page that is written to go to the disk at once


class _Pages:
    """What of one file is not on the disk. All who have the file open see it."""

    def __init__(self) -> None:
        self.dirty: dict[int, bytearray] = {}
        self.lock = threading.Lock()


_PAGES: dict[tuple[int, int], _Pages] = {}  # by device and inode


class VolatileFile(File):
    """In the place of OsFile."""

    def __init__(self, descriptor: int, sync: Callable[[int], None] = os.fdatasync) -> None:
        self._file = OsFile(descriptor, sync)
        self._rng = random.Random()
        found = os.fstat(descriptor)
        if found.st_size == 0:  # new: the number may have been that of a file that is gone
            _PAGES.pop((found.st_dev, found.st_ino), None)
        self._pages = _PAGES.setdefault((found.st_dev, found.st_ino), _Pages())

    def pwritev(self, buffers: list[Buffer], offset: int) -> None:
        data = b"".join(buffers)
        with self._pages.lock:
            at = 0
            while at < len(data):
                number, begin = divmod(offset + at, PAGE)
                part = data[at : at + PAGE - begin]
                page = self._pages.dirty.get(number)
                if page is None:
                    page = self._pages.dirty[number] = bytearray(self._file.pread(PAGE, number * PAGE))
                page.extend(bytes(max(0, begin - len(page))))
                page[begin : begin + len(part)] = part
                if self._rng.random() < EARLY:
                    self._write(number)
                at += len(part)

    def _write(self, number: int) -> None:
        self._file.pwritev([self._pages.dirty.pop(number)], number * PAGE)

    def pread(self, length: int, offset: int) -> bytes:
        with self._pages.lock:
            length = min(length, max(0, self._size() - offset))
            found = bytearray(self._file.pread(length, offset))
            found.extend(bytes(length - len(found)))
            for number in range(offset // PAGE, -(-(offset + length) // PAGE)):
                if number in self._pages.dirty:
                    begin = number * PAGE - offset
                    part = self._pages.dirty[number][max(0, -begin) : length - begin]
                    found[max(0, begin) : max(0, begin) + len(part)] = part
            return bytes(found)

    def fdatasync(self) -> None:
        time.sleep(self._rng.random() * SYNC_SECONDS)
        with self._pages.lock:
            for number in sorted(self._pages.dirty):
                self._write(number)
        self._file.fdatasync()

    def truncate(self, size: int) -> None:
        with self._pages.lock:
            for number in [one for one in self._pages.dirty if one * PAGE >= size]:
                del self._pages.dirty[number]
            if size // PAGE in self._pages.dirty:
                del self._pages.dirty[size // PAGE][size % PAGE :]
            self._file.truncate(size)

    def size(self) -> int:
        with self._pages.lock:
            return self._size()

    def _size(self) -> int:
        return max([self._file.size(), *(number * PAGE + len(page) for number, page in self._pages.dirty.items())])

    def close(self) -> None:
        """As with a kernel, what is not synced does not mind."""
        self._file.close()


def main() -> None:
    from kvstore.entry import main as serve

    file_system.OsFile = VolatileFile  # type: ignore[misc, assignment]
    serve()


if __name__ == "__main__":
    main()
