"""What a waiter does when things happen between two of its looks; no server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from kvstore.client import claims, errors
from kvstore.client.client import Client
from kvstore.client.session import Session
from kvstore.client.types import Event, GetResult, Header, KeyValue, WatchResponse


def header(revision: int) -> Header:
    return Header(1, 1, revision, 1)


def kv(value: bytes, revision: int) -> KeyValue:
    return KeyValue(b"e/1", value, 2, revision, 1, 1)


def found(value: bytes | None, revision: int) -> GetResult:
    kvs = (kv(value, revision),) if value is not None else ()
    return GetResult(header(revision), kvs, False, len(kvs))


def events(*values: tuple[str, bytes, int]) -> WatchResponse:
    made = tuple(Event(type_, kv(value, revision), None) for type_, value, revision in values)  # type: ignore[arg-type]
    return WatchResponse(header(values[-1][2]), made)


class Scripted:
    """A client whose answers are given."""

    def __init__(self, gets: list[GetResult], watches: list[list[WatchResponse | Exception]]) -> None:
        self._gets, self._watches = gets, watches
        self.watched: list[dict[str, Any]] = []

    async def get(self, key: bytes, **options: Any) -> GetResult:
        return self._gets.pop(0)

    @asynccontextmanager
    async def watch(self, key: bytes, **options: Any) -> AsyncIterator[AsyncIterator[WatchResponse]]:
        self.watched.append({"key": key, **options})
        yield self._responses(self._watches.pop(0))

    async def _responses(self, script: list[WatchResponse | Exception]) -> AsyncIterator[WatchResponse]:
        for one in script:
            if isinstance(one, Exception):
                raise one
            yield one
        await asyncio.Event().wait()


async def test_an_end_is_looked_for_from_the_revision_of_the_look_on() -> None:
    client = Scripted([], [[events(("DELETE", b"", 8))], [errors.Compacted("compacted")]])
    await claims.wait_deleted(cast(Client, client), b"e/1", 7)
    await claims.wait_deleted(cast(Client, client), b"e/1", 7)
    assert client.watched == [{"key": b"e/1", "start_revision": 8, "only": "DELETE"}] * 2


async def test_an_observer_looks_again_where_it_cannot_know() -> None:
    client = Scripted(
        [found(None, 3), found(b"one", 4), found(b"two", 9), found(b"three", 12)],
        [
            [events(("PUT", b"one", 4))],
            [events(("PUT", b"uno", 5), ("DELETE", b"", 6), ("PUT", b"not ours to tell", 7))],
            [errors.Compacted("compacted")],
            [],
        ],
    )
    observed = claims.observe(cast(Client, client), b"e")
    assert [(await anext(observed)).value for _ in range(4)] == [b"one", b"uno", b"two", b"three"]
    assert [one["start_revision"] for one in client.watched] == [4, 5, 10]


class Kept:
    is_lost = False


async def test_what_is_asked_is_asked_until_the_session_is_lost() -> None:
    session = Session(cast(Client, None))
    kept = session._kept = cast(Any, Kept())
    answers: list[Any] = [errors.Unavailable("one"), errors.DeadlineExceeded("two"), 5]

    async def call() -> int:
        answer = answers.pop(0) if answers else errors.Unavailable("for ever")
        if isinstance(answer, Exception):
            raise answer
        return int(answer)

    assert await session.ask(call) == 5
    kept.is_lost = True
    with pytest.raises(errors.SessionExpired):
        await session.ask(call)
    answers.append(errors.NoSpace("full"))
    with pytest.raises(errors.NoSpace):
        await session.ask(call)
