"""The list of rows: selection by name, and that it holds together."""

import pytest

from bench.rows import IN_FLIGHT, MEASURES, ROWS, STAGES, chosen
from bench.runner import wanted


def names(text: str) -> list[str]:
    return [row.name for row in chosen(text)]


def test_all_rows_by_default() -> None:
    assert chosen("") == ROWS


def test_an_exact_name_is_that_row_alone() -> None:
    assert names("put-1") == ["put-1"]


def test_a_beginning_is_all_rows_with_it() -> None:
    assert names("get-lin") == ["get-lin-50", "get-lin-1000"]
    assert names("tls-,put-50") == ["put-50", "tls-put-50", "tls-get-50"]


@pytest.mark.parametrize("text", ["nothing", "put-1,nothing", "put-1,"])
def test_an_unknown_name_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(ValueError, match="put-1000"):
        chosen(text)


def test_rows_hold_together() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert {row.measure for row in ROWS} == set(MEASURES)
    assert {one.stage for one in MEASURES.values()} == set(STAGES)
    assert all(not stage.first or MEASURES[stage.first].stage == name for name, stage in STAGES.items())
    for row in ROWS:
        if row.must is not None and row.aim is not None:
            assert row.aim < row.must if row.lower else row.aim > row.must
        if row.other == "pysyncobj":
            assert row.measure in IN_FLIGHT


def test_what_rows_need() -> None:
    assert wanted(chosen("cpu-put-1000,put-1000")) == {("etcd", "put-1000"), ("kvstore", "put-1000")}
    assert wanted(chosen("peer-put-1")) == {("pysyncobj", "put-1"), ("kvstore", "put-1")}
    assert wanted(chosen("put-1"), only="etcd") == {("etcd", "put-1")}
