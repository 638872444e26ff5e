"""Snapshots of the state: taken, sent, received, installed (thesis 5; the folders: state_folders.py).

    leader     take      flush, checkpoint (hard links), checksums in a thread -> FolderReader
    follower   incoming  FolderWriter: pieces into state-560.part/, verified, opened once to see what is in it,
                         fsynced, renamed to state-560/
               install   opened, CURRENT swung, and the store that everybody holds becomes that state

A kill at any step leaves the old state or the new one (tests/e2e/test_snapshot_crash.py). Between the swing
of CURRENT and the reset of the log the state is ahead of the log: the next start finds that out and resets
it (bootstrap.py).

What arrives is checked before it counts: names and sizes by the receiving node, room on the disk before the
first byte and content by checksum after the last one; then that the database opens, belongs to this cluster
and stands where the header said, with the configuration it said (S-26).

The old database stays open, and its folder there, until the last view and scan of it is gone.
"""

import asyncio
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, final

import structlog

from kvstore.failpoints import fail_async
from kvstore.mvcc import schema
from kvstore.mvcc.slices import in_thread
from kvstore.mvcc.store import MvccStore, StoreError, StoreOptions
from kvstore.server.state_folders import StateFolders, sync_directory, sync_file
from kvstore.state.cluster import ClusterTable
from raft.core.membership import decode_configuration
from raft.snapshot import ReceivedSnapshot, SnapshotFailed, SnapshotFile, SnapshotReader, SnapshotWriter
from raft.types import Configuration, Index, SnapshotMeta, Term

log = structlog.get_logger(__name__)

ROOM_BYTES: Final = 64 << 20  # left over beside an arriving snapshot: the log goes on meanwhile
_HASH_BYTES: Final = 1 << 20
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def configuration_of(store: MvccStore) -> tuple[Configuration, bytes]:
    """The raft configuration in force at the applied index, and its context."""
    row = store.get(schema.META_CONFIGURATION)
    if row is not None:
        return decode_configuration(row)
    members = ClusterTable(store).members()  # nothing was changed since the cluster's beginning
    return Configuration(
        tuple(member.id for member in members if not member.is_learner),
        tuple(member.id for member in members if member.is_learner),
    ), b""


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()  # lets the GIL go for each piece
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_HASH_BYTES):
            digest.update(piece)
    return digest.hexdigest()


@final
class FolderReader(SnapshotReader):
    """A checkpoint; its folder goes when it is closed. May be read by several transfers at once."""

    def __init__(self, folder: Path, index: Index, term: Term) -> None:
        self.index = index
        self.term = term
        self._folder = folder

    def list_files(self) -> None:
        """Blocks for as long as reading all of it takes."""
        self.files = [
            SnapshotFile(path.name, path.stat().st_size, _checksum(path)) for path in sorted(self._folder.iterdir())
        ]

    def read(self, name: str, offset: int, size: int) -> bytes:
        descriptor = os.open(self._folder / name, os.O_RDONLY)
        try:
            data = os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)
        if len(data) != size:
            raise OSError(errno.EIO, f"{name} of the checkpoint {self._folder.name} has become shorter")
        return data

    def close(self) -> None:
        shutil.rmtree(self._folder)


