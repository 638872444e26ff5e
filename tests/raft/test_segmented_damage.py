"""What load makes of damaged files: a torn tail is cut off, everything else stops the start (1c, S-47, S-48)."""

import random
from zlib import crc32

import pytest

from raft.errors import Corrupt, StorageError, UnknownFormat
from raft.storage.record import FORMAT, MAGIC
from raft.storage.segmented import SegmentedStorage
from raft.testing.disk import SimFileSystem
from raft.types import Configuration, Entry, HardState
from tests.raft.segmented_model import PATH, SeededRng

SEGMENT_BYTES = 2000
Files = dict[str, bytes]


def fresh(files: Files) -> SimFileSystem:
    disk = SimFileSystem(SeededRng(7))
    disk.make_directory(PATH)
    for name, data in files.items():
        file = disk.create(PATH / name)
        file.pwritev([data], 0)
        file.fdatasync()
    disk.sync_directory(PATH)
    return disk


def load(files: Files) -> tuple[SegmentedStorage, HardState]:
    storage = SegmentedStorage(PATH, segment_bytes=SEGMENT_BYTES, cache_bytes=0, file_system=fresh(files))
    return storage, storage.load().hard_state


def indexes(files: Files) -> list[int]:
    storage, _ = load(files)
    return [entry.index for entry in storage.entries(storage.first_index, storage.last_index, 1 << 30)]


class Log:
    """A log of `batches` saves, its files, and where in them each save's records lie."""

    def __init__(self, batches: int, per_batch: int, size: int = 50) -> None:
        self.disk = SimFileSystem(SeededRng(3))
        self.storage = SegmentedStorage(PATH, segment_bytes=SEGMENT_BYTES, file_system=self.disk)
        self.storage.load()
        self.storage.reset(0, 0, Configuration((1, 2, 3)))
        self.saves: list[tuple[str, int, int]] = []  # file, begin, end
        for batch in range(batches):
            first = batch * per_batch + 1
            entries = [Entry(first + i, 1, random.Random(first + i).randbytes(size)) for i in range(per_batch)]
            self.storage.save(HardState(1, 2, first - 1), entries, True)
            segment = self.storage._segments[-1]
            begin = segment.begin if not self.saves or self.saves[-1][0] != segment.path.name else self.saves[-1][2]
            self.saves.append((segment.path.name, begin, segment.end))
        self.files = {path: self.disk.content(PATH / path) for path in self.disk.names(PATH)}

    def changed(self, name: str, offset: int, data: bytes) -> Files:
        old = self.files[name]
        return {**self.files, name: old[:offset] + data + old[offset + len(data) :]}


def test_every_tear_of_the_last_batch_leaves_exactly_the_records_before_it() -> None:
    log = Log(batches=3, per_batch=4)
    name, begin, end = log.saves[-1]
    ends = [begin + 44 + 8 + i * (44 + 50) for i in range(5)]  # STATE, then four entries
    assert ends[-1] == end
    old = log.files[name]
    noise = random.Random(1).randbytes(len(old))
    for offset in range(begin, end):
        for torn in (
            old[:offset],
            old[:offset] + bytes(len(old) - offset),
            old[:offset] + noise[offset:end] + bytes(len(old) - end),
            old[:offset] + bytes(1) + old[offset + 1 :] if old[offset] else old[:offset],
        ):
            kept = [stop for stop in ends if torn[:stop] == old[:stop]]  # zeros may replace zeros
            whole = 8 + len(kept[1:])
            vote = HardState(1, 2, 8) if kept else HardState(1, 2, 4)
            storage, hard_state = load({**log.files, name: torn})
            assert storage.last_index == whole, f"cut at {offset}"
            assert hard_state == vote, f"cut at {offset}"
            storage.save(None, [Entry(whole + 1, 2, b"next")], True)  # goes on from there
            assert storage.entries(1, whole + 1, 1 << 30)[-1].data == b"next"


