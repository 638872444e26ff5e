"""What Prometheus is told: the member's state at the moment of the scrape, under etcd's names.

Nothing here is called while requests are served. Whatever has to be counted as it happens is counted where it is rare:
changes of the leader, failed requests, answers about the health; or once for each batch. Each server has a registry of
its own.

Some of etcd's totals are gauges by type (proposals_committed_total, keys_total): dashboards know them so.
"""

import contextlib
import os
import resource
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from kvstore.gateway.families import counter, gauge, label, short_counter, with_short_counters
from kvstore.gateway.peer_metrics import peer_metrics
from kvstore.gateway.rpc_metrics import rpc_metrics
from kvstore.gateway.state_metrics import state_metrics
from kvstore.rpc.counts import Counts
from kvstore.version import ETCD_VERSION

if TYPE_CHECKING:
    from kvstore.gateway.health import Health
    from kvstore.server.server import KvServer

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
        return with_short_counters(generate_latest(self._registry))


@final
class _State(Collector):
    def __init__(self, server: "KvServer", health: "Health", counts: Counts) -> None:
        self._server = server
        self._health_pages = health
        self._counts = counts
        self._scrapes = 0
        self.keys = 0

    def describe(self) -> Iterable[Metric]:
        return []  # asked at registration, when there may be no state yet

    def collect(self) -> Iterable[Metric]:
        yield from self._raft()
        yield from state_metrics(self._server, self.keys)
        yield from self._health()
        yield from self._identity()
        yield from peer_metrics(self._server)
        yield from rpc_metrics(self._counts)
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
            "etcd_server_leader_changes_seen_total", "The number of leader changes seen.", server.leader_changes
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
        yield counter("etcd_server_read_indexes_failed_total", "Reads that waited in vain.", server.reads.failed)
        yield counter("etcd_server_slow_read_indexes_total", "Rounds for reads that took long.", server.reads.slow)
        yield counter(
            "etcd_server_heartbeat_send_failures_total",
            "The total number of leader heartbeat send failures (likely overloaded from slow disk).",
            server.node.late_heartbeats,
        )

    def _health(self) -> Iterable[Metric]:
        yield short_counter(
            "etcd_server_health_success",
            "The total number of successful health checks",
            self._health_pages.answers[True],
        )
        yield short_counter(
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
        yield gauge("promhttp_metric_handler_requests_in_flight", "Current number of scrapes being served.", 1)
        space, _ = resource.getrlimit(resource.RLIMIT_AS)
        yield gauge("process_virtual_memory_max_bytes", "Maximum amount of virtual memory available in bytes.", space)
