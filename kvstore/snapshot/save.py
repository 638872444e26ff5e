"""The state of a member as a snapshot file, sent to a client: Maintenance.Snapshot.

A client is told how much will come before the first byte, and a bbolt file says at its front where its end is. So
the file is made first, beside the data, as a file without a name: whatever ends this process, nothing is left.

    pin      the numbers and a view, in one step of the loop; whatever is applied afterwards is not in it
    spool    rows in slices, pages to the disk from a thread
    send     32 KiB at a time, then the SHA-256 of all of it

What the file takes in memory: a page of each level, a piece that is being written, and a bit per revision that is
compacted (revisions.py). Files are made one at a time; who comes while too many are being made or sent is refused.
"""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import IO, Final, final

import structlog

from kvstore.bbolt.writer import HEAD_BYTES, BboltWriter
from kvstore.errors import TOO_MANY_REQUESTS, Code, KvError
from kvstore.measure import SNAPSHOT_FILES
from kvstore.mvcc import schema as rows
from kvstore.mvcc.encoding import event_key, event_kv, field, is_delete
from kvstore.mvcc.leases import read_leases
from kvstore.mvcc.slices import in_thread
from kvstore.mvcc.store import MvccStore
from kvstore.pb.lease_pb2 import Lease
from kvstore.snapshot import schema
from kvstore.snapshot.revisions import Survivors
from kvstore.state.alarms import read_alarms
from kvstore.state.cluster import ClusterTable

log = structlog.get_logger(__name__)

BLOB_BYTES: Final = 32 << 10  # etcd's
FILES_MAX: Final = 4  # that are being made, or sent
FILE_PREFIX: Final = "snapshot-file-"  # where a file cannot be made without a name, it has one for a moment
ROOM_BYTES: Final = 64 << 20  # that a file leaves free on the disk: the member goes on meanwhile
_PIECE_BYTES: Final = 1 << 20  # between memory and disk
_CHUNK: Final = 256  # rows

NO_SPACE: Final = KvError(Code.RESOURCE_EXHAUSTED, "etcdserver: too little space on the disk to make a snapshot")


