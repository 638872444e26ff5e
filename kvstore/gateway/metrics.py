"""What Prometheus is told: the member's state at the moment of the scrape, under etcd's names.

Nothing here is called while requests are served. Whatever has to be counted as it happens is counted where it is rare:
changes of the leader, failed requests, answers about the health. Each server has a registry of its own.

Some of etcd's totals are gauges by type (proposals_committed_total, keys_total): dashboards know them so.
"""

import contextlib
import os
import resource
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kvstore.gateway.families import buckets, counter, gauge, histogram, label, untyped
from kvstore.gateway.rpc_metrics import rpc_metrics
from kvstore.measure import COMMITS, FSYNCS
from kvstore.rpc.counts import Counts
from kvstore.version import ETCD_VERSION

if TYPE_CHECKING:
    from kvstore.gateway.health import Health
    from kvstore.server.server import KvServer

SLOW_SECONDS: Final = 0.128
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4


@final
class Metrics:
    def __init__(self, server: "KvServer", health: "Health", counts: "Counts | None" = None) -> None:
        """counts: of the front that clients are served by."""
        self._registry = CollectorRegistry()
        self._state = _State(server, health, counts or Counts())
        self._registry.register(self._state)
        ProcessCollector(registry=self._registry)

    def exposition(self, keys: int) -> bytes:
        """keys: how many live keys the store holds, which cannot be known without waiting."""
        self._state.keys = keys
        return generate_latest(self._registry)


