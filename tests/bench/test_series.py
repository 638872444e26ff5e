"""What growth and soak make of their points: slopes, tables, plots."""

from pathlib import Path
from typing import Any

import pytest

from bench import growth, plots, soak


def test_the_slope_is_per_hour_and_leaves_the_warm_up_out() -> None:
    filling = [(minute, 1000.0 - minute) for minute in range(10)]
    steady = [(10 + minute, 500 + minute / 60) for minute in range(20)]
    assert soak.slope([*filling, *steady]) == pytest.approx(1.0)
    assert soak.slope([(0, 1.0)]) == 0


def samples() -> list[dict[str, Any]]:
    seen = {"rss_mb": 80.0, "descriptors": 40, "threads": 12, "tasks": 30}
    load = [
        {"phase": "load", "minute": minute, "rate": 1000.0, "p99_ms": 5.0, **seen, "tasks": 100 + minute}
        for minute in range(9)
    ]
    return [{"phase": "before", "minute": 0.0, **seen}, *load, {"phase": "after", "minute": 9.0, **seen, "tasks": 31}]


def test_the_soak_says_what_grows_and_what_is_left() -> None:
    [row] = [line for line in soak.summary(samples()).splitlines() if line.startswith("| tasks")]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["tasks", "30", "104.0", "+60.0", "31"]


def points() -> list[dict[str, Any]]:
    return [
        {"series": series, "x": x, "system": system, "rate": rate, "p99_ms": 5.0}
        for series, xs in (("keys", growth.KEYS), ("members", growth.MEMBERS), ("connections", growth.CONNECTIONS))
        for x in xs
        for system, rate in (("etcd", 1000.0), ("kvstore", 2500.0))
    ]


def test_growth_sets_both_systems_beside_each_other() -> None:
    refused = {"series": "keys", "system": "etcd", "refused": "calls failed"}
    lines = growth.table([*points(), refused]).splitlines()
    assert len(lines) == 2 + len(growth.KEYS) + len(growth.MEMBERS) + len(growth.CONNECTIONS)
    assert lines[-1] == "| connections | 5,000 | 2,500 | 5.0 | 1,000 | 5.0 | 2.50 |"


def test_plots_are_written_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "RESULTS", tmp_path)
    drawn = [*growth.draw(points()), *soak.draw(samples())]
    assert [path.name for path in drawn] == ["growth.png", "growth.svg", "soak.png", "soak.svg"]
    assert all(path.stat().st_size > 1000 for path in drawn)


def test_nothing_measured_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "RESULTS", tmp_path)
    assert growth.draw([]) == soak.draw([]) == plots.ratios([]) == plots.latencies([], []) == []
    assert list(tmp_path.iterdir()) == []
