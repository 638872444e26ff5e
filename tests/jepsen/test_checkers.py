"""The checkers on histories made by hand: what may have happened passes, each kind of lie is named."""

from typing import Any

import pytest

from tests.e2e.checkers import check_linearizable
from tests.jepsen.checkers.append import check_append
from tests.jepsen.checkers.set import check_set
from tests.jepsen.record import NEVER, Call, calls, history


def call(f: str, key: str, asked: Any, begin: int, end: int, kind: str = "ok", value: Any = None, **more: Any) -> Call:
    return Call(
        0, f, key, asked, begin, kind, asked if value is None else value, NEVER if kind == "info" else end, **more
    )


# Sets


def add(element: int, begin: int, end: int, kind: str = "ok") -> Call:
    return call("add", "s", element, begin, end, kind)


def read(elements: list[int], begin: int, end: int) -> Call:
    return call("read", "s", None, begin, end, "ok", elements)


GOOD_SETS = [
    [add(1, 0, 1), read([1], 2, 3)],
    [add(1, 0, 5), read([], 2, 3), read([1], 6, 7)],  # at the same time: either
    [add(1, 0, 5), read([1], 2, 3), read([1], 6, 7)],
    [add(1, 0, 0, "info"), read([], 2, 3), read([1], 4, 5), read([1], 6, 7)],  # late, but it stays
    [add(1, 0, 1, "fail"), read([], 2, 3)],
]
BAD_SETS = [
    ([add(1, 0, 1), read([], 2, 3)], "was there"),  # lost
    ([add(1, 0, 9), read([1], 2, 3), read([], 4, 5), read([1], 10, 11)], "was there"),  # seen, and then not
    ([add(1, 0, 1, "fail"), read([1], 2, 3)], "add fail"),
    ([read([1], 2, 3), add(1, 4, 5), read([1], 6, 7)], "began at"),  # before it was asked for
    ([add(1, 0, 1), read([1, 1], 2, 3)], "twice"),
    ([add(1, 0, 1), read([1, 2], 2, 3)], "never added"),
    ([add(1, 0, 1)], "never read"),
]


@pytest.mark.parametrize("found", GOOD_SETS)
def test_good_set(found: list[Call]) -> None:
    assert check_set(found) == []


@pytest.mark.parametrize(("found", "why"), BAD_SETS)
def test_bad_set(found: list[Call], why: str) -> None:
    assert any(why in complaint for complaint in check_set(found))


# Lists


def txn(steps: str, begin: int, end: int, kind: str = "ok") -> Call:
    """steps: "a x 1" appends, "r x 1,2" reads."""
    done: list[list[Any]] = []
    for step in steps.split("; "):
        what, key, *rest = step.split()
        elements = [int(one) for one in rest[0].split(",")] if rest else []
        done.append(["append", key, elements[0]] if what == "a" else ["r", key, elements])
    return call("txn", "", done, begin, end, kind)


