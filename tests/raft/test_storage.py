"""What every LogStorage does, run over each of them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from raft.errors import Compacted
from raft.snapshot import repair_log
from raft.storage.base import Loaded, LogStorage
from raft.storage.memory import MemoryStorage
from raft.storage.segmented import SegmentedStorage
from raft.types import Configuration, Entry, EntryKind, HardState, SnapshotMeta

THREE = Configuration((1, 2, 3))
FOUR = Configuration((1, 2, 3), learners=(4,))


class Log:
    """A storage of one kind that can be restarted."""

    def __init__(self, make: Callable[[], LogStorage]) -> None:
        self._make = make
        self.storage = make()
        self.loaded = self.storage.load()

    def restart(self) -> Loaded:
        self.storage.close()
        self.storage = self._make()
        self.loaded = self.storage.load()
        return self.loaded


@pytest.fixture(params=["memory", "segmented", "tiny segments, no cache"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Log:
    if request.param == "memory":
        memory = MemoryStorage(THREE)
        return Log(lambda: memory)
    if request.param == "segmented":
        log = Log(lambda: SegmentedStorage(tmp_path / "log"))
    else:
        log = Log(lambda: SegmentedStorage(tmp_path / "log", segment_bytes=500, cache_bytes=0))
    assert log.loaded == Loaded(HardState(0, 0, 0), Configuration(()))
    log.storage.reset(0, 0, THREE)
    return log


def make(first: int, terms: list[int], size: int = 20) -> list[Entry]:
    return [Entry(first + i, term, bytes([65 + term]) * size) for i, term in enumerate(terms)]


def content(storage: LogStorage) -> list[Entry]:
    return storage.entries(storage.first_index, storage.last_index, 1 << 30)


def test_a_new_log_is_empty(log: Log) -> None:
    for _ in range(2):
        assert (log.storage.first_index, log.storage.last_index) == (1, 0)
        assert log.storage.term_at(0) == 0
        assert log.storage.entries(1, 0, 100) == []
        assert log.restart() == Loaded(HardState(0, 0, 0), THREE)


def test_entries_and_hard_state_survive(log: Log) -> None:
    entries = [*make(1, [1, 1, 2]), Entry(4, 2, b"", EntryKind.NOOP), Entry(5, 3, b"c", EntryKind.CONFIGURATION)]
    log.storage.save(HardState(3, 2, 4), entries[:3], True)
    log.storage.save(None, entries[3:], True)
    for _ in range(2):
        assert content(log.storage) == entries
        assert [log.storage.term_at(i) for i in range(6)] == [0, 1, 1, 2, 2, 3]
        assert log.restart() == Loaded(HardState(3, 2, 4), THREE, entries[4:])
        assert (log.storage.first_index, log.storage.last_index) == (1, 5)


def test_only_a_hard_state(log: Log) -> None:
    log.storage.save(HardState(7, 3, 0), [], True)
    log.storage.save(HardState(8, 0, 0), [], False)
    assert log.restart().hard_state == HardState(8, 0, 0)


def test_nothing_to_save(log: Log) -> None:
    log.storage.save(None, [], True)
    log.storage.save(None, [], False)
    assert log.restart() == Loaded(HardState(0, 0, 0), THREE)


@pytest.mark.parametrize("first", range(1, 13))
def test_an_append_replaces_what_stands_there(log: Log, first: int) -> None:
    old = make(1, [1] * 12)
    for entry in old:
        log.storage.save(HardState(1, 1, 0), [entry], True)
    new = make(first, [2, 2])
    log.storage.save(None, new, True)
    for _ in range(2):
        assert content(log.storage) == old[: first - 1] + new
        assert log.storage.last_index == first + 1
        log.restart()
    more = make(first + 2, [2] * 3)
    log.storage.save(None, more, True)
    log.restart()
    assert content(log.storage) == old[: first - 1] + new + more


def test_entries_are_cut_at_bytes_max_but_never_empty(log: Log) -> None:
    log.storage.save(None, make(1, [1] * 10, size=100), True)
    for _ in range(2):
        for bytes_max, count in [(0, 1), (99, 1), (100, 1), (199, 1), (200, 2), (350, 3), (1000, 8), (10**9, 8)]:
            assert [entry.index for entry in log.storage.entries(2, 9, bytes_max)] == list(range(2, 2 + count))
        log.restart()


def test_a_save_larger_than_a_segment(log: Log) -> None:
    entries = [*make(1, [1], size=5), *make(2, [1, 1], size=3000), *make(4, [1], size=5)]
    for entry in entries[:2]:
        log.storage.save(None, [entry], True)
    log.storage.save(HardState(1, 1, 2), entries[2:], True)
    log.restart()
    assert content(log.storage) == entries


def test_thousands_of_entries_in_one_save(log: Log) -> None:
    entries = make(1, [1] * 3000, size=7)
    log.storage.save(HardState(1, 1, 0), entries, True)
    log.restart()
    assert content(log.storage) == entries


def test_compaction_keeps_what_comes_after(log: Log) -> None:
    entries = make(1, [1] * 5 + [2] * 15)
    for entry in entries:
        log.storage.save(HardState(2, 1, entry.index), [entry], True)
    before = log.storage.bytes_stored()
    log.storage.compact(9, FOUR)
    for _ in range(2):
        first = log.storage.first_index
        assert first in (1, 10)
        assert content(log.storage) == entries[first - 1 :]
        assert log.storage.term_at(first - 1) == (2 if first == 10 else 0)
        if first == 10:
            assert log.storage.bytes_stored() < before
            with pytest.raises(Compacted):
                log.storage.term_at(8)
            with pytest.raises(Compacted):
                log.storage.entries(9, 12, 100)
        loaded = log.restart()
        assert loaded == Loaded(HardState(2, 1, 20), FOUR if first == 10 else THREE)
    log.storage.save(None, make(15, [3, 3]), True)
    log.restart()
    assert content(log.storage) == entries[first - 1 : 14] + make(15, [3, 3])


def test_compaction_of_everything(log: Log) -> None:
    for entry in make(1, [1] * 12):
        log.storage.save(HardState(1, 1, entry.index), [entry], True)
    log.storage.compact(12, FOUR)
    log.storage.compact(5, THREE)  # already gone
    log.restart()
    assert log.storage.last_index == 12
    assert log.storage.term_at(12) == 1
    log.storage.save(None, make(13, [2]), True)
    log.restart()
    assert log.storage.entries(13, 13, 0) == make(13, [2])


def test_reset_forgets_the_log_and_keeps_the_vote(log: Log) -> None:
    for entry in make(1, [1] * 12):
        log.storage.save(HardState(5, 2, 3), [entry], True)
    log.storage.reset(100, 4, FOUR)
    for _ in range(2):
        assert (log.storage.first_index, log.storage.last_index) == (101, 100)
        assert log.storage.term_at(100) == 4
        with pytest.raises(Compacted):
            log.storage.entries(12, 12, 0)
        assert log.restart() == Loaded(HardState(5, 2, 100), FOUR)
    log.storage.save(None, make(101, [5]), True)
    log.restart()
    assert content(log.storage) == make(101, [5])


def test_no_ghost_of_an_overwritten_entry_after_a_reset(log: Log) -> None:
    """S-23: 1/1..5/1, then 3/2 4/2, then a snapshot at 4/2: the tail is empty, 5/1 does not come back."""
    log.storage.save(HardState(1, 1, 0), make(1, [1] * 5), True)
    log.storage.save(HardState(2, 1, 2), make(3, [2, 2]), True)
    log.restart()
    assert log.storage.last_index == 4
    log.storage.reset(4, 2, THREE)
    log.restart()
    assert (log.storage.first_index, log.storage.last_index, log.storage.term_at(4)) == (5, 4, 2)


def test_no_ghost_of_an_overwritten_entry_after_a_compaction(log: Log) -> None:
    old = make(1, [1] * 30)
    for entry in old:
        log.storage.save(HardState(1, 1, 0), [entry], True)
    log.storage.save(HardState(2, 1, 4), make(3, [2, 2]), True)
    for compacted in (3, 4):
        log.storage.compact(compacted, FOUR)
        log.restart()
        assert log.storage.last_index == 4
        assert log.storage.term_at(4) == 2
    log.storage.save(None, make(5, [2]), True)
    log.restart()
    assert log.storage.entries(5, 5, 0) == make(5, [2])


# Configurations, and what snapshots need


def change(index: int, term: int, data: bytes) -> Entry:
    return Entry(index, term, data, EntryKind.CONFIGURATION)


def test_configuration_entries_are_found_again_but_not_those_that_were_cut_off(log: Log) -> None:
    first, second = change(2, 1, b"first"), change(4, 1, b"second")
    log.storage.save(HardState(1, 1, 0), [*make(1, [1]), first, *make(3, [1]), second, *make(5, [1])], True)
    assert log.restart().configuration_entries == [first, second]
    log.storage.save(HardState(2, 1, 0), make(4, [2]), True)
    assert log.restart().configuration_entries == [first]
    third = change(4, 3, b"third")
    log.storage.save(HardState(3, 1, 0), [third], True)
    assert log.restart().configuration_entries == [first, third]
    log.storage.reset(9, 3, FOUR, b"context")
    assert log.restart().configuration_entries == []


def test_a_compacted_configuration_is_the_base_with_its_context(log: Log) -> None:
    entries = [change(i, 1, b"%d" % i) if i in (3, 15) else make(i, [1])[0] for i in range(1, 21)]
    for entry in entries:
        log.storage.save(HardState(1, 1, entry.index), [entry], True)
    log.storage.compact(9, FOUR, b"added 4")
    for _ in range(2):
        loaded = log.restart()
        if log.storage.first_index == 10:
            assert (loaded.configuration, loaded.context) == (FOUR, b"added 4")
            assert loaded.configuration_entries == [entries[14]]
        else:
            assert (loaded.configuration, loaded.context) == (THREE, b"")
            assert loaded.configuration_entries == [entries[2], entries[14]]
        log.storage.save(None, make(log.storage.last_index + 1, [1] * 40), True)  # in a segment of its own


def test_a_reset_keeps_configuration_and_context(log: Log) -> None:
    log.storage.reset(100, 1, FOUR, b"context")
    for _ in range(2):
        loaded = log.restart()
        assert (loaded.configuration, loaded.context) == (FOUR, b"context")
        log.storage.save(None, make(log.storage.last_index + 1, [1] * 40), True)


def test_a_log_is_never_newer_than_its_term(log: Log) -> None:
    """Whoever holds an entry of term 7 must not be asked for a vote in term 6."""
    log.storage.save(HardState(5, 2, 3), make(1, [5] * 3), True)
    log.storage.reset(100, 7, FOUR)
    assert log.restart().hard_state == HardState(7, 0, 100)


def test_bytes_after(log: Log) -> None:
    for entry in make(1, [1] * 30, size=100):
        log.storage.save(None, [entry], True)
    for _ in range(2):
        sizes = [log.storage.bytes_after(index) for index in range(31)]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[30] == 0
        for index, size in enumerate(sizes):
            assert 100 * (30 - index) <= size <= 200 * (30 - index)
        log.restart()
    log.storage.compact(20, FOUR)
    assert log.storage.bytes_after(20) >= 1000
    assert log.storage.bytes_after(30) == 0


# A crash between the installation of a snapshot and the reset of the log (S-25)


def repaired(log: Log, installed: SnapshotMeta) -> Loaded:
    loaded = log.restart()
    return repair_log(log.storage, loaded, installed)


@pytest.mark.parametrize(
    ("terms", "is_kept"),
    [
        pytest.param([1] * 5, False, id="the log ends before the snapshot"),
        pytest.param([1] * 7 + [2] * 5, False, id="S-22: the log has another history"),
        pytest.param([1] * 7 + [4] * 5, True, id="the log holds it"),
    ],
)
def test_a_start_finishes_what_the_installation_of_a_snapshot_began(log: Log, terms: list[int], is_kept: bool) -> None:
    log.storage.save(HardState(4, 2, 3), make(1, terms), True)
    installed = SnapshotMeta(9, 4, FOUR, b"context")
    expected = Loaded(HardState(4, 2, 3), THREE) if is_kept else Loaded(HardState(4, 2, 9), FOUR, [], b"context")
    for _ in range(2):
        assert repaired(log, installed) == expected
        assert (log.storage.first_index, log.storage.last_index) == ((1, 12) if is_kept else (10, 9))
        assert log.storage.term_at(9) == 4
    log.storage.save(None, make(log.storage.last_index + 1, [4] * 20), True)
    last_index = log.storage.last_index
    repaired(log, installed)
    assert log.storage.last_index == last_index, "what came after the snapshot stays"


def test_a_snapshot_that_the_log_has_long_left_behind_is_not_looked_at(log: Log) -> None:
    log.storage.reset(50, 4, FOUR)
    loaded = log.restart()
    assert repair_log(log.storage, loaded, SnapshotMeta(9, 2, THREE)) is loaded
