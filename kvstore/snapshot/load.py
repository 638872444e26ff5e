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

from kvstore.auth.table import ROOT, STATE_ROW, AuthTable, role_row, user_row
from kvstore.bbolt.reader import BboltError, BboltReader
from kvstore.mvcc import schema as rows
from kvstore.mvcc.encoding import delete_event, key_value, put_event, varint
from kvstore.mvcc.leases import LeaseRow, lease_of
from kvstore.mvcc.live import KEY_BYTES, LEASE_BYTES, LiveBytes
from kvstore.mvcc.store import MvccStore, StateRow
from kvstore.pb.auth_pb2 import Role, User
from kvstore.pb.command_pb2 import EntryRecord
from kvstore.pb.kv_pb2 import KeyValue
from kvstore.pb.lease_pb2 import Lease
from kvstore.pb.rpc_pb2 import AlarmMember, AlarmType
from kvstore.snapshot import schema
from kvstore.snapshot.file import Told
from kvstore.state.alarms import alarm_row

INDEX: Final = 1
TERM: Final = 1
TTL_MAX: Final = 9_000_000_000  # etcd's
_BATCH_BYTES: Final = 1 << 20
_CHUNK: Final = 1024
_ROW_BYTES: Final = 40  # about, of what the rows of a change take beside its key and value

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
        self._base_bytes = self._written = 0  # of keys up to the compact revision, of rows behind it

    def run(self, bump: int) -> Loaded:
        self._load_auth()
        self._load_alarms()
        scheduled, finished = self._compactions()
        self._load_leases()
        compact = max(scheduled, finished)
        self._load_keys(finished, compact)
        self._write()
        keys, keys_bytes = self._bind_leases()
        revision = max(self._revision, compact)
        if bump:
            revision = compact = revision + bump
            if revision > schema.NUMBER_MAX:
                raise BboltError(f"revision {revision} is too large")
        self._put_live(keys_bytes, revision, is_compacted=bump > 0)
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

    def _load_auth(self) -> None:
        users = {_name(row): _parsed(User, row, value) for row, value in self._rows(schema.AUTH_USERS)}
        roles = {_name(row): _parsed(Role, row, value) for row, value in self._rows(schema.AUTH_ROLES)}
        inside = [(name, user.name) for name, user in users.items()] + [
            (name, role.name) for name, role in roles.items()
        ]
        for name, found in inside:
            if found != name.encode():
                raise BboltError(f"the user or role in row {name!r} says that it is {found[:64]!r}")
        state = dict(self._rows(schema.AUTH))
        enabled = state.get(schema.AUTH_ENABLED, b"\0")
        revision = schema.split_u64(schema.AUTH_REVISION, state.get(schema.AUTH_REVISION, schema.pack_u64(1)))
        if enabled not in (b"\0", b"\1") or not 0 < revision <= schema.NUMBER_MAX:
            raise BboltError(f"authentication is {enabled[:64]!r}, at revision {revision}")
        table = AuthTable(enabled == b"\1", revision, users, roles)
        if table.enabled and not table.is_root(ROOT):
            raise BboltError("authentication is on, and nobody is root")
        for name, user in users.items():
            self._put(user_row(name), user.SerializeToString(deterministic=True))
        for name, role in roles.items():
            self._put(role_row(name), role.SerializeToString(deterministic=True))
        self._put(STATE_ROW, table.state_row())

    def _load_alarms(self) -> None:
        """As etcd, which takes them along: who restores has not yet looked what was wrong."""
        for row, _ in self._rows(schema.ALARM):
            alarm = _parsed(AlarmMember, row, row)
            if alarm.alarm not in (AlarmType.NOSPACE, AlarmType.CORRUPT):
                raise BboltError(f"an alarm of type {alarm.alarm}")
            self._put(alarm_row(alarm), b"")

    def _put_live(self, keys_bytes: int, revision: int, *, is_compacted: bool) -> None:
        """What the quota counts (mvcc/live.py). Up to the compact revision the file has the keys as they were then."""
        keys = keys_bytes + len(self._leases) * LEASE_BYTES
        if is_compacted:
            live = LiveBytes(keys=keys, base_keys=keys)
        else:
            base = self._base_bytes + len(self._leases) * LEASE_BYTES
            live = LiveBytes(keys=keys, written=self._written, base_keys=base)
        live.put(self._batch, LiveBytes(), revision, None)

    def _load_leases(self) -> None:
        for row, value in self._rows(schema.LEASE):
            lease = _parsed(Lease, row, value)
            if row != schema.lease_row(lease.ID) or not lease.ID:
                raise BboltError(f"the lease in row {row.hex()} says that it is {lease.ID:x}")
            if not 0 < lease.TTL <= TTL_MAX or not 0 <= lease.RemainingTTL <= lease.TTL:
                raise BboltError(f"lease {lease.ID:x} has a TTL of {lease.TTL}, of which {lease.RemainingTTL} are left")
            self._leases.add(lease.ID)
            self._put(rows.lease_row(lease.ID), LeaseRow(lease.TTL, lease.RemainingTTL).encode())

    def _load_keys(self, finished: int, compact: int) -> None:
        last = (0, 0)
        for row, value in self._rows(schema.KEY):
            revision, sub, is_tombstone = schema.split_revision(row)
            if (revision, sub) <= last:
                raise BboltError(f"revision {revision}.{sub} comes twice")
            last = (revision, sub)
            self._revision = revision
            if revision > compact:
                self._written += 2 * len(row) + len(value) + _ROW_BYTES
            elif not is_tombstone:
                self._base_bytes += len(value) + KEY_BYTES
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
        event_row = rows.event_row(revision, sub)
        self._put(event_row, put_event(encoded))
        self._put(rows.version_key(kv.key, revision, sub), b"")
        if len(encoded) < rows.LARGE_BYTES:
            self._put(rows.LATEST + kv.key, encoded)
        else:
            self._put(rows.LATEST + kv.key, event_row)
            self._put(rows.META_FORMAT, rows.pack_u64(rows.FORMAT_2))

    def _load_tombstone(self, key: bytes, revision: int, sub: int, *, is_removed: bool) -> None:
        self._put(rows.event_row(revision, sub), delete_event(key, varint(revision)))
        if not is_removed:  # as our own compaction would have
            self._put(rows.version_key(key, revision, sub), rows.TOMBSTONE)
        self._batch.delete(rows.LATEST + key)

    def _bind_leases(self) -> tuple[int, int]:
        """Rows from leases to their keys, once it is known which keys there are. Returns how many, and their bytes."""
        count = size = 0
        scan = self._store.scan(*rows.latest_rows(b"", None))
        while found := scan.rows(_CHUNK):
            count += len(found)
            for row, kv in found:
                size += len(kv) + KEY_BYTES
                lease = lease_of(kv)
                if lease in self._leases:
                    self._put(rows.leased_row(lease, row[1:]), b"")
        return count, size

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


def _name(row: bytes) -> str:
    try:
        return row.decode()
    except UnicodeDecodeError as error:
        raise BboltError(f"{row[:64]!r} is no name of a user or role") from error


def _parsed(kind: type[M], row: bytes, value: bytes) -> M:
    try:
        return kind.FromString(value)
    except DecodeError as error:
        raise BboltError(f"the value of row {row.hex()} is no {kind.__name__}") from error
