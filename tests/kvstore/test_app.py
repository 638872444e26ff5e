"""The last line of a member that cannot go on: what is wrong, and what to do next."""

import errno
import os
from pathlib import Path

import pytest

from kvstore.app import explain
from kvstore.mvcc.engine import Engine, StoreDamaged, StoreError, damaged
from raft.errors import StorageError
from raft.storage.segment import damaged as damaged_log

ADVICE = "free space or replace it, then start this member again"


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ADVICE),
        (OSError(errno.EIO, os.strerror(errno.EIO)), ADVICE),
        (StorageError("/data/log: append failed: [Errno 28] No space left on device"), ADVICE),
        (damaged_log(Path("/data/log/1"), 17, "a record is damaged"), "add it again with an empty directory"),
        (damaged("/data/state", "a row"), "move its data directory away"),
    ],
)
def test_the_last_line_tells_the_next_step(error: Exception, advice: str) -> None:
    line = explain(error)
    assert advice in line
    assert " ".join(str(error).split()) in line
    assert "\n" not in line


def test_what_a_failing_store_says(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "store")
    with pytest.raises(StoreError) as error:
        engine.checkpoint(tmp_path / "absent" / "checkpoint")
    engine.close()
    assert "free or replace the disk, then restart" in explain(error.value)


@pytest.mark.parametrize(
    ("error", "kind", "advice"),
    [
        ("IO error: While pread offset 20375 len 2057: /data/7.sst: Input/output error", StoreError, "see to the disk"),
        ("IO error: While opendir: /data: Permission denied", StoreError, "see to the disk"),
        ("IO error: No such file or directory: /data/7.sst", StoreDamaged, "move its data directory away"),
        ("Corruption: block checksum mismatch in /data/7.sst", StoreDamaged, "move its data directory away"),
    ],
)
def test_only_what_is_damaged_is_to_be_moved_away(tmp_path: Path, error: str, kind: type, advice: str) -> None:
    told: list[StoreError] = []
    engine = Engine(tmp_path / "store", on_unreadable=told.append)
    found = engine.unreadable(error)
    engine.close()
    assert type(found) is kind
    assert told == [found]
    assert error in explain(found)
    assert advice in explain(found)


def test_who_reads_a_closed_store_is_late_and_nothing_is_damaged(tmp_path: Path) -> None:
    told: list[StoreError] = []
    engine = Engine(tmp_path / "store", on_unreadable=told.append)
    engine.close()
    with pytest.raises(StoreError, match="is closed"):
        engine.get(b"row")
    assert not told


def test_other_errors_are_told_as_they_are() -> None:
    assert explain(OSError(errno.EADDRINUSE, "taken")) == "[Errno 98] taken"
    assert explain(ValueError("two\nlines")) == "two lines"
    assert explain(KeyError()) == "KeyError()"
