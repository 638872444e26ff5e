"""Directed faults: schedules that chance alone hardly finds, for bugs that need several things in a row.

Each is a script, a generator that acts and yields for how long it waits. What it meets on its way is
still random: other faults go on, and the script gives up when the cluster does not follow.

    usurp            a leader is replaced behind its back while echoes of its read round wait (S-38, S-39)
    late_answer      the answer to a read comes when the reader has restarted and reads again (S-38)
    lag              a node is cut off until its log no longer fits the others', then needs a snapshot (S-22, S-25)
    late_appends     entries arrive after all while a snapshot that replaces them is on its way (thesis 5.3)
    amnesia          all voters but one restart right after they have renewed a leader's lease (S-40)
    late_handover    the word to campaign at once comes when its target does not know the leader any more
    fork             a leader writes alone; as it takes over what the others have, its power goes (S-49)
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from raft.messages import AppendEntries, ReadIndexResponse, RequestVote, TimeoutNow
from raft.testing.sim.clock import Script
from raft.testing.sim.history import READ, WRITE
from raft.testing.sim.network import Hold
from raft.testing.sim.rng import SimRng
from raft.types import Role

if TYPE_CHECKING:
    from raft.testing.sim.process import Process
    from raft.testing.sim.world import World


def usurp(world: "World", rng: SimRng) -> Script[None]:
    """Nothing reaches a leader, or it is paused, until another one has committed; then it is asked for a read."""
    old = _leader(world)
    if old is None or old.raw is None:
        return
    boot = old.boot
    old_term = old.raw.term
    paused = rng.chance(0.3)
    world.note(old, "usurp", "paused" if paused else "hears nothing")
    world.ask(old, READ)
    hold = world.network.hold(old.node_id)
    yield 2 * world.options.network_delay
    if rng.chance(0.5):
        old.transfer(0)
        yield 2 * world.options.network_delay
    links = [(old.node_id, other) for other in world.processes if other != old.node_id]
    world.network.cut(links)
    if paused:
        old.pause()
    new = None
    for _ in range(3 * world.options.election_ticks):
        new = _leader(world)
        if new is not None and new.raw is not None and new.raw.term > old_term:
            break
        yield world.options.tick
    if new is not None and new is not old:
        world.ask(new, WRITE)
        yield rng.between(1, 4) * world.options.round_trip
    if old.boot == boot and old.raw is not None and old.raw.role is Role.LEADER:
        world.marks.hit("read_of_replaced_leader")
        world.ask(old, READ)
        for _ in range(world.options.election_ticks):  # until its driver asks again, for all that wait
            if not old.reads_arrived:
                break
            yield world.options.tick
    world.network.release(hold)
    if old.boot == boot:
        old.resume()
    yield world.options.round_trip
    world.network.mend(links)


def late_answer(world: "World", rng: SimRng) -> Script[None]:
    """The first read of a life is answered in the next one, whose first read may have the same context."""
    followers = [p for p in world.processes.values() if p.raw is not None and p.raw.role is Role.FOLLOWER]
    if not followers:
        return
    reader = rng.choice(followers)
    world.note(reader, "late_answer", "restarts twice, with a read in each life")
    hold = world.network.hold(reader.node_id, (ReadIndexResponse,))
    for life in range(2):
        reader.crash(power=False)
        yield 1
        world.restart(reader)
        world.ask(reader, READ)
        for _ in range(world.options.election_ticks):
            if len(hold.held) > life:
                break
            yield world.options.tick
        if life == 0:
            leader = _leader(world)
            if leader is not None:
                world.ask(leader, WRITE)
                yield rng.between(1, 4) * world.options.round_trip
    if hold.held and reader.reads_asked:
        world.marks.hit("read_answered_in_next_life")
    world.network.release(hold)


def lag(world: "World", rng: SimRng) -> Script[None]:
    """Cut off, maybe with writes that nobody else gets, until the others have compacted; then more goes wrong."""
    options = world.options
    victim = rng.choice(list(world.processes.values()))
    old = _leader(world)
    if old is not None and rng.chance(0.5):
        victim = old
    links = _around(world, victim)
    world.note(victim, "lag", "is cut off")
    world.network.cut(links)
    if victim is old:
        for _ in range(rng.between(1, 40)):
            world.ask(victim, WRITE)
    if (yield from _others_write(world, rng, victim)):
        for process in list(world.processes.values()):
            if process is not victim:
                world.compact(process, share=1, crash=False, window=0)
    world.network.mend(links)
    for _ in range(rng.between(0, 3)):
        for _ in range(2 * options.election_ticks):
            if victim.disk.incoming is not None or victim.receiving.whole is not None:
                break
            yield options.tick
        yield from _interrupt(world, rng, victim)


def _others_write(world: "World", rng: SimRng, old: "Process") -> Script[bool]:
    """Wait until another one leads, and let it write."""
    for _ in range(4 * world.options.election_ticks):
        yield world.options.tick
        leader = _leader(world)
        if leader is not None and leader is not old:
            for _ in range(rng.between(1, 8)):
                world.ask(leader, WRITE)
            yield 4 * world.options.round_trip
            return True
    return False


def fork(world: "World", rng: SimRng) -> Script[None]:
    """What the old leader has alone is replaced in one save with what the others have committed meanwhile."""
    old = _leader(world)
    if old is None:
        return
    links = _around(world, old)
    world.note(old, "fork", "is cut off")
    world.network.cut(links)
    for _ in range(rng.between(1, 4)):
        world.ask(old, WRITE)
    yield from _others_write(world, rng, old)
    world.network.mend(links)
    for _ in range(400):
        if old.is_replacing:
            world.marks.hit("cut_in_truncation")
            old.disk.cut_next = True
            old.crash(power=True)
            yield rng.between(1, world.options.election_timeout)
            world.restart(old)
            return
        yield max(world.options.sync_delay // 4, 50)


def _interrupt(world: "World", rng: SimRng, victim: "Process") -> Script[None]:
    """Something happens to a transfer, or to the installation."""
    kind = rng.choice(["crash", "power", "sender", "cut", "between", "between"])
    if kind == "between":  # the state machine has it, the log not yet (S-25)
        for _ in range(400):
            if victim.receiving.resetting:
                break
            yield max(world.options.sync_delay // 4, 50)
    else:
        yield int(rng.log_uniform(1, 4 * world.options.election_timeout))
    if kind == "cut":
        links = _around(world, victim)
        world.network.cut(links)
        yield rng.between(1, world.options.election_timeout)
        world.network.mend(links)
        return
    hit = _leader(world) if kind == "sender" else victim
    if hit is not None and hit.raw is not None:
        hit.crash(power=kind == "power")
        yield rng.between(1, world.options.election_timeout)
        world.restart(hit)


def _around(world: "World", process: "Process") -> list[tuple[int, int]]:
    others = [node_id for node_id in world.processes if node_id != process.node_id]
    return [(process.node_id, other) for other in others] + [(other, process.node_id) for other in others]


def late_appends(world: "World", rng: SimRng) -> Script[None]:
    """One append overtakes those before it; when it is refused, the leader has compacted what they hold."""
    options = world.options
    leader = _leader(world)
    others = [process for process in world.processes.values() if process is not leader and process.raw is not None]
    if leader is None or not others:
        return
    victim = rng.choice(others)
    world.note(victim, "late_appends", f"of n{leader.node_id:x}")
    hold = world.network.hold(victim.node_id, (AppendEntries,))
    for _ in range(rng.between(2, 4)):
        world.ask(leader, WRITE)
        yield options.round_trip
    yield 3 * options.round_trip
    world.compact(leader, share=1, crash=False, window=0)
    world.network.release_newest(hold)
    for _ in range(40):
        incoming = victim.disk.incoming
        if incoming is not None and incoming.chunks >= options.snapshot_chunks - 1:
            break
        yield max(options.network_delay // 2, options.chunk_time // 2)
    world.network.release(hold)


def late_handover(world: "World", rng: SimRng) -> Script[None]:
    """The target restarts, and hears its leader only after the request to campaign."""
    leader = _leader(world)
    if leader is None:
        return
    target = rng.choice([process for process in world.processes.values() if process is not leader] or [leader])
    hold = world.network.hold(target.node_id, (TimeoutNow,))
    world.note(leader, "late_handover", f"to n{target.node_id:x}")
    leader.transfer(target.node_id)
    for _ in range(world.options.election_ticks):
        if hold.held:
            break
        yield world.options.tick
    if hold.held and rng.chance(0.5):
        yield from _overtake(world, rng, leader, hold)
        return
    link = [(leader.node_id, target.node_id)]
    world.network.cut(link)
    target.crash(power=rng.chance(0.5))
    yield rng.between(1, 2 * world.options.network_delay)
    world.restart(target)
    world.network.release(hold)
    yield world.options.round_trip
    world.network.mend(link)


def _overtake(world: "World", rng: SimRng, old: "Process", handover: Hold) -> Script[None]:
    """The leader has given up the transfer when its target hears of it; what it hears meanwhile is too late (S-40)."""
    yield int((world.options.election_ticks + 2) * world.options.tick / old.clock_rate)
    hold = world.network.hold(old.node_id)
    world.network.release(handover)
    yield from _read_of_replaced(world, rng, old)
    world.network.release(hold)


def amnesia(world: "World", rng: SimRng) -> Script[None]:
    """One is cut off from the leader and asks for votes; the others have just heard the leader, and forget it."""
    old = _leader(world)
    others = [process for process in world.processes.values() if process is not old and process.raw is not None]
    if old is None or len(others) < 2:
        return
    candidate = rng.choice(others)
    world.note(old, "amnesia", f"for n{candidate.node_id:x}")
    # A vote needs a log that is up to date, so nothing may be written meanwhile.
    world.quiet_until = world.clock.now + 3 * world.options.election_timeout
    yield 4 * world.options.round_trip
    link = (old.node_id, candidate.node_id)
    world.network.cut([link, link[::-1]])
    voters = [process for process in others if process is not candidate]
    asked = [world.network.hold(voter.node_id, (RequestVote,)) for voter in voters]
    for _ in range(3 * world.options.election_ticks):
        yield world.options.tick
        if any(hold.held for hold in asked):
            break
    hold = world.network.hold(old.node_id)
    links = [(old.node_id, other.node_id) for other in others]
    world.network.cut(links)
    for voter in voters:
        if voter.raw is not None:
            voter.crash(power=False)
            world.restart(voter)
    for request in asked:
        world.network.release(request)
    world.quiet_until = 0
    yield from _read_of_replaced(world, rng, old)
    world.network.release(hold)
    world.network.mend([*links, link, link[::-1]])


def _read_of_replaced(world: "World", rng: SimRng, old: "Process") -> Script[None]:
    """Once another leader is there and has committed, the old one is asked for a read."""
    options = world.options
    term = old.raw.term if old.raw is not None else 0
    for _ in range(4 * options.election_ticks):
        yield max(options.tick // 4, options.network_delay)
        new = _leader(world)
        if new is not None and new.raw is not None and new.raw.term > term:
            world.ask(new, WRITE)
            yield rng.between(1, 3) * options.round_trip
            break
    world.ask(old, READ)
    yield rng.between(1, options.tick)


def _leader(world: "World") -> "Process | None":
    """The one of the newest term."""
    leaders = [p for p in world.processes.values() if p.raw is not None and p.raw.role is Role.LEADER and not p.paused]
    return max(leaders, key=lambda process: process.raw.term if process.raw is not None else 0, default=None)


SCRIPTS: Final[dict[str, Callable[["World", SimRng], Script[None]]]] = {
    "usurp": usurp,
    "late_answer": late_answer,
    "amnesia": amnesia,
    "lag": lag,
    "late_appends": late_appends,
    "late_handover": late_handover,
    "fork": fork,
}
