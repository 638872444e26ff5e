"""The last line of a member that cannot go on: what is wrong, and what to do next."""

import errno
import os
from pathlib import Path

import pytest

from kvstore.app import explain
from kvstore.mvcc.engine import Engine, StoreError, damaged
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


def test_other_errors_are_told_as_they_are() -> None:
    assert explain(OSError(errno.EADDRINUSE, "taken")) == "[Errno 98] taken"
    assert explain(ValueError("two\nlines")) == "two lines"
    assert explain(KeyError()) == "KeyError()"
