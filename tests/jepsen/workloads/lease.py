"""Leases that are granted, bound to keys, kept alive for a while, and revoked or left to expire; and whoever reads the
keys meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

from kvstore.pb import rpc_pb2
from tests.e2e.history import CALL_SECONDS
from tests.jepsen.workloads.base import HIGHER, Client, NotDone, Workload, state

PREFIX = "lease/"
TTL_SECONDS = (2, 4)  # less is raised to 2 by the server
RECENT = 30  # leases whose keys are read
KEYS = 2  # of a lease


class Lease(Workload):
    patient = 4

    def __init__(self) -> None:
        super().__init__()
        self._recent: list[int] = []

    async def work(self, client: Client, rng: random.Random, pause: float, stopping: asyncio.Event) -> None:
        """Every second client holds leases, the others look at them."""
        while not stopping.is_set():
            if client.number % 2:
                await self._hold(client, rng, stopping)
            else:
                await self.one(client, rng)
            await asyncio.sleep(pause * rng.uniform(0.5, 1.5))

    async def one(self, client: Client, rng: random.Random) -> None:
        self.begun += 1
        if self._recent:
            key = key_of(rng.choice(self._recent), rng.randrange(KEYS))
            await client.record("read", key, None, self._read(client, key))

    async def _hold(self, client: Client, rng: random.Random, stopping: asyncio.Event) -> None:
        lease, ttl = next(self.values), rng.randint(*TTL_SECONDS)
        self.begun += 1
        granted = await client.record("grant", str(lease), ttl, self._grant(client, lease, ttl))
        if granted is None:
            return
        for number in range(KEYS):
            self.begun += 1
            key = key_of(lease, number)
            await client.record("bind", key, str(lease), self._bind(client, key, lease))
        self._recent = [*self._recent[-RECENT:], lease]
        for _ in range(rng.randrange(12)):
            # Mostly in good time, now and then about when it ends.
            late = rng.random() < 0.1
            await asyncio.sleep(granted * (rng.uniform(0.9, 1.2) if late else rng.uniform(0.1, 0.5)))
            if stopping.is_set():
                return
            self.begun += 1
            if await client.record("keepalive", str(lease), None, self._keep_alive(client, lease)) == 0:
                return
        if rng.random() < 0.3:
            self.begun += 1
            await client.record("revoke", str(lease), None, self._revoke(client, lease))

    async def _grant(self, client: Client, lease: int, ttl: int) -> tuple[Any, int, dict[str, Any]]:
        request = rpc_pb2.LeaseGrantRequest(ID=lease, TTL=ttl)
        answer = await client.leases.LeaseGrant(request, timeout=CALL_SECONDS)
        return answer.TTL, answer.header.revision, {}

    async def _bind(self, client: Client, key: str, lease: int) -> tuple[Any, int, dict[str, Any]]:
        request = rpc_pb2.PutRequest(key=key.encode(), value=str(lease).encode(), lease=lease)
        answer = await client.endpoint.kv.Put(request, timeout=CALL_SECONDS)
        return str(lease), answer.header.revision, {"wrote": {key: str(lease)}}

    async def _keep_alive(self, client: Client, lease: int) -> tuple[Any, int, dict[str, Any]]:
        async def once() -> AsyncIterator[rpc_pb2.LeaseKeepAliveRequest]:
            yield rpc_pb2.LeaseKeepAliveRequest(ID=lease)

        async for answer in client.leases.LeaseKeepAlive(once(), timeout=CALL_SECONDS):
            return answer.TTL, answer.header.revision, {}
        raise NotDone("no answer")

    async def _revoke(self, client: Client, lease: int) -> tuple[Any, int, dict[str, Any]]:
        answer = await client.leases.LeaseRevoke(rpc_pb2.LeaseRevokeRequest(ID=lease), timeout=CALL_SECONDS)
        return None, answer.header.revision, {}

    async def _read(self, client: Client, key: str) -> tuple[Any, int, dict[str, Any]]:
        answer = await client.range(key)
        saw = state(answer.kvs)
        return saw and saw[0], answer.header.revision, {"saw": saw}

    async def final(self, client: Client) -> bool:
        """All are gone, since nobody keeps them alive."""
        await asyncio.sleep(TTL_SECONDS[1] / 2)
        answer = await client.range(PREFIX, PREFIX[:-1] + HIGHER)
        return not answer.kvs


def key_of(lease: int, number: int) -> str:
    return f"{PREFIX}{lease:06}/{number}"
