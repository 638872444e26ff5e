"""Entry times: never back, near the wall clock, and no leap while somebody leads."""

from kvstore.server.entry_clock import EntryClock

SECOND = 1_000_000_000


class Clocks:
    def __init__(self, wall: int) -> None:
        self.wall = wall
        self.monotonic = 5 * SECOND
        self.clock = EntryClock(lambda: self.wall, lambda: self.monotonic)

    def pass_(self, seconds: float, *, wall: float | None = None) -> None:
        self.monotonic += int(seconds * SECOND)
        self.wall += int((seconds if wall is None else wall) * SECOND)


def test_it_follows_a_good_clock() -> None:
    clocks = Clocks(1000 * SECOND)
    assert clocks.clock.stamp(1, 0) == 1000 * SECOND
    clocks.pass_(2)
    assert clocks.clock.stamp(1, 0) == 1002 * SECOND


def test_two_entries_of_one_moment_differ() -> None:
    clocks = Clocks(1000)
    assert clocks.clock.stamp(1, 0) < clocks.clock.stamp(1, 0)


def test_a_clock_that_was_set_back_is_approached_slowly_and_never_backwards() -> None:
    clocks = Clocks(1000 * SECOND)
    before = clocks.clock.stamp(1, 0)
    clocks.wall -= 500 * SECOND
    clocks.pass_(10)
    after = clocks.clock.stamp(1, 0)
    assert after == before + 9 * SECOND


def test_a_clock_that_leaps_ahead_is_approached_slowly() -> None:
    clocks = Clocks(1000 * SECOND)
    before = clocks.clock.stamp(1, 0)
    clocks.wall += 500 * SECOND
    clocks.pass_(10)
    assert clocks.clock.stamp(1, 0) == before + 11 * SECOND


def test_a_new_leader_never_goes_behind_what_is_applied() -> None:
    clocks = Clocks(1000 * SECOND)
    assert clocks.clock.stamp(1, 2000 * SECOND) == 2000 * SECOND + 1


def test_a_new_leadership_begins_at_the_wall_clock() -> None:
    clocks = Clocks(1000 * SECOND)
    clocks.clock.stamp(1, 0)
    clocks.pass_(0, wall=3600)
    assert clocks.clock.stamp(2, 0) == 4600 * SECOND