def test_lost_sectors_of_the_last_batch_are_a_torn_tail() -> None:
    log = Log(batches=2, per_batch=6)
    name, begin, end = log.saves[-1]
    for offset in range(begin, end - 64, 16):
        assert indexes(log.changed(name, offset, bytes(64)))[:6] == [1, 2, 3, 4, 5, 6]


def test_a_flipped_bit_in_any_byte_before_the_last_batch_stops_the_start() -> None:
    log = Log(batches=12, per_batch=3)
    names = sorted({name for name, _, _ in log.saves})
    assert len(names) >= 3, "several segments"
    for name in names:
        ends = [end for file, _, end in log.saves if file == name]
        end = ends[-2] if name == names[-1] else ends[-1]
        old = log.files[name]
        for offset in range(end):
            with pytest.raises(Corrupt):
                load(log.changed(name, offset, bytes([old[offset] ^ (1 << offset % 8)])))


def test_a_corrupt_log_says_where_and_what_to_do() -> None:
    log = Log(batches=3, per_batch=1)
    name, begin, _ = log.saves[1]
    disk = fresh(log.changed(name, begin + 60, b"damaged"))
    storage = SegmentedStorage(PATH, file_system=disk)
    with pytest.raises(
        Corrupt, match=rf"/log/{name}: a bad record.* at byte {begin + 52}\. .*remove it from the cluster and add it"
    ):
        storage.load()
    with pytest.raises(Corrupt):
        storage.save(HardState(1, 1, 1), [], True)
    assert disk.content(PATH / name) != log.files[name], "the damage is left as it is"
    with pytest.raises(Corrupt):  # and the lock is free again
        SegmentedStorage(PATH, file_system=disk).load()


def test_lost_writes_before_the_last_batch_stop_the_start() -> None:
    """An old batch's sectors as they were before it was written: zeros."""
    log = Log(batches=5, per_batch=2)
    for name, begin, end in log.saves[:-1]:
        with pytest.raises(Corrupt):
            load(log.changed(name, begin, bytes(end - begin)))


def test_misdirected_good_records_stop_the_start() -> None:
    """S-48: each copied record is good in itself; its place, its segment or its predecessor is wrong."""
    log = Log(batches=12, per_batch=2)
    for target, begin, end in log.saves[:-1]:
        for source, from_, to in log.saves:
            if (source, from_) != (target, begin) and to - from_ == end - begin:
                with pytest.raises(Corrupt):
                    load(log.changed(target, begin, log.files[source][from_:to]))


def test_a_whole_old_segment_restored_under_another_name_stops_the_start() -> None:
    log = Log(batches=12, per_batch=3)
    names = sorted(log.files)
    with pytest.raises(Corrupt):
        load({**log.files, names[1]: log.files[names[0]]})


def test_a_missing_segment_stops_the_start() -> None:
    log = Log(batches=16, per_batch=3)
    names = sorted({name for name, _, _ in log.saves})
    assert len(names) >= 3
    for name in names[:-1]:
        with pytest.raises(Corrupt, match="missing"):
            load({other: data for other, data in log.files.items() if other != name})


def test_a_shortened_segment_stops_the_start_unless_it_is_the_last() -> None:
    log = Log(batches=12, per_batch=3)
    names = sorted({name for name, _, _ in log.saves})
    for size in (0, 10, 60, 100, 700):
        with pytest.raises(Corrupt):
            load({**log.files, names[0]: log.files[names[0]][:size]})
        if size < 100:
            with pytest.raises(Corrupt):
                load({**log.files, names[-1]: log.files[names[-1]][:size]})


def test_a_value_that_looks_like_records_does_not_count_as_a_later_batch() -> None:
    """A client may write anything: only the tag of the segment, which it cannot know, makes it a record."""
    other = Log(batches=3, per_batch=1)
    disk = SimFileSystem(SeededRng(4))
    storage = SegmentedStorage(PATH, segment_bytes=5000, file_system=disk)
    storage.load()
    storage.reset(0, 0, Configuration((1,)))
    storage.save(None, [Entry(1, 1, b"first")], True)
    name = other.saves[0][0]
    begin = storage._segments[-1].end
    forged = other.files[name]
    storage.save(None, [Entry(2, 1, forged), Entry(3, 1, forged)], True)
    disk.kill()
    disk.damage(PATH / name, begin + 50, b"torn")
    storage = SegmentedStorage(PATH, segment_bytes=5000, file_system=disk)
    storage.load()
    assert storage.last_index == 1


