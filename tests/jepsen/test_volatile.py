"""The disk that loses what no fsync has covered: as a file it is any other, and a SIGKILL shows what it kept."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jepsen import volatile
from tests.jepsen.volatile import PAGE, VolatileFile

WRITES = """
import os, signal, sys
from tests.jepsen import volatile
volatile.EARLY = float(sys.argv[2])
file = volatile.VolatileFile(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT))
file.pwritev([b"a" * 5000], 0)
file.fdatasync()
for at in range(5000, 105000, 5000):
    file.pwritev([b"b" * 5000], at)
assert file.pread(200000, 0) == b"a" * 5000 + b"b" * 100000
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("early", [0.0, 0.5, 1.0])
def test_kill_loses_what_is_not_synced(tmp_path: Path, early: float) -> None:
    path = tmp_path / "file"
    done = subprocess.run([sys.executable, "-c", WRITES, str(path), str(early)], check=False)
    assert done.returncode == -signal.SIGKILL
    found = path.read_bytes()
    assert found[:5000] == b"a" * 5000
    kept = found[5000:].count(b"b")
    assert kept == len(found) - 5000 - found[5000:].count(b"\0")
    assert {0.0: kept == 0, 0.5: 0 < kept < 100000, 1.0: kept == 100000}[early]


def test_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written is read, synced or not, by all who have it open."""
    monkeypatch.setattr(volatile, "SYNC_SECONDS", 0)
    rng = random.Random(1)
    path = tmp_path / "file"
    model = bytearray()
    files = [VolatileFile(os.open(path, os.O_RDWR | os.O_CREAT))]
    files[0].pwritev([b"x"], 0)
    files[0].fdatasync()
    model += b"x"
    files.append(VolatileFile(os.open(path, os.O_RDWR)))
    for _ in range(2000):
        file = rng.choice(files)
        what = rng.random()
        if what < 0.6:
            offset, data = rng.randrange(5 * PAGE), rng.randbytes(rng.randrange(1, 2 * PAGE))
            file.pwritev([data[:10], data[10:]], offset)
            model.extend(bytes(max(0, offset + len(data) - len(model))))
            model[offset : offset + len(data)] = data
        elif what < 0.7:
            file.fdatasync()
            assert path.read_bytes() == model
        elif what < 0.75:
            size = rng.randrange(len(model) + 1)
            file.truncate(size)
            del model[size:]
        offset, length = rng.randrange(6 * PAGE), rng.randrange(3 * PAGE)
        assert file.pread(length, offset) == model[offset : offset + length]
        assert file.size() == len(model)
