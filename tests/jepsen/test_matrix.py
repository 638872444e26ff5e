"""Which run comes next, until every nemesis has two workloads and every workload three nemeses."""

from collections import Counter

import pytest

from tests.jepsen.faults import FAULTS
from tests.jepsen.matrix import (
    EVERYTHING,
    NEMESES_EACH,
    SEEDS_MIN,
    WORKLOADS_EACH,
    Cell,
    Job,
    Pair,
    document,
    expected_seconds,
    least_tried,
    next_pair,
    parse,
    plan,
)
from tests.jepsen.workloads import WORKLOADS


def complete(workloads: list[str], nemeses: list[str], done: set[Pair]) -> list[Pair]:
    """What is run one after the other, beginning with `done`."""
    found: list[Pair] = []
    while (pair := next_pair(workloads, nemeses, {*done, *found})) is not None:
        assert pair not in {*done, *found}, "nothing is run twice"
        found.append(pair)
    return found


SIZES = [(1, 1), (1, 8), (2, 2), (9, 4), (3, 40), (len(WORKLOADS), len(FAULTS))]


@pytest.mark.parametrize(("workloads", "nemeses"), SIZES)
def test_all_are_covered(workloads: int, nemeses: int) -> None:
    ours, theirs = [f"w{one}" for one in range(workloads)], [f"n{one}" for one in range(nemeses)]
    pairs = complete(ours, theirs, set())
    by_workload, by_nemesis = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    assert all(by_workload[one] >= min(NEMESES_EACH, nemeses) for one in ours)
    assert all(by_nemesis[other] >= min(WORKLOADS_EACH, workloads) for other in theirs)


def test_what_is_new_tomorrow_is_all_that_is_run_tomorrow() -> None:
    done = set(complete(["a", "b"], ["x", "y", "z"], set()))
    assert complete(["a", "b"], ["x", "y", "z"], done) == []
    assert {nemesis for _, nemesis in complete(["a", "b"], ["x", "y", "z", "new"], done)} == {"new"}
    assert {workload for workload, _ in complete(["a", "b", "new"], ["x", "y", "z"], done)} == {"new"}


def cell(job: Job, took: float = 0.0) -> Cell:
    return Cell(*job, "netns", 5, {"ok": 10}, {}, [], took)


def test_the_plan_ends_with_everything_at_random_and_goes_on_where_it_was() -> None:
    given = parse([])
    whole = list(plan(given, ["x", "y", "z"], []))
    random = [job for job in whole if job.nemesis == EVERYTHING]
    assert whole[-len(random) :] == random
    assert len({job.seed for job in random}) == len(random) >= SEEDS_MIN
    assert sum(job.seconds for job in random) >= given.random_minutes * 60
    for done in (3, len(whole) - 2, len(whole)):
        assert list(plan(given, ["x", "y", "z"], whole[:done])) == whole[done:]


def test_what_has_passed_least_often_comes_first() -> None:
    """And what has passed at this commit does not change the order: it goes on where it was."""
    job = Job("register", "x", 1, 90.0)
    failed = cell(job._replace(nemesis="z"))
    failed.failed.append("logs: FAIL")
    kept = {"before": [cell(job), cell(job), cell(job._replace(nemesis="y")), failed], "now": [cell(job)]}
    for at in ("now", "tomorrow"):
        assert least_tried(["x", "y", "z", "new"], kept, at) == ["z", "new", "y", "x"]


def test_a_random_run_that_the_harness_lost_is_made_good_by_another_seed() -> None:
    given = parse([])
    whole = list(plan(given, ["x"], []))
    lost = whole[-1]._replace(seconds=0.0)
    (instead,) = plan(given, ["x"], [*whole[:-1], lost])
    assert instead.seed not in {job.seed for job in whole if job.nemesis == EVERYTHING}


def test_what_is_left_is_expected_to_take_as_long_as_what_was() -> None:
    job, random = Job("register", "x", 1, 90.0), Job("set", EVERYTHING, 1, 600.0)
    known = [cell(job, 100.0), cell(job, 104.0), cell(random, 900.0), cell(job)]  # the last is of an older format
    assert expected_seconds([job, job, random], known) == 102.0 * 2 + 900.0
    assert expected_seconds([job], []) > 90.0


def test_a_violation_is_told() -> None:
    good = Cell("register", "kill-one", 1, 90.0, "netns", 5, {"ok": 10}, {"kill-one": [0.1, 1.5]}, [])
    bad = Cell("set", "all", 7, 300.0, "netns", 5, {"ok": 5, "info": 2}, {"kill-one": [4.0]}, ["set: FAIL"])
    text = document({"abc": [good, bad]})
    assert "| `register` | 1 | 1 | 2 | 2 | 10 | 0 |" in text
    assert "| `set`, everything at random, seed 7 | all | 1 | 5 | 1 | 7 | 1 |" in text
    assert "\n\n- set, all, seed 7: set: FAIL\n\n" in text
    assert "| `kill-one` | register set | 3 | 1.5 | 4.0 | 4.0 |" in text
