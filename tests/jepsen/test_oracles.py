"""The oracles of counters, queues, locks, leases, watches, refusals and votes, on hand-made histories, good and bad."""

from typing import Any

import pytest

from kvstore.pb import kv_pb2, rpc_pb2
from raft.storage.dump import LogImage
from raft.types import HardState
from tests.e2e.checkers import Truth
from tests.jepsen.checkers.counter import check_counter
from tests.jepsen.checkers.lease import SECOND, check_lease
from tests.jepsen.checkers.lock import check_bare, check_exclusion, check_fenced, lost_bare
from tests.jepsen.checkers.queue import check_queue
from tests.jepsen.checkers.reads import check_reads
from tests.jepsen.checkers.resources import Use, compare
from tests.jepsen.checkers.votes import Voter, check_votes
from tests.jepsen.checkers.watch import check_watch, request_of, response_of
from tests.jepsen.record import NEVER, Call
from tests.jepsen.test_checkers import call


def judged(complaints: list[str], why: str) -> None:
    """why: part of a complaint; "": there must be none."""
    assert any(why in one for one in complaints) if why else not complaints, complaints


# Counters


def add(amount: int, total: int, begin: int, end: int, kind: str = "ok") -> Call:
    return call("increment", "c", amount, begin, end, kind, total)


def count(value: int, begin: int, end: int) -> Call:
    return call("read", "c", None, begin, end, "ok", value)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ([add(2, 2, 0, 1), add(3, 5, 2, 3), count(5, 4, 5)], ""),
        ([add(2, 2, 0, 9), count(0, 1, 2), count(2, 3, 4)], ""),
        ([add(2, 2, 0, 0, "info"), count(0, 1, 2), count(2, 3, 4), count(2, 5, 6)], ""),
        ([add(2, 2, 0, 1), count(0, 2, 3)], "not in 2..2"),  # lost
        ([add(2, 2, 0, 1, "fail"), count(2, 2, 3)], "not in 0..0"),  # done though it failed
        ([count(2, 0, 1), add(2, 2, 2, 3)], "not in 0..0"),  # before it was asked for
        ([add(2, 2, 0, 1), count(4, 2, 3)], "not in 2..2"),  # twice
        ([add(2, 2, 0, 9), count(2, 1, 2), count(0, 3, 4)], "had been told before"),
        ([add(2, 2, 0, 9), add(3, 3, 0, 9)], "two additions to 0"),
    ],
)
def test_counter(found: list[Call], why: str) -> None:
    judged(check_counter(found), why)


# Queues


def put(element: int, revision: int, begin: int, end: int, kind: str = "ok") -> Call:
    return call("enqueue", "q", element, begin, end, kind, revision=revision)


def take(element: int, created: int, revision: int, begin: int, end: int, kind: str = "ok") -> Call:
    return call("dequeue", "q", [element, created], begin, end, kind, revision=revision)


def peek(seen: list[int], begin: int, end: int) -> Call:
    return call("peek", "q", None, begin, end, "ok", seen)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ([put(1, 2, 0, 1), put(2, 3, 2, 3), peek([1, 2], 4, 5), take(1, 2, 4, 6, 7), take(2, 3, 5, 8, 9)], ""),
        ([put(1, 2, 0, 1), put(2, 3, 2, 3), take(1, 2, 4, 4, 7), peek([2, 3], 5, 6), take(2, 3, 5, 8, 9)], ""),
        ([put(1, 2, 0, 1), put(2, 3, 0, 1), take(1, 2, 0, 2, 0, "info"), take(2, 3, 4, 3, 4)], ""),
        ([put(1, 0, 0, 0, "info"), put(2, 3, 0, 1), take(1, 2, 4, 3, 4), take(2, 3, 5, 5, 6)], ""),
        ([put(1, 2, 0, 1), put(2, 3, 0, 1), take(2, 3, 4, 3, 4)], "is lost"),
        ([put(1, 2, 0, 1), take(1, 2, 4, 3, 4), take(1, 2, 5, 5, 6)], "taken twice"),
        ([put(1, 2, 0, 1, "fail"), take(1, 2, 4, 3, 4)], "its put"),
        ([take(1, 2, 4, 3, 4)], "its put: None"),
        ([put(1, 2, 0, 1), put(2, 3, 2, 3), peek([2, 3], 4, 5), take(1, 2, 4, 6, 7), take(2, 3, 5, 8, 9)], "was there"),
        ([put(1, 2, 0, 1), peek([], 2, 3), take(1, 2, 3, 4, 5)], "was there"),
        ([], "nothing was taken"),
    ],
)
def test_queue(found: list[Call], why: str) -> None:
    judged(check_queue(found), why)


