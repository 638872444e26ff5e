"""Who cannot talk to whom: a set of ordered pairs. `bites` sends datagrams and compares pair by pair."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations, permutations, product

from tests.e2e.cluster import wait_for
from tests.jepsen.faults.base import Fault, Repeated
from tests.jepsen.network import Pair

LOSS = 0.3
DATAGRAMS = 60  # for each pair, to see a loss; chance takes none of them once in 10^9
PARTIAL = 0.2  # of the pairs besides the first
FLAP_SECONDS = (0.1, 0.8)


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


def partial(names: list[str], rng: random.Random) -> set[Pair]:
    """The first two cannot talk to each other, nor some other pairs; all others can, with both."""
    cut = both(names[:1], names[1:2])
    for one, other in list(combinations(names, 2))[1:]:
        if rng.random() < PARTIAL:
            cut |= both([one], [other])
    return cut


Shape = Callable[[list[str], random.Random], set[Pair]]


class Partition(Fault):
    needs = ("iptables DROP",)
    layer = "network"
    leaves_majority = True
    target = "DROP"
    to_leader = 0.5  # chance that it is the leader which comes first: what happens to it matters most
    shape: Shape

    def choose(self) -> str:
        names = self.rng.sample(self.system.names, len(self.system.names))
        if self.rng.random() < self.to_leader:
            leader = self.system.cluster.leader()
            if leader is not None:
                names.sort(key=lambda name: name != leader.name)
        self.pairs = type(self).shape(names, self.rng)
        return " ".join(f"{one}>{other}" for one, other in sorted(self.pairs))

    def begin(self) -> str:
        what = self.choose()
        self.system.network.cut(self.pairs, self.target)
        return what

    def bites(self) -> str:
        arrived = set(self.system.network.delivered(self.system.names))
        expected = set(permutations(self.system.names, 2)) - self.pairs
        return "" if arrived == expected else f"{sorted(arrived ^ expected)} differ"

    def end(self) -> None:
        self.system.network.heal()

    def healed(self) -> str:
        lost = set(permutations(self.system.names, 2)) - set(self.system.network.delivered(self.system.names))
        return f"{sorted(lost)} still cut" if lost else ""


class OfLeader(Partition):
    to_leader = 1.0


class Rejecting(Partition):
    """The sender is told at once, by ICMP, where else it would wait."""

    needs = ("iptables REJECT",)
    target = "REJECT"

    def bites(self) -> str:
        sender, receiver = min(self.pairs)
        port = next(one.peer_port for one in self.system.cluster.members if one.name == receiver)
        told = self.system.network.connects(sender, receiver, port)
        return super().bites() or ("" if told == "refused" else f"{sender}>{receiver} is not refused: {told}")


class Flapping(Repeated, Partition):
    """Cut and healed, many times a second."""

    leaves_majority = False
    shape = staticmethod(isolate)

    def prepare(self) -> str:
        return self.choose()

    def again(self) -> None:
        self.system.network.cut(self.pairs, self.target)
        self.pause(*FLAP_SECONDS)
        self.system.network.heal()
        self.pause(*FLAP_SECONDS)

    def bites(self) -> str:
        everything = set(permutations(self.system.names, 2))
        seen: set[bool] = set()

        def both_seen() -> bool:
            lost = everything - set(self.system.network.delivered(self.system.names))
            seen.add(bool(lost))
            assert lost <= self.pairs, f"{sorted(lost - self.pairs)} are cut, too"
            return seen == {True, False}

        wait_for(both_seen, "a link that comes and goes")
        return ""

    def end(self) -> None:
        super().end()
        self.system.network.heal()


class Flaky(Partition):
    """Every packet between members is lost with a chance of LOSS."""

    needs = ("random loss",)
    leaves_majority = False

    def begin(self) -> str:
        self.system.network.cut(permutations(self.system.names, 2), loss=LOSS)
        return f"loss {LOSS}"

    def bites(self) -> str:
        arrived = self.system.network.delivered(self.system.names, DATAGRAMS)
        return "" if all(0 < arrived[pair] < DATAGRAMS for pair in permutations(self.system.names, 2)) else f"{arrived}"

    def healed(self) -> str:
        arrived = self.system.network.delivered(self.system.names, 5)
        return "" if all(arrived[pair] == 5 for pair in permutations(self.system.names, 2)) else f"{arrived}"


class ClientsCut(Fault):
    """The clients do not reach one member any more, nor it them; among themselves the members are well."""

    needs = ("iptables DROP",)
    layer = "network"
    leaves_majority = True

    def begin(self) -> str:
        self.victim = self.rng.choice([self.pick("one")[0], self.pick("leader")[0]])
        self.system.network.cut(both(["clients"], [self.victim.name]))
        return f"clients-{self.victim.name}"

    def bites(self) -> str:
        network, members = self.system.network, self.system.cluster.members
        between = set(permutations(self.system.names, 2)) - set(network.delivered(self.system.names))
        reached = {one.name for one in members if network.connects("clients", one.name, one.client_port) != "silence"}
        expected = set(self.system.names) - {self.victim.name}
        return (
            "" if reached == expected and not between else f"clients reach {reached}; lost between members: {between}"
        )

    def end(self) -> None:
        self.system.network.heal()

    def healed(self) -> str:
        names = ["clients", self.victim.name]
        lost = set(permutations(names, 2)) - set(self.system.network.delivered(names))
        return f"{sorted(lost)} still cut" if lost else ""


def partition(of: Shape, base: type[Partition] = Partition) -> type[Partition]:
    return type(f"{base.__name__}_{of.__name__}", (base,), {"shape": staticmethod(of)})


SHAPES: dict[str, Shape] = {
    "isolate": isolate,
    "halves": halves,
    "bridge": bridge,
    "ring": ring,
    "one-way": one_way,
    "partial": partial,
}
REJECTED = ("isolate", "halves", "bridge", "ring")
PARTITIONS: dict[str, type[Fault]] = {
    **{name: partition(shape) for name, shape in SHAPES.items()},
    **{f"{name}-reject": partition(SHAPES[name], Rejecting) for name in REJECTED},
    "isolate-leader": partition(isolate, OfLeader),
    "flapping": Flapping,
    "flaky": Flaky,
    "clients-cut": ClientsCut,
}
