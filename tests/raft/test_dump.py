"""What `read_log` shows of a directory is what a node would load from it, and looking changes nothing."""

import random
from pathlib import Path

import pytest

from raft.storage.dump import read_log
from raft.storage.record import RecordType
from raft.storage.segmented import SegmentedStorage
from raft.types import Configuration, Entry, HardState


def scribble(storage: SegmentedStorage, rng: random.Random) -> None:
    """One random step of a log's life."""
    first, last = storage.first_index, storage.last_index
    step = rng.random()
    term = storage.term_at(last) + (rng.random() < 0.2)
    if step < 0.8:
        start = rng.randint(max(first, last - 3), last + 1)
        data = [rng.randbytes(rng.randint(0, 200)) for _ in range(rng.randint(1, 4))]
        entries = [Entry(start + at, max(term, 1), one) for at, one in enumerate(data)]
        storage.save(HardState(term, rng.randint(0, 3), first - 1), entries, True)
    elif step < 0.95 and last >= first:
        storage.compact(rng.randint(first, last), Configuration((1, rng.randint(2, 9))), rng.randbytes(3))
    elif step >= 0.95:
        storage.reset(last + rng.randint(1, 20), max(term, 1), Configuration((1, 2, rng.randint(3, 9))), b"c")


@pytest.mark.parametrize("seed", range(20))
def test_the_image_is_what_is_loaded(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    storage = SegmentedStorage(tmp_path, segment_bytes=2000)
    storage.load()
    storage.reset(0, 0, Configuration((1,)))
    for _ in range(rng.randint(1, 120)):
        scribble(storage, rng)
    storage.close()
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}

    image = read_log(tmp_path)
    shown = list(image.entries(0, 2**63 - 1))
    records = list(image.records())
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == files

    loaded_storage = SegmentedStorage(tmp_path, segment_bytes=2000)
    loaded = loaded_storage.load()
    first, last = loaded_storage.first_index, loaded_storage.last_index
    assert image.problems == []
    assert (image.first_index, image.last_index) == (first, last)
    assert (image.last_term, image.hard_state) == (loaded_storage.term_at(last), loaded.hard_state)
    assert (image.configuration, image.context) == (loaded.configuration, loaded.context)
    assert shown == (loaded_storage.entries(first, last, 1 << 30) if last >= first else [])
    assert records[0].type in (RecordType.RESET, RecordType.SEGMENT)
    loaded_storage.close()


def test_nothing_there(tmp_path: Path) -> None:
    image = read_log(tmp_path)
    assert (image.segments, image.problems, list(image.entries(0, 9))) == ([], [], [])


def test_a_segment_that_is_missing_is_told(tmp_path: Path) -> None:
    rng = random.Random(1)
    storage = SegmentedStorage(tmp_path, segment_bytes=2000)
    storage.load()
    storage.reset(0, 0, Configuration((1,)))
    for index in range(1, 60):
        storage.save(HardState(1, 1, 0), [Entry(index, 1, rng.randbytes(200))], True)
    storage.close()
    files = sorted(tmp_path.glob("*.log"))
    files[2].unlink()
    image = read_log(tmp_path)
    assert image.segments == files[3:]
    assert "gap" in image.problems[0]
    assert image.problems[1] == "entries from 1 on are missing"
    shown = [entry.index for entry in image.entries(0, 100)]
    assert shown == list(range(shown[0], 60))
