"""SmallStateMachine: a state machine whose whole state is some bytes, with all that snapshots need.

    class Counter(SmallStateMachine):
        value = 0

        def command(self, data: bytes) -> None:
            self.value += int(data)

        def dump(self) -> bytes:
            return b"%d" % self.value

        def restore(self, state: bytes) -> None:
            self.value = int(state)

The state lives in memory. `save` writes it to a file, whole or not at all, and says up to where the log is not
needed any more: `await node.compact(machine.save())` from time to time keeps the log short. A start reads the
file, and the log brings what came after it. State of many megabytes wants a StateMachine of its own, as each
`save` and each snapshot writes all of it while the loop waits.
"""

import hashlib
from abc import abstractmethod
from pathlib import Path
from struct import Struct
from typing import Final

from raft.apply import StateMachine
from raft.core.membership import decode_configuration, encode_configuration
from raft.errors import Corrupt, MalformedMessage, StorageError, UnknownFormat
from raft.snapshot import MemorySnapshot, MemoryWriter, ReceivedSnapshot, SnapshotReader, SnapshotWriter
from raft.storage.file_system import FileSystem, OsFileSystem
from raft.types import Entry, EntryKind, Index, SnapshotMeta, Term

MAGIC: Final = b"raftstat"
FORMAT: Final = 1
# magic, format, bytes of the configuration; applied index and term; index and term of the last installed snapshot
_HEAD: Final = Struct("<8sIIQQQQ")
_DIGEST: Final = hashlib.sha256


class SmallStateMachine(StateMachine):
    """`path` is the file of the state, in a directory that is there. Raises StorageError."""

    def __init__(self, path: Path, *, state_bytes_max: int = 64 * 1024 * 1024, file_system: FileSystem | None = None):
        self._path = path
        self._file_system = file_system if file_system is not None else OsFileSystem()
        self._writer = MemoryWriter(state_bytes_max)
        self._applied: Index = 0
        self._term: Term = 0  # of the entry at _applied
        self._installed: SnapshotMeta | None = None
        self._load()

    @abstractmethod
    def command(self, data: bytes) -> None:
        """Apply what somebody proposed. Deterministic; an exception stops the node."""

    @abstractmethod
    def dump(self) -> bytes:
        """The whole state."""

    @abstractmethod
    def restore(self, state: bytes) -> None:
        """Take over what `dump` gave, here or on another member."""

    def save(self) -> Index:
        """Write the state to its file; durable when this returns. What Node.compact may be called with."""
        self._store(self.dump())
        return self._applied

    # StateMachine

    @property
    def applied_index(self) -> Index:
        return self._applied

    async def apply(self, entries: list[Entry]) -> None:
        for entry in entries:
            if entry.kind is EntryKind.COMMAND:
                self.command(entry.data)
            self._applied, self._term = entry.index, entry.term

    @property
    def installed(self) -> SnapshotMeta | None:
        return self._installed

    async def take_snapshot(self) -> SnapshotReader:
        return MemorySnapshot(self._applied, self._term, self.dump())

    def incoming(self) -> SnapshotWriter:
        return self._writer

    async def install_snapshot(self, snapshot: ReceivedSnapshot) -> None:
        state = self._writer.state
        self._writer.discard()
        self._installed = snapshot.meta
        self._applied, self._term = snapshot.meta.index, snapshot.meta.term
        self._store(state)
        self.restore(state)

    # The file

    def _store(self, state: bytes) -> None:
        meta = self._installed
        configuration = b"" if meta is None else encode_configuration(meta.configuration, meta.context)
        position = (0, 0) if meta is None else (meta.index, meta.term)
        head = _HEAD.pack(MAGIC, FORMAT, len(configuration), self._applied, self._term, *position)
        data = head + configuration + state
        files, temporary = self._file_system, self._path.with_name(self._path.name + ".new")
        try:
            if temporary.name in files.names(self._path.parent):
                files.unlink(temporary)
            file = files.create(temporary)
            file.pwritev([data, _DIGEST(data).digest()], 0)
            file.fdatasync()
            file.close()
            files.rename(temporary, self._path)
            files.sync_directory(self._path.parent)
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be written: {error}") from error

    def _load(self) -> None:
        files = self._file_system
        if self._path.name not in files.names(self._path.parent):
            return
        file = files.open(self._path)
        data = file.pread(file.size(), 0)
        file.close()
        end = len(data) - _DIGEST().digest_size
        if end < _HEAD.size or _DIGEST(data[:end]).digest() != data[end:]:
            raise Corrupt(f"{self._path} is damaged: restore it, or remove this member and add it again")
        magic, number, length, self._applied, self._term, index, term = _HEAD.unpack_from(data)
        if magic != MAGIC or number != FORMAT:
            raise UnknownFormat(f"{self._path} has format {number}; this version knows {FORMAT}")
        begin = _HEAD.size + length
        if length:
            try:
                configuration, context = decode_configuration(data[_HEAD.size : begin])
            except MalformedMessage as error:
                raise Corrupt(f"{self._path}: {error}") from error
            self._installed = SnapshotMeta(index, term, configuration, context)
        self.restore(data[begin:end])