@final
class SpooledFile:
    """A file without a name, in a folder's file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder, prefix=FILE_PREFIX, buffering=0)  # noqa: SIM115
        self.size = 0

    def check_room(self, needed: int) -> None:
        found = os.statvfs(self._folder)
        if found.f_bavail * found.f_frsize < needed + ROOM_BYTES:
            raise NO_SPACE.fresh()

    def write(self, data: bytes, at: int) -> None:
        """Blocks. Raises KvError, OSError."""
        self.check_room(len(data))
        descriptor, left = self._file.fileno(), memoryview(data)
        while left:
            written = os.pwrite(descriptor, left, at)
            left, at = left[written:], at + written
        self.size = max(self.size, at)

    def read(self, at: int) -> bytes:
        """The next piece. Blocks."""
        data = os.pread(self._file.fileno(), _PIECE_BYTES, at)
        if not data:
            raise OSError("a spooled snapshot has become shorter")
        return data

    def close(self) -> None:
        self._file.close()


@final
class Pinned:
    """The state as it is when this is made. Close it."""

    def __init__(self, store: MvccStore, cluster: ClusterTable) -> None:
        self.view = store.view()
        self.budget = self.view.big_write_budget()  # it takes seconds, and is in nobody's hurry
        self.state = store.state
        self.auth = store.auth
        self.members = cluster.members()
        self.removed = cluster.removed()
        self.alarms = read_alarms(store)

    def close(self) -> None:
        self.view.close()

    def meta(self) -> dict[bytes, bytes]:
        state = self.state
        found = {
            schema.CONSISTENT_INDEX: schema.pack_u64(state.applied_index),
            schema.TERM: schema.pack_u64(state.applied_term),
            schema.CONF_STATE: schema.conf_state(
                [one.id for one in self.members if not one.is_learner],
                [one.id for one in self.members if one.is_learner],
            ),
        }
        if state.compact_revision:
            # Finished: the file has nothing that is hidden below it.
            compacted = schema.revision_row(state.compact_revision, 0)
            found |= {schema.SCHEDULED_COMPACTION: compacted, schema.FINISHED_COMPACTION: compacted}
        return found

    def members_rows(self) -> dict[bytes, bytes]:
        return {
            schema.member_row(one.id): schema.member(one.id, one.name, one.peer_urls, one.client_urls, one.is_learner)
            for one in self.members
        }

    def auth_rows(self) -> dict[bytes, bytes]:
        return {
            schema.AUTH_ENABLED: b"\1" if self.auth.enabled else b"\0",
            schema.AUTH_REVISION: schema.pack_u64(self.auth.revision),
        }

    def user_rows(self) -> dict[bytes, bytes]:
        return {name.encode(): user.SerializeToString(deterministic=True) for name, user in self.auth.users.items()}

    def role_rows(self) -> dict[bytes, bytes]:
        return {name.encode(): role.SerializeToString(deterministic=True) for name, role in self.auth.roles.items()}

    async def lease_rows(self) -> AsyncGenerator[list[tuple[bytes, bytes]], None]:
        # Ids are signed, and etcd sorts their bytes: so do the rows of the store, whose ids are packed alike.
        async for leases in read_leases(self.view):
            yield [
                (
                    schema.lease_row(lease),
                    Lease(ID=lease, TTL=row.ttl, RemainingTTL=row.remaining).SerializeToString(),
                )
                for lease, row in leases
            ]

    async def key_rows(self) -> AsyncGenerator[list[tuple[bytes, bytes]], None]:
        """Everything that survives the last compaction, in the order of revisions."""
        survivors = Survivors(self.view)
        await survivors.find(self.budget)
        after = self.view.compact_revision + 1
        for low, high in survivors.revisions.intervals():
            async for chunk in self._event_rows(survivors, low, high):
                yield chunk
        async for chunk in self._event_rows(survivors, after, self.view.current_revision + 1):
            yield chunk

    async def _event_rows(
        self, survivors: Survivors, low: int, high: int
    ) -> AsyncGenerator[list[tuple[bytes, bytes]], None]:
        scan = self.view.scan(rows.event_from(low), rows.event_from(high))
        compact = self.view.compact_revision
        while events := scan.rows(_CHUNK):
            found: list[tuple[bytes, bytes]] = []
            for row, event in events:
                revision, sub = rows.split_event(row)
                is_gone = is_delete(event)
                if revision <= compact and not survivors.holds(event_key(event), revision, sub, is_gone):
                    continue
                if is_gone:
                    found.append((schema.tombstone_row(revision, sub), field(b"\x0a", event_key(event))))
                else:
                    found.append((schema.revision_row(revision, sub), event_kv(event)))
            yield found


@final
class SnapshotFiles:
    """Of one member. Used on the loop."""

    def __init__(self, store: MvccStore, cluster: ClusterTable, folder: Path) -> None:
        """folder: where the files are made; its file system must have room for them."""
        self._store = store
        self._cluster = cluster
        self._folder = folder
        self._open = 0
        self._making = asyncio.Lock()

    @asynccontextmanager
    async def file(self) -> AsyncIterator[SpooledFile]:
        """A whole file of the state as it was at some moment since the call. Raises KvError, StoreError, OSError."""
        if self._open >= FILES_MAX:
            raise TOO_MANY_REQUESTS.fresh()
        self._open += 1
        try:
            spooled = SpooledFile(self._folder)
            try:
                async with self._making:
                    with SNAPSHOT_FILES.time():
                        await self._make(spooled)
                yield spooled
            finally:
                await in_thread(spooled.close)  # gives the blocks of the whole file back
        finally:
            self._open -= 1

    async def _make(self, spooled: SpooledFile) -> None:
        spooled.check_room(self._store.size_bytes()[1])
        pinned = Pinned(self._store, self._cluster)
        try:
            await self._write(pinned, spooled)
        finally:
            pinned.close()
        log.info("made a snapshot file", revision=pinned.view.current_revision, bytes=spooled.size)

    async def _write(self, pinned: Pinned, spooled: SpooledFile) -> None:
        writer = BboltWriter()
        at = HEAD_BYTES
        for bucket, found in (
            (schema.META, pinned.meta()),
            (schema.MEMBERS, pinned.members_rows()),
            (schema.MEMBERS_REMOVED, {schema.member_row(id_): schema.REMOVED for id_ in pinned.removed}),
            (schema.AUTH, pinned.auth_rows()),
            (schema.AUTH_USERS, pinned.user_rows()),
            (schema.AUTH_ROLES, pinned.role_rows()),
            (schema.ALARM, {alarm.SerializeToString(): b"" for alarm in pinned.alarms}),
            (schema.CLUSTER, {}),
        ):
            writer.begin(bucket)
            for key, value in sorted(found.items()):
                writer.add(key, value)
        for bucket, chunks in ((schema.LEASE, pinned.lease_rows()), (schema.KEY, pinned.key_rows())):
            writer.begin(bucket)
            async with aclosing(chunks):
                async for chunk in chunks:
                    for key, value in chunk:
                        writer.add(key, value)
                    if writer.ready_bytes >= _PIECE_BYTES:
                        at = await _append(writer, spooled, at)
                    await pinned.budget.pause_if_spent()
        head = writer.finish()
        await _append(writer, spooled, at)
        await in_thread(lambda: spooled.write(head, 0))


async def _append(writer: BboltWriter, spooled: SpooledFile, at: int) -> int:
    """Returns where the file ends now."""
    data = writer.take()
    await in_thread(lambda: spooled.write(data, at))
    return at + len(data)


async def blobs(spooled: SpooledFile) -> AsyncGenerator[tuple[bytes, int], None]:
    """(blob, bytes that are still to come); at the end the SHA-256 of all of it, with 0."""
    digest = hashlib.sha256()
    sent = 0
    while sent < spooled.size:
        piece = await in_thread(lambda at=sent: spooled.read(at))  # type: ignore[misc]
        for start in range(0, len(piece), BLOB_BYTES):
            blob = piece[start : start + BLOB_BYTES]
            digest.update(blob)
            sent += len(blob)
            yield blob, spooled.size - sent
    yield digest.digest(), 0
