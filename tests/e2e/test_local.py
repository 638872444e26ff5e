"""`kvstore local`: the tour without a terminal, and a member that ends by itself."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.cluster import clean_environment, wait_for
from tests.ports import free_ports


def base_port(size: int) -> int:
    """The first of enough ports in a row that are free now."""
    while True:
        ports = free_ports(2 * size)
        if ports[-1] - ports[0] == 2 * size - 1:
            return ports[0]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kvstore", "local", *arguments]


def test_the_tour_plays_without_a_terminal_and_exits_0(tmp_path: Path) -> None:
    result = subprocess.run(
        command("--tour", f"--base-port={base_port(3)}", f"--data-dir={tmp_path}"),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        stdin=subprocess.DEVNULL,
        env=clean_environment(),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for text in ("put greeting hello", "hello, watcher", "kill -9", "leads now", "survived", "That was the tour."):
        assert text in result.stdout
    assert re.search(r"\d{4}-\d\d-\d\dT.*PUT\s+greeting\s+hello", result.stdout)
    assert result.stderr == ""


def test_a_member_that_dies_is_shown_and_not_restarted_and_the_data_stays(tmp_path: Path) -> None:
    base = base_port(1)
    log = tmp_path / "out"
    arguments = command("--size=1", f"--base-port={base}", f"--data-dir={tmp_path / 'data'}")
    for _ in range(2):  # the second run finds the directory of the first
        with log.open("w") as out:
            process = subprocess.Popen(arguments, stdout=out, stderr=out, env=clean_environment())
        try:
            line = wait_for(lambda: re.search(r"m1: leader \(pid (\d+)", log.read_text()), "the member's line")
            os.kill(int(line.group(1)), signal.SIGKILL)
            assert process.wait(30) == 1
        finally:
            process.kill()
            process.wait()
        text = log.read_text()
        assert "member m1 exited with code -9; its last log lines" in text
        assert "ready to serve client requests" in text
        assert "no member is left" in text


def test_ctrl_c_stops_all_members(tmp_path: Path) -> None:
    log = tmp_path / "out"
    with log.open("w") as out:
        process = subprocess.Popen(command("--size=1", f"--base-port={base_port(1)}"), stdout=out, stderr=out)
    try:
        line = wait_for(lambda: re.search(r"m1: leader \(pid (\d+)", log.read_text()), "the member's line")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(int(line.group(1)), 0)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("other", [["--size=3"], ["--base-port=33000"]])
def test_a_directory_of_another_shape_is_refused(tmp_path: Path, other: list[str]) -> None:
    (tmp_path / "local.json").write_text('{"size": 1, "base_port": 32500}')
    arguments = command("--size=1", "--base-port=32500", f"--data-dir={tmp_path}", *other)
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "run it with --size 1 --base-port 32500" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        arguments = command("--size=1", f"--base-port={port}")
        result = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert f"port {port} is taken" in result.stderr
