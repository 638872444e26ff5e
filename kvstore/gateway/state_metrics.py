"""What the state is and what was done to it: keys, revisions, leases, watches, and how long the work on it took.

What etcd counts for each change is counted here for each batch of them (kvstore/mvcc/totals.py).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from prometheus_client.metrics_core import HistogramMetricFamily, Metric

from kvstore import measure
from kvstore.gateway.families import buckets, counter, gauge, histogram

if TYPE_CHECKING:
    from kvstore.server.server import KvServer

SLOW_SECONDS: Final = 0.1  # etcd's


def state_metrics(server: "KvServer", keys: int) -> Iterable[Metric]:
    """keys: how many live keys there are."""
    yield from _sizes(server, keys)
    yield from _changes(server)
    yield from _leases(server)
    yield from _watches(server)
    yield from _compactions(server)
    yield from _durations()
    yield from _applies()


def _sizes(server: "KvServer", keys: int) -> Iterable[Metric]:
    store = server.store
    total, in_use = store.size_bytes()
    yield gauge(
        "etcd_mvcc_db_total_size_in_bytes",
        "Total size of the underlying database physically allocated in bytes.",
        total,
    )
    yield gauge(
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "Total size of the underlying database logically in use in bytes.",
        in_use,
    )
    yield gauge("etcd_server_quota_backend_bytes", "Current backend storage quota size in bytes.", server.quota.flag)
    yield gauge("etcd_debugging_mvcc_current_revision", "The current revision of store.", store.current_revision)
    yield gauge(
        "etcd_debugging_mvcc_compact_revision", "The revision of the last compaction in store.", store.compact_revision
    )
    yield gauge("etcd_debugging_mvcc_keys_total", "Total number of keys.", keys)
    yield gauge("etcd_debugging_auth_revision", "The current revision of auth store.", store.auth.revision)
    yield gauge(
        "etcd_server_snapshot_apply_in_progress_total",
        "1 if the server is applying the incoming snapshot. 0 if none.",
        server.snapshots.installing,
    )
    yield gauge(
        "etcd_disk_defrag_inflight",
        "Whether or not defrag is active on the member. 1 means active, 0 means not.",
        server.defragmenter.running,
    )


def _changes(server: "KvServer") -> Iterable[Metric]:
    totals = server.store.totals
    yield counter("etcd_mvcc_put_total", "Total number of puts seen by this member.", totals.puts)
    yield counter("etcd_mvcc_delete_total", "Total number of deletes seen by this member.", totals.deletes)
    yield counter("etcd_mvcc_txn_total", "Total number of txns seen by this member.", totals.txns)
    yield gauge(
        "etcd_debugging_mvcc_total_put_size_in_bytes",
        "The total size of the rows that changes have written, seen by this member.",
        totals.rows_bytes,
    )
    yield gauge("etcd_disk_wal_write_bytes_total", "Total number of bytes written in WAL.", server.log.written_bytes)


def _leases(server: "KvServer") -> Iterable[Metric]:
    lessor = server.leases.lessor
    granted = sum(lessor.ttls.counts)
    yield counter("etcd_debugging_lease_granted_total", "The total number of granted leases.", granted)
    yield counter("etcd_debugging_lease_revoked_total", "The total number of revoked leases.", lessor.revoked)
    yield counter(
        "etcd_debugging_lease_renewed_total", "The number of renewed leases seen by the leader.", lessor.renewed
    )
    yield histogram("etcd_debugging_lease_ttl_total", "Bucketed histogram of lease TTLs.", lessor.ttls)
    yield counter("etcd_debugging_server_lease_expired_total", "Leases that ran out.", server.leases.expired)


def _watches(server: "KvServer") -> Iterable[Metric]:
    hub = server.hub
    yield gauge("etcd_debugging_mvcc_watch_stream_total", "Total number of watch streams.", len(hub.streams))
    yield gauge("etcd_debugging_mvcc_watcher_total", "Total number of watchers.", hub.watcher_count)
    yield gauge("etcd_debugging_mvcc_slow_watcher_total", "Total number of unsynced slow watchers.", hub.unsynced_count)
    yield counter("etcd_debugging_mvcc_events_total", "Total number of events sent by this member.", hub.sent_events)


def _compactions(server: "KvServer") -> Iterable[Metric]:
    yield counter(
        "etcd_debugging_mvcc_db_compaction_keys_total", "Total number of db keys compacted.", server.compactor.removed
    )
    yield gauge(
        "etcd_debugging_mvcc_db_compaction_last",
        "The unix time of the last db compaction. Resets to 0 on start.",
        int(server.housekeeper.compacted_at),
    )
    yield histogram(
        "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
        "Bucketed histogram of db compaction total duration.",
        measure.COMPACTIONS,
        1000,
    )


def _durations() -> Iterable[Metric]:
    for name, text, measured in (
        ("disk_wal_fsync", "fsync called by WAL", measure.FSYNCS),
        ("disk_backend_commit", "commit called by backend", measure.COMMITS),
        ("disk_backend_defrag", "backend defragmentation", measure.DEFRAGMENTS),
        ("disk_backend_snapshot", "backend snapshots", measure.SNAPSHOT_FILES),
        ("mvcc_hash", "storage hash operation", measure.HASHES),
        ("mvcc_hash_rev", "storage hash by revision operation", measure.HASHES_BY_REVISION),
    ):
        yield histogram(f"etcd_{name}_duration_seconds", f"The latency distributions of {text}.", measured)


def _applies() -> Iterable[Metric]:
    applies = measure.APPLIES
    family = HistogramMetricFamily(
        "etcd_server_apply_duration_seconds",
        "The latency distributions of what was applied at once.",
        labels=("version", "op", "success"),
    )
    family.add_metric(("v3", "Batch", "true"), buckets(applies), applies.total)
    yield family
    slow = sum(count for bound, count in zip(applies.bounds, applies.counts[1:], strict=True) if bound >= SLOW_SECONDS)
    yield counter("etcd_server_slow_apply_total", "Batches that took long to apply.", slow)
