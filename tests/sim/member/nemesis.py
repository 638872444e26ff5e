"""Nemesis: carries out a schedule of faults, drawn before the simulation starts from the rates in Options.

Each fault draws what it does from a stream of its own, so that a schedule with some left out still does the same.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, final

from raft.testing.sim.network import Link
from raft.testing.sim.rng import SimRng
from raft.types import NO_NODE
from tests.sim.member.directed import SCRIPTS
from tests.sim.member.loop import MILLISECOND, SECOND, Process
from tests.sim.member.options import Options

if TYPE_CHECKING:
    from tests.sim.member.member import Member
    from tests.sim.member.world import World


class Fault(NamedTuple):
    at: int
    number: int  # names it in a replay command
    kind: str  # a key of options.FAULT_RATES


def draw_faults(options: Options) -> list[Fault]:
    times = []
    for kind, rate in options.fault_rates.items():
        rng = options.stream(f"schedule {kind}")
        at = rng.exponential(SECOND / rate)
        while at < options.safety:
            times.append((at, kind))
            at += rng.exponential(SECOND / rate)
    return [Fault(at, number, kind) for number, (at, kind) in enumerate(sorted(times), 1)]


@final
class Nemesis:
    def __init__(self, world: "World", faults: list[Fault]) -> None:
        self._world = world
        self._over = False
        self._directing = False
        for fault in faults:
            world.loop.at(fault.at, self._strike, fault)

    def stop(self) -> None:
        self._over = True

    def _strike(self, fault: Fault) -> None:
        if self._over:
            return
        world = self._world
        rng = world.options.stream(f"fault {fault.number}")
        span = int(rng.log_uniform(world.options.heartbeat_ms * MILLISECOND, 3 * world.options.election_timeout))
        world.injected[fault.kind] += 1
        if fault.kind in SCRIPTS:
            world.loop.root.spawn(self._direct(SCRIPTS[fault.kind], rng))
        else:
            getattr(self, f"_{fault.kind}")(rng, span, fault)

    async def _direct(self, script: "Callable[[World, SimRng], Awaitable[None]]", rng: SimRng) -> None:
        """One at a time, for they would hold each other's messages."""
        if not self._directing and not self._over:
            self._directing = True
            await script(self._world, rng)
            self._directing = False

    def later(self, span: int, callback: Any, *arguments: Any) -> None:
        self._world.loop.at(self._world.loop.now + span, self._end, callback, arguments)

    def _end(self, callback: Any, arguments: Any) -> None:
        if not self._over:
            callback(*arguments)

    def _victim(self, rng: SimRng) -> "Member":
        """Often the leader: its faults hurt most."""
        leaders = [member for member in self._world.members if member.leads]
        return rng.choice(leaders) if leaders and rng.chance(0.4) else rng.choice(self._world.members)

    def _note(self, member: "Member | None", fault: Fault, detail: str) -> None:
        self._world.note(member, fault.kind, f"fault {fault.number}: {detail}")

    # Members and their disks

    def _crash(self, rng: SimRng, span: int, fault: Fault) -> None:
        self._kill(self._victim(rng), span, fault, power=False)

    def _power_cut(self, rng: SimRng, span: int, fault: Fault) -> None:
        victim = self._victim(rng)
        if rng.chance(0.4) and victim.process is not None:
            self._note(victim, fault, "in the next save")
            victim.cut_next = rng.between(1, 2)
        else:
            self._kill(victim, span, fault, power=True)

    def _power_cut_all(self, rng: SimRng, span: int, fault: Fault) -> None:
        self._world.mark("power_cut_all")
        for member in self._world.members:
            self._kill(member, rng.between(1, span), fault, power=True)

    def _kill(self, member: "Member", span: int, fault: Fault, power: bool) -> None:
        if member.process is not None:
            self._note(member, fault, f"back in {span / MILLISECOND:.1f} ms")
            if member.leads:
                self._world.mark("leader_killed")
            member.kill(power)
            self.later(span, self._world.restart, member)

    def _stop(self, rng: SimRng, span: int, fault: Fault) -> None:
        member = self._victim(rng)
        if member.serves:
            self._note(member, fault, "SIGTERM")
            member.spawn(member.stop())

    def _disk_failure(self, rng: SimRng, span: int, fault: Fault) -> None:
        member = self._victim(rng)
        if member.process is not None:
            self._note(member, fault, "the next save fails")
            member.fail_next = True

    def _slow_disk(self, rng: SimRng, span: int, fault: Fault) -> None:
        member = self._victim(rng)
        member.slow_until = self._world.loop.now + span
        self._note(member, fault, f"for {span / MILLISECOND:.1f} ms")

    def _pause(self, rng: SimRng, span: int, fault: Fault) -> None:
        member = self._victim(rng)
        if member.process is not None and not member.process.paused:
            self._note(member, fault, f"for {span / MILLISECOND:.1f} ms")
            if member.leads:
                self._world.mark("leader_paused")
            member.process.pause()
            self.later(span, self._resume, member.process)

    def _resume(self, process: Process) -> None:
        if process.alive and process.paused:
            process.resume()

    def _clock_rate(self, rng: SimRng, span: int, fault: Fault) -> None:
        member = self._victim(rng)
        if member.process is not None:
            rate = 1 + self._world.options.clock_error * (2 * rng.random() - 1)
            self._note(member, fault, f"{rate:.3f}")
            member.process.set_rate(rate)

    def _wall_jump(self, rng: SimRng, span: int, fault: Fault) -> None:
        member = self._victim(rng)
        member.wall_offset += int((2 * rng.random() - 1) * rng.log_uniform(0.01, 300) * SECOND)
        self._note(member, fault, f"{member.wall_offset / SECOND:.3f} s off")

    def _transfer(self, rng: SimRng, span: int, fault: Fault) -> None:
        for member in self._world.members:
            if member.leads and member.serves:
                assert member.server is not None
                to = rng.choice([NO_NODE, *[one.id for one in self._world.members if one is not member]])
                self._note(member, fault, f"to {self._world.name_of(to)}")
                member.spawn(self._move(member, to))

    async def _move(self, member: "Member", to: int) -> None:
        assert member.server is not None
        if await member.server.node.transfer_leadership(to):
            self._world.mark("transferred")

    # The network

    def _partition(self, rng: SimRng, span: int, fault: Fault) -> None:
        links = self._both_ways(rng)
        if rng.chance(0.2):
            links = [link for link in links if rng.chance(0.5)]
        self._cut(links, span, fault)

    def _one_way(self, rng: SimRng, span: int, fault: Fault) -> None:
        victim = self._victim(rng).id
        others = [member.id for member in self._world.members if member.id != victim]
        cut_off = rng.sample(others, rng.between(1, len(others))) if others else []
        inward = rng.chance(0.5)
        self._cut([(other, victim) if inward else (victim, other) for other in cut_off], span, fault)

    def _cut(self, links: list[Link], span: int, fault: Fault) -> None:
        if links:
            names = " ".join([f"{self._world.name_of(a)}-x{self._world.name_of(b)}" for a, b in links])
            self._note(None, fault, f"for {span / MILLISECOND:.1f} ms: {names}")
            self._world.network.cut(links)
            self.later(span, self._world.network.mend, links)

    def _both_ways(self, rng: SimRng) -> list[Link]:
        """A partition of some shape: one member, two sides, a bridge, one pair."""
        ids = rng.sample([member.id for member in self._world.members], len(self._world.members))
        shape = rng.choice(["one", "sides", "bridge", "pair"])
        if shape == "one":
            return _apart([self._victim(rng).id], ids)
        if shape == "pair":
            return _apart(ids[:1], ids[1:2])
        half = rng.between(1, max(len(ids) - 1, 1))
        return _apart(ids[:half], ids[half + 1 :] if shape == "bridge" else ids[half:])

    def _clog(self, rng: SimRng, span: int, fault: Fault) -> None:
        """Links around a member stand still; what was sent meanwhile comes when they clear."""
        victim = self._victim(rng)
        now = self._world.loop.now
        share = rng.choice([0.6, 1.0])
        for other in self._world.members:
            for link in ((victim.id, other.id), (other.id, victim.id)):
                if other is not victim and rng.chance(share):
                    self._world.network.clogged[link] = (now + span) // 1000
        self._note(victim, fault, f"for {span / MILLISECOND:.1f} ms")


def _apart(side: list[int], other: list[int]) -> list[Link]:
    pairs = [(a, b) for a in side for b in other if a != b]
    return pairs + [(b, a) for a, b in pairs]
