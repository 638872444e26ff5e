"""A moved commit index waits for an append that tells it too, but neither for ever nor in its way."""

from raft.commit_news import CommitNews
from raft.messages import AppendEntries, Heartbeat, HeartbeatResponse, Message
from raft.types import Entry


def quiet(to: int, commit: int = 5) -> Heartbeat:
    return Heartbeat(to, 1, 2, commit, quiet=True)


def append(to: int) -> AppendEntries:
    return AppendEntries(to, 1, 2, 4, 2, [Entry(5, 2, b"x")], 5)


def test_it_leaves_once_everything_is_applied() -> None:
    news = CommitNews()
    others: list[Message] = [append(3), HeartbeatResponse(4, 1, 2), Heartbeat(5, 1, 2, 5)]
    assert news.hold([quiet(2), *others], 7) == others
    assert news.due(applied=False, tick=7) == []
    newer = quiet(2, 6)
    assert news.hold([newer], 7) == []
    assert news.due(applied=True, tick=7) == [newer]
    assert news.due(applied=True, tick=8) == []


def test_it_waits_no_longer_than_a_tick() -> None:
    news = CommitNews()
    first = quiet(2)
    news.hold([first], 7)
    second = quiet(3)
    news.hold([second], 8)
    assert news.due(applied=False, tick=8) == [first, second]


def test_an_append_or_a_heartbeat_says_it_too() -> None:
    news = CommitNews()
    third = quiet(4)
    news.hold([quiet(2), quiet(3), third], 7)
    answered: list[Message] = [append(2), Heartbeat(3, 1, 2, 5)]
    assert news.hold(answered, 7) == answered
    assert news.due(applied=True, tick=7) == [third]


def test_who_forwarded_requests_gets_it_at_once() -> None:
    news = CommitNews()
    news.forwarded(2, 7)
    first, second, third, other = quiet(2), quiet(2, 6), quiet(2, 7), quiet(3)
    assert news.hold([first, other], 7) == [first]
    assert news.hold([second], 8) == [second]
    assert news.hold([third], 9) == []
    assert news.due(applied=True, tick=9) == [other, third]