def test_damage_found_by_a_read_is_final() -> None:
    log = Log(batches=4, per_batch=1)
    storage, _ = load(log.files)
    name, begin, _ = log.saves[1]
    assert isinstance(storage._file_system, SimFileSystem)
    storage._file_system.damage(PATH / name, begin + 100, b"rot")
    assert storage.entries(1, 1, 0)
    with pytest.raises(Corrupt, match="entry 2"):
        storage.entries(1, 4, 1 << 20)
    with pytest.raises(StorageError):
        storage.save(None, [], True)


def test_garbage_lengths_are_bounded_before_anything_is_read() -> None:
    log = Log(batches=1, per_batch=3)
    name, begin, _ = log.saves[0]
    assert indexes(log.changed(name, begin + 20, b"\xff\xff\xff\xff")) == []
    with pytest.raises(Corrupt, match="first record of 4294967295 bytes"):
        load(log.changed(name, 16 + 20, b"\xff\xff\xff\xff"))


def test_an_unknown_format_stops_the_start() -> None:
    log = Log(batches=1, per_batch=1)
    prefix = MAGIC + (FORMAT + 1).to_bytes(4, "little")
    with pytest.raises(UnknownFormat, match=f"format {FORMAT + 1}"):
        load(log.changed(log.saves[0][0], 0, prefix + crc32(prefix).to_bytes(4, "little")))


def test_other_files_in_the_directory_are_left_alone() -> None:
    log = Log(batches=2, per_batch=1)
    disk = fresh({**log.files, "notes.txt": b"mine", "0000000000000009.tmp": b"unfinished"})
    SegmentedStorage(PATH, file_system=disk).load()
    assert "notes.txt" in disk.names(PATH)
    assert "0000000000000009.tmp" not in disk.names(PATH)


def test_swapped_votes_stop_the_start() -> None:
    """Two records of one segment, one length and no index: only the chain tells which was the later one."""
    log = Log(batches=1, per_batch=1)
    for term in range(2, 6):
        log.storage.save(HardState(term, term, 1), [], True)
    name, _, begin = log.saves[0]
    data, size = log.disk.content(PATH / name), 44 + 8
    records = [data[begin + i * size : begin + (i + 1) * size] for i in range(4)]
    assert load({name: data})[1] == HardState(5, 5, 1)
    for first in range(3):
        for second in range(first + 1, 3):
            swapped = list(records)
            swapped[first], swapped[second] = records[second], records[first]
            with pytest.raises(Corrupt):
                load({name: data[:begin] + b"".join(swapped) + data[begin + 4 * size :]})


def test_what_was_cut_off_does_not_come_back_behind_a_record_written_again() -> None:
    """The first entry of a torn batch is lost and the second is not; then the first is saved again, alone."""
    log = Log(batches=1, per_batch=1)
    name, _, begin = log.saves[0]
    first, second = Entry(2, 1, b"first"), Entry(3, 1, b"second")
    log.storage.save(None, [first, second], True)
    disk = fresh({name: log.disk.content(PATH / name)})
    disk.damage(PATH / name, begin, bytes(44 + 5))
    for last in (1, 2):
        storage = SegmentedStorage(PATH, segment_bytes=SEGMENT_BYTES, file_system=disk)
        storage.load()
        assert storage.last_index == last
        storage.save(None, [first], True)  # the second time it is there already
        storage.close()


def test_a_renamed_segment_stops_the_start() -> None:
    log = Log(batches=1, per_batch=1)
    (data,) = [log.files[name] for name in log.files]
    with pytest.raises(Corrupt, match="this is segment 1"):
        load({"0000000000000004.log": data})
