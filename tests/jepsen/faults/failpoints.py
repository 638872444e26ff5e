"""Members that end, stall or meet an error at a named place of the server (docs/failpoints.md), by the admin socket."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

from raft.failpoints import PANIC_EXIT
from tests.e2e.cluster import Member, wait_for
from tests.jepsen.faults.base import Fault, push

# What every member passes under writes; at each an end would break another promise.
CRASHES = (
    "raftBeforeSave",
    "walBeforeSync",
    "raftAfterSave",
    "raftBeforeFollowerSend",
    "applyBeforeCommit",
    "storeAfterWrite",
    "applyAfterCommit",
)


class Armed(Fault):
    """`points` are armed on `how_many` of the members."""

    layer = "process"
    ours = True
    leaves_majority = True
    how_many = "all"
    points: ClassVar[dict[str, str]] = {}

    def begin(self) -> str:
        self.victims = self.pick(self.how_many)
        for member in self.victims:
            member.expected += [f"failpoint {name}" for name in self.points]  # of the errors made there
            for name, actions in self.points.items():
                member.arm(name, actions)
        return f"{' '.join(member.name for member in self.victims)}: {' '.join(self.points)}"

    def bites(self) -> str:
        def fired() -> bool:
            self.provoke()
            return all(any(_fired(member, name) for member in self.victims) for name in self.points)

        wait_for(fired, f"something happens at each of {list(self.points)}")
        return ""

    def provoke(self) -> None:
        """Something that passes the points."""
        for member in self.system.cluster.running:
            push([member], size=1000)

    def end(self) -> None:
        for member in self.victims:
            with contextlib.suppress(OSError):  # it is not there to be asked
                member.admin(do="clear")

    def healed(self) -> str:
        armed = [member.name for member in self.victims if any(point["actions"] for point in _points(member))]
        return f"{armed} are still armed" if armed else ""


def _points(member: Member) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = member.admin(do="failpoints")["failpoints"]
    return found


def _fired(member: Member, name: str) -> bool:
    return any(point["fired"] for point in _points(member) if point["name"] == name)


class Crash(Fault):
    """A minority ends at a place, each at one of its own, some hundred writes on; later it is started."""

    layer = "process"
    ours = True
    leaves_majority = True
    points = CRASHES

    def begin(self) -> str:
        self.victims = self.pick("minority")
        self.at = {member.name: self.rng.choice(self.points) for member in self.victims}
        for member in self.victims:
            member.expected.append(f"failpoint {self.at[member.name]}: panic")
            member.arm(self.at[member.name], f"{self.rng.randrange(300)}*off->1*panic")
        return " ".join(f"{name}@{point}" for name, point in self.at.items())

    def bites(self) -> str:
        def ended() -> bool:
            push(self.system.cluster.running, size=100)
            return not any(member.running for member in self.victims)

        wait_for(ended, f"the end of {self.victims}")
        codes = {member.name: member.wait_exit() for member in self.victims}
        return "" if set(codes.values()) == {PANIC_EXIT} else f"exit codes {codes}"

    def end(self) -> None:
        for member in self.victims:
            member.kill()
            member.start()

    def healed(self) -> str:
        for member in self.victims:
            member.wait_ready()
        return ""


def armed(how_many: str, *, leaves_majority: bool = True, **points: str) -> type[Armed]:
    return type("Armed", (Armed,), {"how_many": how_many, "points": points, "leaves_majority": leaves_majority})


FAILPOINTS: dict[str, type[Fault]] = {
    "fp-crash": Crash,
    "fp-stall-leader": armed("leader", raftBeforeSave="1*sleep(4000)"),
    "fp-freeze-leader": armed("leader", walBeforeSync="1*sleep(4000)"),
    "fp-streams": armed("all", leaves_majority=False, peerBeforeWrite="2%error", peerAfterRead="2%error"),
    "fp-slow-apply": armed("minority", raftBeforeApply="50%sleep(100)"),
}
