"""Metric families of one sample or few, in fewer words."""

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from kvstore.measure import Histogram


def gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def short_counter(name: str, text: str, value: float) -> Metric:
    """One of etcd's counters without _total in their name, which this library always adds; so of no type yet."""
    family = Metric(name, text, "untyped")
    family.add_sample(name, {}, value)
    return family


def with_short_counters(text: bytes) -> bytes:
    """Whatever is of no type becomes a counter."""
    return text.replace(b" untyped\n", b" counter\n")


def label(name: str, text: str, key: str, value: str) -> Metric:
    family = GaugeMetricFamily(name, text, labels=(key,))
    family.add_metric((value,), 1)
    return family


def histogram(name: str, text: str, measured: Histogram, unit: int = 1) -> Metric:
    return HistogramMetricFamily(name, text, buckets=buckets(measured, unit), sum_value=measured.total * unit)


def buckets(measured: Histogram, unit: int = 1) -> list[tuple[str, float]]:
    """Each with what is in those below it too. unit: 1000 for milliseconds."""
    found: list[tuple[str, float]] = []
    count = 0
    for bound, here in zip([*measured.bounds, float("inf")], measured.counts, strict=True):
        count += here
        found.append(("+Inf" if bound == float("inf") else _as_go(bound * unit), count))
    return found


def _as_go(value: float) -> str:
    """A bound is a label, so its text counts."""
    if value < 1e6:
        return f"{value:.10g}"
    digits, _, exponent = f"{value:.9e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{exponent}"
