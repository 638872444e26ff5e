"""A store, opened for reading only: its positions, members, leases, and how many rows of each kind it has."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from kvstore.debug.directory import NotThere, is_in_use, state_directory
from kvstore.debug.messages import plain, text
from kvstore.mvcc import schema
from kvstore.mvcc.engine import Engine, StoreError
from kvstore.mvcc.leases import decode_row
from kvstore.mvcc.store import MvccStore, StoreOptions
from kvstore.pb.kv_pb2 import KeyValue
from kvstore.state.cluster import ClusterTable

__all__ = ["StoreError", "keys", "open_state", "rows", "summary"]

KINDS: Final = {  # first byte of a row -> what users read
    schema.LATEST: "latest (live keys)",
    schema.VERSION: "versions",
    schema.EVENT: "events (history)",
    schema.RECORD: "records (who and when)",
    schema.CLUSTER: "cluster",
    schema.LEASE: "leases",
    schema.LEASED: "keys of leases",
    schema.META: "meta",
}
_CHUNK: Final = 4096


def open_state(path: Path) -> MvccStore:
    """Raises NotThere, StoreError. The caller closes it."""
    directory = state_directory(path)
    if is_in_use(directory):
        # Files vanish under a reader while RocksDB compacts, and what is newest is in the member's memory only.
        raise NotThere(f"a member is running on {directory}: stop it first, or print a copy of the directory")
    return MvccStore.open(directory, StoreOptions(engine=partial(Engine, read_only=True)))


def summary(store: MvccStore) -> dict[str, Any]:
    cluster = ClusterTable(store)
    return {
        "path": str(store.engine.path),
        "applied": f"{store.applied_index}@{store.applied_term}",
        "revision": store.current_revision,
        "compact_revision": store.compact_revision,
        "cluster": f"{cluster.cluster_id:x}",
        "members": [plain(member.message(), True) for member in cluster.members()],
        "removed": [f"{one:x}" for one in cluster.removed()],
        "leases": [_lease(row, value) for row, value in rows(store, schema.LEASE)],
        "rows": {name: sum(1 for _ in rows(store, kind)) for kind, name in KINDS.items()},
    }


def rows(store: MvccStore, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    scan = store.scan(prefix, prefix[:-1] + bytes([prefix[-1] + 1]))
    while found := scan.rows(_CHUNK):
        yield from found


def keys(store: MvccStore, prefix: bytes, show_values: bool) -> Iterator[dict[str, Any]]:
    """Live keys that begin with `prefix`."""
    for row, kv in rows(store, schema.LATEST + prefix):
        yield {"key": text(row[1:]), **plain(KeyValue.FromString(kv), show_values)}


def _lease(row: bytes, value: bytes) -> dict[str, Any]:
    lease = decode_row(value)
    return {"id": f"{schema.unpack_u64(row[1:]):x}", "ttl": lease.ttl, "remaining": lease.remaining}
