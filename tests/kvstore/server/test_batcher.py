"""The batcher: one entry per pull, at most once, every caller answered exactly once."""

import asyncio
from collections.abc import Callable
from unittest.mock import create_autospec

import pytest

from kvstore import errors
from kvstore.errors import KvError
from kvstore.pb.command_pb2 import RequestBatch
from kvstore.pb.rpc_pb2 import PutRequest
from kvstore.server import batcher as batching
from kvstore.server.batcher import Batcher
from kvstore.server.company import Company
from kvstore.server.proposal import Proposal
from kvstore.state.applier import AppliedResult, Result
from kvstore.state.command import Op, decode_batch, encode_batch, encode_request
from raft.errors import NotLeader

ME, OTHER, BOOT = 7, 8, 3
LIMIT = 512 * 1024


class Caller:
    """Makes proposals and keeps their answers; an answer that comes twice is an error."""

    def __init__(self) -> None:
        self.answers: dict[bytes, Result] = {}

    def put(self, key: bytes, value: bytes = b"", timeout: float | None = None) -> Proposal:
        return Proposal(
            Op.PUT, PutRequest(key=key, value=value).SerializeToString(), self._answer(key), timeout=timeout
        )

    def _answer(self, key: bytes) -> Callable[[Result], None]:
        def answer(result: Result) -> None:
            assert key not in self.answers, f"{key!r} was answered twice"
            self.answers[key] = result

        return answer


class World:
    """A batcher, the term it lives in, and a caller."""

    def __init__(self, request_bytes_max: int = 1000) -> None:
        self.term = 1
        self.unapplied = 0
        self.time = 100
        self.caller = Caller()
        self.batcher = Batcher(
            ME,
            BOOT,
            request_bytes_max=request_bytes_max,
            timeout=7.0,
            term=lambda: self.term,
            unapplied=lambda: self.unapplied,
            stamp=self._stamp,
            timeout_error=lambda since: errors.TIMEOUT,
            company=Company(self._later, self._wake),
        )
        self.wait_is_over: Callable[[], None] | None = None  # what the timer of a wait calls
        self.woken = 0

    def _later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        self.wait_is_over = callback
        return create_autospec(asyncio.TimerHandle, instance=True)

    def _wake(self) -> None:
        self.woken += 1

    def _stamp(self) -> int:
        self.time += 1
        return self.time

    def add(self, *keys: bytes, now: float = 0.0) -> bool:
        return self.batcher.add([self.caller.put(key) for key in keys], now)

    def take(self, leading: bool = True) -> RequestBatch | None:
        data = self.batcher.take(LIMIT, leading)
        assert len(data) <= 1, "one entry per pull"
        return decode_batch(data[0]) if data else None


@pytest.fixture
def world() -> World:
    return World()


def keys(batch: RequestBatch | None) -> list[bytes]:
    return [request.put.key for request in batch.requests] if batch is not None else []


def forwarded(*sequences: int, member: int = OTHER, boot: int = 1) -> bytes:
    requests = [
        encode_request(Op.PUT, PutRequest(key=b"f%d" % one).SerializeToString(), member, boot, one) for one in sequences
    ]
    return encode_batch(0, requests)


def test_everything_that_waits_becomes_one_entry_in_order_with_a_time(world: World) -> None:
    world.add(b"a", b"b")
    world.add(b"c")
    batch = world.take()
    assert keys(batch) == [b"a", b"b", b"c"]
    assert batch is not None
    assert batch.time == 101
    assert [(one.member, one.boot, one.sequence) for one in batch.requests] == [(ME, BOOT, n) for n in (1, 2, 3)]
    assert world.take() is None


def test_results_answer_by_sequence_and_once(world: World) -> None:
    world.add(b"a", b"b")
    world.take()
    ok = AppliedResult(2, b"")
    world.batcher.results([(2, ok), (1, errors.KEY_NOT_FOUND), (2, ok), (99, ok)])
    assert world.caller.answers == {b"b": ok, b"a": errors.KEY_NOT_FOUND}
    assert world.batcher.waiting == 0


def test_an_entry_is_cut_at_its_bound_and_a_larger_request_goes_alone() -> None:
    world = World(request_bytes_max=2 * LIMIT)
    big = bytes(300 * 1024)
    world.batcher.add([world.caller.put(b"%d" % number, big) for number in range(3)], 0.0)
    world.batcher.add([world.caller.put(b"huge", bytes(LIMIT + 1))], 0.0)
    assert [keys(world.take()) for _ in range(5)] == [[b"0"], [b"1"], [b"2"], [b"huge"], []]


def test_a_too_large_request_is_refused_and_leaves_no_gap(world: World) -> None:
    world.batcher.add([world.caller.put(b"big", bytes(2000)), world.caller.put(b"small")], 0.0)
    assert world.caller.answers == {b"big": errors.REQUEST_TOO_LARGE}
    batch = world.take()
    assert batch is not None
    assert [one.sequence for one in batch.requests] == [1]


