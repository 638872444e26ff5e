"""What a transcript keeps of an etcdctl's output."""

import pytest

from tests.conformance.session import without_times

TIMES = ["1.234567ms", "912.345µs", "912µs", "640ns", "1.5s", "3ms"]


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("line", ["took = {}", '{{"health":true,"took":"{}"}}', "| <client2> | true | {} | |"])
def test_times_are_left_out(line: str, time: str) -> None:
    assert without_times(line.format(time)) == line.format("<time>")


def test_whole_seconds_are_not_times() -> None:
    assert without_times("took = 2s") == "took = <time>"
    assert without_times("lease 694d granted with TTL(100s), remaining(99s)") == (
        "lease 694d granted with TTL(100s), remaining(99s)"
    )
