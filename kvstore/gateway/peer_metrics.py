"""What goes between this member and the others, by peer."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from kvstore.gateway.families import buckets

if TYPE_CHECKING:
    from kvstore.server.server import KvServer


def peer_metrics(server: "KvServer") -> Iterable[Metric]:
    transport, traffic, own = server.transport, server.peers.traffic, f"{server.member_id:x}"
    active = GaugeMetricFamily(
        "etcd_network_active_peers", "The current number of active peer connections.", labels=("Local", "Remote")
    )
    for peer in sorted(transport.connected()):
        active.add_metric((own, f"{peer:x}"), 1)
    yield active
    lost = CounterMetricFamily(
        "etcd_network_disconnected_peers_total", "The total number of disconnected peers.", labels=("Local", "Remote")
    )
    for peer, count in sorted(traffic.disconnects.items()):
        lost.add_metric((own, f"{peer:x}"), count)
    yield lost
    for name, text, key, values in (
        ("sent_bytes", "bytes sent to peers", "To", traffic.sent_bytes),
        ("received_bytes", "bytes received from peers", "From", traffic.received_bytes),
        ("sent_failures", "send failures from peers", "To", transport.unsent),
    ):
        yield _by_peer(f"etcd_network_peer_{name}_total", f"The total number of {text}.", key, values)
    trips = HistogramMetricFamily(
        "etcd_network_peer_round_trip_time_seconds", "Round-Trip-Time histogram between peers", labels=("To",)
    )
    for peer, measured in sorted(traffic.round_trips.items()):
        trips.add_metric((f"{peer:x}",), buckets(measured), measured.total)
    yield trips


def _by_peer(name: str, text: str, key: str, values: Mapping[int, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=(key,))
    for peer, value in sorted(values.items()):
        family.add_metric((f"{peer:x}",), value)
    return family
