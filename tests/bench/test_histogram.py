"""The histogram: percentiles to a percent, bounded memory, JSON and back."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.histogram import GROWTH, Histogram

SECONDS = st.floats(min_value=1e-6, max_value=1e4)


def filled(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(st.lists(SECONDS, min_size=1), st.sampled_from([1, 50, 90, 99, 99.9, 100]))
def test_a_percentile_is_a_recorded_value_to_a_percent(values: list[float], percent: float) -> None:
    exact = sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]
    assert filled(values).percentile(percent) == pytest.approx(exact, rel=GROWTH - 1)


@given(st.lists(SECONDS), st.lists(SECONDS))
def test_merging_is_recording_all_in_one(some: list[float], others: list[float]) -> None:
    merged = filled(some)
    merged.merge(filled(others))
    assert merged.buckets == filled(some + others).buckets
    assert merged.count == len(some) + len(others)


def test_memory_is_bounded_by_the_range_and_not_by_the_count() -> None:
    chance = random.Random(1)
    histogram = filled([10 ** chance.uniform(-6, 2) for _ in range(50_000)])
    assert len(histogram.buckets) <= math.log(1e8) / math.log(GROWTH) + 2
    assert histogram.count == 50_000


def test_through_json() -> None:
    histogram = filled([0.001, 0.002, 0.002, 3.0])
    assert Histogram(histogram.to_json()).buckets == histogram.buckets


def test_nothing_recorded_has_no_percentile() -> None:
    assert math.isnan(Histogram().percentile(50))


def test_a_clock_that_stood_still_is_taken() -> None:
    assert filled([0.0]).count == 1