# Leases: of 2 s, with one key


def lease(f: str, begin: float, end: float, value: Any = None, kind: str = "ok") -> Call:
    key = "k" if f in ("bind", "read") else "1"
    asked = {"grant": 2, "bind": "1"}.get(f)
    end = end if kind == "ok" else NEVER / SECOND
    return Call(0, f, key, asked, int(begin * SECOND), kind, value, int(end * SECOND))


HELD = [lease("grant", 0, 0.1, 2), lease("bind", 0.2, 0.3, "1")]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ([*HELD, lease("read", 1, 1.1, "1"), lease("read", 1.9, 2, None)], ""),
        ([*HELD, lease("keepalive", 1, 1.1, 2), lease("read", 2.5, 2.6, "1"), lease("read", 3.2, 3.3, None)], ""),
        ([*HELD, lease("revoke", 1, 1.1), lease("read", 1.2, 1.3, None), lease("keepalive", 1.4, 1.5, 0)], ""),
        ([*HELD, lease("revoke", 1, 0, None, "info"), lease("read", 1.2, 1.3, None)], ""),
        ([lease("grant", 0, 0.1, 2), lease("bind", 0.2, 0, None, "info"), lease("read", 1, 1.1, None)], ""),
        ([*HELD, lease("read", 1, 1.1, None)], "gone too early"),
        ([*HELD, lease("keepalive", 1, 1.1, 2), lease("read", 2.5, 2.6, None)], "gone too early"),
        ([*HELD, lease("keepalive", 1, 1.1, 2), lease("keepalive", 2.5, 2.6, 0)], "gone too early"),
        ([*HELD, lease("revoke", 1, 1.1), lease("keepalive", 1.4, 1.5, 2)], "there again"),
        ([*HELD, lease("read", 2.1, 2.2, None), lease("read", 2.3, 2.4, "1")], "there again"),
        ([*HELD, lease("keepalive", 1, 1.1, 3)], "promised 3 s"),
    ],
)
def test_lease(found: list[Call], why: str) -> None:
    judged(check_lease(found, None), why)


def test_a_lease_under_a_fast_clock() -> None:
    found = [*HELD, lease("read", 1.4, 1.5, None)]
    judged(check_lease(found, None), "gone too early")
    judged(check_lease(found, None, fastest=1.5), "")
    judged(check_lease([*HELD, lease("read", 1.2, 1.3, None)], None, fastest=1.5), "gone too early")


def event(revision: int, key: str, value: str = "", created: int = 0, version: int = 0) -> kv_pb2.Event:
    kv = kv_pb2.KeyValue(
        key=key.encode(), value=value.encode(), mod_revision=revision, create_revision=created, version=version
    )
    return kv_pb2.Event(type="PUT" if value else "DELETE", kv=kv)


def test_keys_of_a_lease_go_together() -> None:
    found = [*HELD, Call(0, "bind", "l", "1", SECOND, "ok", "1", SECOND + 1)]
    puts = [event(2, "k", "1", 2, 1), event(3, "l", "1", 3, 1)]
    judged(check_lease(found, Truth([*puts, event(4, "k"), event(4, "l")])), "")
    judged(check_lease(found, Truth([*puts, event(4, "k"), event(5, "l")])), "in the revisions [4, 5]")


# Watches: what is told is compared with k=1 (2), k=2 (3), k deleted (4), l=3 (5)

EVENTS = [event(2, "k", "1", 2, 1), event(3, "k", "2", 2, 2), event(4, "k"), event(5, "l", "3", 5, 1)]
K, Z = b"k", b"z"


def response(revision: int, *events: kv_pb2.Event, **more: Any) -> rpc_pb2.WatchResponse:
    found = rpc_pb2.WatchResponse(events=events, **more)
    found.header.revision = revision
    return found


def with_previous(one: kv_pb2.Event, other: kv_pb2.Event) -> kv_pb2.Event:
    copy = kv_pb2.Event()
    copy.CopyFrom(one)
    copy.prev_kv.CopyFrom(other.kv)
    return copy


CREATED = response(5, created=True)
ONE, TWO, GONE, LAST = EVENTS
FILTERED = {"filters": [rpc_pb2.WatchCreateRequest.NODELETE]}


