"""The read barrier: a round proves something only to those who asked before it began."""

import asyncio

import pytest

from kvstore import errors
from kvstore.errors import KvError
from kvstore.server import reads
from kvstore.server.reads import ReadBarrier
from raft.errors import Stopped


class FakeNode:
    """A node whose rounds are confirmed by hand."""

    def __init__(self) -> None:
        self.rounds: list[asyncio.Future[int]] = []
        self.applied = 0
        self.waiting: list[tuple[int, asyncio.Future[None]]] = []

    async def read_index(self) -> int:
        self.rounds.append(asyncio.get_running_loop().create_future())
        return await self.rounds[-1]

    async def wait_applied(self, index: int) -> None:
        if index > self.applied:
            self.waiting.append((index, asyncio.get_running_loop().create_future()))
            await self.waiting[-1][1]


class World:
    def __init__(self) -> None:
        self.node = FakeNode()
        self.barrier = ReadBarrier(self.node, 7.0, lambda since: errors.TIMEOUT)
        self.answers: dict[str, KvError | None] = {}
        self.task = asyncio.create_task(self.barrier.run())

    def ask(self, name: str, now: float = 0.0) -> None:
        def done(error: KvError | None) -> None:
            assert name not in self.answers, f"{name} was answered twice"
            self.answers[name] = error

        self.barrier.add(done, now)

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def round(self, number: int) -> None:
        """Until so many rounds have begun."""
        async with asyncio.timeout(10):
            while len(self.node.rounds) < number:
                await asyncio.sleep(0)

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_all_who_wait_share_a_round() -> None:
    world = World()
    await world.settle()
    world.ask("a")
    world.ask("b")
    await world.settle()
    assert len(world.node.rounds) == 1
    world.node.rounds[0].set_result(0)
    await world.settle()
    assert world.answers == {"a": None, "b": None}
    await world.close()


async def test_a_round_waits_for_readers_that_were_just_answered_but_not_for_ever() -> None:
    world = World()
    world.ask("a")
    world.ask("b")
    await world.settle()
    world.node.rounds[0].set_result(0)
    await world.settle()
    world.ask("a again")
    await world.settle()
    assert len(world.node.rounds) == 1
    world.ask("b again")
    await world.settle()
    assert len(world.node.rounds) == 2
    world.node.rounds[1].set_result(0)
    await world.settle()
    world.ask("a alone")
    await world.round(3)
    await world.close()


async def test_who_comes_during_a_round_waits_for_the_next() -> None:
    world = World()
    world.ask("a")
    await world.settle()
    world.ask("late")
    world.node.rounds[0].set_result(0)
    await world.settle()
    assert world.answers == {"a": None}
    await world.round(2)
    world.node.rounds[1].set_result(0)
    await world.settle()
    assert world.answers == {"a": None, "late": None}
    await world.close()


async def test_a_read_waits_until_the_index_is_applied() -> None:
    world = World()
    world.ask("a")
    await world.settle()
    world.node.rounds[0].set_result(5)
    await world.settle()
    assert world.answers == {}
    world.node.waiting[0][1].set_result(None)
    await world.settle()
    assert world.answers == {"a": None}
    await world.close()


async def test_nobody_waits_longer_than_the_timeout_and_later_ones_go_on() -> None:
    world = World()
    world.ask("a", now=0.0)
    await world.settle()
    world.ask("b", now=1.0)
    world.barrier.expire(6.9)
    assert world.answers == {}
    world.barrier.expire(7.0)
    assert world.answers == {"a": errors.TIMEOUT}
    world.node.rounds[0].set_result(0)
    await world.round(2)
    world.node.rounds[1].set_result(0)
    await world.settle()
    assert world.answers == {"a": errors.TIMEOUT, "b": None}
    await world.close()


async def test_the_number_of_callers_is_bounded() -> None:
    world = World()
    limit = reads.WAITING_MAX
    for number in range(limit):
        world.ask(str(number))
    world.ask("one more")
    assert world.answers == {"one more": errors.TOO_MANY_REQUESTS}
    await world.close()


async def test_a_stopped_node_answers_everybody() -> None:
    world = World()
    world.ask("a")
    await world.settle()
    world.ask("b")
    world.node.rounds[0].set_exception(Stopped("stopped"))
    await world.settle()
    world.ask("c")
    assert world.answers == dict.fromkeys("abc", errors.STOPPED)
    assert world.task.done()


async def test_slow_rounds_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    for expected, seconds in ((0, 3600.0), (1, 0.0), (2, 0.0)):
        monkeypatch.setattr(reads, "SLOW_SECONDS", seconds)
        world.ask(f"{expected}")
        await world.settle()
        world.node.rounds[-1].set_result(0)
        await world.settle()
        assert world.barrier.slow == expected
    await world.close()
