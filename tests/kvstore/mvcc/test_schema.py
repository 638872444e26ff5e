"""Row keys sort as the store relies on."""

from hypothesis import given
from hypothesis import strategies as st

from kvstore.mvcc import schema

keys = st.lists(st.sampled_from([b"\0", b"\x01", b"a", b"\xfe", b"\xff"]), min_size=1, max_size=5).map(b"".join)
revisions = st.integers(1, 2**62)
subs = st.integers(0, 2**31)


@given(st.lists(st.tuples(keys, revisions, subs), min_size=2, max_size=20))
def test_versions_sort_by_key_then_newest_first(rows: list[tuple[bytes, int, int]]) -> None:
    wanted = sorted(set(rows), key=lambda row: (row[0], -row[1], -row[2]))
    encoded = sorted(schema.version_key(*row) for row in set(rows))
    assert encoded == [schema.version_key(*row) for row in wanted]
    for row, (key, revision, sub) in zip(encoded, wanted, strict=True):
        prefix, found, found_sub = schema.split_version(row)
        assert (prefix, found, found_sub) == (schema.version_prefix(key), revision, sub)
        assert schema.version_user_key(prefix) == key


@given(keys, keys, keys, revisions)
def test_version_rows_covers_exactly_the_interval(low: bytes, high: bytes, key: bytes, revision: int) -> None:
    row = schema.version_key(key, revision, 0)
    first, last = schema.version_rows(low, high)
    assert (first <= row < last) == (low <= key < high)
    first, last = schema.version_rows(low, None)
    assert (first <= row < last) == (low <= key)
    first, last = schema.version_rows(*schema.range_bounds(low, b""))
    assert (first <= row < last) == (low == key)


@given(keys, revisions, revisions)
def test_seeking_finds_the_newest_at_or_before(key: bytes, at: int, revision: int) -> None:
    assert (schema.version_from(key, at) <= schema.version_key(key, revision, 7)) == (revision <= at)


@given(revisions, subs, revisions, subs)
def test_events_sort_by_revision_then_sub(one: int, one_sub: int, other: int, other_sub: int) -> None:
    assert (schema.event_row(one, one_sub) < schema.event_row(other, other_sub)) == (
        (one, one_sub) < (other, other_sub)
    )
    assert schema.split_event(schema.event_row(one, one_sub)) == (one, one_sub)