def test_too_many_requests_are_refused_before_anything_is_proposed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "WAITING_REQUESTS_MAX", 2)
    world.add(b"a", b"b", b"c")
    assert world.caller.answers == {b"c": errors.TOO_MANY_REQUESTS}
    assert keys(world.take()) == [b"a", b"b"]
    world.add(b"d")  # a and b still wait for their answers
    assert world.caller.answers[b"d"] == errors.TOO_MANY_REQUESTS


def test_queued_bytes_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "WAITING_BYTES_MAX", 10)
    world.add(b"a", b"b")
    assert world.caller.answers == {b"b": errors.TOO_MANY_REQUESTS}
    world.take()
    world.add(b"c")
    assert keys(world.take()) == [b"c"]


def test_a_follower_hands_its_requests_out_once_without_a_time(world: World) -> None:
    world.add(b"a")
    batch = world.take(leading=False)
    assert keys(batch) == [b"a"]
    assert batch is not None
    assert batch.time == 0
    world.term = 2
    assert world.take(leading=True) is None
    assert world.take(leading=False) is None


def test_what_was_returned_goes_out_again_first_and_in_order(world: World) -> None:
    world.add(b"a", b"b")
    data = world.batcher.take(LIMIT, True)
    world.add(b"c")
    world.batcher.returned(data, NotLeader("lost it"))
    world.term = 2
    assert keys(world.take(leading=False)) == [b"a", b"b", b"c"]
    world.batcher.applied(2)  # they were handed out in term 2, not in 1
    assert world.caller.answers == {}


def test_what_was_returned_is_not_lost_with_the_old_term(world: World) -> None:
    world.add(b"a")
    world.batcher.returned(world.batcher.take(LIMIT, True), NotLeader("lost it"))
    world.batcher.applied(2)
    assert world.caller.answers == {}
    assert keys(world.take()) == [b"a"]


def test_a_leader_merges_what_followers_forward(world: World) -> None:
    world.add(b"own")
    world.batcher.receive(OTHER, [forwarded(1, 2), forwarded(3)])
    assert keys(world.take()) == [b"own", b"f1", b"f2", b"f3"]


def test_a_leader_waits_for_its_last_entry_unless_the_next_is_full() -> None:
    world = World(request_bytes_max=LIMIT)
    world.unapplied = 1
    world.add(b"a")
    world.batcher.receive(OTHER, [forwarded(1)])
    assert world.take() is None
    world.batcher.add([world.caller.put(key, bytes(300 * 1024)) for key in (b"big", b"more")], 0.0)
    assert keys(world.take()) == [b"a", b"f1"]  # beside a forward, `big` is over our half
    assert keys(world.take()) == [b"big"]
    assert world.take() is None
    world.unapplied = 0
    assert keys(world.take()) == [b"more"]


def test_a_follower_does_not_wait(world: World) -> None:
    world.unapplied = 1
    world.add(b"a")
    assert keys(world.take(leading=False)) == [b"a"]


@pytest.mark.parametrize("leading", [True, False])
def test_an_entry_or_a_forward_waits_for_those_who_were_just_answered(world: World, leading: bool) -> None:
    world.add(b"a", b"b")
    world.take(leading)
    world.batcher.results([(1, AppliedResult(2, b"")), (2, AppliedResult(3, b""))])
    world.add(b"c")
    assert world.take(leading) is None
    world.add(b"d")
    assert keys(world.take(leading)) == [b"c", b"d"]


def test_it_leaves_without_them_when_they_do_not_come(world: World) -> None:
    world.add(b"a", b"b")
    world.take()
    world.batcher.results([(1, AppliedResult(2, b"")), (2, AppliedResult(3, b""))])
    world.add(b"c")
    assert world.take() is None
    assert world.wait_is_over is not None
    world.wait_is_over()
    assert world.woken == 1, "the node takes it"
    assert keys(world.take()) == [b"c"]


def test_requests_that_cannot_leave_yet_wake_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.server.batcher.ENTRY_REQUESTS_MAX", 4)
    assert world.add(b"a", b"b"), "nothing is on its way"
    world.take()
    world.unapplied = 1
    assert world.add(b"c"), "the node has not said no yet"
    assert world.take() is None
    assert not world.add(b"d")
    assert not world.add(b"e")
    assert world.add(b"f"), "an entry is full"
    assert keys(world.take()) == [b"c", b"d", b"e", b"f"]
    world.unapplied = 0
    assert world.take() is None
    world.batcher.results([(1, AppliedResult(2, b"")), (2, AppliedResult(3, b""))])
    assert world.add(b"g")
    assert world.take() is None
    assert world.add(b"h"), "all who were waited for are here"
    assert keys(world.take()) == [b"g", b"h"]


def test_neither_own_nor_forwarded_requests_starve() -> None:
    world = World(request_bytes_max=LIMIT)
    big = bytes(200 * 1024)
    world.batcher.add([world.caller.put(b"%d" % number, big) for number in range(4)], 0.0)
    world.batcher.receive(OTHER, [forwarded(1)])
    assert b"f1" in keys(world.take())


