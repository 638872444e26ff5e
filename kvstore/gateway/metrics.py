"""What Prometheus is told: the member's state at the moment of the scrape, under etcd's names.

Nothing here is called while requests are served. Whatever has to be counted as it happens is counted where it is rare:
changes of the leader, failed requests, answers about the health. Each server has a registry of its own.

Some of etcd's totals are gauges by type (proposals_committed_total, keys_total): dashboards know them so.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvstore.version import CLUSTER_VERSION, ETCD_VERSION

if TYPE_CHECKING:
    from kvstore.gateway.health import Health
    from kvstore.server.server import KvServer

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4


@final
class Metrics:
    def __init__(self, server: "KvServer", health: "Health") -> None:
        self._registry = CollectorRegistry()
        self._state = _State(server, health)
        self._registry.register(self._state)
        ProcessCollector(registry=self._registry)

    def exposition(self, keys: int) -> bytes:
        """keys: how many live keys the store holds, which cannot be known without waiting."""
        self._state.keys = keys
        return generate_latest(self._registry)


@final
class _State(Collector):
    def __init__(self, server: "KvServer", health: "Health") -> None:
        self._server = server
        self._health_pages = health
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

    def _raft(self) -> Iterable[Metric]:
        server = self._server
        raft = server.status()
        leads = server.leader_id == server.member_id
        yield _gauge(
            "etcd_server_has_leader", "Whether or not a leader exists. 1 is existence, 0 is not.", server.has_leader
        )
        yield _gauge("etcd_server_is_leader", "Whether or not this member is a leader. 1 if is, 0 otherwise.", leads)
        yield _gauge(
            "etcd_server_is_learner",
            "Whether or not this member is a learner. 1 if is, 0 otherwise.",
            server.is_learner,
        )
        yield _counter(
            "etcd_server_leader_changes_seen_total", "The number of leader changes seen.", self._leader_changes
        )
        yield _gauge(
            "etcd_server_proposals_committed_total", "The total number of consensus proposals committed.", raft.commit
        )
        yield _gauge(
            "etcd_server_proposals_applied_total",
            "The total number of consensus proposals applied.",
            server.store.applied_index,
        )
        yield _gauge(
            "etcd_server_proposals_pending",
            "The current number of pending proposals to commit.",
            server.waiting_requests,
        )
        yield _counter(
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
        yield _gauge(
            "etcd_mvcc_db_total_size_in_bytes",
            "Total size of the underlying database physically allocated in bytes.",
            total,
        )
        yield _gauge(
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "Total size of the underlying database logically in use in bytes.",
            in_use,
        )
        yield _gauge(
            "etcd_disk_defrag_inflight",
            "Whether or not defrag is active on the member. 1 means active, 0 means not.",
            self._server.defragmenter.running,
        )
        yield _gauge(
            "etcd_server_quota_backend_bytes",
            "Current backend storage quota size in bytes.",
            self._server.quota.flag,
        )
        yield _gauge("etcd_debugging_mvcc_current_revision", "The current revision of store.", store.current_revision)
        yield _gauge(
            "etcd_debugging_mvcc_compact_revision",
            "The revision of the last compaction in store.",
            store.compact_revision,
        )

        yield _gauge("etcd_debugging_mvcc_keys_total", "Total number of keys.", self.keys)

    def _watch(self) -> Iterable[Metric]:
        hub = self._server.hub
        yield _gauge("etcd_debugging_mvcc_watch_stream_total", "Total number of watch streams.", len(hub.streams))
        yield _gauge("etcd_debugging_mvcc_watcher_total", "Total number of watchers.", hub.watcher_count)
        yield _gauge(
            "etcd_debugging_mvcc_slow_watcher_total", "Total number of unsynced slow watchers.", hub.unsynced_count
        )

    def _health(self) -> Iterable[Metric]:
        yield _untyped(
            "etcd_server_health_success",
            "The total number of successful health checks",
            self._health_pages.answers[True],
        )
        yield _untyped(
            "etcd_server_health_failures", "The total number of failed health checks", self._health_pages.answers[False]
        )

    def _identity(self) -> Iterable[Metric]:
        yield _label(
            "etcd_server_id",
            "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
            "server_id",
            f"{self._server.member_id:x}",
        )
        yield _label(
            "etcd_server_version",
            "Which version is running. 1 for 'server_version' label with current version.",
            "server_version",
            ETCD_VERSION,
        )
        yield _label(
            "etcd_cluster_version",
            "Which version is running. 1 for 'cluster_version' label with current cluster version",
            "cluster_version",
            CLUSTER_VERSION.rpartition(".")[0],
        )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _untyped(name: str, text: str, value: float) -> Metric:
    """For etcd's counters without _total in their name, which a counter of this library always has."""
    family = Metric(name, text, "untyped")
    family.add_sample(name, {}, value)
    return family


def _label(name: str, text: str, label: str, value: str) -> Metric:
    family = GaugeMetricFamily(name, text, labels=(label,))
    family.add_metric((value,), 1)
    return family
