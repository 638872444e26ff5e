"""S-66, in short: many times more requests at once than a member takes in.

What is over the bounds is refused by a typed error and certainly not done; what was taken in is done. Leases are kept
alive, nobody loses leadership, memory stays bounded, and afterwards all is as before.
"""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from bench.channel import dial
from kvstore.errors import Code
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb import rpc_pb2_grpc
from tests.e2e.cluster import Cluster, Member
from tests.e2e.test_quota import hashes

AT_ONCE = 30_000
TAKEN_IN = 10_000  # by one member (server/batcher.py)
HELD = "sleep(1500)"  # milliseconds for each entry: requests come faster than they are applied on any machine
CHANNELS = 4
RSS_MAX = 500 << 20
LEASE = 77


class Keeper:
    """Keeps a short lease alive beside the flood."""

    def __init__(self, member: Member) -> None:
        self.renewed, self._stop = 0, threading.Event()
        self._stub = rpc_pb2_grpc.LeaseStub(member.channel)
        self._stub.LeaseGrant(pb.LeaseGrantRequest(ID=LEASE, TTL=10), timeout=5)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """As clients do it: a stream that ends is opened again."""
        while not self._stop.is_set():
            with contextlib.suppress(grpc.RpcError):
                for answer in self._stub.LeaseKeepAlive(self._ask(), timeout=20):
                    self.renewed += answer.TTL > 0

    def _ask(self) -> Iterator[pb.LeaseKeepAliveRequest]:
        while not self._stop.wait(0.2):
            yield pb.LeaseKeepAliveRequest(ID=LEASE)

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return self.renewed


async def flood(url: str, sent: Callable[[], None]) -> Counter[int]:
    """All puts at once, over several connections; how they ended, by status. `sent` is called when all have left."""
    channels = [await dial(url) for _ in range(CHANNELS)]
    ended: Counter[int] = Counter()
    all_ended = asyncio.Event()

    def done(status: int, response: bytes) -> None:
        ended[status] += 1
        if ended.total() == AT_ONCE:
            all_ended.set()

    for number in range(AT_ONCE):
        put = pb.PutRequest(key=b"flood/%06d" % number, value=b"v" * 100)
        channels[number % len(channels)].call("/etcdserverpb.KV/Put", put.SerializeToString(), done)
        if number % 1000 == 0:
            await asyncio.sleep(0)
    await channels[0].ask("/etcdserverpb.Maintenance/Status")
    sent()
    async with asyncio.timeout(60):
        await all_ended.wait()
    for channel in channels:
        await channel.close()
    return ended


@pytest.mark.alone
def test_s66_overload_is_refused_and_passes(tmp_path: Path) -> None:
    with Cluster(3, tmp_path, admin=True) as cluster:
        leader = cluster.wait_leader()
        status = leader.status()
        assert status is not None
        follower = next(member for member in cluster.members if member is not leader)
        keeper = Keeper(follower)
        for member in cluster.members:
            member.arm("applyBeforeBatch", HELD)

        def release() -> None:
            for member in cluster.members:
                member.disarm("applyBeforeBatch")

        ended = asyncio.run(flood(follower.client_url, release))
        assert set(ended) <= {Code.OK, Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE}, ended
        assert ended[Code.RESOURCE_EXHAUSTED] > 0, ended  # or this was no overload
        assert ended[Code.OK] + ended[Code.UNAVAILABLE] >= TAKEN_IN, ended
        assert ended[Code.OK] > 0, ended
        kv = cluster.kv(leader)
        everything = pb.RangeRequest(key=b"flood/", range_end=b"flood0", count_only=True)
        stored = kv.Range(everything, timeout=10).count
        # A refusal is no write. Only of an UNAVAILABLE nobody knows.
        assert ended[Code.OK] <= stored <= ended[Code.OK] + ended[Code.UNAVAILABLE]
        for member in cluster.members:
            cluster.kv(member).Put(pb.PutRequest(key=b"after"), timeout=5)
            assert psutil.Process(member.pid).memory_info().rss < RSS_MAX
        assert keeper.stop() > 0
        ttl = rpc_pb2_grpc.LeaseStub(leader.channel).LeaseTimeToLive(pb.LeaseTimeToLiveRequest(ID=LEASE), timeout=5)
        assert ttl.TTL > 0
        after = leader.status()
        assert after is not None
        assert (after.raftTerm, after.leader) == (status.raftTerm, status.leader)
        hashes(cluster)
