"""Clean-up that nothing can interrupt: `python -m tests.jepsen.guard PREFIX` waits until stdin ends, then removes
every namespace whose name begins with PREFIX, with all processes in it and the host's link to it.

It is the only way of cleaning up: the harness closes the pipe, or its death does, whichever way it dies.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

NAMESPACES = Path("/run/netns")
NAME = re.compile(r"(kj(\d+)h)-")  # of a namespace; the number is the harness's pid


def prefix_of(pid: int) -> str:
    return f"kj{pid}h"


def namespaces(prefix: str) -> list[str]:
    return sorted(path.name for path in NAMESPACES.glob(f"{prefix}-*"))


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
    while pids := processes_in(inodes):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)
    for one in held:
        os.close(one)
    subprocess.run(["ip", "link", "del", prefix], check=False, stderr=subprocess.DEVNULL)


def sweep() -> list[str]:
    """Remove what harnesses have left whose guard was killed as well. Returns the prefixes."""
    found = {match[1]: int(match[2]) for path in NAMESPACES.glob("kj*") if (match := NAME.match(path.name))}
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
