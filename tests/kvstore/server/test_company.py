"""A batch waits for those who have just been answered, briefly, and seldom for those who do not come."""

import asyncio
from collections.abc import Callable

from kvstore.server.company import VAIN_MAX, WAIT_SECONDS, Company


class Timer(asyncio.TimerHandle):
    """One that runs when a test says so."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class World:
    def __init__(self) -> None:
        self.timers: list[Timer] = []
        self.woken = 0
        self.company = Company(self._later, self._wake)

    def _later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        assert seconds == WAIT_SECONDS
        self.timers.append(Timer(callback))
        return self.timers[-1]

    def _wake(self) -> None:
        self.woken += 1

    def running(self) -> list[Timer]:
        return [timer for timer in self.timers if timer.callback is not None]

    def pass_time(self) -> None:
        for timer in self.running():
            callback, timer.callback = timer.callback, None
            assert callback is not None
            callback()


def test_the_next_batch_waits_for_all_who_were_answered_beside_those_who_wait() -> None:
    world = World()
    assert not world.company.is_expected(1), "nobody was answered yet"
    world.company.answered(3, waiting=4)
    assert world.company.is_expected(6)
    assert not world.company.has_come(6)
    assert world.company.has_come(7)
    assert not world.company.is_expected(7)
    assert not world.company.is_expected(1), "that was for one batch"
    assert not world.running()
    assert world.woken == 0


def test_of_many_some_may_have_left() -> None:
    world = World()
    world.company.answered(40, waiting=10)
    assert world.company.is_expected(39)
    assert not world.company.is_expected(40)


def test_who_is_alone_waits_for_nobody() -> None:
    world = World()
    world.company.answered(1, waiting=0)
    assert not world.company.is_expected(0)
    assert not world.timers


def test_the_wait_ends_and_somebody_is_told() -> None:
    world = World()
    world.company.answered(2, waiting=0)
    assert world.company.is_expected(1)
    world.pass_time()
    assert world.woken == 1
    assert not world.company.is_expected(1)
    assert not world.company.has_come(1)


def test_after_each_wait_in_vain_more_batches_leave_at_once() -> None:
    world = World()
    skipped = []
    for _ in range(9):
        count = 0
        world.company.answered(2, waiting=0)
        while not world.company.is_expected(0):
            count += 1
            world.company.answered(2, waiting=0)
        world.pass_time()
        skipped.append(count)
    assert skipped == [0, 1, 2, 4, 8, 16, 32, 64, VAIN_MAX]


def test_company_that_comes_is_waited_for_again() -> None:
    world = World()
    world.company.answered(2, waiting=0)
    world.pass_time()
    world.company.answered(2, waiting=0)
    world.company.answered(2, waiting=0)
    assert not world.company.is_expected(2)
    for _ in range(3):
        world.company.answered(2, waiting=0)
        assert world.company.is_expected(1)
        assert not world.company.is_expected(2)


def test_while_some_are_waited_for_no_second_wait_begins() -> None:
    """Entries of others are applied meanwhile."""
    world = World()
    world.company.answered(2, waiting=0)
    world.company.answered(9, waiting=1)
    assert len(world.timers) == 1
    assert not world.company.is_expected(2)
