"""Directed faults: schedules that chance alone hardly finds, for bugs that need several things in a row.

What such a script meets on its way is still random: other faults go on, and it gives up when the cluster does not
follow. It may be in the middle when faults end: all that it holds or cuts is let go then, and it begins nothing more.

    old_revoke      a leader's appends go nowhere while a lease ends, so its revoke waits. Then either the lease is kept
                    alive there while its revoke is under way (S-59); or the leader is cut off or stalled until another
                    one, which lets all leases begin anew, has renewed it: the old revoke comes through that one (S-58)
    late_forward    what a follower forwarded arrives once more when its leader has restarted and leads again (S-65)
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from raft.messages import AppendEntries, Forward
from raft.testing.sim.network import Hold, Link
from raft.testing.sim.rng import SimRng
from tests.sim.member.leases import keep_alive
from tests.sim.member.loop import SECOND

if TYPE_CHECKING:
    from tests.sim.member.member import Member
    from tests.sim.member.world import World

STEP_SECONDS: Final = 0.01  # between two looks at a condition
_SOON_SECONDS: Final = 0.4  # before a lease ends its leader's appends are held


async def old_revoke(world: "World", rng: SimRng) -> None:
    if not world.leases or not await _until(world, 5.0, lambda: _due_soon(world)):
        return
    old = _leader(world)
    assert old is not None
    assert old.process is not None
    process = old.process
    world.note(old, "old_revoke", "a lease is due: appends are held")
    holds = [world.network.hold(member.id, (AppendEntries,)) for member in world.members]
    await _until(world, 2.0, lambda: bool(_revoking(old)) or not old.leads)
    if world.calm:
        return
    leases = [log for log in world.leases if log.id in _revoking(old)]
    if not leases or not old.leads or old.process is not process:
        _release(world, holds)
    elif rng.chance(0.3):
        renewals = [asyncio.ensure_future(keep_alive(world, log, old)) for log in leases]
        await asyncio.sleep(rng.random() * world.options.election_timeout / SECOND / 2)
        _release(world, holds)
        await asyncio.gather(*renewals)
        world.mark("renewed_while_revoking")
    else:
        links = _links(world, old)
        await _depose(world, old, links, holds, stalled=rng.chance(0.3))
        new = _leader(world, but=old)
        if new is not None and not world.calm:
            await asyncio.gather(*[keep_alive(world, log, new) for log in leases])
        if not world.calm:
            world.network.mend(links)
        if process.alive and process.paused:
            process.resume()


async def _depose(world: "World", old: "Member", links: list[Link], holds: list[Hold], stalled: bool) -> None:
    """Until another one leads. What was held is let go only then, so that nobody takes it."""
    world.note(old, "old_revoke", "stalled" if stalled else "cut off")
    assert old.process is not None
    if stalled:
        old.process.pause()
    world.network.cut(links)
    await _until(world, 4 * world.options.election_timeout / SECOND, lambda: _leader(world, but=old) is not None)
    _release(world, holds)


async def late_forward(world: "World", rng: SimRng) -> None:
    leader = _leader(world)
    if leader is None:
        return
    world.note(leader, "late_forward", "what is forwarded to it will come again")
    hold = world.network.hold(leader.id, (Forward,))
    await _until(world, 2.0, lambda: bool(hold.held))
    first = hold.held[:1]
    world.network.release(hold)
    applied = max(world.log, default=0) + 3
    await _until(world, 2.0, lambda: max(world.log, default=0) >= applied)
    if not first or world.calm or leader.process is None or leader not in world.members:
        return
    leader.kill(power=False)
    world.restart(leader)
    hold = world.network.hold(leader.id, (Forward,))
    for _ in range(5):
        await _until(world, 2.0, lambda: leader.serves and _leader(world) is not None)
        now = _leader(world)
        if now is None or now is leader or world.calm:
            break
        assert now.server is not None
        now.spawn(now.server.node.transfer_leadership(leader.id))
        await _until(world, 1.0, lambda: leader.leads)
    hold.held[:0] = first  # it overtakes whatever its sender has forwarded since
    world.network.release(hold)


def _leader(world: "World", but: "Member | None" = None) -> "Member | None":
    """Who leads the newest term, and runs."""
    found = [
        member
        for member in world.members
        if member is not but and member.leads and member.serves and not _paused(member)
    ]
    return max(found, key=lambda member: member.term, default=None)


def _paused(member: "Member") -> bool:
    return member.process is None or member.process.paused


def _due_soon(world: "World") -> bool:
    """A holder's lease ends before long at the leader."""
    leader = _leader(world)
    if leader is None or leader.server is None or len(world.members) < 3:
        return False
    lessor, now = leader.server.leases.lessor, leader.server.now()
    return any(0 < lessor._expiry(lease) - now < _SOON_SECONDS for lease in lessor._leases.values())


def _revoking(member: "Member") -> list[int]:
    return list(member.server.leases.lessor._revoking) if member.server is not None else []


def _links(world: "World", member: "Member") -> list[Link]:
    others = [other.id for other in world.members if other is not member]
    return [(member.id, other) for other in others] + [(other, member.id) for other in others]


def _release(world: "World", holds: list[Hold]) -> None:
    for hold in holds:
        world.network.release(hold)


async def _until(world: "World", seconds: float, condition: Callable[[], bool]) -> bool:
    """False when it did not become true in time, or when faults are over."""
    end = world.loop.now + int(seconds * SECOND)
    while not world.calm and world.loop.now < end:
        if condition():
            return True
        await asyncio.sleep(STEP_SECONDS)
    return False


SCRIPTS: Final = {"old_revoke": old_revoke, "late_forward": late_forward}
