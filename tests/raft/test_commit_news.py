"""A moved commit index waits for an append that tells it too, but neither for ever nor in its way."""

import asyncio
from collections.abc import Callable
from unittest.mock import create_autospec

import pytest

from raft.commit_news import CommitNews
from raft.messages import AppendEntries, Heartbeat, HeartbeatResponse, Message
from raft.types import Entry


class World:
    """News, and a loop whose timer runs when a test says so."""

    def __init__(self) -> None:
        self.timer: Callable[[], None] | None = None
        self.woken = 0
        self.news = CommitNews(self._wake)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        assert self.timer is None, "one timer is enough"
        self.timer = callback
        return create_autospec(asyncio.TimerHandle, instance=True)

    def _wake(self) -> None:
        self.woken += 1

    def pass_time(self) -> None:
        timer, self.timer = self.timer, None
        assert timer is not None
        timer()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr("raft.commit_news.get_running_loop", lambda: world)
    return world


def quiet(to: int, commit: int = 5) -> Heartbeat:
    return Heartbeat(to, 1, 2, commit, quiet=True)


def append(to: int) -> AppendEntries:
    return AppendEntries(to, 1, 2, 4, 2, [Entry(5, 2, b"x")], 5)


def test_it_leaves_once_everything_is_applied_and_no_append_has_told_it(world: World) -> None:
    news = world.news
    others: list[Message] = [append(3), HeartbeatResponse(4, 1, 2), Heartbeat(5, 1, 2, 5)]
    assert news.hold([quiet(2), *others], 7) == others
    assert news.due(applied=False, tick=7) == []
    newer = quiet(2, 6)
    assert news.hold([newer], 7) == []
    assert news.due(applied=True, tick=7) == [], "the next append may tell it"
    world.pass_time()
    assert world.woken == 1
    assert news.due(applied=False, tick=7) == []
    assert news.due(applied=True, tick=7) == [newer]
    assert news.due(applied=True, tick=8) == []


def test_the_time_counts_for_the_oldest_that_still_waits(world: World) -> None:
    news = world.news
    news.hold([quiet(2)], 7)
    news.hold([append(2)], 7)
    newer = quiet(2, 6)
    news.hold([newer], 7)
    world.pass_time()
    assert news.due(applied=True, tick=7) == [], "it has just begun to wait"
    world.pass_time()
    assert news.due(applied=True, tick=7) == [newer]
    assert world.timer is None, "nothing waits"
    news.hold([quiet(2)], 7)
    news.hold([append(2)], 7)
    world.pass_time()
    assert world.timer is None
    assert world.woken == 1


def test_it_waits_no_longer_than_a_tick(world: World) -> None:
    news = world.news
    first = quiet(2)
    news.hold([first], 7)
    second = quiet(3)
    news.hold([second], 8)
    assert news.due(applied=False, tick=8) == [first, second]


def test_an_append_or_a_heartbeat_says_it_too(world: World) -> None:
    news = world.news
    third = quiet(4)
    news.hold([quiet(2), quiet(3), third], 7)
    answered: list[Message] = [append(2), Heartbeat(3, 1, 2, 5)]
    assert news.hold(answered, 7) == answered
    world.pass_time()
    assert news.due(applied=True, tick=7) == [third]


def test_who_forwarded_requests_gets_it_at_once(world: World) -> None:
    news = world.news
    news.forwarded(2, 7)
    first, second, third, other = quiet(2), quiet(2, 6), quiet(2, 7), quiet(3)
    assert news.hold([first, other], 7) == [first]
    assert news.hold([second], 8) == [second]
    assert news.hold([third], 9) == []
    world.pass_time()
    assert news.due(applied=True, tick=9) == [other, third]
