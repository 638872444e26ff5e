"""SegmentedStorage on a real file system and with real processes: kill -9, two at once, permissions."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raft.errors import InUse
from raft.storage.file_system import BUFFERS_MAX, OsFileSystem
from raft.storage.segmented import SegmentedStorage
from raft.types import Configuration, Entry, HardState

WRITER = """
import sys
from pathlib import Path
from raft.storage.segmented import SegmentedStorage
from raft.types import Configuration, Entry, HardState

storage = SegmentedStorage(Path(sys.argv[1]), segment_bytes=20_000)
if not storage.load().configuration.voters:
    storage.reset(0, 0, Configuration((1,)))
print("start", storage.last_index, flush=True)
index = storage.last_index
while True:
    count = index % 5 + 1
    term = index // 100 + 1
    batch = [Entry(index + i + 1, term, b"%d" % (index + i + 1) * (index % 70)) for i in range(count)]
    storage.save(HardState(term, 1, index), batch, True)
    index += count
    print(index, term, flush=True)
    if index % 50 == 0:
        storage.save(HardState(term, 1, index), [], False)
        storage.compact(index - 40, Configuration((1,)))
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    acknowledged, term = 0, 0
    for lines in (1, 2, 30, 100, 60):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        try:
            assert int(writer.stdout.readline().split()[1]) >= acknowledged
            for _ in range(lines):
                acknowledged, term = map(int, writer.stdout.readline().split())
        finally:
            os.kill(writer.pid, signal.SIGKILL)
            rest = writer.stdout.read().splitlines()
            writer.wait()
        if rest and len(rest[-1].split()) == 2:
            acknowledged, term = map(int, rest[-1].split())
        storage = SegmentedStorage(tmp_path / "log")
        loaded = storage.load()
        assert storage.last_index >= acknowledged
        assert loaded.hard_state.term >= term
        assert acknowledged - storage.first_index > 30 or storage.first_index == 1
        for entry in storage.entries(storage.first_index, storage.last_index, 1 << 30):
            assert entry.data.startswith(b"%d" % entry.index) or not entry.data
        storage.close()


def test_a_directory_is_open_once(tmp_path: Path) -> None:
    first = SegmentedStorage(tmp_path / "log")
    first.load()
    with pytest.raises(InUse, match="open in another process"):
        SegmentedStorage(tmp_path / "log").load()
    program = (
        "import sys, pathlib\nfrom raft.errors import InUse\nfrom raft.storage.segmented import SegmentedStorage\n"
        "try: SegmentedStorage(pathlib.Path(sys.argv[1])).load()\nexcept InUse: print('in use')"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "log")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "in use\n"
    first.close()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_nobody_else_may_read_the_log(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        storage = SegmentedStorage(tmp_path / "data" / "log")
        storage.load()
        storage.reset(0, 0, Configuration((1,)))
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "data" / "log").stat().st_mode) == 0o700
    files = list((tmp_path / "data" / "log").iterdir())
    assert sorted(path.name for path in files) == ["0000000000000001.log", "LOCK"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    storage.close()


def test_closing_gives_back_all_descriptors(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    storage = SegmentedStorage(tmp_path / "log", segment_bytes=300)
    storage.load()
    storage.reset(0, 0, Configuration((1,)))
    for index in range(1, 20):
        storage.save(HardState(1, 1, index), [Entry(index, 1, b"x" * 100)], True)
    storage.compact(10, Configuration((1,)))
    storage.reset(50, 1, Configuration((1,)))
    storage.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_more_buffers_than_one_call_takes(tmp_path: Path) -> None:
    file = OsFileSystem().create(tmp_path / "file")
    parts = [b"%05d" % i for i in range(3 * BUFFERS_MAX + 7)]
    file.pwritev(list(parts), 11)
    assert file.pread(1 << 20, 11) == b"".join(parts)
    file.close()


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_pwritev, real_pwrite = os.pwritev, os.pwrite
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: real_pwritev(fd, [b"".join(buffers)[:7]], offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real_pwrite(fd, bytes(data)[:3], offset))
    file = OsFileSystem().create(tmp_path / "file")
    parts = [b"%05d" % i for i in range(BUFFERS_MAX + 7)]
    file.pwritev(list(parts), 2)
    assert file.pread(1 << 20, 2) == b"".join(parts)
    file.close()


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """A thread back from the disk waits 0.1 ms for its turn beside a busy one, not 5 ms: more interleavings."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("cache_bytes", [0, 20_000])
@pytest.mark.usefixtures("eager_threads")
def test_reads_beside_a_writing_thread(tmp_path: Path, cache_bytes: int) -> None:
    """The loop reads what is stored while a save, with truncations, and a compaction run elsewhere."""
    storage = SegmentedStorage(tmp_path / "log", segment_bytes=5000, cache_bytes=cache_bytes)
    storage.load()
    storage.reset(0, 0, Configuration((1,)))
    stable = 100
    storage.save(None, [Entry(i, 1, b"%d" % i * 30) for i in range(1, stable + 1)], False)

    def write() -> None:
        for term in range(2, 100):
            first = stable + 1 + term % 3
            storage.save(None, [Entry(first + i, term, b"x" * 200) for i in range(1 + 3 * (term % 4))], False)
            storage.compact(term // 10, Configuration((1,)))

    with ThreadPoolExecutor(1) as executor:
        storage.save(None, [Entry(stable + 1 + i, 1, b"x") for i in range(20)], False)
        writing = executor.submit(write)
        while not writing.done():
            for low in range(10, stable, 7):
                found = storage.entries(low, stable, 1500)
                assert [(e.index, e.term, e.data) for e in found] == [
                    (low + i, 1, b"%d" % (low + i) * 30) for i in range(len(found))
                ]
                assert storage.term_at(low) == 1
        writing.result()
    storage.close()
