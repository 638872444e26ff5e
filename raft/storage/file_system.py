"""FileSystem: the few calls that the log makes to the operating system, behind one seam.

Thin on purpose. A call does one thing, raises OSError, and promises no more than POSIX does: written
bytes are durable after `fdatasync`, a created, renamed or removed name after `sync_directory`.
`raft.testing.disk.SimFileSystem` takes all that literally: it loses, reorders and tears what was not
synced. All calls block; none needs the interpreter lock while the disk works.
"""

import contextlib
import fcntl
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, final

from raft.errors import InUse

Buffer: TypeAlias = bytes | bytearray | memoryview

BUFFERS_MAX = 1024  # IOV_MAX of Linux: pwritev refuses longer lists
DIRECTORY_MODE = 0o700
FILE_MODE = 0o600


class File(ABC):
    """An open file. Positions and sizes are in bytes."""

    @abstractmethod
    def pwritev(self, buffers: list[Buffer], offset: int) -> None:
        """Write all of `buffers`, one after the other. An error may leave any part of them written."""

    @abstractmethod
    def pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes: fewer only at the end of the file."""

    @abstractmethod
    def fdatasync(self) -> None: ...

    @abstractmethod
    def truncate(self, size: int) -> None: ...

    @abstractmethod
    def size(self) -> int: ...

    @abstractmethod
    def close(self) -> None: ...


class FileSystem(ABC):
    @abstractmethod
    def make_directory(self, path: Path) -> None:
        """Create it (0700) and its missing parents, durably. Nothing happens when it is there."""

    @abstractmethod
    def names(self, path: Path) -> list[str]:
        """What the directory holds, sorted."""

    @abstractmethod
    def create(self, path: Path) -> File:
        """A new, empty file (0600). An error when the name is taken."""

    @abstractmethod
    def open(self, path: Path) -> File: ...

    @abstractmethod
    def rename(self, old: Path, new: Path) -> None: ...

    @abstractmethod
    def unlink(self, path: Path) -> None: ...

    @abstractmethod
    def sync_directory(self, path: Path) -> None: ...

    @abstractmethod
    def lock(self, path: Path) -> File:
        """Take the lock that `path` stands for until the file is closed or the process ends. Raises InUse."""

    @abstractmethod
    def random_tag(self) -> int:
        """64 bits that no client can guess."""


@final
class OsFile(File):
    def __init__(self, descriptor: int, sync: Callable[[int], None] = os.fdatasync) -> None:
        self._descriptor = descriptor
        self._sync = sync

    def __del__(self) -> None:
        # A reader may still hold a segment that compaction took away: the last reference closes it,
        # so that its descriptor cannot be taken over by another file under a running pread.
        self.close()

    def pwritev(self, buffers: list[Buffer], offset: int) -> None:
        for i in range(0, len(buffers), BUFFERS_MAX):
            part = buffers[i : i + BUFFERS_MAX]
            size = sum([len(buffer) for buffer in part])
            written = os.pwritev(self._descriptor, part, offset)
            if written < size:
                self._write_rest(memoryview(b"".join(part))[written:], offset + written)
            offset += size

    def _write_rest(self, rest: memoryview, offset: int) -> None:
        """A short write is legal; what is wrong (a full disk) shows in the next call."""
        while rest:
            written = os.pwrite(self._descriptor, rest, offset)
            rest = rest[written:]
            offset += written

    def pread(self, length: int, offset: int) -> bytes:
        parts: list[bytes] = []
        while length > 0:
            part = os.pread(self._descriptor, length, offset)
            if not part:
                break
            parts.append(part)
            length -= len(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def fdatasync(self) -> None:
        self._sync(self._descriptor)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@final
class OsFileSystem(FileSystem):
    def __init__(self, sync: Callable[[int], None] = os.fdatasync) -> None:
        """sync: how a file's descriptor is made durable; one that also measures, perhaps."""
        self._sync = sync

    def make_directory(self, path: Path) -> None:
        if path.is_dir():
            return
        self.make_directory(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir(DIRECTORY_MODE)
        self.sync_directory(path.parent)

    def names(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))

    def create(self, path: Path) -> File:
        return OsFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE), self._sync)

    def open(self, path: Path) -> File:
        return OsFile(os.open(path, os.O_RDWR), self._sync)

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lock(self, path: Path) -> File:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise InUse(f"{path.parent} is open in another process") from error
        except OSError:
            os.close(descriptor)
            raise
        return OsFile(descriptor)

    def random_tag(self) -> int:
        return int.from_bytes(os.urandom(8), "little")
