"""Merged intervals against the keys themselves: what is covered is what every key of it is in."""

from hypothesis import given
from hypothesis import strategies as st

from kvstore.auth.ranges import Interval, Ranges

KEYS = [bytes(one) for one in ([0], [1], [1, 0], [1, 1], [2], [2, 0], [3], [255], [255, 255])]
BEYOND = [*KEYS, None]
INTERVALS = st.tuples(st.sampled_from(KEYS), st.sampled_from(BEYOND))


def inside(key: bytes, interval: Interval) -> bool:
    low, high = interval
    return low <= key and (high is None or key < high)


@given(st.lists(INTERVALS, max_size=5), INTERVALS)
def test_covers_what_every_key_is_in(granted: list[Interval], asked: Interval) -> None:
    low, high = asked
    if high is not None and high <= low:
        return
    # Ends are at KEYS only, so these keys and what lies right behind them stand for all.
    probes = [key + tail for key in KEYS for tail in (b"", b"\0", b"\xff")]
    wanted = all(any(inside(key, one) for one in granted) for key in probes if inside(key, asked))
    # No list of ends reaches as far as no end does.
    wanted = wanted and (high is not None or any(one[1] is None and one[0] <= KEYS[-1] for one in granted))
    assert Ranges(granted).covers(low, high) == wanted


def test_of_a_range_that_is_none_the_key_counts() -> None:
    """As in etcd's interval tree."""
    ranges = Ranges([(b"b", b"d")])
    assert ranges.covers(b"b", b"a")
    assert ranges.covers(b"c", b"c")
    assert not ranges.covers(b"d", b"b")
    assert not ranges.covers(b"a", b"a")


def test_neighbours_are_one() -> None:
    ranges = Ranges([(b"n", b"z"), (b"a", b"n")])
    assert ranges.covers(b"a", b"z")
    assert not ranges.covers(b"a", b"z\0")
    assert not ranges.covers(b"a", None)


def test_a_key_is_no_range_from_it_on() -> None:
    """GHSA-xg4h-6gfc-h4m8."""
    ranges = Ranges([(b"a", b"a\0")])
    assert ranges.covers(b"a", b"a\0")
    assert not ranges.covers(b"a", None)
    assert not ranges.covers(b"a", b"a\0\0")


def test_everything() -> None:
    assert Ranges([(b"\0", None)]).is_everything
    assert not Ranges([(b"\x01", None)]).is_everything
    assert not Ranges([]).is_everything