def test_an_entry_holds_only_so_many_requests_however_small(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.server.batcher.ENTRY_REQUESTS_MAX", 4)
    world.unapplied = 1
    world.add(b"a", b"b")
    world.batcher.receive(OTHER, [forwarded(1)])
    assert world.take() is None
    world.add(b"c", b"d")
    assert keys(world.take()) == [b"a", b"b", b"f1"]  # it is full: it does not wait, and the halves are kept to
    world.unapplied = 0
    world.add(*[b"%d" % number for number in range(5)])
    assert keys(world.take()) == [b"c", b"d", b"0", b"1"]
    assert keys(world.take()) == [b"2", b"3", b"4"]


def test_a_forward_that_comes_twice_is_taken_once(world: World) -> None:
    world.batcher.receive(OTHER, [forwarded(1, 2)])
    world.batcher.receive(OTHER, [forwarded(1, 2, 3)])
    assert keys(world.take()) == [b"f1", b"f2", b"f3"]
    world.batcher.receive(OTHER, [forwarded(1, boot=2)])  # it was started again: a new count
    world.batcher.receive(OTHER, [forwarded(4, boot=1)])  # late, from the start before
    assert keys(world.take()) == [b"f1"]


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff",
        RequestBatch(format=99).SerializeToString(),
        RequestBatch(format=1, requests=[{}]).SerializeToString(),  # type: ignore[list-item]
        forwarded(1, member=ME),
        forwarded(1, member=99),
    ],
    ids=["garbage", "unknown format", "no operation", "in our name", "in another's name"],
)
def test_a_wrong_forward_is_dropped(world: World, data: bytes) -> None:
    world.batcher.receive(OTHER, [data, forwarded(2)])
    assert keys(world.take()) == [b"f2"]


def test_forwards_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "FORWARDED_REQUESTS_MAX", 2)
    world.batcher.receive(OTHER, [forwarded(1, 2, 3)])
    assert keys(world.take()) == [b"f1", b"f2"]


def test_a_forward_to_a_leader_that_lost_it_is_dropped_and_not_passed_on(world: World) -> None:
    world.batcher.receive(OTHER, [forwarded(1)])
    world.add(b"own")
    assert keys(world.take(leading=False)) == [b"own"]
    world.add(b"next")
    assert keys(world.take(leading=True)) == [b"next"]


def test_a_deadline_answers_timeout_and_a_late_result_reaches_nobody(world: World) -> None:
    world.add(b"a", now=10.1)
    world.take()
    world.batcher.expire(17.05)
    assert world.caller.answers == {}
    world.batcher.expire(17.35)
    assert world.caller.answers == {b"a": errors.TIMEOUT}
    world.batcher.results([(1, AppliedResult(2, b""))])


def test_a_request_that_timed_out_in_the_queue_is_never_proposed(world: World) -> None:
    world.batcher.add([world.caller.put(b"a", timeout=1.0), world.caller.put(b"b")], 0.0)
    world.batcher.expire(2.0)
    assert world.caller.answers == {b"a": errors.TIMEOUT}
    assert keys(world.take()) == [b"b"]


def test_after_an_entry_of_a_newer_term_the_older_terms_requests_are_unknown(world: World) -> None:
    world.add(b"old")
    world.take(leading=False)
    world.add(b"waiting")
    world.term = 2
    world.add(b"new")
    world.batcher.applied(1)
    assert world.caller.answers == {}
    world.batcher.applied(2)
    assert world.caller.answers == {b"old": errors.LEADER_CHANGED}
    assert keys(world.take()) == [b"waiting", b"new"]


def test_requests_that_a_snapshot_holds_are_unknown_and_the_others_wait_on(world: World) -> None:
    """Their entries are never applied here: "done" and "not done" would both be guesses."""
    world.add(b"a")
    world.add(b"b")
    world.take(leading=False)
    world.add(b"c")
    world.take(leading=False)
    world.add(b"waiting")
    world.batcher.jumped((BOOT - 1, 9))
    assert world.caller.answers == {}
    world.batcher.jumped((BOOT, 2))
    assert world.caller.answers == {b"a": errors.TIMEOUT, b"b": errors.TIMEOUT}
    world.batcher.results([(3, errors.LEADER_CHANGED)])
    assert world.caller.answers[b"c"] == errors.LEADER_CHANGED
    assert world.wait_is_over is not None
    world.wait_is_over()
    assert keys(world.take()) == [b"waiting"]


def test_a_stop_answers_everybody_and_refuses_more(world: World) -> None:
    world.add(b"a")
    world.take()
    world.add(b"b")
    world.batcher.stop()
    world.add(b"c")
    assert world.caller.answers == dict.fromkeys((b"a", b"b", b"c"), errors.STOPPED)


def test_no_answer_is_a_definite_failure_once_a_request_was_handed_out() -> None:
    """Clients repeat what definitely failed: an unknown outcome must say so (RELIABILITY 2b)."""
    for error in (errors.TIMEOUT, errors.LEADER_CHANGED, errors.STOPPED):
        assert isinstance(error, KvError)
        assert error.code is errors.Code.UNAVAILABLE
