"""The checkers accept what is possible and complain about what is not: histories made by hand."""

import dataclasses
from collections.abc import Callable

import pytest

from kvstore.pb import kv_pb2
from tests.e2e import checkers
from tests.e2e.checkers import Truth, Undecided, check_linearizable, check_revisions, check_watches
from tests.e2e.history import History, KeyState, Operation, Outcome, WatchResponse, WatchSession

K, OTHER = b"chaos/k", b"chaos/other"
LOW, HIGH = b"chaos/", b"chaos0"


def event(key: bytes, value: bytes | None, revision: int, created: int = 0, version: int = 1) -> kv_pb2.Event:
    if value is None:
        return kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=kv_pb2.KeyValue(key=key, mod_revision=revision))
    kv = kv_pb2.KeyValue(
        key=key, value=value, create_revision=created or revision, mod_revision=revision, version=version
    )
    return kv_pb2.Event(kv=kv)


# put a at 2, put b at 3, delete at 4, two keys at 5
EVENTS = [event(K, b"a", 2), event(K, b"b", 3, 2, 2), event(K, None, 4), event(K, b"c", 5), event(OTHER, b"d", 5)]
A, B, C, D = KeyState(b"a", 2, 2, 1), KeyState(b"b", 2, 3, 2), KeyState(b"c", 5, 5, 1), KeyState(b"d", 5, 5, 1)


def done(kind: str, invoked: float, returned: float, revision: int, **other: object) -> Operation:
    return Operation(kind, 0, "m1", invoked, returned, Outcome.OK, revision, **other)  # type: ignore[arg-type]


def unknown(kind: str, invoked: float, **other: object) -> Operation:
    return Operation(kind, 0, "m1", invoked, invoked + 1, Outcome.UNKNOWN, **other)  # type: ignore[arg-type]


def good() -> list[Operation]:
    return [
        done("put", 0, 1, 2, saw={K: None}, wrote={K: b"a"}),
        done("get", 1.1, 1.2, 2, saw={K: A}),
        unknown("put", 1.3, wrote={K: b"b"}),
        done("get", 3, 3.1, 3, saw={K: B}),
        done("delete", 4, 5, 4, saw={K: B}, wrote={K: None}),
        done("delete", 5.1, 5.2, 4, saw={K: None}),
        done("pair", 6, 7, 5, saw={K: None, OTHER: None}, wrote={K: b"c", OTHER: b"d"}),
        done("range", 7.1, 7.2, 5, saw={K: C, OTHER: D}, whole=(LOW, HIGH)),
        done("stale", 8, 8.1, 3, saw={K: B}, stale=True),
        unknown("put", 8.2, wrote={K: b"never"}),
        unknown("compare", 8.2, saw={K: KeyState(b"c")}, wrote={K: b"never either"}),
    ]


def complaints(operations: list[Operation], events: list[kv_pb2.Event] | None = None) -> list[str]:
    return check_revisions(History(operations), Truth(EVENTS if events is None else events))


def changed(number: int, **fields: object) -> list[Operation]:
    operations = good()
    operations[number] = dataclasses.replace(operations[number], **fields)  # type: ignore[arg-type]
    return operations


def test_a_possible_history_passes() -> None:
    assert complaints(good()) == []
    assert check_linearizable(History(good())) == []


@pytest.mark.parametrize(
    ("operations", "text"),
    [
        (changed(0, outcome=Outcome.FAILED), "cannot come from"),
        (changed(0, revision=3), "acknowledged, but revision 3"),
        (changed(0, revision=9), "not there"),
        (changed(1, saw={K: B}), "saw"),
        (changed(1, saw={K: dataclasses.replace(A, version=2)}), "saw"),
        (changed(3, revision=2, saw={K: A}, invoked=5.5), "answered before this began"),
        (changed(8, saw={K: C}), "saw"),
        (changed(7, saw={K: C}), "other keys"),
        (changed(2, outcome=Outcome.FAILED), "cannot come from"),
        (changed(2, wrote={K: b"z"}), "cannot come from None"),
        (changed(2, invoked=3.5), "before it began"),
        (changed(2, kind="compare", saw={K: KeyState(b"z")}), "comparison fails"),
        (changed(4, outcome=Outcome.FAILED), "nobody can have deleted"),
        (changed(4, outcome=Outcome.UNKNOWN), ""),
        ([*good(), done("put", 0, 9, 2, saw={K: None}, wrote={K: b"a"})], "given to 2 writes"),
    ],
)
def test_an_impossible_order_is_found(operations: list[Operation], text: str) -> None:
    found = complaints(operations)
    assert bool(found) == bool(text)
    assert any(text in one for one in found) or not text, found


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([EVENTS[0], EVENTS[2], *EVENTS[3:]], "without a change"),
        ([EVENTS[0], event(K, b"b", 3, 2, 3), *EVENTS[2:]], "replayed"),
        ([*EVENTS, event(K, b"b", 6, 5, 2)], "done twice"),
        ([*EVENTS, event(K, None, 6)], "nobody can have deleted"),
        ([*EVENTS, event(OTHER, None, 6), event(OTHER, None, 7)], "where it is not"),
        ([*EVENTS, event(K, b"a", 4)], "after"),
    ],
)
def test_an_impossible_truth_is_found(events: list[kv_pb2.Event], text: str) -> None:
    found = complaints(good(), events)
    assert any(text in one for one in found), found


def linearizable(*operations: Operation) -> bool:
    return not check_linearizable(History(list(operations)))


def put(value: bytes, invoked: float, returned: float) -> Operation:
    return done("put", invoked, returned, 0, wrote={K: value})


def get(value: bytes | None, invoked: float, returned: float) -> Operation:
    return done("get", invoked, returned, 0, saw={K: None if value is None else KeyState(value)})


