"""Recipes for the scenarios of the bug catalogue (S-nn) that need real members: faults in a given order, and what must
hold besides the verdicts. docs/JEPSEN.md says which scenario is which recipe, or which test instead.
"""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path
from typing import ClassVar

import grpc

from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from tests.e2e.cluster import Member, wait_for
from tests.jepsen.faults.base import Fault, Repeated
from tests.jepsen.faults.disks import DISKS
from tests.jepsen.faults.failpoints import FAILPOINTS, Armed, armed
from tests.jepsen.faults.links import ARRIVAL_SECONDS, COUNT, SIZE, Slow
from tests.jepsen.faults.members import MEMBERS, Lagging, Upkeep, removed
from tests.jepsen.faults.partitions import PARTITIONS, Partition, isolate, partial
from tests.jepsen.faults.processes import PROCESSES
from tests.jepsen.packets import Link, Links, flights

NARROW = 64_000  # bytes a second
TERMS_MAX = 6  # of a fault that must not make members campaign again and again; a busy machine adds some
DESCRIPTORS_MORE = 40  # of a member, for clients that have come over from the one that died
TASKS_MORE = 60
SETTLE_SECONDS = 30.0
LIFE_SECONDS = (1.0, 2.0)


def term(members: list[Member]) -> int:
    return max((status.raftTerm for member in members if (status := member.status()) is not None), default=0)


class Together(Fault):
    """The parts begin in this order and end in the other."""

    parts: tuple[type[Fault], ...] = ()

    def begin(self) -> str:
        self.begun: list[Fault] = []
        told = []
        for part in self.parts:
            fault = part(self.system, self.rng)
            told.append(fault.begin())
            self.begun.append(fault)
        return " | ".join(told)

    def bites(self) -> str:
        return "; ".join(filter(None, [fault.bites() for fault in self.begun]))

    def end(self) -> None:
        for fault in reversed(self.begun):
            fault.end()

    def healed(self) -> str:
        return "; ".join(filter(None, [fault.healed() for fault in self.begun]))


class FewTerms(Partition):
    """A partition during which, and after which, members must not campaign again and again."""

    to_leader = 0.5

    def begin(self) -> str:
        self.before = term(self.system.cluster.running)
        return super().begin()

    def healed(self) -> str:
        sick = super().healed()
        more = term(self.system.cluster.running) - self.before
        return sick or (f"{more} terms have passed" if more > TERMS_MAX else "")


class S04(FewTerms):
    """Some pairs cannot talk, the leader of the first among them: one leads all the time, or is replaced once."""

    shape = staticmethod(partial)
    to_leader = 1.0


class S07(FewTerms):
    """Who was cut off comes back without disturbing the others."""

    shape = staticmethod(isolate)
    to_leader = 0.0


class S21(Lagging):
    """Who needs a snapshot has little room on its links: the others neither wait for it nor elect."""

    needs = (*Lagging.needs, *Slow.needs)

    def begin(self) -> str:
        what = super().begin()
        self.before = term(self.system.cluster.running)
        self.system.network.heal()
        self.narrow = {pair: Link(rate=NARROW) for pair in self.pairs}
        self.links = Links(self.system.network, self.narrow, random.Random(self.rng.random()))
        self.links.open()
        return what

    def bites(self) -> str:
        """What is sent comes late, or not at all while the snapshot is under way."""
        found = flights(self.system.network, list(self.narrow), COUNT, SIZE, ARRIVAL_SECONDS)
        slow = COUNT * SIZE / NARROW / 2
        quick = [
            pair
            for pair, flight in found.items()
            if len(set(flight.numbers)) == COUNT and max(seconds for _, seconds in flight.arrived) < slow
        ]
        return f"{quick} are as quick as ever" if quick else ""

    def end(self) -> None:
        self.links.close()

    def healed(self) -> str:
        sick = super().healed()
        more = term(self.system.cluster.running) - self.before
        return sick or (f"{more} terms have passed" if more > TERMS_MAX else "")


class S32(Together):
    """The leader is removed, another member dies, a third is cut off: four are left, of whom two can talk."""

    parts = (removed("leader", learner=True), PROCESSES["kill-one"], PARTITIONS["isolate"])
    needs = ("iptables DROP",)

    def bites(self) -> str:
        return "; ".join(filter(None, [fault.bites() for fault in self.begun[1:]]))  # the first asks a quorum


