"""Changes of the membership: an operator who adds, promotes and removes members while everything else goes on.

After an addition of unknown outcome the new member is started too: it may be what the addition waits for, and if
there was none, nobody lets it in. A removed member must end by itself: when it applies its removal, or when the
others refuse it.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Final, final

from kvstore.errors import KvError
from kvstore.pb import rpc_pb2 as pb
from tests.e2e.history import Outcome
from tests.sim.member.clients import Client
from tests.sim.member.loop import SECOND
from tests.sim.member.member import Member

if TYPE_CHECKING:
    from tests.sim.member.world import World

MEMBERS_MAX: Final = 6


@final
class Operator:
    def __init__(self, world: "World") -> None:
        self._world = world
        self._rng = world.options.stream("operator")
        self._client = Client(world, 900)
        self._number = world.options.members

    async def run(self) -> None:
        world = self._world
        while not world.stopping:
            await asyncio.sleep(self._rng.exponential(SECOND / world.options.changes) / SECOND)
            if not world.stopping:
                await self._one()

    async def _one(self) -> None:
        rng = self._rng
        listed = await self._list()
        if listed is None:
            return
        learners = [one for one in listed if one.isLearner]
        voters = [one for one in listed if not one.isLearner]
        if learners and rng.chance(0.7):
            await self._ask("promote", pb.MemberPromoteRequest(ID=learners[0].ID), pb.MemberPromoteResponse)
        elif len(listed) < MEMBERS_MAX and (len(voters) <= 3 or rng.chance(0.5)):
            await self._add()
        elif len(voters) > 1:
            await self._remove(rng.choice(listed))

    async def _ask(self, kind: str, request: Any, answer: type[Any], member: Member | None = None) -> Any:
        """The request's name in the API follows from its kind."""
        asked = self._client.ask(kind, member or self._rng.choice(self._world.members), request)
        asked.stale = True  # these answers carry no revision
        response = await self._client.finish(
            asked, f"Member{kind.capitalize()}", answer, service="Cluster", timeout=9.0
        )
        if response is not None:
            self._world.mark(f"member_{kind}")
        return response, asked.outcome

    async def _list(self) -> list[pb.Member] | None:
        response, _ = await self._ask("list", pb.MemberListRequest(linearizable=True), pb.MemberListResponse)
        if response is None:
            return None
        return list(response.members)

    async def _add(self) -> None:
        self._number += 1
        member = Member(self._world, self._number, joins=self._world.members)
        request = pb.MemberAddRequest(peerURLs=[member.url], isLearner=self._rng.chance(0.5))
        response, outcome = await self._ask("add", request, pb.MemberAddResponse)
        if outcome is not Outcome.FAILED:
            member.id = response.member.ID if response is not None else 0
            self._world.join(member)

    async def _remove(self, victim: pb.Member) -> None:
        self._world.removing.add(victim.ID)
        _, outcome = await self._ask("remove", pb.MemberRemoveRequest(ID=victim.ID), pb.MemberRemoveResponse)
        if outcome is Outcome.FAILED:
            self._world.removing.discard(victim.ID)

    async def settle(self) -> None:
        """No more changes: everybody in the list runs, and nobody else is waited for."""
        world = self._world
        listed = None
        while listed is None:
            listed = await self._list()
            await asyncio.sleep(0.1)
        ids = {one.ID for one in listed}
        for member in list(world.members):
            if member.id not in ids:
                world.members.remove(member)
                world.note(member, "removed")
                if member.id:
                    world.leaving.append(member)
                elif member.process is not None:
                    member.kill(power=False)  # it was never let in


async def ask_members(world: "World", url: str, timeout: float) -> bytes:
    """What kvstore.server.leader_calls.ask_members does over the network. Raises KvError."""
    from kvstore.errors import TIMEOUT_CONNECTION_LOST

    await asyncio.sleep(world.options.network_delay / 1e6)
    member = next((one for one in world.by_name.values() if one.url == url), None)
    end = world.network.ends.get(member.id) if member is not None else None
    if end is None or not end.process.alive or end.process.paused or end.calls is None:
        raise TIMEOUT_CONNECTION_LOST.fresh()
    answer = end.process.spawn(_answer(end.calls))
    try:
        result: bytes | KvError = await asyncio.wait_for(asyncio.shield(answer), timeout)
    except TimeoutError:
        raise TIMEOUT_CONNECTION_LOST.fresh() from None
    if isinstance(result, KvError):
        raise result.fresh()
    return result


async def _answer(calls: Any) -> bytes | KvError:
    try:
        return bytes(await calls.answer("Members", b""))
    except KvError as error:
        return error