GOOD_LISTS = [
    [txn("a x 1", 0, 1), txn("a x 2; r x 1,2", 2, 3), txn("r x 1,2; r y", 4, 5)],
    [txn("a x 1", 0, 0, "info"), txn("r x", 2, 3), txn("r x 1", 4, 5)],
    [txn("a x 1; a x 2", 0, 9), txn("r x", 1, 2), txn("r x 1,2", 10, 11)],
    [txn("a x 1", 0, 9), txn("a x 2", 0, 9), txn("r x 2,1", 10, 11)],
    [txn("a x 1", 0, 1, "fail"), txn("r x", 2, 3)],
]
BAD_LISTS = [
    ([txn("a x 1", 0, 1), txn("r x", 2, 3)], "in no read"),
    ([txn("a x 1", 0, 1), txn("a x 2", 2, 3), txn("r x 1", 4, 5), txn("r x 2,1", 4, 5)], "no beginning"),
    ([txn("a x 1", 0, 1), txn("r x 1,1", 2, 3)], "twice"),
    ([txn("r x 1", 2, 3)], "never appended"),
    ([txn("a x 1", 0, 1, "fail"), txn("r x 1", 2, 3)], "certainly failed"),
    ([txn("a x 1; a x 2", 0, 1), txn("r x 1", 0, 1), txn("r x 1,2", 2, 3)], "between the appends"),
    ([txn("a x 1; r x", 0, 1), txn("r x 1", 2, 3)], "had appended"),
    # Stale: the append was over before the read began.
    ([txn("a x 1", 0, 1), txn("r x", 2, 3), txn("r x 1", 4, 5)], "cycle"),
    # Write skew: neither saw the other, though all are at the same time.
    ([txn("r x; a y 1", 0, 9), txn("r y; a x 2", 0, 9), txn("r x 2; r y 1", 10, 11)], "cycle"),
    # A lost update would be two that read the same and append: the second's order shows it.
    ([txn("r x; a x 1", 0, 9), txn("r x; a x 2", 0, 9), txn("r x 1,2", 10, 11)], "cycle"),
    # Appended before what had ended already.
    ([txn("a x 1", 0, 1), txn("a x 2", 2, 3), txn("r x 2,1", 4, 5)], "cycle"),
    # Half of a transaction.
    ([txn("a x 1; a y 1", 0, 9), txn("r x 1; r y", 0, 9), txn("r x 1; r y 1", 10, 11)], "cycle"),
]


@pytest.mark.parametrize("found", GOOD_LISTS)
def test_good_list(found: list[Call]) -> None:
    assert check_append(found) == []


@pytest.mark.parametrize(("found", "why"), BAD_LISTS)
def test_bad_list(found: list[Call], why: str) -> None:
    assert any(why in complaint for complaint in check_append(found)), check_append(found)


# The register, by way of a file of lines


def line(process: int, kind: str, f: str, value: Any, time: int, **more: Any) -> dict[str, Any]:
    return {"process": process, "type": kind, "f": f, "key": "chaos/0", "value": value, "time_ns": time} | {
        "revision": 0,
        **more,
    }


WRITE = [line(0, "invoke", "write", "1", 1), line(0, "ok", "write", "1", 2, revision=2)]
CAS = [line(1, "invoke", "cas", ["1", "2"], 3), line(1, "info", "cas", ["1", "2"], 4)]


def reading(value: str | None, begin: int) -> list[dict[str, Any]]:
    saw = None if value is None else [value, 0, 0, 0]
    return [line(2, "invoke", "read", None, begin), line(2, "ok", "read", value, begin + 1, saw=saw)]


@pytest.mark.parametrize(
    ("lines", "good"),
    [
        ([*WRITE, *reading("1", 10)], True),
        ([*WRITE, *reading(None, 10)], False),
        ([*WRITE, *CAS, *reading("1", 10), *reading("2", 20)], True),  # unknown: it may come late
        ([*WRITE, *CAS, *reading("2", 10), *reading("1", 20)], False),
        ([*CAS, *reading("2", 10)], False),  # compared with what was never there
        ([*WRITE, line(1, "invoke", "cas", ["1", "2"], 3), *reading("2", 10)], True),  # without an end
        (
            [*WRITE, CAS[0], line(1, "fail", "cas", ["1", "2"], 4, error="FAILED_PRECONDITION: x"), *reading("2", 10)],
            False,
        ),
        # Refused by the comparison is a read of what it saw.
        ([*WRITE, CAS[0], line(1, "fail", "cas", ["1", "2"], 4, error="compare", saw=["1", 0, 0, 0])], True),
        ([*WRITE, CAS[0], line(1, "fail", "cas", ["1", "2"], 4, error="compare", saw=None)], False),
    ],
)
def test_register(lines: list[dict[str, Any]], good: bool) -> None:
    assert (check_linearizable(history(calls(lines))) == []) is good