class Watching(Armed):
    """With somebody who watches from the beginning, and so has to be caught up."""

    points: ClassVar[dict[str, str]] = {"watchBeforeSync": "50%sleep(300)", "watchBeforeNotify": "2%sleep(20)"}

    def provoke(self) -> None:
        super().provoke()
        for member in self.system.cluster.running:
            create = rpc_pb2.WatchCreateRequest(key=b"push", start_revision=1)
            stream = rpc_pb2_grpc.WatchStub(member.channel).Watch(iter([rpc_pb2.WatchRequest(create_request=create)]))
            with contextlib.suppress(grpc.RpcError):
                next(stream)
            stream.cancel()


class Expiring(Armed):
    """The leader stands still when it is about to revoke, and is no leader when it goes on."""

    how_many = "leader"
    points: ClassVar[dict[str, str]] = {"leaseBeforeRevoke": "1*sleep(4000)"}

    def provoke(self) -> None:
        for member in self.victims:
            with contextlib.suppress(grpc.RpcError):
                rpc_pb2_grpc.LeaseStub(member.channel).LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=1), timeout=1)


class S71(Repeated):
    """The leader is killed over and over: those that live on have no more descriptors and tasks in the end."""

    layer = "process"
    ours = True
    leaves_majority = True

    def prepare(self) -> str:
        self.kills = 0
        self.before = {member.pid: _held(member) for member in self.system.cluster.members}
        return "the leader, over and over"

    def again(self) -> None:
        leader = self.system.cluster.leader()
        if leader is not None:
            leader.kill()
            self.kills += 1
            self.pause(*LIFE_SECONDS)
            leader.start()
        self.pause(*LIFE_SECONDS)

    def bites(self) -> str:
        wait_for(lambda: self.kills >= 2, "two dead leaders")
        return ""

    def healed(self) -> str:
        for member in self.system.cluster.members:
            member.wait_ready()
        wait_for(lambda: not self._grown(), f"members that hold no more than before: {self._grown()}", SETTLE_SECONDS)
        return ""

    def _grown(self) -> dict[str, tuple[int, int]]:
        return {
            member.name: held
            for member in self.system.cluster.members
            if member.pid in self.before
            and (
                (held := _held(member))[0] > self.before[member.pid][0] + DESCRIPTORS_MORE
                or held[1] > self.before[member.pid][1] + TASKS_MORE
            )
        }


def _held(member: Member) -> tuple[int, int]:
    """Descriptors and tasks."""
    return len(os.listdir(Path(f"/proc/{member.pid}/fd"))), len(member.admin(do="tasks")["tasks"])


def together(*parts: type[Fault]) -> type[Together]:
    needs = tuple(sorted({need for part in parts for need in part.needs}))
    return type("Together", (Together,), {"parts": parts, "needs": needs})


class Compactions(Upkeep):
    what: ClassVar[tuple[str, ...]] = ("compact",)


SCENARIOS: dict[str, type[Fault]] = {
    "s-04": S04,
    "s-07": S07,
    "s-08": FAILPOINTS["fp-stall-leader"],
    "s-18": FAILPOINTS["fp-crash"],
    "s-21": S21,
    "s-24": together(MEMBERS["upkeep"], MEMBERS["needs-snapshot"]),
    "s-32": S32,
    "s-39": PROCESSES["pause-leader"],
    "s-45": together(armed("minority", compactBeforeBatch="50%sleep(50)"), Compactions),
    "s-46": DISKS["power-cut-all"],
    "s-50": DISKS["disk-full-leader"],
    "s-52": MEMBERS["needs-snapshot"],
    "s-53": together(Watching, Compactions),
    "s-57": PARTITIONS["isolate"],
    "s-58": Expiring,
    "s-64": PROCESSES["restart-storm"],
    "s-65": armed(
        "all",
        leaves_majority=False,
        batchBeforeReceive="5%sleep(20)",
        peerBeforeWrite="2%error",
        peerAfterRead="2%error",
    ),
    "s-71": S71,
}
