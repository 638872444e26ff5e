"""Snapshots: the state of a state machine at one index, on its way to a member that lacks what is compacted.

    leader                                                      follower
    StateMachine.take_snapshot() -> SnapshotReader
      | header: position, configuration, files with checksums ->  StateMachine.incoming() -> SnapshotWriter
      |  <- what of each file is here already                       begin
      | pieces of the files, in order ------------------------->    write, write, ... finish (verified, durable)
      |                                                             StateMachine.install_snapshot
      |  <- done                                                    the log starts anew behind it

A snapshot is a list of files, whatever they hold: a checkpoint of a database, or one file of bytes. The
bytes never travel among the raft messages: they have a way of their own, so that a heartbeat never waits
behind them, and they are read and written in threads, so that the loop does not wait for the disk.

A transfer that is cut off resumes: the receiver keeps what it has, the leader keeps its reader for a while,
and `begin` says where to go on. Another snapshot is another list of files: what is here of an older one is
thrown away then.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

from raft.errors import RaftError
from raft.storage.base import Loaded, LogStorage, state_after_reset
from raft.types import Index, NodeId, SnapshotMeta, Term

PIECE_BYTES: Final = 256 * 1024  # what is read, sent, checked and written at a time


class SnapshotFailed(RaftError):
    """This transfer ended without success: the receiver refused, the way was lost, a checksum was wrong."""


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """One file of a snapshot."""

    name: str  # letters, digits, "-", "_" and ".", not first: no path
    size: int  # bytes
    sha256: str  # of its content, in hex


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """What a leader says before it sends."""

    meta: SnapshotMeta
    sender: NodeId
    term: Term  # in which the sender leads
    files: list[SnapshotFile]

    @property
    def size(self) -> int:
        return sum([file.size for file in self.files])


def pieces(files: list[SnapshotFile], offsets: list[int], size: int) -> Iterator[tuple[int, int, int]]:
    """(position of the file, offset, bytes) of everything from `offsets` on, at most `size` bytes at a time."""
    for position, (file, start) in enumerate(zip(files, offsets, strict=True)):
        for offset in range(start, file.size, size):
            yield position, offset, min(size, file.size - offset)


class SnapshotReader(ABC):
    """A snapshot that can be sent. It stays as it is until it is closed, whatever is applied meanwhile."""

    index: Index
    term: Term
    files: list[SnapshotFile]

    @abstractmethod
    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly these bytes, which lie within the file. Blocks; called in a thread. Raises OSError."""

    @abstractmethod
    def close(self) -> None:
        """Nobody reads any more: release what it holds. Called once."""


class SnapshotWriter(ABC):
    """Where an arriving snapshot goes. All calls block and are made in a thread, one after the other.

    What was checked before: names are no paths, sizes and offsets fit, a file's bytes come without a gap.
    Whether there is room for them on the disk, the writer finds out. Raises OSError, SnapshotFailed.
    """

    @abstractmethod
    def begin(self, meta: SnapshotMeta, files: list[SnapshotFile]) -> dict[str, int]:
        """How many bytes of each file are here, from an earlier attempt of this very snapshot; forget any other."""

    @abstractmethod
    def write(self, name: str, offset: int, data: bytes) -> None: ...

    @abstractmethod
    def finish(self) -> None:
        """Everything was written: verify every checksum and make it durable. Raises SnapshotFailed."""

    @abstractmethod
    def discard(self) -> None:
        """It is not wanted: remove all of it."""


@dataclass(frozen=True, slots=True)
class ReceivedSnapshot:
    """A snapshot that has arrived whole and was verified: what StateMachine.install_snapshot gets."""

    meta: SnapshotMeta
    writer: SnapshotWriter  # the one that StateMachine.incoming gave for it


class SnapshotArrival(ABC):
    """One incoming transfer. Its calls come one after the other."""

    offsets: list[int]  # bytes that are here already, of each file of the header

    @abstractmethod
    async def write(self, file: int, offset: int, data: bytes) -> None:
        """A piece of the `file`-th file. Raises SnapshotFailed: then the transfer is over."""

    @abstractmethod
    async def finish(self) -> None:
        """All pieces were written. Returns once the snapshot is installed. Raises SnapshotFailed."""

    @abstractmethod
    def abandon(self) -> None:
        """The way was lost. What has arrived stays for the next attempt. Nothing after `finish`."""


class SnapshotReceiver(ABC):
    """Whom a transport tells of an incoming snapshot: the node."""

    @abstractmethod
    async def begin(self, header: SnapshotHeader) -> SnapshotArrival:
        """Raises SnapshotFailed when it is not wanted. A newer transfer ends the one before it."""


@final
class MemorySnapshot(SnapshotReader):
    """A small state, as bytes."""

    NAME: Final = "state"

    def __init__(self, index: Index, term: Term, state: bytes) -> None:
        self.index = index
        self.term = term
        self.files = [SnapshotFile(self.NAME, len(state), hashlib.sha256(state).hexdigest())]
        self._state = state

    def read(self, name: str, offset: int, size: int) -> bytes:
        return self._state[offset : offset + size]

    def close(self) -> None:
        self._state = b""


@final
class MemoryWriter(SnapshotWriter):
    """Collects a MemorySnapshot. The same object may take several transfers, one after the other."""

    def __init__(self, bytes_max: int = 64 * 1024 * 1024) -> None:
        self._bytes_max = bytes_max
        self._wanted: tuple[SnapshotMeta, SnapshotFile] | None = None
        self._state = bytearray()

    @property
    def state(self) -> bytes:
        return bytes(self._state)

    def begin(self, meta: SnapshotMeta, files: list[SnapshotFile]) -> dict[str, int]:
        if len(files) != 1 or files[0].size > self._bytes_max:
            raise SnapshotFailed(f"a state of one file and at most {self._bytes_max} bytes is expected")
        if self._wanted != (meta, files[0]):
            self._wanted = (meta, files[0])
            self._state.clear()
        return {files[0].name: len(self._state)}

    def write(self, name: str, offset: int, data: bytes) -> None:
        assert offset == len(self._state), f"gap: {offset} after {len(self._state)}"
        self._state += data

    def finish(self) -> None:
        assert self._wanted is not None, "finish() before begin()"
        if hashlib.sha256(self._state).hexdigest() != self._wanted[1].sha256:
            raise SnapshotFailed("the checksum of the state is wrong")

    def discard(self) -> None:
        self._wanted = None
        self._state.clear()


def repair_log(storage: LogStorage, loaded: Loaded, installed: SnapshotMeta) -> Loaded:
    """Finish what a crash between the installation of `installed` and the reset of the log has left undone.

    The state is ahead of the log then, or holds another history than it (S-22, S-25): the log starts anew
    behind the snapshot. `loaded` is what storage.load() returned, and so is the result. Raises StorageError.
    """
    index = installed.index
    if index < storage.first_index - 1:
        return loaded  # the log has been compacted beyond it, so it was in order
    if index <= storage.last_index and storage.term_at(index) == installed.term:
        return loaded
    storage.reset(index, installed.term, installed.configuration, installed.context)
    state = state_after_reset(loaded.hard_state, index, installed.term)
    return Loaded(state, installed.configuration, [], installed.context)
