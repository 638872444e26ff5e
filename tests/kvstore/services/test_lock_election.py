"""Lock and Election over a real socket: what goes wrong while somebody waits. What goes right is compared with a real
etcd in tests/conformance/test_lock_election.py."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from kvstore import errors
from kvstore.errors import Code, KvError
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.rpc_pb2_grpc import KVStub, LeaseStub
from kvstore.pb.v3election_pb2 import CampaignRequest, LeaderRequest
from kvstore.pb.v3election_pb2_grpc import ElectionStub
from kvstore.pb.v3lock_pb2 import LockRequest, UnlockRequest
from kvstore.pb.v3lock_pb2_grpc import LockStub
from kvstore.rpc import make_channel
from kvstore.rpc.local import LocalStream, Origin
from kvstore.services import waiters
from kvstore.services.election import NOT_LEADER
from kvstore.services.inner import InnerClient, origin_of
from kvstore.services.waiters import Queue, Waiters
from kvstore.state.command import Op
from tests.kvstore.services.member import FakeServer, RunningMember
from tests.kvstore.services.test_services import refused


class Peer:
    def __init__(self, server: FakeServer, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.kv: Any = KVStub(channel)
        self.lease: Any = LeaseStub(channel)
        self._lock: Any = LockStub(channel)
        self.election: Any = ElectionStub(channel)

    async def grant(self, *leases: int) -> None:
        for lease in leases:
            await self.lease.LeaseGrant(pb.LeaseGrantRequest(ID=lease, TTL=300))

    def lock(self, lease: int, **options: Any) -> Any:
        return self._lock.Lock(LockRequest(name=b"a", lease=lease), **options)

    async def unlock(self, lease: int) -> None:
        await self._lock.Unlock(UnlockRequest(key=b"a/%x" % lease))

    def campaign(self, lease: int) -> Any:
        return self.election.Campaign(CampaignRequest(name=b"a", lease=lease, value=b"v"))

    async def keys(self) -> list[bytes]:
        found = await self.kv.Range(pb.RangeRequest(key=b"a/", range_end=b"a0"))
        return [kv.key for kv in found.kvs]

    async def until(self, *keys: bytes) -> None:
        async with asyncio.timeout(10):
            while await self.keys() != list(keys):
                await asyncio.sleep(0.01)


@pytest.fixture(params=["nghttp2", "grpcio"])
async def peer(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Peer]:
    async with RunningMember(tmp_path / "state", front=request.param) as member, make_channel(member.url) as channel:
        yield Peer(member.server, channel)


class Outer:
    """A ServicerContext, as far as a caller is known by it."""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("Token", "t"), ("hasleader", "true")]

    def peer(self) -> str:
        return "p"

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_common_name": [b"ann"]}


@pytest.fixture
async def inner(tmp_path: Path) -> AsyncIterator[tuple[FakeServer, InnerClient]]:
    async with RunningMember(tmp_path / "state") as member:
        yield member.server, InnerClient(member.local, Outer())


async def put(client: InnerClient, key: bytes, value: bytes = b"") -> None:
    await client.txn(pb.TxnRequest(success=[pb.RequestOp(request_put=pb.PutRequest(key=key, value=value))]))


@pytest.mark.parametrize("way", ["cancel", "deadline"])
async def test_who_goes_takes_the_key_away(peer: Peer, way: str) -> None:
    await peer.grant(1, 2, 3)
    await peer.lock(1)
    second = peer.lock(2, timeout=0.3 if way == "deadline" else None)
    third = asyncio.ensure_future(peer.lock(3))
    await peer.until(b"a/1", b"a/2", b"a/3")
    if way == "cancel":
        second.cancel()
    await peer.until(b"a/1", b"a/3")
    await peer.unlock(1)
    assert (await asyncio.wait_for(third, 10)).key == b"a/3"


async def test_who_goes_while_the_key_is_made_takes_it_away(inner: tuple[FakeServer, InnerClient]) -> None:
    """etcd leaves it to its lease."""
    server, client = inner
    lease = await waiters.new_lease(client)
    tidied = Waiters()
    queue = Queue(tidied, client, b"a")
    joining = asyncio.create_task(queue.join(lease, b""))
    await asyncio.sleep(0)  # proposed, not applied
    await asyncio.sleep(0)
    assert len(server.proposed) == 2
    joining.cancel()
    await asyncio.wait([joining])
    await tidied.stop()
    assert server.store.current_revision == 3, "made, and deleted"
    assert not (await queue.first()).kvs


async def test_a_lock_of_an_earlier_call_outlives_a_call_that_goes(inner: tuple[FakeServer, InnerClient]) -> None:
    server, client = inner
    lease = await waiters.new_lease(client)
    tidied = Waiters()
    queue = Queue(tidied, client, b"a")
    await queue.join(lease, b"")
    joining = asyncio.create_task(queue.join(lease, b""))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(server.proposed) == 3
    joining.cancel()
    await asyncio.wait([joining])
    await tidied.stop()
    assert (await queue.first()).kvs


async def test_a_campaign_whose_lease_has_ended_does_not_lead(peer: Peer) -> None:
    await peer.grant(1, 2)
    await peer.campaign(1)
    second = asyncio.ensure_future(peer.campaign(2))
    await peer.until(b"a/1", b"a/2")
    await peer.lease.LeaseRevoke(pb.LeaseRevokeRequest(ID=2))
    await peer.unlock(1)
    assert await refused(second) == NOT_LEADER


async def test_errors_of_the_inner_calls_are_unknown(peer: Peer) -> None:
    """Go's client errors carry no status: clients know these texts with this code."""
    await peer.grant(1, 2)
    await peer.lock(1)
    second = asyncio.ensure_future(peer.lock(2))
    await peer.until(b"a/1", b"a/2")
    peer.server.read_error = errors.TIMEOUT
    await peer.unlock(1)
    assert await refused(second) == KvError(Code.UNKNOWN, errors.TIMEOUT.message)
    assert await refused(peer.election.Leader(LeaderRequest(name=b"a"))) == KvError(
        Code.UNKNOWN, errors.TIMEOUT.message
    )
    peer.server.read_error = None
    await peer.until()
    peer.server.write_error = errors.NO_SPACE
    assert await refused(peer.lock(1)) == KvError(Code.UNKNOWN, errors.NO_SPACE.message)


