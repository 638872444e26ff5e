"""Many leases through a leader change: `python -m bench.leases --help`.

Three members as processes. One client grants so many leases, each with a key, and keeps all alive every third
of their TTL over one stream to each member. Then the leader is killed. One JSON line says how it went: how many
leases and keys were lost early, how long keep-alives stood still, what a member's memory grew by, and how long
it takes a restarted member to be ready with all of them.
"""

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc.aio

from kvstore.client import Client
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.rpc_pb2_grpc import KVStub, LeaseStub
from tests.e2e.cluster import Cluster, Member

OPTIONS = [("grpc.use_local_subchannel_pool", 1)]
PART = 200  # requests in flight while leases are made
PARTS = 3  # of a TTL between two keep-alives


class Keeper:
    """Keeps leases alive over one stream, which is opened again on another member when it breaks."""

    def __init__(self, targets: list[str], ttl: int) -> None:
        self._targets = targets
        self.leases: list[int] = []  # may grow
        self._ttl = ttl
        self.answered: dict[int, float] = {}
        self.lost: set[int] = set()
        self.gap = 0.0  # the longest time without an answer to what was asked
        self._last = time.monotonic()

    async def run(self) -> None:
        at = 0
        while True:
            target = self._targets[at % len(self._targets)]
            at += 1
            try:
                async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel:
                    stub: Any = LeaseStub(channel)
                    call = stub.LeaseKeepAlive(metadata=(("hasleader", "true"),))
                    writing = asyncio.create_task(self._write(call))
                    try:
                        await self._read(call)
                    finally:
                        writing.cancel()
                        await asyncio.gather(writing, return_exceptions=True)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.1)

    async def _write(self, call: Any) -> None:
        """All at once after a break, then spread over a third of the TTL."""
        spread = 0.0
        while True:
            begun = time.monotonic()
            leases = list(self.leases)
            for at, lease in enumerate(leases):
                await call.write(pb.LeaseKeepAliveRequest(ID=lease))
                ahead = spread * at / len(leases) - (time.monotonic() - begun)
                if ahead > 0.01:
                    await asyncio.sleep(ahead)
            await asyncio.sleep(max(0.01, spread - (time.monotonic() - begun)))
            spread = self._ttl / PARTS

    async def _read(self, call: Any) -> None:
        while True:
            answer = await call.read()
            if answer is grpc.aio.EOF:  # type: ignore[attr-defined]
                return
            now = time.monotonic()
            self.gap = max(self.gap, now - self._last)
            self._last = now
            if answer.TTL:
                self.answered[answer.ID] = now
            else:
                self.lost.add(answer.ID)

    def renewed_since(self, when: float) -> int:
        return sum(at >= when for at in self.answered.values())


async def make(targets: list[str], count: int, ttl: int, keepers: list[Keeper]) -> None:
    """Grant the leases, bind a key to each, and hand them to the keepers, which have begun."""
    done = 0
    async with grpc.aio.insecure_channel(targets[0]) as channel:
        lease: Any = LeaseStub(channel)
        kv: Any = KVStub(channel)
        while done < count:
            part = min(PART, count - done)
            granted = await asyncio.gather(*[lease.LeaseGrant(pb.LeaseGrantRequest(TTL=ttl)) for _ in range(part)])
            ids = [one.ID for one in granted]
            puts = [pb.PutRequest(key=b"lease/%x" % id_, lease=id_) for id_ in ids]
            await asyncio.gather(*[kv.Put(put) for put in puts])
            done += part
            for at, keeper in enumerate(keepers):
                keeper.leases += ids[at :: len(keepers)]


def memory(member: Member) -> int:
    """Resident bytes of a member's process."""
    pages = int(Path(f"/proc/{member.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def measure(cluster: Cluster, count: int, ttl: int) -> dict[str, object]:
    targets = [member.target for member in cluster.members]
    old = cluster.wait_leader()
    empty = memory(old)
    begun = time.monotonic()
    keepers = [Keeper(targets[at:] + targets[:at], ttl) for at in range(len(targets))]
    tasks = [asyncio.create_task(keeper.run()) for keeper in keepers]
    await make(targets, count, ttl, keepers)
    granted_seconds = time.monotonic() - begun
    await all_renewed(keepers, count, time.monotonic())
    grown = memory(old) - empty
    for keeper in keepers:
        keeper.gap = 0.0
    killed = time.monotonic()
    await asyncio.to_thread(old.kill)
    await asyncio.to_thread(lambda: cluster.wait_leader(other_than=old))
    elected = time.monotonic() - killed
    await all_renewed(keepers, count, killed + elected)
    # One whole TTL more: whoever was forgotten in the change is gone by then.
    await asyncio.sleep(ttl + 5)
    begun = time.monotonic()
    await asyncio.to_thread(old.start)
    await asyncio.to_thread(old.wait_ready)
    restarted = time.monotonic() - begun
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with Client([member.target for member in cluster.members], timeout=60) as client:
        keys = (await client.get("lease/", prefix=True, count_only=True)).count
        known = len((await client.leases()).ids)
    return {
        "leases": count,
        "ttl_s": ttl,
        "lost_early": len(set().union(*[keeper.lost for keeper in keepers])),
        "leases_after": known,
        "keys_after": keys,
        "grant_and_put_s": round(granted_seconds, 1),
        "new_leader_s": round(elected, 2),
        "keep_alive_gap_s": round(max(keeper.gap for keeper in keepers), 2),
        "memory_per_lease_bytes": grown // count,
        "restart_ready_s": round(restarted, 2),
    }


async def all_renewed(keepers: list[Keeper], count: int, since: float) -> None:
    while sum(keeper.renewed_since(since) + len(keeper.lost) for keeper in keepers) < count:  # noqa: ASYNC110
        await asyncio.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.leases", description=__doc__)
    parser.add_argument("--leases", type=int, default=100_000, help="how many (default: 100000)")
    parser.add_argument("--ttl", type=int, default=120, help="seconds, of each (default: 120)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Cluster(3, Path(folder)) as cluster:
        result = asyncio.run(measure(cluster, options.leases, options.ttl))
    print(json.dumps(result))
    return 0 if result["lost_early"] == 0 and result["keys_after"] == options.leases else 1


if __name__ == "__main__":
    sys.exit(main())
