"""SimFileSystem: a disk in memory that does to the log whatever a real one may do.

Each file and each directory has two states: what programs see, and what is durable. A write, truncation,
creation, rename or removal changes the first at once, and the second only when `fdatasync` or
`sync_directory` returns. `power_cut` throws the first away; of what was not synced it keeps nothing, all,
or (TORN) a random part: writes sector by sector, in any order, a sector also half; names one by one. CUT is for what
chance hardly does: the last write ends where one of the buffers of its pwritev does, so between two records.

    disk = SimFileSystem(rng)
    disk.crash_at = 17               # PowerCut is raised instead of the 17th call that changes something
    disk.failures[5] = OSError(...)  # the 5th such call fails: of a pwritev a random part is written
    disk.capacity = 1 << 20          # ENOSPC beyond, in the middle of a pwritev

    disk.power_cut(Fate.TORN)        # the machine starts again
    disk.kill()                      # only the process does: all that it wrote is seen, durable or not

A failed fdatasync forgets, as Linux does, that its bytes still have to be written: later ones succeed
without making them durable (RELIABILITY.md 1c). A sector is written whole or up to some byte, the rest
of it stays: an append never harms what the same sector held before.
"""

import errno
from enum import Enum
from itertools import accumulate
from pathlib import Path
from typing import Final, TypeAlias, final

from raft.core.ports import Rng
from raft.errors import InUse
from raft.storage.file_system import Buffer, File, FileSystem

_SECTOR: Final = 512

_Change: TypeAlias = tuple[int, bytes | None]  # write at an offset, or None: truncate to it


class PowerCut(Exception):
    """Not an OSError: no code under test may catch it."""


class Fate(Enum):
    """What becomes of unsynced changes when the power goes."""

    LOST = 0
    KEPT = 1
    TORN = 2
    CUT = 3


class _Inode:
    def __init__(self) -> None:
        self.seen = bytearray()
        self.durable = bytearray()
        self.unsynced: list[_Change] = []
        self.edges: list[int] = []  # of the last write: where its buffers end


class _Directory:
    def __init__(self) -> None:
        self.seen: dict[str, _Inode] = {}
        self.durable: dict[str, _Inode] = {}
        self.unsynced: list[dict[str, _Inode | None]] = []  # each happens whole or not at all; None: no such name

    def change(self, names: dict[str, _Inode | None]) -> None:
        _rename(self.seen, names)
        self.unsynced.append(names)


def _rename(names: dict[str, _Inode], change: dict[str, _Inode | None]) -> None:
    for name, inode in change.items():
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def _apply(content: bytearray, change: _Change) -> None:
    offset, data = change
    if data is None:
        del content[offset:]
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    if data is not None:
        content[offset : offset + len(data)] = data


