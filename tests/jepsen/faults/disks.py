"""Disks that are full, hang, fail, lose power or rot. What a member promises: it ends, and lies never.

All but the last need the member's data on a Disk of its own.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.e2e.cluster import Member, wait_for
from tests.jepsen.disk import Disk
from tests.jepsen.faults.base import Fault, Repeated, push

PUSH_SECONDS = (0.05, 0.1)
SLOW_SECONDS = (0.05, 0.3)
LAST_WORDS = ("this member cannot go on", " dies")  # what its log says before it ends
REFUSED = "must not take part"  # what it says of damage
BATCHES_MIN, BATCH_BYTES = 4, 32 << 10  # written before a bit flips
LAST_BATCH_BYTES = 80 << 10  # at most: a push of another fault, and what clients wrote beside it
UNSYNCED_SECONDS = 0.5  # to catch a member between a write and its sync


class OnDisk(Fault):
    needs: tuple[str, ...] = ("disk image",)
    layer = "process"
    ours = True
    how_many = "one"

    def choose(self) -> str:
        self.victims = self.pick(self.how_many)
        return " ".join(member.name for member in self.victims)

    def disk(self, member: Member) -> Disk:
        return self.system.disks[member.name]

    def all_ended(self) -> str:
        """Those that were to end have, by themselves, and said so."""

        def ended() -> bool:
            push(self.system.cluster.running)
            return not any(member.running for member in self.victims)

        wait_for(ended, f"the end of {self.victims}")
        silent = [member.name for member in self.victims if LAST_WORDS[0] not in member.log()]
        return f"{silent} ended without a word" if silent else ""

    def start(self) -> None:
        for member in self.victims:
            if not member.running:
                member.start()

    def healed(self) -> str:
        for member in self.victims:
            member.wait_ready()
        return ""


class Full(Repeated, OnDisk):
    """No block is left, while the others' writes go on."""

    def prepare(self) -> str:
        what = self.choose()
        for member in self.victims:
            member.expected += LAST_WORDS
            self.disk(member).fill()
        return what

    def again(self) -> None:
        push(self.system.cluster.running)
        self.pause(*PUSH_SECONDS)

    def bites(self) -> str:
        return self.all_ended()

    def end(self) -> None:
        super().end()
        for member in self.victims:
            self.disk(member).empty()
        self.start()


class Dead(OnDisk):
    """Every write and sync fails. Later the disk is replaced by what was synced."""

    def begin(self) -> str:
        what = self.choose()
        for member in self.victims:
            member.expected += LAST_WORDS
            self.disk(member).shut_down()
        return what

    def bites(self) -> str:
        return self.all_ended()

    def end(self) -> None:
        for member in self.victims:
            member.kill()
            self.disk(member).revive()
        self.start()


class PowerCut(OnDisk):
    """The machine is off between two of its writes: what was not synced is lost, and not all of it."""

    def begin(self) -> str:
        what = self.choose()
        for member in self.victims:
            member.expected += LAST_WORDS  # when it sees its disk go before it is killed
        self._wait_for_a_write()
        for member in self.victims:
            self.disk(member).shut_down(self.rng)
            member.kill()
        for member in self.victims:
            self.disk(member).revive()
        return what

    def _wait_for_a_write(self) -> None:
        """Until one of them has written and not yet synced; it waits there."""
        for member in self.victims:
            member.arm("walBeforeSync", f"1*sleep({UNSYNCED_SECONDS * 1000:.0f})")
        push(self.system.cluster.running, UNSYNCED_SECONDS / 2)

    def bites(self) -> str:
        kept = [one.name for one in self.victims if not self.disk(one).lost_what_was_not_synced()]
        running = [one.name for one in self.victims if one.running]
        return f"{kept} have kept what was not synced; {running} run" if kept or running else ""

    def end(self) -> None:
        self.start()


class Hanging(OnDisk):
    """Nothing can be written, and nothing fails: what writes waits."""

    def begin(self) -> str:
        what = self.choose()
        for member in self.victims:
            self.disk(member).freeze()
        return what

    def bites(self) -> str:
        def waits() -> bool:
            push(self.system.cluster.running)
            return any(_blocked(member) for member in self.victims)

        wait_for(waits, "a member waits for its disk", 10)
        well = [member.name for member in self.victims if not self.disk(member).hangs()]
        return f"the disks of {well} do not hang" if well else ""

    def end(self) -> None:
        for member in self.victims:
            self.disk(member).thaw()

    def healed(self) -> str:
        for member in self.victims:
            wait_for(lambda member=member: member.status(), f"{member.name} answers")  # type: ignore[misc]
        return ""


