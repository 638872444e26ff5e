"""Nemeses: each does something bad to some members, shows that it bites, and undoes it.

A network fault is a set of ordered pairs that cannot talk; `shows` sends datagrams and compares pair by pair. A
process fault is a signal; `shows` looks at the process. Whether this machine can do a fault is the probe's answer to
`needs`.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations, product
from pathlib import Path

from tests.e2e.cluster import Cluster, Member, wait_for
from tests.jepsen.network import Network, Pair

LOSS = 0.3
DATAGRAMS = 60  # for each pair, to see a loss; chance takes none of them once in 10^9


@dataclass
class System:
    """What faults act on."""

    network: Network
    cluster: Cluster

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.cluster.members]


class Fault:
    """Begun, then ended; in between it may be asked whether it really is there."""

    needs: tuple[str, ...] = ()

    def __init__(self, system: System, rng: random.Random) -> None:
        self.system = system
        self.rng = rng

    def begin(self) -> str:
        """Returns what is done to whom, in a few words."""
        raise NotImplementedError

    def bites(self) -> str:
        """ "" when it shows, else what is seen instead."""
        raise NotImplementedError

    def end(self) -> None:
        raise NotImplementedError

    def healed(self) -> str:
        """ "" when nothing of it is left."""
        raise NotImplementedError


# The network


def both(one: list[str], other: list[str]) -> set[Pair]:
    return set(product(one, other)) | set(product(other, one))


def isolate(names: list[str], _: random.Random) -> set[Pair]:
    return both(names[:1], names[1:])


def halves(names: list[str], _: random.Random) -> set[Pair]:
    """A minority and a majority."""
    cut = len(names) // 2
    return both(names[:cut], names[cut:])


def bridge(names: list[str], _: random.Random) -> set[Pair]:
    """Two halves that only the first member can talk to."""
    rest = names[1:]
    return both(rest[: len(rest) // 2], rest[len(rest) // 2 :])


def ring(names: list[str], _: random.Random) -> set[Pair]:
    """Each talks to its two neighbours; with five members every one sees another majority."""
    count = len(names)
    near = {(names[i], names[(i + step) % count]) for i in range(count) for step in (1, -1)}
    return set(permutations(names, 2)) - near


def one_way(names: list[str], rng: random.Random) -> set[Pair]:
    """One member is not heard, or hears nobody."""
    return set(product(names[:1], names[1:]) if rng.random() < 0.5 else product(names[1:], names[:1]))


Shape = Callable[[list[str], random.Random], set[Pair]]


class Partition(Fault):
    needs = ("iptables DROP",)
    target = "DROP"
    shape: Shape

    def begin(self) -> str:
        names = self.rng.sample(self.system.names, len(self.system.names))
        if self.rng.random() < 0.5:  # what happens to the leader matters most
            leader = self.system.cluster.leader()
            if leader is not None:
                names.sort(key=lambda name: name != leader.name)
        self.pairs = type(self).shape(names, self.rng)
        self.system.network.cut(self.pairs, self.target)
        return " ".join(f"{one}>{other}" for one, other in sorted(self.pairs))

    def bites(self) -> str:
        arrived = set(self.system.network.delivered(self.system.names))
        expected = set(permutations(self.system.names, 2)) - self.pairs
        return "" if arrived == expected else f"{sorted(arrived ^ expected)} differ"

    def end(self) -> None:
        self.system.network.heal()

    def healed(self) -> str:
        lost = set(permutations(self.system.names, 2)) - set(self.system.network.delivered(self.system.names))
        return f"{sorted(lost)} still cut" if lost else ""


class Rejecting(Partition):
    """The sender is told at once, by ICMP, where else it would wait."""

    needs = ("iptables REJECT",)
    target = "REJECT"

    def bites(self) -> str:
        sender, receiver = min(self.pairs)
        port = next(one.peer_port for one in self.system.cluster.members if one.name == receiver)
        told = self.system.network.connects(sender, receiver, port)
        return super().bites() or ("" if told == "refused" else f"{sender}>{receiver} is not refused: {told}")


class Flaky(Partition):
    """Every packet between members is lost with a chance of LOSS."""

    needs = ("random loss",)

    def begin(self) -> str:
        self.system.network.cut(permutations(self.system.names, 2), loss=LOSS)
        return f"loss {LOSS}"

    def bites(self) -> str:
        arrived = self.system.network.delivered(self.system.names, DATAGRAMS)
        return "" if all(0 < arrived[pair] < DATAGRAMS for pair in permutations(self.system.names, 2)) else f"{arrived}"

    def healed(self) -> str:
        arrived = self.system.network.delivered(self.system.names, 5)
        return "" if all(arrived[pair] == 5 for pair in permutations(self.system.names, 2)) else f"{arrived}"


def partition(of: Shape, base: type[Partition] = Partition) -> type[Partition]:
    return type(f"{base.__name__}_{of.__name__}", (base,), {"shape": staticmethod(of)})


# Processes


class Processes(Fault):
    """`how_many` of the members: "one", "leader" or "majority"."""

    how_many = "one"

    def begin(self) -> str:
        members = self.system.cluster.members
        if self.how_many == "leader":
            self.victims = [self.system.cluster.leader() or self.rng.choice(members)]
        else:
            count = 1 if self.how_many == "one" else len(members) // 2 + 1
            self.victims = self.rng.sample(members, count)
        for member in self.victims:
            self.hurt(member)
        return " ".join(member.name for member in self.victims)

    def hurt(self, member: Member) -> None:
        raise NotImplementedError


class Kill(Processes):
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


def processes(base: type[Processes], how_many: str) -> type[Processes]:
    return type(f"{base.__name__}_{how_many}", (base,), {"how_many": how_many})


SHAPES: dict[str, Shape] = {"isolate": isolate, "halves": halves, "bridge": bridge, "ring": ring, "one-way": one_way}
FAULTS: dict[str, type[Fault]] = {
    **{name: partition(shape) for name, shape in SHAPES.items()},
    **{f"{name}-reject": partition(shape, Rejecting) for name, shape in SHAPES.items() if name != "one-way"},
    "flaky": Flaky,
    **{f"kill-{how}": processes(Kill, how) for how in ("one", "leader", "majority")},
    **{f"pause-{how}": processes(Pause, how) for how in ("one", "leader", "majority")},
}


@dataclass
class Told:
    """A fault as the report tells it. Times are seconds from the start of the run."""

    name: str
    what: str
    began: float
    ended: float = 0.0
    unavailable: float = field(default=0.0)  # the longest time without an acknowledged operation, in seconds
