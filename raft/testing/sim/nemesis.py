"""Nemesis: carries out a schedule of faults.

The schedule is drawn before the simulation starts, from the rates in Options. Each fault draws what it
does (whom it hits, for how long, in which shape) from a stream of its own, so that a schedule with some
faults left out still does the same with the others.
"""

from typing import TYPE_CHECKING, Any, NamedTuple, final

from raft.testing.sim.clock import SECOND, Handler, Script
from raft.testing.sim.directed import SCRIPTS
from raft.testing.sim.network import Link
from raft.testing.sim.options import Options
from raft.testing.sim.rng import SimRng
from raft.types import NodeId, Role

if TYPE_CHECKING:
    from raft.testing.sim.process import Process
    from raft.testing.sim.world import World


class Fault(NamedTuple):
    at: int
    number: int  # names it in a replay command
    kind: str  # a key of options.FAULT_RATES


def draw_faults(options: Options) -> list[Fault]:
    times = []
    for kind, rate in options.fault_rates.items():
        rng = SimRng(options.seed, f"schedule {kind}")
        at = rng.exponential(SECOND / rate)
        while at < options.safety:
            times.append((at, kind))
            at += rng.exponential(SECOND / rate)
    return [Fault(at, number, kind) for number, (at, kind) in enumerate(sorted(times), 1)]


