"""The counter of raft/README.md, as it stands there, as three processes."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import raft
from tests.ports import free_ports

README = Path(raft.__file__).parent / "README.md"
ROOT = README.parent.parent


def code() -> str:
    (found,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    return str(found)


class Counters:
    """Three of them, each with its pipes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._script = path / "counter.py"
        self._script.write_text(code())
        self._ports = [str(port) for port in free_ports(3)]
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self.answers: dict[int, list[int]] = {1: [], 2: [], 3: []}

    def start(self, number: int) -> None:
        command = [sys.executable, str(self._script), str(number), str(self._path / f"data{number}"), *self._ports]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self._path / f"errors{number}").open("a"),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
            bufsize=1,
        )
        self.processes[number] = process
        threading.Thread(target=self._listen, args=(number, process), daemon=True).start()

    def _listen(self, number: int, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.answers[number].append(int(line))

    def say(self, number: int, line: str) -> None:
        stdin = self.processes[number].stdin
        assert stdin is not None
        stdin.write(line + "\n")
        stdin.flush()

    def sum(self, number: int) -> int:
        """What it says now; waits for a leader."""
        before = len(self.answers[number])
        self.say(number, "")
        self.until(lambda: len(self.answers[number]) > before)
        return self.answers[number][-1]

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition():
            dead = [number for number, process in self.processes.items() if process.poll() is not None]
            errors = [(self._path / f"errors{number}").read_text()[-2000:] for number in dead]
            assert not dead, errors
            assert time.monotonic() < end, "nothing happens"
            time.sleep(0.01)

    def kill(self, number: int) -> None:
        process = self.processes.pop(number)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()


@pytest.fixture
def counters(tmp_path: Path) -> Iterator[Counters]:
    made = Counters(tmp_path)
    try:
        for number in (1, 2, 3):
            made.start(number)
        yield made
    finally:
        made.close()


def test_it_is_short() -> None:
    assert len(code().splitlines()) < 60


def test_three_processes_count_together_and_survive_a_kill(counters: Counters) -> None:
    assert counters.sum(1) == 0
    for number in range(100):
        counters.say(number % 3 + 1, "1")
    counters.until(lambda: counters.sum(1) == 100)
    assert counters.sum(2) == counters.sum(3) == 100

    counters.kill(2)
    assert counters.sum(1) == 100  # somebody leads again
    for _ in range(50):
        counters.say(1, "2")
    counters.until(lambda: counters.sum(1) == 200)

    counters.start(2)
    assert counters.sum(2) == 200
    counters.say(2, "-7")
    counters.until(lambda: [counters.sum(number) for number in (1, 2, 3)] == [193] * 3)


def test_all_public_names_are_there() -> None:
    assert [name for name in raft.__all__ if not hasattr(raft, name)] == []
    named = set(re.findall(r"`([A-Z][A-Za-z]+)`", README.read_text()))
    known = {*raft.__all__, "PeerIdentity", "OSError"}
    assert named <= known, named - known
