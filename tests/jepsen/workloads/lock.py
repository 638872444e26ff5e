"""Locks, and what they protect: two lists that only the holder appends to, by reading and writing back.

    fenced    the write is a transaction that takes place only while the holder's key is there
    bare      the write is a plain put: whoever was asleep for longer than its lease overwrites what others have done

Every second client is ours (client.lock). The others call the Lock service by grpcio, and some of those fall asleep
with the lock.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import suppress
from typing import Any

import grpc.aio

from kvstore.client import txn
from kvstore.client.errors import ClientError
from kvstore.pb import rpc_pb2, v3lock_pb2, v3lock_pb2_grpc
from tests.e2e.history import CALL_SECONDS
from tests.jepsen.workloads.base import Client, NotDone, Workload

TTL_SECONDS = 2
WAIT_SECONDS = 6.0  # for a lock
LOCKS = 10  # three clients to each: they queue, and what one has lost by a fault does not keep all others waiting
SLEEPY = 0.2  # of the holders that call the service: they stand still for longer than their lease
SECOND = 10**9


class Lock(Workload):
    patient = 2

    def __init__(self) -> None:
        super().__init__()
        self._lists: set[str] = set()

    async def work(self, client: Client, rng: random.Random, pause: float, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            name = f"{self.epoch:04}/{rng.randrange(LOCKS)}"
            self.begun += 1
            if client.number % 2:
                await self._by_ours(client, rng, name)
            else:
                await self._by_service(client, rng, name)
            await asyncio.sleep(pause * rng.uniform(0.5, 1.5))

    async def _by_ours(self, client: Client, rng: random.Random, name: str) -> None:
        lock = client.ours.lock(f"lock/{name}", ttl=TTL_SECONDS)

        async def acquire() -> tuple[Any, int, dict[str, Any]]:
            async with asyncio.timeout(WAIT_SECONDS):
                await lock.__aenter__()
            return [lock.key.decode(), 0], lock.header.revision, {}

        try:
            held = await client.record("lock", name, None, _in_time(acquire()))
            if held is not None:
                await self._use(client, name, lock.key, 0.0)
        finally:
            client.writer.line(client.process, "invoke", "unlock", name, None, lost=held is None or lock.is_lost)
            await lock.__aexit__(None, None, None)
            client.writer.line(client.process, "ok", "unlock", name, None)

    async def _by_service(self, client: Client, rng: random.Random, name: str) -> None:
        stub = v3lock_pb2_grpc.LockStub(client.endpoint.channel)

        async def acquire() -> tuple[Any, int, dict[str, Any]]:
            asked = time.monotonic_ns()
            grant = rpc_pb2.LeaseGrantRequest(TTL=TTL_SECONDS)
            lease = (await client.leases.LeaseGrant(grant, timeout=CALL_SECONDS)).ID
            request = v3lock_pb2.LockRequest(name=f"lock/{name}".encode(), lease=lease)
            answer = await stub.Lock(request, timeout=WAIT_SECONDS)
            return [answer.key.decode(), asked + TTL_SECONDS * SECOND], answer.header.revision, {}

        held = await client.record("lock", name, None, acquire())
        if held is None:
            await asyncio.sleep(rng.random())
            return
        key = held[0].encode()
        asleep = rng.random() < SLEEPY
        await self._use(client, name, key, TTL_SECONDS * rng.uniform(1.2, 2.0) if asleep else 0.0)
        client.writer.line(client.process, "invoke", "unlock", name, None, lost=asleep)
        with suppress(grpc.aio.AioRpcError):  # then it goes with its lease
            await stub.Unlock(v3lock_pb2.UnlockRequest(key=key), timeout=CALL_SECONDS)
        client.writer.line(client.process, "ok", "unlock", name, None)

    async def _use(self, client: Client, name: str, key: bytes, asleep: float) -> None:
        """Append one element to both lists, read before and written after a nap."""
        try:
            lists = {kind: await self._list(client, f"{kind}/{name}") for kind in ("fenced", "bare")}
        except ClientError:
            return
        self._lists |= {f"{kind}/{name}" for kind in lists}
        await asyncio.sleep(asleep)
        for kind, found in lists.items():
            element = next(self.values)
            write = self._write(client, f"{kind}/{name}", [*found, element], key if kind == "fenced" else None)
            await client.record(kind, f"{kind}/{name}", element, write)

    async def _list(self, client: Client, name: str) -> list[int]:
        found = (await client.ours.get(name)).kvs
        return list(json.loads(found[0].value)) if found else []

    async def _write(
        self, client: Client, name: str, elements: list[int], fence: bytes | None
    ) -> tuple[Any, int, dict[str, Any]]:
        value = json.dumps(elements)
        when = [] if fence is None else [txn.create_revision(fence).greater(0)]
        answer = await client.ours.txn(when, [txn.put(name, value)])
        if not answer.succeeded:
            raise NotDone("compare", answer.header.revision)
        return elements, answer.header.revision, {"wrote": {name: value}}

    async def _read(self, client: Client, name: str) -> tuple[Any, int, dict[str, Any]]:
        answer = await client.range(name)
        return json.loads(answer.kvs[0].value) if answer.kvs else [], answer.header.revision, {}

    async def final(self, client: Client) -> bool:
        for name in sorted(self._lists):
            if await client.record("read", name, None, self._read(client, name)) is None:
                return False
        return True


async def _in_time(acquiring: Any) -> Any:
    try:
        return await acquiring
    except TimeoutError:
        raise ClientError("waited in vain", outcome_unknown=True) from None