class SlowDisk(Repeated, Hanging):
    """It hangs for a moment, over and over."""

    def bites(self) -> str:
        wait_for(lambda: any(_blocked(member) for member in self.victims), "a member waits for its disk", 10)
        return ""

    def prepare(self) -> str:
        return self.choose()

    def again(self) -> None:
        for member in self.victims:
            self.disk(member).freeze()
        push(self.system.cluster.running, SLOW_SECONDS[0])
        self.pause(*SLOW_SECONDS)
        for member in self.victims:
            self.disk(member).thaw()
        self.pause(*SLOW_SECONDS)

    def end(self) -> None:
        Repeated.end(self)


def _blocked(member: Member) -> bool:
    """Some thread of it waits in the kernel and cannot be interrupted."""
    threads = Path(f"/proc/{member.pid}/task").glob("*/stat")
    return any(one.read_text().rpartition(")")[2].split()[0] == "D" for one in threads)


class SyncError(OnDisk):
    """The next fdatasync fails, once (strace). A second one would say that all is well."""

    needs = ("strace inject",)

    def begin(self) -> str:
        what = self.choose()
        self._tracers = []
        for member in self.victims:
            member.expected += LAST_WORDS
            inject = "inject=fsync,fdatasync:error=EIO:when=1"
            command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", inject]
            self._tracers.append(
                subprocess.Popen(
                    [*self.system.network.enter(member.name), *command, "-p", str(member.pid)], start_new_session=True
                )
            )
        return what

    def bites(self) -> str:
        return self.all_ended()

    def end(self) -> None:
        for tracer in self._tracers:
            tracer.terminate()
            tracer.wait(10)
        self.start()


class BitFlip(Fault):
    """Bits of a minority's logs flip while it is down, where all was synced. It must not start, until they are back."""

    layer = "process"
    ours = True
    leaves_majority = True

    def begin(self) -> str:
        for _ in range(BATCHES_MIN):
            push(self.system.cluster.running, size=BATCH_BYTES)
        self.victims = self.pick("minority")
        self.flipped: list[tuple[Path, int, bytes]] = []
        self.damaged: set[str] = set()
        told = []
        for member in self.victims:
            member.kill()
            member.expected.append(REFUSED)
            told.append(f"{member.name}@{self._flip(member)}")
            member.start()
        return " ".join(told)

    def _flip(self, member: Member) -> str:
        """Where records of later syncs lie behind it: damage of the last batch cannot be told from a torn tail."""
        path = max((member.data_dir / "log").glob("*.log"), key=_used)
        content = path.read_bytes()
        safe = _used(path) - LAST_BATCH_BYTES
        if safe <= 0:
            return "nothing"  # it has not heard of enough: another fault keeps it from that
        at = self.rng.randrange(safe)
        self.flipped.append((path, at, content[at : at + 1]))
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([content[at] ^ 1 << self.rng.randrange(8)]))
        self.damaged.add(member.name)
        return f"{path.name}:{at}"

    def bites(self) -> str:
        damaged = [member for member in self.victims if member.name in self.damaged]
        for member in damaged:
            member.wait_exit()
        silent = [member.name for member in damaged if REFUSED not in member.log()]
        return "no bit has flipped" if not damaged else f"{silent} ended without a word" if silent else ""

    def end(self) -> None:
        for member in self.victims:
            if member.name in self.damaged:
                member.wait_exit()
            member.kill()
        for path, at, byte in self.flipped:
            with path.open("r+b") as file:
                file.seek(at)
                file.write(byte)
        for member in self.victims:
            member.start()

    def healed(self) -> str:
        for member in self.victims:
            member.wait_ready()
        return ""


def _used(path: Path) -> int:
    return len(path.read_bytes().rstrip(b"\0"))


def on(how_many: str, base: type[OnDisk]) -> type[OnDisk]:
    return type(
        f"{base.__name__}_{how_many}",
        (base,),
        {"how_many": how_many, "leaves_majority": how_many not in {"majority", "all"}},
    )


DISKS: dict[str, type[Fault]] = {
    **{f"disk-full-{how}": on(how, Full) for how in ("one", "leader", "majority")},
    **{f"disk-dead-{how}": on(how, Dead) for how in ("one", "leader")},
    **{f"disk-hang-{how}": on(how, Hanging) for how in ("leader", "majority")},
    "disk-slow": on("minority", SlowDisk),
    "sync-error": on("leader", SyncError),
    **{f"power-cut-{how}": on(how, PowerCut) for how in ("one", "majority", "all")},
    "bit-flip": BitFlip,
}
