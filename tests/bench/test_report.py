"""Medians, spread, ratios, verdicts, the table and the README's block."""

from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.rows import Row

PUT = Row("put-50", "put, 50 clients", "put-50", 1.6, 2.0, p99=1.0)
RSS = Row("rss-1m", "RSS", "size-1m", 0.5, 0.33, "rss_mb", "MB", lower=True)


def results(system: str, measure: str, *rounds: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"system": system, "measure": measure, "round": number, **one} for number, one in enumerate(rounds)]


def rates(system: str, *values: float, p99: float = 10.0) -> list[dict[str, Any]]:
    return results(system, "put-50", *({"rate": value, "p99_ms": p99, "cpu_us": 100.0} for value in values))


def line(found: list[dict[str, Any]], row: Row = PUT) -> report.Line:
    [one] = report.lines(found, [row])
    return one


def test_the_median_and_the_spread_of_rounds() -> None:
    side = report.side(rates("kvstore", 90, 100, 130), "kvstore", PUT)
    assert (side.value, side.spread, side.rounds) == (100, 0.4, 3)
    assert report.spread([5.0]) == 0


@pytest.mark.parametrize(
    ("ours", "p99", "met"),
    [(100, 10, "no"), (159, 10, "no"), (160, 10, "yes"), (200, 10, "aim"), (200, 10.5, "no (p99 1.05)")],
)
def test_the_verdict_where_more_is_better(ours: float, p99: float, met: str) -> None:
    assert line(rates("etcd", 100) + rates("kvstore", ours, p99=p99)).met == met


@pytest.mark.parametrize(("ours", "met"), [(60, "no"), (50, "yes"), (33, "aim")])
def test_the_verdict_where_less_is_better(ours: float, met: str) -> None:
    found = results("etcd", "size-1m", {"rss_mb": 100.0}) + results("kvstore", "size-1m", {"rss_mb": ours})
    assert line(found, RSS).met == met


def test_one_refused_round_refuses_the_row() -> None:
    found = [*rates("etcd", 100, 100), *rates("kvstore", 900), *results("kvstore", "put-50", {"refused": "1 x 14"})]
    assert line(found).met == "refused"
    assert line(found).ratio is None
    assert "refused" in report.table([line(found)])
    assert report.refused(found) == ["kvstore put-50, round 1: 1 x 14"]
    assert "put-50 (refused)" in report.summary([line(found)])


def test_what_is_not_served_says_so() -> None:
    found = [*rates("etcd", 100), *results("kvstore", "put-50", {"not_served": "--cert-file"})]
    assert line(found).met == "not served"
    assert report.refused(found) == []


def test_rows_with_a_wide_spread_get_more_rounds_for_both_systems() -> None:
    steady = results("etcd", "put-1", {"rate": 100}, {"rate": 105}) + results("kvstore", "put-1", {"rate": 1})
    wide = rates("etcd", 100, 115) + rates("kvstore", 100, 100)
    once = results("etcd", "check-perf-s", {"slowest_ms": 1}, {"slowest_ms": 9})
    assert report.wide(steady + wide + once) == {("etcd", "put-50"), ("kvstore", "put-50")}


def test_the_table_has_a_line_for_each_row() -> None:
    text = report.table([line(rates("etcd", 10_000, 11_000) + rates("kvstore", 21_000, 21_000))])
    head, rule, row = text.splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")
    for cell in ("10,500/s", "21,000/s", "2.00", "aim", "10.0 / 10.0", "100 / 100", "10% / 0%"):
        assert f"| {cell} |" in row


def test_results_are_kept_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    for one in rates("etcd", 1, 2):
        path = report.append([one], "abc")
    assert report.read(path) == rates("etcd", 1, 2)


def test_only_the_block_of_the_readme_changes(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.into_readme("new", readme)
    report.into_readme("newer", readme)
    assert readme.read_text() == f"before\n{report.BEGIN}\nnewer\n{report.END}\nafter\n"


def test_what_a_tool_says_itself_stands_where_nothing_is_asked_for() -> None:
    row = Row("check-perf-l", "check perf l", "check-perf-l")
    found = results("etcd", "check-perf-l", {"rate": 8000.0, "passed": True})
    found += results("kvstore", "check-perf-l", {"rate": 7000.0, "passed": False})
    assert line(found, row).met == "PASS / FAIL"