@final
class Nemesis:
    def __init__(self, world: "World", faults: list[Fault]) -> None:
        self._world = world
        self._options = world.options
        self._over = False
        for fault in faults:
            world.clock.at(fault.at, self._strike, fault)

    def stop(self) -> None:
        """No more faults; what has begun is ended by whoever heals the world."""
        self._over = True

    def _strike(self, fault: Fault) -> None:
        if self._over:
            return
        rng = SimRng(self._options.seed, f"fault {fault.number}")
        span = int(rng.log_uniform(self._options.tick, 4 * self._options.election_timeout))
        self._world.injected[fault.kind] += 1
        if fault.kind in SCRIPTS:
            self._world.clock.play(self._while_faults(SCRIPTS[fault.kind](self._world, rng)))
        else:
            getattr(self, f"_{fault.kind}")(rng, span, fault)

    def _while_faults(self, script: Script[None]) -> Script[None]:
        """A directed fault goes on until it ends or faults stop."""
        for delay in script:
            yield delay
            if self._over:
                return

    def _later(self, span: int, handler: Handler, argument: Any) -> None:
        self._world.clock.after(span, self._end, (handler, argument))

    def _end(self, ending: tuple[Handler, Any]) -> None:
        if not self._over:
            ending[0](ending[1])

    def _victim(self, rng: SimRng) -> "Process":
        """Often the leader: its faults hurt most."""
        world = self._world
        leaders = [process for process in world.processes.values() if process.raw and process.raw.role is Role.LEADER]
        if leaders and rng.chance(0.4):
            return rng.choice(leaders)
        return rng.choice(list(world.processes.values()))

    # Processes and disks

    def _crash(self, rng: SimRng, span: int, fault: Fault) -> None:
        self._kill(self._victim(rng), span, fault, power=False)

    def _power_cut(self, rng: SimRng, span: int, fault: Fault) -> None:
        self._kill(self._victim(rng), span, fault, power=True)

    def _power_cut_all(self, rng: SimRng, span: int, fault: Fault) -> None:
        self._world.marks.hit("power_cut_all")
        for process in self._world.processes.values():
            self._kill(process, rng.between(1, span), fault, power=True)

    def _kill(self, process: "Process", span: int, fault: Fault, power: bool) -> None:
        if process.raw is not None:
            self._world.note(process, fault.kind, f"fault {fault.number}, back in {span / 1000:.1f} ms")
            process.crash(power)
            if not power:
                self._world.streams_reset(process)
            self._later(span, self._world.restart, process)

    def _disk_failure(self, rng: SimRng, span: int, fault: Fault) -> None:
        process = self._victim(rng)
        process.disk.fail_next = True
        self._world.note(process, "fault", f"fault {fault.number}: the next fsync fails")

    def _slow_disk(self, rng: SimRng, span: int, fault: Fault) -> None:
        process = self._victim(rng)
        process.disk.slow_until = self._world.clock.now + span
        self._world.note(process, "slow_disk", f"fault {fault.number}, for {span / 1000:.1f} ms")

    def _pause(self, rng: SimRng, span: int, fault: Fault) -> None:
        process = self._victim(rng)
        if process.raw is not None and not process.paused:
            self._world.note(process, "pause", f"fault {fault.number}, for {span / 1000:.1f} ms")
            process.pause()
            self._later(span, self._resume, (process, process.boot))

    def _resume(self, argument: "tuple[Process, int]") -> None:
        process, boot = argument
        if process.boot == boot:
            process.resume()

    def _clock_rate(self, rng: SimRng, span: int, fault: Fault) -> None:
        process = self._victim(rng)
        error = self._options.clock_error
        process.set_clock_rate(1 + error * (2 * rng.random() - 1))
        self._world.note(process, "clock", f"fault {fault.number}: rate {process.clock_rate:.3f}")

    # What an operator does

    def _compact(self, rng: SimRng, span: int, fault: Fault) -> None:
        window = self._options.catch_up_entries
        self._world.compact(self._victim(rng), share=rng.random(), crash=rng.chance(0.1), window=window)

    def _member(self, rng: SimRng, span: int, fault: Fault) -> None:
        asked = self._world.members.change(rng, span, fault.number)
        if rng.chance(0.3):  # one while another is under way has to be refused
            self._world.members.change(rng, span, fault.number)
        if asked is not None and rng.chance(0.3):  # in the middle of it
            self._later(rng.between(1, 4 * self._options.round_trip), self._kill_soon, (asked, span, fault))

    def _kill_soon(self, argument: "tuple[Process, int, Fault]") -> None:
        process, span, fault = argument
        self._kill(process, span, fault, power=False)

    def _transfer(self, rng: SimRng, span: int, fault: Fault) -> None:
        process = self._victim(rng)
        if process.raw is not None:
            process.transfer(rng.choice([0, *self._world.processes]))

    # The network

    def _partition(self, rng: SimRng, span: int, fault: Fault) -> None:
        links = self._both_ways(rng)
        if rng.chance(0.2):
            links = [link for link in links if rng.chance(0.5)]
        self._cut(links, span, fault)

    def _one_way(self, rng: SimRng, span: int, fault: Fault) -> None:
        nodes = list(self._world.processes)
        victim = self._victim(rng).node_id
        others = [node for node in nodes if node != victim]
        cut_off = rng.sample(others, rng.between(1, len(others))) if others else []
        if rng.chance(0.5):
            self._cut([(victim, other) for other in cut_off], span, fault)
        else:
            self._cut([(other, victim) for other in cut_off], span, fault)

    def _cut(self, links: list[Link], span: int, fault: Fault) -> None:
        if links:
            names = " ".join([f"n{sender}-x{to}" for sender, to in links])
            self._world.note(None, fault.kind, f"fault {fault.number}, for {span / 1000:.1f} ms: {names}")
            self._world.network.cut(links)
            self._later(span, self._mend, links)

    def _mend(self, links: list[Link]) -> None:
        self._world.note(None, "mend", " ".join([f"n{sender}->{to}" for sender, to in links]))
        self._world.network.mend(links)

    def _both_ways(self, rng: SimRng) -> list[Link]:
        """A partition of some shape: one node, two sides, a bridge, a ring, one pair."""
        nodes = rng.sample(list(self._world.processes), len(self._world.processes))
        count = len(nodes)
        shape = rng.choice(["one", "sides", "bridge", "ring", "pair"])
        if shape == "one":
            return self._apart([self._victim(rng).node_id], nodes)
        if shape == "pair":
            return self._apart(nodes[:1], nodes[1:2])
        if shape == "ring":
            return [
                (nodes[i], nodes[j])
                for i in range(count)
                for j in range(count)
                if (i - j) % count not in {0, 1, count - 1}
            ]
        half = rng.between(1, max(count - 1, 1))
        return self._apart(nodes[:half], nodes[half + 1 :] if shape == "bridge" else nodes[half:])

    def _apart(self, side: list[NodeId], other: list[NodeId]) -> list[Link]:
        pairs = [(a, b) for a in side for b in other if a != b]
        return pairs + [(b, a) for a, b in pairs]

    def _clog(self, rng: SimRng, span: int, fault: Fault) -> None:
        """The links around a node stand still, all or some; what was sent meanwhile comes when they clear, together
        or one by one. Echoes that lie in them while the others elect a new leader must not confirm a read."""
        world = self._world
        victim = self._victim(rng).node_id
        nodes = list(world.processes)
        links = [(a, b) for a in nodes for b in nodes if a != b and victim in {a, b}]
        share = rng.choice([0.6, 1.0])
        together = rng.chance(0.5)
        for link in links:
            if rng.chance(share):
                world.network.clogged[link] = world.clock.now + (span if together else rng.between(1, span))
        world.note(None, "clog", f"fault {fault.number}, up to {span / 1000:.1f} ms around n{victim}")