@final
class SimFileSystem(FileSystem):
    def __init__(self, rng: Rng) -> None:
        self.calls = 0  # so far, of those that change something
        self.crash_at: int | None = None
        self.failures: dict[int, OSError] = {}
        self.capacity: int | None = None  # bytes of all files
        self._rng = rng
        self._off = False
        self._directories: dict[Path, _Directory] = {}
        self._locked: set[Path] = set()

    # What a test does to it

    def kill(self) -> None:
        self._locked.clear()
        self._off = False
        self.crash_at = None

    def power_cut(self, fate: Fate) -> None:
        self.kill()
        for directory in self._directories.values():
            changed = [inode for change in directory.unsynced for inode in change.values() if inode is not None]
            for inode in [*directory.durable.values(), *changed]:
                self._lose(inode, fate)
                inode.seen = bytearray(inode.durable)
            for change in directory.unsynced:
                if fate is Fate.KEPT or (fate is not Fate.LOST and self._rng.below(2)):
                    _rename(directory.durable, change)
            directory.unsynced.clear()
            directory.seen = dict(directory.durable)

    def _lose(self, inode: _Inode, fate: Fate) -> None:
        if fate is Fate.CUT and inode.unsynced and inode.edges:
            offset, data = inode.unsynced[-1]
            assert data is not None
            inode.unsynced[-1] = offset, data[: inode.edges[self._rng.below(len(inode.edges))]]
        if fate is not Fate.LOST:
            for change in inode.unsynced:
                for part in self._torn(change) if fate is Fate.TORN else [change]:
                    _apply(inode.durable, part)
        inode.unsynced.clear()

    def _torn(self, change: _Change) -> list[_Change]:
        offset, data = change
        if data is None:
            return [change] if self._rng.below(2) else []
        parts: list[_Change] = []
        position = 0
        while position < len(data):
            length = min(_SECTOR - (offset + position) % _SECTOR, len(data) - position)
            kept = (0, self._rng.below(length + 1), length)[self._rng.below(3)]
            if kept:
                parts.append((offset + position, data[position : position + kept]))
            position += length
        return parts

    def damage(self, path: Path, offset: int, data: bytes) -> None:
        """Bytes rot, get lost or land in the wrong place: at once, and durably."""
        inode = self._inode(path)
        _apply(inode.seen, (offset, data))
        _apply(inode.durable, (offset, data))

    def cut(self, path: Path, size: int) -> None:
        """The file ends at `size`, durably."""
        inode = self._inode(path)
        _apply(inode.seen, (size, None))
        _apply(inode.durable, (size, None))

    def content(self, path: Path) -> bytes:
        """What programs see in the file."""
        return bytes(self._inode(path).seen)

    # What the log calls

    def make_directory(self, path: Path) -> None:
        self._directories.setdefault(path, _Directory())

    def names(self, path: Path) -> list[str]:
        return sorted(self._directories[path].seen)

    def create(self, path: Path) -> File:
        self._enter()
        names = self._directories[path.parent].seen
        if path.name in names:
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        inode = _Inode()
        self._directories[path.parent].change({path.name: inode})
        return SimFile(self, inode)

    def open(self, path: Path) -> File:
        return SimFile(self, self._inode(path))

    def rename(self, old: Path, new: Path) -> None:
        self._enter()
        inode = self._inode(old)
        self._directories[old.parent].change({old.name: None, new.name: inode})

    def unlink(self, path: Path) -> None:
        self._enter()
        self._inode(path)
        self._directories[path.parent].change({path.name: None})

    def sync_directory(self, path: Path) -> None:
        self._enter()
        directory = self._directories[path]
        for change in directory.unsynced:
            _rename(directory.durable, change)
        directory.unsynced.clear()

    def lock(self, path: Path) -> File:
        if path in self._locked:
            raise InUse(f"{path.parent} is open in another process")
        self._locked.add(path)
        return SimFile(self, _Inode(), path)

    def random_tag(self) -> int:
        return self._rng.below(2**64)

    # What its files call

    def release(self, path: Path) -> None:
        self._locked.discard(path)

    def write(self, inode: _Inode, buffers: list[Buffer], offset: int) -> None:
        data = b"".join(buffers)
        try:
            self._enter()
        except OSError:
            self._change(inode, (offset, data[: self._rng.below(len(data) + 1)]))
            raise
        if self.capacity is not None:
            used = sum([len(i.seen) for d in self._directories.values() for i in d.seen.values()])
            room = self.capacity - used + len(inode.seen) - offset
            if room < len(data):
                self._change(inode, (offset, data[: max(room, 0)]))
                raise OSError(errno.ENOSPC, "no space left on device")
        self._change(inode, (offset, data))
        inode.edges = list(accumulate([len(buffer) for buffer in buffers]))

    def truncate(self, inode: _Inode, size: int) -> None:
        self._enter()
        self._change(inode, (size, None))

    def fdatasync(self, inode: _Inode) -> None:
        try:
            self._enter()
        except OSError:
            self._lose(inode, Fate.TORN)  # `seen` stays as it is
            raise
        for change in inode.unsynced:
            _apply(inode.durable, change)
        inode.unsynced.clear()

    def _change(self, inode: _Inode, change: _Change) -> None:
        _apply(inode.seen, change)
        inode.edges = []
        inode.unsynced.append(change)

    def _inode(self, path: Path) -> _Inode:
        directory = self._directories.get(path.parent, _Directory())
        if path.name not in directory.seen:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return directory.seen[path.name]

    def _enter(self) -> None:
        self.calls += 1
        if self._off or self.calls == self.crash_at:
            self._off = True
            raise PowerCut(f"before call {self.calls}")
        if self.calls in self.failures:
            raise self.failures.pop(self.calls)


@final
class SimFile(File):
    def __init__(self, disk: SimFileSystem, inode: _Inode, locked: Path | None = None) -> None:
        self._disk = disk
        self._inode = inode
        self._locked = locked

    def pwritev(self, buffers: list[Buffer], offset: int) -> None:
        self._disk.write(self._inode, buffers, offset)

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self._inode.seen[offset : offset + length])

    def fdatasync(self) -> None:
        self._disk.fdatasync(self._inode)

    def truncate(self, size: int) -> None:
        self._disk.truncate(self._inode, size)

    def size(self) -> int:
        return len(self._inode.seen)

    def close(self) -> None:
        if self._locked is not None:
            self._disk.release(self._locked)