@final
class _State(Collector):
    def __init__(self, server: "KvServer", health: "Health", counts: Counts) -> None:
        self._server = server
        self._health_pages = health
        self._counts = counts
        self._scrapes = 0
        self.keys = 0
        self._leader_changes = 0
        server.on_leader_change.append(self._leader_changed)

    def _leader_changed(self) -> None:
        self._leader_changes += self._server.has_leader

    def describe(self) -> Iterable[Metric]:
        return []  # asked at registration, when there may be no state yet

    def collect(self) -> Iterable[Metric]:
        yield from self._raft()
        yield from self._store()
        yield from self._watch()
        yield from self._health()
        yield from self._identity()
        yield from self._network()
        yield from rpc_metrics(self._counts)
        yield from self._slow()
        yield from self._process()

    def _raft(self) -> Iterable[Metric]:
        server = self._server
        raft = server.status()
        leads = server.leader_id == server.member_id
        yield gauge(
            "etcd_server_has_leader", "Whether or not a leader exists. 1 is existence, 0 is not.", server.has_leader
        )
        yield gauge("etcd_server_is_leader", "Whether or not this member is a leader. 1 if is, 0 otherwise.", leads)
        yield gauge(
            "etcd_server_is_learner",
            "Whether or not this member is a learner. 1 if is, 0 otherwise.",
            server.is_learner,
        )
        yield counter(
            "etcd_server_leader_changes_seen_total", "The number of leader changes seen.", self._leader_changes
        )
        yield gauge(
            "etcd_server_proposals_committed_total", "The total number of consensus proposals committed.", raft.commit
        )
        yield gauge(
            "etcd_server_proposals_applied_total",
            "The total number of consensus proposals applied.",
            server.store.applied_index,
        )
        yield gauge(
            "etcd_server_proposals_pending",
            "The current number of pending proposals to commit.",
            server.waiting_requests,
        )
        yield counter(
            "etcd_server_proposals_failed_total", "The total number of failed proposals seen.", server.failed_requests
        )
        active = GaugeMetricFamily(
            "etcd_network_active_peers", "The current number of active peer connections.", labels=("Local", "Remote")
        )
        for peer in sorted(server.transport.connected()):
            active.add_metric((f"{server.member_id:x}", f"{peer:x}"), 1)
        yield active

    def _store(self) -> Iterable[Metric]:
        store = self._server.store
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
        yield gauge(
            "etcd_disk_defrag_inflight",
            "Whether or not defrag is active on the member. 1 means active, 0 means not.",
            self._server.defragmenter.running,
        )
        yield gauge(
            "etcd_server_quota_backend_bytes",
            "Current backend storage quota size in bytes.",
            self._server.quota.flag,
        )
        yield gauge("etcd_debugging_mvcc_current_revision", "The current revision of store.", store.current_revision)
        yield gauge(
            "etcd_debugging_mvcc_compact_revision",
            "The revision of the last compaction in store.",
            store.compact_revision,
        )

        yield gauge("etcd_debugging_mvcc_keys_total", "Total number of keys.", self.keys)

    def _watch(self) -> Iterable[Metric]:
        hub = self._server.hub
        yield gauge("etcd_debugging_mvcc_watch_stream_total", "Total number of watch streams.", len(hub.streams))
        yield gauge("etcd_debugging_mvcc_watcher_total", "Total number of watchers.", hub.watcher_count)
        yield gauge(
            "etcd_debugging_mvcc_slow_watcher_total", "Total number of unsynced slow watchers.", hub.unsynced_count
        )

    def _health(self) -> Iterable[Metric]:
        yield untyped(
            "etcd_server_health_success",
            "The total number of successful health checks",
            self._health_pages.answers[True],
        )
        yield untyped(
            "etcd_server_health_failures", "The total number of failed health checks", self._health_pages.answers[False]
        )

    def _identity(self) -> Iterable[Metric]:
        yield label(
            "etcd_server_id",
            "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
            "server_id",
            f"{self._server.member_id:x}",
        )
        yield label(
            "etcd_server_version",
            "Which version is running. 1 for 'server_version' label with current version.",
            "server_version",
            ETCD_VERSION,
        )
        yield label(
            "etcd_cluster_version",
            "Which version is running. 1 for 'cluster_version' label with current cluster version",
            "cluster_version",
            self._server.versions.cluster.rpartition(".")[0],
        )

    def _network(self) -> Iterable[Metric]:
        traffic = self._server.peers.traffic
        for name, key, bytes_ in (("sent", "To", traffic.sent_bytes), ("received", "From", traffic.received_bytes)):
            family = CounterMetricFamily(
                f"etcd_network_peer_{name}_bytes_total",
                f"The total number of bytes {name} {key.lower()} peers.",
                labels=(key,),
            )
            for peer, size in sorted(bytes_.items()):
                family.add_metric((f"{peer:x}",), size)
            yield family
        trips = HistogramMetricFamily(
            "etcd_network_peer_round_trip_time_seconds", "Round-Trip-Time histogram between peers", labels=("To",)
        )
        for peer, measured in sorted(traffic.round_trips.items()):
            trips.add_metric((f"{peer:x}",), buckets(measured), measured.total)
        yield trips
        yield histogram(
            "etcd_disk_wal_fsync_duration_seconds", "The latency distributions of fsync called by WAL.", FSYNCS
        )
        yield histogram(
            "etcd_disk_backend_commit_duration_seconds",
            "The latency distributions of commit called by backend.",
            COMMITS,
        )

    def _slow(self) -> Iterable[Metric]:
        server = self._server
        slow = sum(
            count for bound, count in zip(COMMITS.bounds, COMMITS.counts[1:], strict=True) if bound >= SLOW_SECONDS
        )
        yield counter("etcd_server_slow_apply_total", "Batches of changes that took long to write.", slow)
        yield counter("etcd_server_read_indexes_failed_total", "Reads that waited in vain.", server.failed_reads)
        yield counter("etcd_debugging_server_lease_expired_total", "Leases that ran out.", server.leases.expired)

    def _process(self) -> Iterable[Metric]:
        with contextlib.suppress(OSError):  # there is no /proc
            yield gauge("os_fd_used", "The number of used file descriptors.", len(os.listdir("/proc/self/fd")))
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield gauge("os_fd_limit", "The file descriptor limit.", limit)
        self._scrapes += 1
        scrapes = CounterMetricFamily(
            "promhttp_metric_handler_requests_total", "Total number of scrapes by HTTP status code.", labels=("code",)
        )
        scrapes.add_metric(("200",), self._scrapes)
        yield scrapes
