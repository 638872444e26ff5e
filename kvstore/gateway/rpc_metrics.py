"""grpc_server_* and what etcd counts of its clients: from what the fronts count anyway (kvstore/rpc/counts.py)."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric

from kvstore.errors import Code
from kvstore.gateway.families import buckets, counter, short_counter

if TYPE_CHECKING:
    from kvstore.rpc.counts import Counts, Served

LABELS: Final = ("grpc_type", "grpc_service", "grpc_method")
CLIENT: Final = ("type", "client_api_version")
CODE_NAMES: Final = {code: "".join(part.capitalize() for part in code.name.split("_")) for code in Code} | {
    Code.OK: "OK",
    Code.CANCELLED: "Canceled",
}


def rpc_metrics(counts: "Counts") -> Iterable[Metric]:
    served = counts.served()
    yield from _of_methods(served)
    yield from _durations(counts)
    yield from _of_answers(
        {one.path.rpartition("/")[2]: one for one in served if one.path.startswith("/etcdserverpb.")}
    )
    requests = CounterMetricFamily(
        "etcd_server_client_requests_total", "The total number of client requests per client version.", labels=CLIENT
    )
    versions = counts.versions()
    # Those of the gateway have none.
    for kind in ("unary", "stream"):
        begun = sum(one.started for one in served if (one.kind == "unary") is (kind == "unary"))
        told = sum(calls for key, calls in versions.items() if key[0] == kind)
        versions[kind, "unknown"] += max(0, begun - told)
    for key, calls in sorted(versions.items()):
        requests.add_metric(key, calls)
    yield requests
    for name, text, value in (
        ("received", "The total number of bytes received from grpc clients.", counts.received_bytes()),
        ("sent", "The total number of bytes sent to grpc clients.", counts.sent_bytes()),
    ):
        yield counter(f"etcd_network_client_grpc_{name}_bytes_total", text, value)


def _of_methods(served: "list[Served]") -> Iterable[Metric]:
    started, handled, received, sent = (
        CounterMetricFamily(f"grpc_server_{name}_total", text, labels=labels)
        for name, text, labels in (
            ("started", "Total number of RPCs started on the server.", LABELS),
            (
                "handled",
                "Total number of RPCs completed on the server, regardless of success or failure.",
                (*LABELS, "grpc_code"),
            ),
            ("msg_received", "Total number of RPC stream messages received on the server.", LABELS),
            ("msg_sent", "Total number of gRPC stream messages sent by the server.", LABELS),
        )
    )
    for one in served:
        service, _, method = one.path.lstrip("/").partition("/")
        names = (one.kind, service, method)
        started.add_metric(names, one.started)
        received.add_metric(names, one.received)
        sent.add_metric(names, one.sent)
        # All codes, also those that never came: a rate over one that appears has no beginning.
        for code in Code:
            handled.add_metric((*names, CODE_NAMES[code]), one.codes[code])
    yield from (started, handled, received, sent)


def _durations(counts: "Counts") -> Iterable[Metric]:
    family = HistogramMetricFamily(
        "grpc_server_handling_seconds", "Seconds until unary calls were answered by the server.", labels=LABELS
    )
    for path, measured in sorted(counts.seconds.items()):
        service, _, method = path.lstrip("/").partition("/")
        family.add_metric(("unary", service, method), buckets(measured), measured.total)
    if counts.seconds:
        yield family


def _of_answers(methods: "dict[str, Served]") -> Iterable[Metric]:
    """What etcd counts wherever it reads, or as the leader; here of the requests that this member has answered."""

    def good(method: str) -> int:
        return methods[method].codes[Code.OK] if method in methods else 0

    for prefix in ("etcd", "etcd_debugging"):
        yield counter(f"{prefix}_mvcc_range_total", "Total number of ranges seen by this member.", good("Range"))
    yield short_counter(
        "etcd_server_learner_promote_successes",
        "The total number of successful learner promotions while this member is leader.",
        good("MemberPromote"),
    )