@final
class FolderWriter(SnapshotWriter):
    """One snapshot on its way into a folder; used again until `finish` has succeeded.

    Every call has the lock: `discard` may come at any time, from another thread.
    """

    def __init__(self, folders: StateFolders, cluster_id: int, options: StoreOptions) -> None:
        self.finished = False
        self._folders = folders
        self._cluster_id = cluster_id
        self._options = options
        self._meta: SnapshotMeta | None = None
        self._files: list[SnapshotFile] = []
        self._open: tuple[str, int] | None = None  # the file that is being written
        self._lock = threading.RLock()

    @property
    def index(self) -> Index:
        """Of the snapshot that is here in part or as a whole; 0: none."""
        return self._meta.index if self._meta is not None else 0

    @property
    def folder(self) -> Path:
        assert self._meta is not None, "no snapshot has begun"
        index = self._meta.index
        return self._folders.state(index) if self.finished else self._folders.arriving(index)

    def begin(self, meta: SnapshotMeta, files: list[SnapshotFile]) -> dict[str, int]:
        with self._lock:
            assert not self.finished
            self._close()
            if self._meta != meta or self._files != files:
                self.discard()
                if self._folders.state(meta.index).exists():
                    raise SnapshotFailed(f"the snapshot of entry {meta.index} is being installed already")
                self._meta, self._files = meta, files
            here = {file.name: self._size(file.name) for file in files}
            self._check_room(sum([file.size for file in files]) - sum(here.values()))
            self.folder.mkdir(mode=0o700, exist_ok=True)
            return here

    def _size(self, name: str) -> int:
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return 0

    def _check_room(self, needed: int) -> None:
        free = self._folders.free_bytes()
        if free < needed + ROOM_BYTES:
            self.discard()  # a member that runs out of space helps nobody
            log.warning("refused a snapshot: too little space on the disk", needed_bytes=needed, free_bytes=free)
            raise SnapshotFailed(f"the snapshot needs {needed} bytes of disk, {free} are free")

    def write(self, name: str, offset: int, data: bytes) -> None:
        with self._lock:
            if self._meta is None:
                raise SnapshotFailed("it was thrown away meanwhile")
            descriptor = self._descriptor(name)
            try:
                while data:
                    written = os.pwrite(descriptor, data, offset)
                    data, offset = data[written:], offset + written
            except OSError as error:
                if error.errno in _FULL:
                    self.discard()
                raise

    def _descriptor(self, name: str) -> int:
        if self._open is None or self._open[0] != name:
            self._close()
            self._open = name, os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._open[1]

    def _close(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def finish(self) -> None:
        with self._lock:
            if self._meta is None:
                raise SnapshotFailed("it was thrown away meanwhile")
            self._close()
            try:
                self._check_files(self._meta)
                self._check_content(self._meta)
            except SnapshotFailed:
                self.discard()
                raise
            for path in sorted(self.folder.iterdir()):
                sync_file(path)
            sync_directory(self.folder)
            self.folder.rename(self._folders.state(self._meta.index))
            self.finished = True
            sync_directory(self._folders.path)

    def _check_files(self, meta: SnapshotMeta) -> None:
        for file in self._files:
            path = self.folder / file.name
            path.touch(mode=0o600)  # nothing was written to an empty one
            if path.stat().st_size != file.size or _checksum(path) != file.sha256:
                raise SnapshotFailed(f"{file.name} of the snapshot of entry {meta.index} arrived damaged")

    def _check_content(self, meta: SnapshotMeta) -> None:
        """A state of this cluster, at the position and with the configuration that the header names."""
        try:
            store = MvccStore.open(self.folder, replace(self._options, engine=self._options.peek))
        except StoreError as error:
            raise SnapshotFailed(str(error)) from error
        try:
            found = (store.applied_index, store.applied_term, ClusterTable(store).cluster_id, configuration_of(store))
        finally:
            store.close()
        expected = (meta.index, meta.term, self._cluster_id, (meta.configuration, meta.context))
        if found != expected:
            raise SnapshotFailed(f"the snapshot holds {found}, and was announced as {expected}")

    def discard(self) -> None:
        with self._lock:
            self._close()
            if self._meta is not None and self.folder != self._folders.current:
                shutil.rmtree(self.folder, ignore_errors=True)
            self._meta, self._files = None, []
            self.finished = False


@final
class Snapshots:
    """Of one member. Its methods are called on the loop."""

    def __init__(self, store: MvccStore, folders: StateFolders, cluster_id: int) -> None:
        self._store = store
        self._folders = folders
        self._cluster_id = cluster_id
        self._loop = asyncio.get_running_loop()
        self.installing = False
        self._taken = 0  # numbers the checkpoints of this process
        self._writer: FolderWriter | None = None
        self._removals: set[asyncio.Task[None]] = set()

    async def take(self) -> FolderReader:
        """The state now, or a moment later. Raises StoreError, OSError."""
        await fail_async("snapshotBeforeCheckpoint")
        await self._store.flush()
        self._taken += 1
        folder = self._folders.checkpoint(self._taken)
        # Without a pause between the next two lines, so that the checkpoint is this very state.
        state = self._store.state
        self._store.engine.checkpoint(folder)
        reader = FolderReader(folder, state.applied_index, state.applied_term)
        try:
            await fail_async("snapshotAfterCheckpoint")
            await in_thread(reader.list_files)
        except BaseException:
            self._remove(folder)
            raise
        log.info("took a snapshot", index=reader.index, bytes=sum([file.size for file in reader.files]))
        return reader

    def incoming(self) -> FolderWriter:
        """Where the next snapshot goes: on from where the last one was cut off, if it is the same."""
        if self._writer is None or self._writer.finished:
            self._writer = FolderWriter(self._folders, self._cluster_id, self._store.options)
        return self._writer

    def applied(self, index: Index) -> None:
        """Whatever a snapshot up to `index` would bring is here: a part of one that was given up only takes space."""
        writer = self._writer
        if writer is not None and not writer.finished and 0 < writer.index <= index:
            self._writer = None
            self._spawn(writer.discard)

    async def install(self, source: ReceivedSnapshot) -> None:
        """Be that state. Durable when it returns. Raises StoreError, OSError: then nobody knows, and the process ends.

        Nothing may be applied meanwhile.
        """
        store, folders = self._store, self._folders
        index, writer = source.meta.index, source.writer
        assert isinstance(writer, FolderWriter)
        assert writer.finished, "a snapshot that was not verified is to be installed"
        if index <= store.applied_index:
            await in_thread(writer.discard)  # S-26: what was acknowledged here is newer
            return
        self.installing = True
        before = folders.current
        # So that the old database has nothing in memory that its end would have to write.
        await store.flush()
        other = await in_thread(lambda: MvccStore.open(writer.folder, store.options))
        await in_thread(lambda: folders.swing(index))
        applied = store.applied_index
        store.swap(other).on_unused(lambda close: self._unused(close, before))
        self.installing = False  # an error ends the process
        log.info("installed a snapshot", index=index, before=applied, revision=store.current_revision)

    def _unused(self, close: Callable[[], None], folder: Path) -> None:
        """In any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._remove, folder, close)

    def _remove(self, folder: Path, close: Callable[[], None] | None = None) -> None:
        """What is left over when the process ends goes at the next start."""
        self._spawn(lambda: _remove_folder(folder, close))

    def _spawn(self, work: Callable[[], None]) -> None:
        task = self._loop.create_task(in_thread(work))
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    async def stop(self) -> None:
        """Nothing is taken or received any more. Waits for removals under way."""
        await asyncio.gather(*self._removals)


def _remove_folder(folder: Path, close: Callable[[], None] | None) -> None:
    if close is not None:
        close()
    try:
        shutil.rmtree(folder)
    except OSError as error:
        log.warning("could not remove a folder; the next start tries again", name=folder.name, reason=str(error))
