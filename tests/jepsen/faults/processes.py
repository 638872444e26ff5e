"""Members that die or stand still: a signal. `bites` looks at the process and asks it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.e2e.cluster import Member, wait_for
from tests.jepsen.faults.base import HOW_MANY, Fault, Repeated

STORM_SECONDS = (0.1, 1.5)  # a start takes about one: many are killed in it


class Processes(Fault):
    """To `how_many` of the members."""

    layer = "process"
    how_many = "one"

    def begin(self) -> str:
        self.victims = self.pick(self.how_many)
        self.prepare()
        for member in self.victims:
            self.hurt(member)
        return " ".join(member.name for member in self.victims)

    def prepare(self) -> None:
        """Before the first is hurt."""

    def hurt(self, member: Member) -> None:
        raise NotImplementedError


class Kill(Processes):
    def prepare(self) -> None:
        """All at once, as a power cut does it: one's end takes long enough for another's fsync."""
        for member in self.victims:
            os.kill(member.pid, signal.SIGSTOP)

    def hurt(self, member: Member) -> None:
        member.kill()

    def bites(self) -> str:
        running = [one.name for one in self.victims if one.running]
        network = self.system.network
        told = {one.name: network.connects("clients", one.name, one.client_port) for one in self.victims}
        return f"{running} run, {told}" if running or set(told.values()) != {"refused"} else ""

    def end(self) -> None:
        for member in self.victims:
            member.start()

    def healed(self) -> str:
        for member in self.victims:
            member.wait_ready()
        return ""


class Pause(Processes):
    def hurt(self, member: Member) -> None:
        os.kill(member.pid, signal.SIGSTOP)

    def bites(self) -> str:
        def stopped() -> bool:  # the signal is delivered, the state follows
            return all(_state(member) == "T" for member in self.victims)

        wait_for(stopped, "stopped processes", 5)
        answering = [member.name for member in self.victims if member.status(timeout=0.3) is not None]
        return f"{answering} answer" if answering else ""

    def end(self) -> None:
        for member in self.victims:
            os.kill(member.pid, signal.SIGCONT)

    def healed(self) -> str:
        for member in self.victims:
            wait_for(lambda member=member: member.status(), f"{member.name} answers")  # type: ignore[misc]
        return ""


def _state(member: Member) -> str:
    """Of the process, a letter as in proc(5)."""
    return Path(f"/proc/{member.pid}/stat").read_text().rpartition(")")[2].split()[0]


class RestartStorm(Repeated):
    """A minority is killed and started again, over and over, often before a start is over."""

    layer = "process"
    leaves_majority = True

    def prepare(self) -> str:
        self.victims = self.pick("minority")
        self.lives = {member.pid for member in self.victims}
        return " ".join(member.name for member in self.victims)

    def again(self) -> None:
        member = self.rng.choice(self.victims)
        member.kill()
        member.start()
        self.lives.add(member.pid)
        self.pause(*STORM_SECONDS)

    def bites(self) -> str:
        wait_for(lambda: len(self.lives) >= len(self.victims) + 3, "three restarts")
        return ""

    def healed(self) -> str:
        for member in self.victims:
            member.wait_ready()
        return ""


def processes(base: type[Processes], how_many: str) -> type[Processes]:
    some = how_many not in {"majority", "all"}
    return type(f"{base.__name__}_{how_many}", (base,), {"how_many": how_many, "leaves_majority": some})


PROCESSES: dict[str, type[Fault]] = {
    **{f"kill-{how}": processes(Kill, how) for how in HOW_MANY},
    **{f"pause-{how}": processes(Pause, how) for how in HOW_MANY},
    "restart-storm": RestartStorm,
}
