"""What members hold: when all is healed and the clients are gone it is as much as before they came."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.cluster import Cluster, Member, wait_for

SETTLED_SECONDS = 15.0
SLACK = 4  # tasks or sockets that come and go
MEMORY_MAX = 600 << 20  # bytes of a process; an idle member has some 70 MiB, and a run is short


@dataclass
class Use:
    tasks: int
    sockets: int
    memory: int  # bytes, resident


def use_of(member: Member) -> Use:
    sockets = 0
    for descriptor in Path(f"/proc/{member.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            sockets += os.readlink(descriptor).startswith("socket:")
    pages = int(Path(f"/proc/{member.pid}/statm").read_text().split()[1])
    return Use(len(member.admin(do="tasks")["tasks"]), sockets, pages * os.sysconf("SC_PAGE_SIZE"))


def uses(cluster: Cluster) -> dict[str, Use]:
    return {member.name: use_of(member) for member in cluster.members}


def compare(before: dict[str, Use], after: dict[str, Use]) -> list[str]:
    """Of a member that has come since nothing was known before: it is compared with who held most."""
    tasks = max(use.tasks for use in before.values()) + SLACK
    sockets = max(use.sockets for use in before.values()) + SLACK
    complaints = []
    for name, use in sorted(after.items()):
        if use.tasks > tasks:
            complaints.append(f"{name} has {use.tasks} tasks, before there were {tasks - SLACK} at most")
        if use.sockets > sockets:
            complaints.append(f"{name} has {use.sockets} sockets, before there were {sockets - SLACK} at most")
        if use.memory > MEMORY_MAX:
            complaints.append(f"{name} has {use.memory >> 20} MiB of memory")
    return complaints


def check_resources(before: dict[str, Use], cluster: Cluster) -> list[str]:
    def settled() -> bool:
        return not compare(before, uses(cluster))

    with suppress(AssertionError):
        wait_for(settled, "what the clients had is given back", SETTLED_SECONDS)
    return compare(before, uses(cluster))


def most(found: dict[str, Use]) -> str:
    """For people."""
    largest = Use(*(max(getattr(use, name) for use in found.values()) for name in ("tasks", "sockets", "memory")))
    return f"at most {largest.tasks} tasks, {largest.sockets} sockets, {largest.memory >> 20} MiB"
