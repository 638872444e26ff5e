"""Metric families of one sample or few, in fewer words."""

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from kvstore.measure import Histogram


def gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def untyped(name: str, text: str, value: float) -> Metric:
    """For etcd's counters without _total in their name, which a counter of this library always has."""
    family = Metric(name, text, "untyped")
    family.add_sample(name, {}, value)
    return family


def label(name: str, text: str, key: str, value: str) -> Metric:
    family = GaugeMetricFamily(name, text, labels=(key,))
    family.add_metric((value,), 1)
    return family


def histogram(name: str, text: str, measured: Histogram) -> Metric:
    return HistogramMetricFamily(name, text, buckets=buckets(measured), sum_value=measured.total)


def buckets(measured: Histogram) -> list[tuple[str, float]]:
    """Each with what is in those below it too."""
    found: list[tuple[str, float]] = []
    count = 0
    for bound, here in zip([*measured.bounds, float("inf")], measured.counts, strict=True):
        count += here
        found.append(("+Inf" if bound == float("inf") else f"{bound:g}", count))
    return found
