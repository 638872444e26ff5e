"""A snapshot file, of etcd or of ours, as the state that a new cluster begins with.

A function of the file: every member of the new cluster loads the same file and has the same rows. Nothing of it came
through a log, so the state stands at entry INDEX of term TERM, which all logs of the new cluster begin behind.

The file is read once, in the order of revisions; the live keys come out of it by themselves, since a later row
replaces an earlier one. What is in the file is checked as a client's request would be, and is encoded anew: later
everything in the store is believed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeVar, final

from google.protobuf.message import DecodeError, Message

from kvstore.bbolt.reader import BboltError, BboltReader
from kvstore.mvcc import schema as rows
from kvstore.mvcc.encoding import delete_event, key_value, put_event, varint
from kvstore.mvcc.leases import LeaseRow, lease_of
from kvstore.mvcc.store import MvccStore, StateRow
from kvstore.pb.command_pb2 import EntryRecord
from kvstore.pb.kv_pb2 import KeyValue
from kvstore.pb.lease_pb2 import Lease
from kvstore.snapshot import schema
from kvstore.snapshot.file import Told

INDEX: Final = 1
TERM: Final = 1
TTL_MAX: Final = 9_000_000_000  # etcd's
_BATCH_BYTES: Final = 1 << 20
_CHUNK: Final = 1024

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Loaded:
    revision: int
    compact_revision: int
    keys: int
    leases: int


def load(reader: BboltReader, store: MvccStore, bump: int, told: Told) -> Loaded:
    """Fill an empty store. bump: revisions to leave out, and to mark as compacted; 0: none.

    Raises BboltError, StoreError, OSError: then the store is of no use. Blocks. The caller flushes.
    """
    return _Loading(reader, store, told).run(bump)


@final
class _Loading:
    def __init__(self, reader: BboltReader, store: MvccStore, told: Told) -> None:
        self._reader = reader
        self._store = store
        self._told = told
        self._batch = store.engine.batch()
        self._batch_bytes = 0
        self._leases: set[int] = set()
        self._revision = 1

    def run(self, bump: int) -> Loaded:
        self._check_auth()
        scheduled, finished = self._compactions()
        self._load_leases()
        self._load_keys(finished)
        self._write()
        keys = self._bind_leases()
        compact = max(scheduled, finished)
        revision = max(self._revision, compact)
        if bump:
            revision = compact = revision + bump
            if revision > schema.NUMBER_MAX:
                raise BboltError(f"revision {revision} is too large")
        # Whoever asks for the history of these revisions is told that nobody knows who and when.
        record = EntryRecord(index=INDEX, term=TERM)
        self._batch.put(rows.record_row(revision), record.SerializeToString(deterministic=True))
        self._batch.put(rows.META_COMPACTED, rows.pack_u64(finished))
        self._store.commit(self._batch, StateRow(INDEX, TERM, revision, compact))
        return Loaded(revision, compact, keys, len(self._leases))

    def _rows(self, bucket: bytes) -> Iterator[tuple[bytes, bytes]]:
        for page in self._reader.rows(bucket):
            yield from page
            self._told(sum([len(key) + len(value) for key, value in page]))

    def _compactions(self) -> tuple[int, int]:
        """How far etcd had been told to compact, and how far it had got."""
        found = dict(self._rows(schema.META))
        scheduled, finished = (
            schema.split_revision(found[name])[0] if name in found else 0
            for name in (schema.SCHEDULED_COMPACTION, schema.FINISHED_COMPACTION)
        )
        return scheduled, finished

    def _check_auth(self) -> None:
        """A cluster that asked for passwords must not come back as one that does not."""
        if dict(self._rows(schema.AUTH)).get(schema.AUTH_ENABLED, b"\0") != b"\0":
            raise BboltError("authentication is on in it, which this version does not restore")

    def _load_leases(self) -> None:
        for row, value in self._rows(schema.LEASE):
            lease = _parsed(Lease, row, value)
            if row != schema.lease_row(lease.ID) or not lease.ID:
                raise BboltError(f"the lease in row {row.hex()} says that it is {lease.ID:x}")
            if not 0 < lease.TTL <= TTL_MAX or not 0 <= lease.RemainingTTL <= lease.TTL:
                raise BboltError(f"lease {lease.ID:x} has a TTL of {lease.TTL}, of which {lease.RemainingTTL} are left")
            self._leases.add(lease.ID)
            self._put(rows.lease_row(lease.ID), LeaseRow(lease.TTL, lease.RemainingTTL).encode())

    def _load_keys(self, finished: int) -> None:
        last = (0, 0)
        for row, value in self._rows(schema.KEY):
            revision, sub, is_tombstone = schema.split_revision(row)
            if (revision, sub) <= last:
                raise BboltError(f"revision {revision}.{sub} comes twice")
            last = (revision, sub)
            self._revision = revision
            if not value:
                continue  # etcdutl's mark of a revision that was bumped
            kv = _parsed(KeyValue, row, value)
            if not kv.key:
                raise BboltError(f"revision {revision}.{sub} has no key")
            if is_tombstone:
                self._load_tombstone(kv.key, revision, sub, is_removed=revision <= finished)
            else:
                self._load_put(kv, revision, sub)

    def _load_put(self, kv: KeyValue, revision: int, sub: int) -> None:
        if kv.mod_revision != revision or not 0 < kv.create_revision <= revision or kv.version < 1:
            raise BboltError(
                f"revision {revision}.{sub} says that it is {kv.mod_revision}, the key's {kv.version}. version "
                f"since {kv.create_revision}"
            )
        encoded = key_value(kv.key, varint(kv.create_revision), varint(revision), kv.version, kv.value, kv.lease)
        self._put(rows.event_row(revision, sub), put_event(encoded))
        self._put(rows.version_key(kv.key, revision, sub), b"")
        self._put(rows.LATEST + kv.key, encoded)

    def _load_tombstone(self, key: bytes, revision: int, sub: int, *, is_removed: bool) -> None:
        self._put(rows.event_row(revision, sub), delete_event(key, varint(revision)))
        if not is_removed:  # as our own compaction would have
            self._put(rows.version_key(key, revision, sub), rows.TOMBSTONE)
        self._batch.delete(rows.LATEST + key)

    def _bind_leases(self) -> int:
        """Rows from leases to their keys, once it is known which keys there are. Returns their number."""
        count = 0
        scan = self._store.scan(*rows.latest_rows(b"", None))
        while found := scan.rows(_CHUNK):
            count += len(found)
            for row, kv in found:
                lease = lease_of(kv)
                if lease in self._leases:
                    self._put(rows.leased_row(lease, row[1:]), b"")
        return count

    def _put(self, row: bytes, value: bytes) -> None:
        self._batch.put(row, value)
        self._batch_bytes += len(row) + len(value)  # asking the batch takes as long as it is large
        if self._batch_bytes >= _BATCH_BYTES:
            self._write()

    def _write(self) -> None:
        # Blocks while RocksDB has to flush, which bounds memory; there is no loop to hold up.
        self._store.write(self._batch)
        self._batch = self._store.engine.batch()
        self._batch_bytes = 0


def _parsed(kind: type[M], row: bytes, value: bytes) -> M:
    try:
        return kind.FromString(value)
    except DecodeError as error:
        raise BboltError(f"the value of row {row.hex()} is no {kind.__name__}") from error
