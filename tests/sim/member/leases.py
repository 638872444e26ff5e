"""Leases: clients that hold some for a while, and the oracle that judges when they ended (RELIABILITY 2f).

A holder is granted a lease, binds keys to it, keeps it alive for a while, then revokes it or lets it expire. With
uncertainty: a lease that was renewed by an answered keep-alive may not expire before the keep-alive's call plus its
TTL, by the fastest clock; and once its end is applied anywhere no later keep-alive renews it.
"""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, final

from kvstore.pb import rpc_pb2 as pb
from tests.e2e.history import LOW
from tests.sim.member.clients import Client
from tests.sim.member.loop import SECOND

if TYPE_CHECKING:
    from tests.sim.member.checks import Truth
    from tests.sim.member.member import Member
    from tests.sim.member.world import World

_PATIENCE_SECONDS: Final = 2.0  # for the answer of a keep-alive


@dataclass(slots=True)
class LeaseLog:
    """One lease, as its holder knows it. Times are seconds."""

    id: int
    ttl: int  # granted
    granted: float  # when it was asked for
    alive: list[tuple[float, float, int]] = field(default_factory=list)  # keep-alives: asked, answered, TTL
    revoked: float = 0.0  # when the answer came


@final
class Holder:
    def __init__(self, world: "World", number: int) -> None:
        self._world = world
        self._rng = world.options.stream(f"holder {number}")
        self._client = Client(world, 500 + number)
        self._number = number

    async def run(self) -> None:
        world, rng = self._world, self._rng
        count = 0
        while not world.stopping:
            count += 1
            await self._hold(1000 * self._number + count)
            await asyncio.sleep(rng.random())

    async def _hold(self, lease: int) -> None:
        world, rng = self._world, self._rng
        asked = self._client.ask(
            "grant", rng.choice(world.members), pb.LeaseGrantRequest(ID=lease, TTL=rng.between(1, 4))
        )
        response = await self._client.finish(asked, "LeaseGrant", pb.LeaseGrantResponse, service="Lease")
        if response is None:
            return
        log = LeaseLog(lease, response.TTL, asked.invoked)
        world.leases.append(log)
        for number in range(rng.between(1, 3)):
            key = LOW + f"lease/{lease}/{number}".encode()
            put = pb.PutRequest(key=key, value=self._client.value(), lease=lease)
            await self._client.finish(
                self._client.ask("lease put", rng.choice(world.members), put), "Put", pb.PutResponse
            )
        for _ in range(rng.below(8)):
            if world.stopping:
                break
            # Mostly in good time, now and then while the lessor lets it go.
            late = rng.chance(0.25)
            await asyncio.sleep(log.ttl * (0.95 + 0.25 * rng.random() if late else rng.random() / 2))
            if await keep_alive(world, log, rng.choice(world.members)) == 0:
                world.mark("keep_alive_too_late")
                return
        if rng.chance(0.2):
            listed = self._client.ask("leases", rng.choice(world.members), pb.LeaseLeasesRequest())
            listed.stale = True  # answered by whoever is asked, as at etcd
            await self._client.finish(listed, "LeaseLeases", pb.LeaseLeasesResponse, service="Lease")
        if rng.chance(0.4):
            revoke = self._client.ask("revoke", rng.choice(world.members), pb.LeaseRevokeRequest(ID=lease))
            if await self._client.finish(revoke, "LeaseRevoke", pb.LeaseRevokeResponse, service="Lease") is not None:
                log.revoked = revoke.returned
                world.mark("lease_revoked")
                await keep_alive(world, log, rng.choice(world.members))


async def keep_alive(world: "World", log: LeaseLog, member: "Member") -> int | None:
    """The TTL, or None without an answer."""
    loop = world.loop
    if member.link is None:
        return None
    answers: list[pb.LeaseKeepAliveResponse] = []

    def receive(messages: list[bytes]) -> None:
        answers.extend([pb.LeaseKeepAliveResponse.FromString(message) for message in messages])

    asked = loop.now
    stream = member.link.open("/etcdserverpb.Lease/LeaseKeepAlive", {}, receive)
    stream.write(pb.LeaseKeepAliveRequest(ID=log.id).SerializeToString())
    while not answers and not stream.ended.done() and loop.now < asked + _PATIENCE_SECONDS * SECOND:
        await asyncio.sleep(0.01)
    stream.cancel()
    if not answers:
        return None
    if not member.leads:
        world.mark("keep_alive_forwarded")
    log.alive.append((asked / SECOND, loop.now / SECOND, answers[0].TTL))
    return int(answers[0].TTL)


def check_leases(
    leases: list[LeaseLog], truth: "Truth", applied_at: dict[int, int], gone_at: dict[int, int], clock_error: float
) -> list[str]:
    """applied_at: when an index was first applied anywhere; gone_at: when a lease first was gone. Nanoseconds."""
    complaints = []
    for log in leases:
        who = f"lease {log.id} of {log.ttl} s"
        ends = truth.lease_ends.get(log.id, [])
        if log.id not in truth.granted:
            complaints.append(f"{who} was granted, but is not in the log")
        if len(ends) > 1:
            complaints.append(f"{who} ended {len(ends)} times: {ends}")
        end: Any = ends[0] if ends else None
        ended = gone_at[log.id] / SECOND if log.id in gone_at else float("inf")
        if end is not None:
            ended = min(ended, applied_at[end[0]] / SECOND)
        if end is None or end[1]:  # also what no entry of the log should have ended
            renewed = max([log.granted, *[asked for asked, _, ttl in log.alive if ttl > 0]])
            if ended < renewed + log.ttl / (1 + clock_error) - 0.001:
                complaints.append(f"{who} expired at {ended:.3f}, renewed at {renewed:.3f}")
        for asked, answered, ttl in log.alive:
            if ttl > log.ttl:
                complaints.append(f"{who} was renewed to {ttl} s")
            if ttl > 0 and asked > min(ended, log.revoked or ended):
                complaints.append(f"{who} was renewed at {asked:.3f}..{answered:.3f}, after its end at {ended:.3f}")
        if end is None:
            complaints.append(f"{who} never ended")
    return complaints