@pytest.mark.parametrize(
    ("more", "responses", "compacted", "why"),
    [
        ({}, [response(5, ONE, TWO), response(5, GONE, LAST)], 0, ""),
        (
            {"start_revision": 3},
            [response(3, TWO), response(4), response(5, GONE, LAST)],
            0,
            "after 4",
        ),  # progress lied
        ({"start_revision": 3}, [response(3, TWO), response(4, GONE), response(4), response(5, LAST)], 0, ""),
        (FILTERED, [response(5, ONE, TWO, LAST)], 0, ""),
        (FILTERED, [response(5, ONE, TWO, GONE, LAST)], 0, "the truth is"),
        ({"range_end": b""}, [response(5, ONE, TWO, GONE, LAST)], 0, "the truth is"),  # not of its keys
        ({}, [response(5, ONE, GONE, LAST)], 0, "the truth is"),  # one is missing
        ({}, [response(5, TWO, GONE, LAST)], 0, "the truth is"),  # the first is missing
        ({}, [response(5, ONE, TWO), response(5, TWO, GONE, LAST)], 0, "after 3"),  # twice
        ({}, [response(5, TWO, ONE, GONE, LAST)], 0, "the truth is"),  # out of order
        ({"prev_kv": True}, [response(5, ONE, with_previous(TWO, ONE))], 0, ""),
        ({"prev_kv": True}, [response(5, ONE, TWO)], 0, "the truth is"),
        ({"prev_kv": True}, [response(5, ONE, TWO)], 3, ""),
        ({"prev_kv": True}, [response(5, ONE, with_previous(TWO, LAST))], 0, "the truth is"),
        ({"fragment": True}, [response(5, ONE, fragment=True), response(5, TWO)], 0, ""),
        ({}, [response(5, ONE, fragment=True), response(5, TWO)], 0, "nobody asked for"),
        ({}, [response(5, ONE), response(5, canceled=True, compact_revision=4)], 4, ""),
        ({}, [response(5, ONE), response(5, canceled=True, compact_revision=4)], 3, "by compaction"),
        ({}, [response(5, canceled=True), response(5, ONE)], 0, "after its end"),
        ({"start_revision": 9}, [], 0, "told nothing"),
    ],
)
def test_watch(more: dict[str, Any], responses: list[rpc_pb2.WatchResponse], compacted: int, why: str) -> None:
    request = rpc_pb2.WatchCreateRequest(**{"key": K, "range_end": Z, "start_revision": 2} | more)
    lines = [{"type": "invoke", "f": "watch", "key": "0", "value": request_of(request), "member": "m1"}]
    for one in (CREATED, *responses):
        value, revision = response_of(one), one.header.revision
        lines.append({"type": "info", "f": "watch", "key": "0", "value": value, "revision": revision})
    calls = [call("compact", "", compacted, 0, 1)] if compacted else []
    judged(check_watch(lines, calls, Truth(EVENTS)), why)


# What is refused


def at(revision: int, begin: int, error: str = "", header: int = 9) -> Call:
    kind = "fail" if error else "ok"
    return call("at", "k", revision, begin, begin + 1, kind, error=error, revision=0 if error else header)


COMPACT = call("compact", "", 5, 0, 1, revision=9)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ([COMPACT, at(4, 2, "compacted"), at(5, 2)], ""),
        ([COMPACT, at(10, 2, "future")], ""),
        ([COMPACT, at(5, 2, "compacted")], "by nobody"),
        ([call("compact", "", 5, 9, 10), at(4, 2, "compacted")], "by nobody"),  # asked for later
        ([COMPACT, at(9, 2, "future")], "had been told"),
        ([COMPACT, at(9, 2, header=8)], "older than what it tells"),
        ([at(9, 2)], "nothing was compacted"),
    ],
)
def test_refusals(found: list[Call], why: str) -> None:
    judged(check_reads([call("write", "k", "1", 0, 1, revision=2), *found]), why)


def test_a_fault_may_compact_too() -> None:
    found = [COMPACT, at(7, 2, "compacted"), call("write", "k", "1", 0, 1, revision=6)]
    judged(check_reads(found), "by nobody")
    judged(check_reads(found, others=4), "by nobody")
    judged(check_reads(found, others=3), "")
    judged(check_reads([COMPACT, at(8, 2, "compacted")]), "")  # from before the clients came


# Votes


