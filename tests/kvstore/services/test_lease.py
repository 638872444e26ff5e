"""The lease service over a real socket; the clock of the leases stands still unless a test moves it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from kvstore import errors
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.command_pb2 import LeaseCheckpoints, LeaseRevoke
from kvstore.pb.rpc_pb2_grpc import KVStub, LeaseStub
from kvstore.rpc import make_channel
from kvstore.state.command import Op
from tests.kvstore.services.member import FakeServer, RunningMember
from tests.kvstore.services.test_services import header, refused
from tests.kvstore.state.support import State

LONGEST = 9_000_000_000


class Peer:
    def __init__(self, server: FakeServer, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.lease: Any = LeaseStub(channel)
        self.kv: Any = KVStub(channel)
        # The extension of the promotion is over.
        server.clock += 1

    async def grant(self, ttl: int, lease: int = 0) -> pb.LeaseGrantResponse:
        return await self.lease.LeaseGrant(pb.LeaseGrantRequest(TTL=ttl, ID=lease))

    async def put(self, key: bytes, lease: int) -> None:
        await self.kv.Put(pb.PutRequest(key=key, lease=lease))

    async def ttl(self, lease: int, keys: bool = False) -> pb.LeaseTimeToLiveResponse:
        return await self.lease.LeaseTimeToLive(pb.LeaseTimeToLiveRequest(ID=lease, keys=keys))

    async def keep_alive(self, *leases: int) -> list[pb.LeaseKeepAliveResponse]:
        requests = [pb.LeaseKeepAliveRequest(ID=lease) for lease in leases]
        return [answer async for answer in self.lease.LeaseKeepAlive(iter(requests))]

    async def until_gone(self, lease: int) -> None:
        async with asyncio.timeout(10):
            while (await self.ttl(lease)).TTL != -1:
                await asyncio.sleep(0.02)


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    async with RunningMember(tmp_path / "state") as member, make_channel(member.url) as channel:
        yield Peer(member.server, channel)


async def test_grant(peer: Peer) -> None:
    assert await peer.grant(60, 5) == pb.LeaseGrantResponse(header=header(1), ID=5, TTL=60)
    drawn = await peer.grant(60)
    assert drawn.ID > 0
    assert [(await peer.grant(ttl)).TTL for ttl in (-1, 0, 1, 2, 3, LONGEST)] == [2, 2, 2, 2, 3, LONGEST]
    assert await refused(peer.grant(LONGEST + 1)) == errors.LEASE_TTL_TOO_LARGE
    assert await refused(peer.grant(60, 5)) == errors.LEASE_EXISTS
    assert (await peer.grant(60, -5)).ID == -5


async def test_revoke(peer: Peer) -> None:
    await peer.grant(60, 5)
    await peer.put(b"a", 5)
    await peer.put(b"b", 5)
    assert await peer.lease.LeaseRevoke(pb.LeaseRevokeRequest(ID=5)) == pb.LeaseRevokeResponse(header=header(4))
    assert (await peer.kv.Range(pb.RangeRequest(key=b"\0", range_end=b"\0"))).count == 0
    for lease in (5, 0, -1):
        assert await refused(peer.lease.LeaseRevoke(pb.LeaseRevokeRequest(ID=lease))) == errors.LEASE_NOT_FOUND


async def test_puts_name_leases_that_are_there(peer: Peer) -> None:
    assert await refused(peer.put(b"a", 5)) == errors.LEASE_NOT_FOUND
    await peer.grant(60, -5)
    await peer.put(b"a", -5)
    (kv,) = (await peer.kv.Range(pb.RangeRequest(key=b"a"))).kvs
    assert kv.lease == -5
    assert (await peer.ttl(-5, keys=True)).keys == [b"a"]


async def test_time_to_live(peer: Peer) -> None:
    await peer.grant(60, 5)
    await peer.put(b"b", 5)
    await peer.put(b"a", 5)
    peer.server.clock += 20.5
    assert await peer.ttl(5) == pb.LeaseTimeToLiveResponse(header=header(3), ID=5, TTL=39, grantedTTL=60)
    assert (await peer.ttl(5, keys=True)).keys == [b"a", b"b"]
    assert await peer.ttl(6, keys=True) == pb.LeaseTimeToLiveResponse(header=header(3), ID=6, TTL=-1)


async def test_leases(peer: Peer) -> None:
    assert await peer.lease.LeaseLeases(pb.LeaseLeasesRequest()) == pb.LeaseLeasesResponse(header=header(1))
    for lease, ttl in ((1, 50), (-2, 20), (3, 90)):
        await peer.grant(ttl, lease)
    listed = await peer.lease.LeaseLeases(pb.LeaseLeasesRequest())
    assert [one.ID for one in listed.leases] == [-2, 1, 3]


async def test_keep_alive(peer: Peer) -> None:
    await peer.grant(60, 5)
    await peer.grant(6, -6)
    peer.server.clock += 5
    assert await peer.keep_alive(5, 7, -6, 0) == [
        pb.LeaseKeepAliveResponse(header=header(1), ID=5, TTL=60),
        pb.LeaseKeepAliveResponse(header=header(1), ID=7, TTL=0),
        pb.LeaseKeepAliveResponse(header=header(1), ID=-6, TTL=6),
        pb.LeaseKeepAliveResponse(header=header(1), ID=0, TTL=0),
    ]
    assert (await peer.ttl(5)).TTL == 60


async def test_keep_alives_of_all_streams_share_a_round(peer: Peer) -> None:
    await peer.grant(60, 5)
    barriers = peer.server.barriers
    done: list[object] = []
    for _ in range(500):
        peer.server.leases.keep_alive([5, 6], done.append)
    async with asyncio.timeout(10):
        while len(done) < 500:
            await asyncio.sleep(0)
    assert done == [[60, 0]] * 500
    assert peer.server.barriers == barriers + 1


async def test_malformed_keep_alive(peer: Peer) -> None:
    stream = peer.lease.LeaseKeepAlive()
    await stream.write(pb.LeaseKeepAliveRequest(ID=5))
    assert (await stream.read()).TTL == 0
    peer.server.read_error = errors.TIMEOUT
    await stream.write(pb.LeaseKeepAliveRequest(ID=5))
    assert await refused(stream.read()) == errors.TIMEOUT


async def test_expiry_is_proposed_with_the_term(peer: Peer) -> None:
    await peer.grant(10, 5)
    await peer.grant(10, 6)
    await peer.put(b"a", 5)
    await peer.put(b"b", 5)
    peer.server.clock += 9
    await peer.keep_alive(6)
    await asyncio.sleep(0.3)
    assert (await peer.ttl(5)).TTL == 1
    for _ in range(8):  # no faster than a tick may see, or it would take it for a stall
        peer.server.clock += 0.25
        await asyncio.sleep(0.26)
    await peer.until_gone(5)
    assert (await peer.ttl(6)).TTL > 0
    (revoke,) = [one for one in peer.server.proposed if one.op is Op.LEASE_REVOKE]
    assert LeaseRevoke.FromString(revoke.raw) == LeaseRevoke(ids=[5], term=peer.server.raft_term)
    assert peer.server.store.current_revision == 4  # both keys in one


async def test_no_leader_is_waited_out(peer: Peer) -> None:
    """S-59: a keep-alive and a TTL query in the middle of a leader change are answered by the next leader."""
    await peer.grant(60, 5)
    server = peer.server
    server.leader_id = 0
    server.leases.role_changed(False, 6)
    kept = asyncio.ensure_future(peer.keep_alive(5))
    found = asyncio.ensure_future(peer.ttl(5))
    await asyncio.sleep(0.2)
    assert not kept.done()
    assert not found.done()
    server.leader_id = server.member_id
    server.leases.role_changed(True, 7)
    assert [answer.TTL for answer in await asyncio.wait_for(kept, 10)] == [60]
    assert (await asyncio.wait_for(found, 10)).TTL == 60


async def test_a_deposed_leader_refuses_what_was_forwarded(peer: Peer) -> None:
    peer.server.leases.role_changed(False, 6)
    with pytest.raises(errors.KvError) as caught:
        await asyncio.wait_for(peer.server.leader_methods["KeepAliveLeases"](b"\x08\x05"), 10)
    assert caught.value == errors.NOT_LEADER


async def test_a_checkpoint_is_cleared_before_a_keep_alive_is_answered(peer: Peer) -> None:
    await peer.grant(1000, 5)
    checkpoint = LeaseCheckpoints(checkpoints=[pb.LeaseCheckpoint(ID=5, remaining_TTL=700)], term=5)
    await peer.server.propose_one(Op.LEASE_CHECKPOINT, checkpoint.SerializeToString())
    peer.server.proposed.clear()
    assert [answer.TTL for answer in await peer.keep_alive(5, 5)] == [1000, 1000]
    (cleared,) = peer.server.proposed
    assert LeaseCheckpoints.FromString(cleared.raw).checkpoints == [pb.LeaseCheckpoint(ID=5)]
    peer.server.proposed.clear()
    await peer.keep_alive(5)
    assert not peer.server.proposed


async def test_another_state_brings_its_leases(peer: Peer, tmp_path: Path) -> None:
    """A snapshot was installed: what the old state had and the new one has not is gone."""
    await peer.grant(60, 5)
    await peer.grant(60, 6)
    other = State(tmp_path / "other")
    for lease in (6, *range(100, 1000)):
        await other.apply(pb.LeaseGrantRequest(ID=lease, TTL=60))
    assert other.store.applied_index > peer.server.store.applied_index
    old = peer.server.store.swap(other.store)
    await peer.grant(60, 7)  # while the table is read
    listed = await peer.lease.LeaseLeases(pb.LeaseLeasesRequest())
    assert sorted(one.ID for one in listed.leases) == [6, 7, *range(100, 1000)]
    old.close()


async def test_a_restart_reads_all_leases(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    await state.apply(*[pb.LeaseGrantRequest(ID=lease, TTL=60) for lease in range(1, 5001)])
    await state.store.flush()
    state.close()
    async with RunningMember(tmp_path / "state") as member:
        assert len(member.server.leases.lessor) == 5000
        assert member.server.leases.lessor.size_bytes > 0
