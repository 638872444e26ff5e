"""Leases of three members in one process: through any member, through leader changes, through restarts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from kvstore.client import Client, KeepAlive
from kvstore.client.errors import NotFound
from kvstore.pb.command_pb2 import LeaseRevoke
from kvstore.state.command import Op
from tests.kvstore.server.live import Live, LiveMember, until

LEASES = 100
PART = 25
TTL = 10  # far above an election, so that only what is forgotten is lost


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with Live(tmp_path, 3) as live:
        yield live


def client(*members: LiveMember) -> Client:
    return Client([member.url.removeprefix("http://") for member in members], timeout=20)


async def test_every_member_serves_leases(live: Live) -> None:
    await live.leader()
    async with client(*live.running) as any_member:
        lease = (await any_member.lease_grant(60)).id
        await any_member.put("k", "v", lease=lease)
        for member in live.running:
            async with client(member) as one:
                assert (await one.lease_keep_alive_once(lease)).ttl == 60
                found = await one.lease_time_to_live(lease, keys=True)
                assert (found.granted_ttl, found.keys) == (60, (b"k",))
                assert found.header.member_id == member.id
                assert (await one.lease_time_to_live(lease + 1)).ttl == -1
                with pytest.raises(NotFound):
                    await one.lease_keep_alive_once(lease + 1)
        await any_member.lease_revoke(lease)
        for member in live.running:
            async with client(member) as one:
                assert (await one.lease_time_to_live(lease)).ttl == -1
                with pytest.raises(NotFound):
                    await one.lease_keep_alive_once(lease)


async def test_leases_outlive_their_leader(tmp_path: Path) -> None:
    """A planned change and the end of the leader: what is kept alive stays, what is not goes, on all members."""
    async with Live(tmp_path, 3, heartbeat_interval=100, election_timeout=1000) as live:
        await through_two_leader_changes(live)


async def through_two_leader_changes(live: Live) -> None:
    async with client(*live.running) as user, AsyncExitStack() as stack:
        leases: list[int] = []
        kept: list[KeepAlive] = []
        while len(leases) < LEASES:
            new = [lease.id for lease in await asyncio.gather(*[user.lease_grant(TTL) for _ in range(PART)])]
            puts = [user.put(f"k{at:05}", lease=lease) for at, lease in enumerate(new, len(leases))]
            await asyncio.gather(*puts)
            kept += await asyncio.gather(*[stack.enter_async_context(user.lease_keep_alive(lease)) for lease in new])
            leases += new
        await (await live.leader()).server.move_leader((await live.follower()).id)
        renewals = [one.renewals for one in kept]
        await until(lambda: all(one.renewals > before for one, before in zip(kept, renewals, strict=True)), "renewals")
        await (await live.leader()).stop()
        await until(lambda: any(member.leads for member in live.running), "another leader")
        leader = next(member for member in live.running if member.leads)
        renewals = [one.renewals for one in kept]
        await until(lambda: all(one.renewals > before for one, before in zip(kept, renewals, strict=True)), "renewals")
        assert leader.server.store.current_revision == LEASES + 1, "a lease was lost in a leader change"
        for one in kept[LEASES // 2 :]:
            one.close()
        del kept[LEASES // 2 :]
        renewals = [one.renewals for one in kept]
        await until(lambda: len(leader.server.leases.lessor) == LEASES // 2, "the others end")
        await until(lambda: all(one.renewals > before for one, before in zip(kept, renewals, strict=True)), "renewals")
        assert not any(one.is_lost for one in kept)
        found = await user.get("k", prefix=True, keys_only=True)
        assert [kv.key for kv in found.kvs] == [f"k{at:05}".encode() for at in range(LEASES // 2)]


async def test_ttls_in_the_middle_of_leader_changes(live: Live) -> None:
    """S-59: never more than was granted, never an absurd number, never gone."""
    async with client(*live.running) as user:
        lease = (await user.lease_grant(60)).id
        moving = True

        async def ask() -> int:
            asked = 0
            while moving:
                assert 0 <= (await user.lease_time_to_live(lease)).ttl <= 60
                assert (await user.lease_keep_alive_once(lease)).ttl == 60
                asked += 1
            return asked

        asking = [asyncio.create_task(ask()) for _ in range(3)]
        for _ in range(4):
            await (await live.leader()).server.move_leader((await live.follower()).id)
        moving = False
        assert sum(await asyncio.gather(*asking)) > 0


async def test_a_deposed_leader_revokes_nothing_through_its_successor(live: Live) -> None:
    """S-58: it is stalled with expired leases in hand, and proposes them when another one leads."""
    old = await live.leader()
    term = old.server.raft_term
    async with client(*live.running) as user:
        lease = (await user.lease_grant(60)).id
        await user.put("k", lease=lease)
        await old.server.move_leader((await live.follower()).id)
        await live.leader()
        revoke = LeaseRevoke(ids=[lease], term=term)
        await old.server.propose_one(Op.LEASE_REVOKE, revoke.SerializeToString())
        assert (await user.get("k")).value == b""
        assert (await user.lease_keep_alive_once(lease)).ttl == 60
        assert not old.server.leases.lessor.term


async def test_restarted_members_know_all_leases(live: Live) -> None:
    await live.leader()
    async with client(*live.running) as user:
        ids = {(await user.lease_grant(60)).id for _ in range(200)}
    await asyncio.gather(*[member.stop() for member in live.running])
    for member in live.members.values():
        live.members[member.config.name] = LiveMember(member.config)
    await asyncio.gather(*[member.start() for member in live.members.values()])
    await live.leader()
    assert all(set(member.server.leases.lessor.ids()) == ids for member in live.running)


async def test_keep_alive_notices_a_lost_lease(live: Live) -> None:
    await live.leader()
    async with client(*live.running) as user:
        lease = (await user.lease_grant(2)).id
        async with user.lease_keep_alive(lease) as kept:
            await user.lease_revoke(lease)
            await asyncio.wait_for(kept.lost(), 20)
            assert [renewal async for renewal in kept] == []
        with pytest.raises(NotFound):
            async with user.lease_keep_alive(lease):
                pass