def fact(term: int, what: str, node: str = "a") -> str:
    return f'{{"ns": 1, "node": "{node}", "term": {term}, "fact": "{what}"}}'


def log(last_term: int, term: int, vote: int) -> LogImage:
    image = LogImage(None)  # type: ignore[arg-type]
    image.last_term, image.hard_state = last_term, HardState(term, vote, 0)
    return image


LED = [fact(2, "became candidate"), fact(2, "became leader")]


@pytest.mark.parametrize(
    ("voters", "why"),
    [
        ([Voter("a", LED, log(2, 2, 0xA)), Voter("b", [fact(2, "voted for na", "b")], log(2, 2, 0xA))], ""),
        ([Voter("a", LED, log(2, 3, 0))], ""),  # of a newer term it knows nothing yet
        ([Voter("a", LED, log(1, 2, 0))], ""),  # not saved yet, so not said to anybody
        ([Voter("a", LED, log(2, 2, 0))], "remembers 0"),
        ([Voter("a", LED, log(2, 1, 0xA))], "remembers term 1"),
        ([Voter("a", [*LED, fact(2, "voted for nb")])], "voted in term 2 for ['a', 'b']"),
        ([Voter("a", LED), Voter("b", [fact(2, "became leader", "b")])], "was led by ['a', 'b']"),
        ([Voter("a", [])], "nobody"),
    ],
)
def test_votes(voters: list[Voter], why: str) -> None:
    judged(check_votes(voters), why)


# Locks


def locked(begin: int, end: int, process: int, until: int = 0, lost: bool = False) -> list[Call]:
    lock = call("lock", "a", None, begin - 1, begin, "ok", ["key", until])
    unlock = call("unlock", "a", None, end, end + 1)
    lock.process = unlock.process = process
    unlock.lost = lost
    return [lock, unlock]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ([*locked(1, 3, 0), *locked(4, 6, 1)], ""),
        ([*locked(1, 9, 0, until=3), *locked(4, 6, 1)], ""),  # its lease was over
        ([*locked(1, 9, 0, lost=True), *locked(4, 6, 1)], ""),
        ([*locked(1, 5, 0), *locked(4, 6, 1)], "held until 5"),
        ([*locked(1, 9, 0, until=5), *locked(4, 6, 1)], "held until 5"),
        ([*locked(1, 9, 0), *locked(2, 3, 1), *locked(4, 6, 2)], "from 4 on"),
        ([], "nobody"),
    ],
)
def test_exclusion(found: list[Call], why: str) -> None:
    judged(check_exclusion(found), why)


def append(element: int, result: list[int], kind: str = "ok") -> Call:
    return call("fenced", "l", element, 0, 1, kind, result)


def last(elements: list[int]) -> Call:
    return call("read", "l", None, 9, 10, "ok", elements)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ([append(1, [1]), append(2, [1, 2]), last([1, 2])], ""),
        ([append(1, [1]), append(2, [1, 2], "info"), append(3, [1, 3], "fail"), last([1, 2])], ""),
        ([append(1, [1]), append(2, [2]), last([2])], "no beginning"),  # overwritten
        ([append(1, [1], "fail"), last([1])], "has failed"),
        ([append(1, [1]), last([1, 1])], "2 times"),
        ([append(1, [1]), last([1, 7])], "nobody has appended [7]"),
        ([append(1, [1])], "never read"),
    ],
)
def test_fenced(found: list[Call], why: str) -> None:
    judged(check_fenced(found), why)


def test_bare_is_counted() -> None:
    found = [append(1, [1]), append(2, [2]), append(3, [3], "info"), last([2])]
    for one in found[:-1]:
        one.f = "bare"
    assert lost_bare(found).startswith("unsafe by design: 1 of 2 ")
    judged(check_bare(found), "")
    judged(check_bare([*found[:-1], last([2, 9])]), "nobody has appended [9]")


# What members hold


@pytest.mark.parametrize(
    ("tasks", "sockets", "memory", "why"),
    [(44, 14, 100 << 20, ""), (45, 10, 0, "45 tasks"), (40, 15, 0, "15 sockets"), (40, 10, 1 << 30, "1024 MiB")],
)
def test_resources(tasks: int, sockets: int, memory: int, why: str) -> None:
    before = {"m1": Use(40, 8, 70 << 20), "m2": Use(30, 10, 70 << 20)}
    judged(compare(before, before | {"m3": Use(tasks, sockets, memory)}), why)