async def test_waiters_are_bounded() -> None:
    few = Waiters(1)
    with few.one_more():
        with pytest.raises(KvError) as caught, few.one_more():
            pass
        assert caught.value.message == errors.TOO_MANY_REQUESTS.message
    with few.one_more():
        pass


async def test_inner_calls_are_made_in_the_callers_name(peer: Peer) -> None:
    await peer.grant(1)
    await peer.lock(1, metadata=(("request-id", "r1"),))
    assert peer.server.proposed[-1].request_id == "r1"


def test_an_inner_stream_does_not_ask_for_a_leader() -> None:
    """The outer call's own stream is ended without one; the wait of a lock is not a stream of its client's."""
    assert origin_of(Outer()) == Origin({"token": "t"}, "p", common_name="ann")


async def test_observe_outlives_compaction(inner: tuple[FakeServer, InnerClient]) -> None:
    """What it would have seen next is compacted: it looks again instead of ending (etcd ends it)."""
    server, client = inner
    queue = Queue(Waiters(), client, b"a")
    await put(client, b"a/1", b"one")
    observed = queue.observe()
    assert (await anext(observed))[1].value == b"one"
    for value in (b"two", b"three"):
        await put(client, b"a/1", value)
    await client.delete_range(pb.DeleteRangeRequest(key=b"a/1"))
    await put(client, b"a/1", b"four")
    call = pb.CompactionRequest(revision=server.store.current_revision)
    await server.propose_one(Op.COMPACTION, call.SerializeToString())
    assert (await asyncio.wait_for(anext(observed), 10))[1].value == b"four"
    await observed.aclose()
    assert not server.hub.streams


async def test_an_end_between_the_look_and_the_watch_is_seen(inner: tuple[FakeServer, InnerClient]) -> None:
    _, client = inner
    await put(client, b"a/1")
    await client.delete_range(pb.DeleteRangeRequest(key=b"a/1"))
    await asyncio.wait_for(Queue(Waiters(), client, b"a")._wait_deleted(b"a/1", 2), 10)


async def test_a_slow_observer_holds_up_nobody(inner: tuple[FakeServer, InnerClient]) -> None:
    server, client = inner
    queue = Queue(Waiters(), client, b"a")
    await put(client, b"a/1")
    observed = queue.observe()
    await anext(observed)
    reading = asyncio.ensure_future(anext(observed))  # opens the watch
    await asyncio.sleep(0.05)
    big = bytes(1 << 20)
    for _ in range(12):
        await put(client, b"a/1", big)
    await reading
    [stream] = server.hub.streams
    assert isinstance(stream._sink, LocalStream)
    assert sum(map(len, stream._sink._queue)) < 6 << 20, "the hub's own bound"
    async with asyncio.timeout(20):
        for _ in range(11):
            assert (await anext(observed))[1].value == big
    await observed.aclose()
