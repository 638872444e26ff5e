"""Clean-up that nothing can interrupt: `python -m tests.jepsen.guard PREFIX` waits until stdin ends, then removes
every namespace, control group and container whose name begins with PREFIX, with all processes in it, and the host's
link to it, and every mount of a disk image whose name begins so.

It is the only way of cleaning up: the harness closes the pipe, or its death does, whichever way it dies.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

NAMESPACES = Path("/run/netns")
CGROUPS = Path("/sys/fs/cgroup")
NAME = re.compile(r"(kj(\d+)h)")  # the number is the harness's pid
LABEL = "kvstore.jepsen"  # of a container or its network; the value is the prefix
CLEAN_SECONDS = 120.0
DOCKER_SECONDS = 30.0
TRIES = 3
ROOT = Path(__file__).parent.parent.parent


class Guarded:
    """With it, everything whose name begins with `prefix` ends when the harness does."""

    def __init__(self) -> None:
        self.prefix = prefix_of(os.getpid())
        self._guard: subprocess.Popen[bytes] | None = None

    def guard(self) -> None:
        sweep()
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "tests.jepsen.guard", self.prefix],
            stdin=subprocess.PIPE,
            start_new_session=True,
            cwd=ROOT,
        )

    def close(self) -> None:
        """Everything is gone when this returns, the processes inside too. Idempotent."""
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait(CLEAN_SECONDS)
            self._guard = None


def prefix_of(pid: int) -> str:
    return f"kj{pid}h"


def namespaces(prefix: str) -> list[str]:
    return sorted(path.name for path in NAMESPACES.glob(f"{prefix}-*"))


def cgroups(prefix: str) -> list[Path]:
    """Deepest first. Version 1 has one tree for each controller, version 2 one for all."""
    found: list[Path] = []
    for top in [*CGROUPS.glob(prefix), *CGROUPS.glob(f"*/{prefix}")]:
        found += [Path(folder) for folder, _, _ in os.walk(top, topdown=False)]
    return found


def containers(prefix: str = "") -> dict[str, str]:
    """Those of harnesses in the engine that runs here anyway: identity, prefix."""
    label = f"{LABEL}={prefix}" if prefix else LABEL
    lines = _docker("ps", "-a", "--filter", f"label={label}", "--format", f'{{{{.ID}}}} {{{{.Label "{LABEL}"}}}}')
    return dict(line.split() for line in lines)


def networks(prefix: str = "") -> list[str]:
    """Names, which are prefixes."""
    label = f"{LABEL}={prefix}" if prefix else LABEL
    return _docker("network", "ls", "--filter", f"label={label}", "--format", "{{.Name}}")


def _docker(*arguments: str) -> list[str]:
    """Lines of output; none where there is no client or no engine."""
    if shutil.which("docker") is None:
        return []
    try:
        done = subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, check=False, timeout=DOCKER_SECONDS
        )
    except subprocess.TimeoutExpired:
        return []
    return done.stdout.splitlines()


def processes_in(inodes: set[int]) -> list[int]:
    """The processes whose network namespace is one of these."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                inode = (entry / "ns" / "net").stat().st_ino
            except OSError:
                continue  # it has ended
            if inode in inodes:
                found.append(int(entry.name))
    return found


def processes_of(groups: Iterable[Path]) -> list[int]:
    found = []
    for group in groups:
        with contextlib.suppress(OSError):  # it has just ended
            found += [int(line) for line in (group / "cgroup.procs").read_text().split()]
    return found


def mounts(prefix: str) -> list[str]:
    """Where images of this prefix are mounted."""
    devices = set()
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            image = Path(backing.read_text().strip()).name
        except OSError:
            continue  # detached meanwhile
        if image.startswith(f"{prefix}-"):
            devices.add(f"/dev/{backing.parent.parent.name}")
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [target for device, target, *_ in lines if device in devices]


def clean(prefix: str) -> None:
    """Idempotent. First the names go, so that nothing more can enter; what has entered is then killed by pid."""
    names = namespaces(prefix)
    held = []  # open files keep a namespace's inode from being used again
    for name in names:
        try:
            held.append(os.open(NAMESPACES / name, os.O_RDONLY))
        except OSError:
            continue
    inodes = {os.fstat(one).st_ino for one in held} - {os.stat("/proc/self/ns/net").st_ino}
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)
    for target in mounts(prefix):  # who waits for a frozen disk cannot be killed
        subprocess.run(["fsfreeze", "-u", target], check=False, stderr=subprocess.DEVNULL)
    while pids := {*processes_in(inodes), *processes_of(cgroups(prefix))}:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for one in held:
        os.close(one)
    for target in mounts(prefix):
        subprocess.run(["umount", target], check=False)
    subprocess.run(["ip", "link", "del", prefix], check=False, stderr=subprocess.DEVNULL)
    for group in cgroups(prefix):
        with contextlib.suppress(OSError):
            group.rmdir()
    for _ in range(TRIES):  # the engine may be at work on what a client asked for before it was killed
        if found := containers(prefix):
            _docker("rm", "-f", "-v", *found)
    for network in networks(prefix):
        _docker("network", "rm", network)


def sweep() -> list[str]:
    """Remove what harnesses have left whose guard was killed as well. Returns the prefixes."""
    names = [path.name for path in (*NAMESPACES.glob("kj*"), *CGROUPS.glob("kj*"), *CGROUPS.glob("*/kj*"))]
    found = {
        match[1]: int(match[2]) for name in [*names, *containers().values(), *networks()] if (match := NAME.match(name))
    }
    dead = [prefix for prefix, pid in found.items() if not Path(f"/proc/{pid}").exists()]
    for prefix in dead:
        clean(prefix)
    return dead


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    clean(sys.argv[1])


if __name__ == "__main__":
    main()