def test_the_search_finds_an_order_of_what_overlaps() -> None:
    assert linearizable(put(b"a", 0, 9), put(b"b", 0, 9), get(b"b", 1, 2), get(b"a", 3, 4))
    assert not linearizable(put(b"a", 0, 9), put(b"b", 0, 9), get(b"b", 1, 2), get(b"a", 3, 4), get(b"b", 5, 6))


def test_the_search_finds_old_and_lost_values() -> None:
    assert not linearizable(put(b"a", 0, 1), put(b"b", 2, 3), get(b"a", 4, 5))
    assert not linearizable(put(b"a", 0, 1), get(None, 2, 3))
    assert not linearizable(get(b"a", 0, 1), put(b"a", 2, 3))
    assert linearizable(put(b"a", 0, 1), put(b"b", 2, 4.5), get(b"a", 4, 5))


def test_the_search_lets_unknown_writes_happen_late_once_or_never() -> None:
    lost = unknown("put", 0, wrote={K: b"u"})
    assert linearizable(lost, put(b"a", 2, 3), get(b"a", 4, 5), get(b"u", 6, 7))
    assert linearizable(lost, put(b"a", 2, 3), get(b"a", 4, 5))
    assert not linearizable(lost, get(b"u", 2, 3), put(b"a", 4, 5), get(b"u", 6, 7))
    deletes = [unknown("delete", 0, wrote={K: None}) for _ in range(2)]
    gone = (put(b"a", 0, 1), get(None, 2, 3), put(b"b", 4, 5), get(None, 6, 7), put(b"c", 8, 9))
    assert linearizable(*deletes, *gone)
    assert not linearizable(*deletes, *gone, get(None, 10, 11))


def test_the_search_knows_that_a_failed_write_never_happens() -> None:
    failed = dataclasses.replace(put(b"a", 0, 1), outcome=Outcome.FAILED)
    assert not linearizable(failed, get(b"a", 2, 3))


def test_the_search_finds_two_winners_of_one_compare() -> None:
    first = done("compare", 1, 5, 0, saw={K: KeyState(b"a")}, wrote={K: b"b"})
    second = done("compare", 1, 5, 0, saw={K: KeyState(b"a")}, wrote={K: b"c"})
    assert linearizable(put(b"a", 0, 0.5), first)
    assert not linearizable(put(b"a", 0, 0.5), first, second)


def test_a_search_that_grows_too_large_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkers, "CONFIGURATIONS_MAX", 100)
    with pytest.raises(Undecided):
        check_linearizable(History([put(str(number).encode(), 0, 9) for number in range(20)]))


def with_previous() -> list[kv_pb2.Event]:
    truth = Truth(EVENTS)
    return [checkers._with_previous(one, truth) for one in EVENTS]


def watched(*responses: tuple[int, list[int]], start: int = 1) -> list[str]:
    """responses: (header revision, numbers of EVENTS)."""
    told = with_previous()
    session = WatchSession(
        "m1", LOW, HIGH, start, [WatchResponse(revision, [told[n] for n in numbers]) for revision, numbers in responses]
    )
    return check_watches(History([], [session]), Truth(EVENTS))


def test_a_possible_watch_passes() -> None:
    assert watched((2, [0]), (2, []), (5, [1, 2, 3, 4]), (5, [])) == []
    assert watched((3, [1]), (3, []), start=3) == []
    assert watched((2, []), start=9) == []
    assert watched() == []


@pytest.mark.parametrize(
    "responses",
    [
        [(3, [1])],  # the first is missing
        [(2, [0]), (4, [2])],  # one is missing
        [(3, [1, 0])],  # out of order
        [(2, [0]), (2, [0])],  # twice
        [(5, [0, 1, 2, 3]), (5, [4])],  # a revision in two responses
        [(5, [0, 1, 2, 4])],  # half a revision
        [(2, [0]), (5, [])],  # progress past what was told
        [(2, [0]), (3, []), (3, []), (2, [1])],  # a header older than its event
    ],
)
def test_an_impossible_watch_is_found(responses: list[tuple[int, list[int]]]) -> None:
    assert watched(*responses)


@pytest.mark.parametrize("change", [lambda one: one.ClearField("prev_kv"), lambda one: setattr(one.kv, "version", 9)])
def test_an_event_with_other_contents_is_found(change: Callable[[kv_pb2.Event], None]) -> None:
    told = with_previous()
    change(told[1])
    session = WatchSession("m1", LOW, HIGH, 1, [WatchResponse(3, told[:2])])
    assert check_watches(History([], [session]), Truth(EVENTS))


def test_a_compaction_may_end_a_watch_and_hide_previous_values() -> None:
    def complaints_of(compacted: int) -> list[str]:
        return check_watches(History([], [session], compacted), Truth(EVENTS))

    session = WatchSession("m1", LOW, HIGH, 1, compact_revision=4)
    assert not complaints_of(4)
    assert complaints_of(3)
    session = WatchSession("m1", LOW, HIGH, 4, compact_revision=4)
    assert complaints_of(4)
    session = WatchSession("m1", LOW, HIGH, 3, [WatchResponse(3, EVENTS[1:2])])
    assert not complaints_of(3)
    assert complaints_of(2)


def test_a_watch_goes_on_where_it_ended() -> None:
    told = with_previous()
    session = WatchSession("m1", LOW, HIGH, 4)
    assert session.next_revision == 4
    session.responses = [WatchResponse(2, [])]  # progress of a watch of the future
    assert session.next_revision == 4
    session.responses = [WatchResponse(9, told[2:3]), WatchResponse(4, [])]
    assert session.next_revision == 5
    session.compact_revision = 8
    assert session.next_revision == 8
