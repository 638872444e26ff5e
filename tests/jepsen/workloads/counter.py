"""Counters: whoever adds reads one and puts the sum by a transaction, if nobody has come between (mod_revision). Every
second client is ours, the others are grpcio's stubs."""

from __future__ import annotations

import random
from typing import Any

from kvstore.client import txn
from kvstore.pb import rpc_pb2
from tests.jepsen.workloads.base import Client, NotDone, Workload, kv_compare


class Counter(Workload):
    prefix = "counter/"

    async def one(self, client: Client, rng: random.Random) -> None:
        key = self.key(rng)
        ours = bool(client.number % 2)
        if rng.random() < 0.6:
            amount = rng.randint(1, 5)
            add = self._add_by_ours if ours else self._add
            await client.record("increment", key, amount, add(client, key, amount))
        else:
            read = self._read_by_ours if ours else self._read
            await client.record("read", key, None, read(client, key))

    async def _add(self, client: Client, key: str, amount: int) -> tuple[Any, int, dict[str, Any]]:
        found = (await client.range(key)).kvs
        before, at = (int(found[0].value), found[0].mod_revision) if found else (0, 0)
        put = rpc_pb2.PutRequest(key=key.encode(), value=str(before + amount).encode())
        compare = kv_compare(key.encode(), mod_revision=at)
        request = rpc_pb2.TxnRequest(compare=[compare], success=[rpc_pb2.RequestOp(request_put=put)])
        answer = await client.txn(request)
        return self._added(key, before, amount, answer.succeeded, answer.header.revision)

    async def _add_by_ours(self, client: Client, key: str, amount: int) -> tuple[Any, int, dict[str, Any]]:
        found = (await client.ours.get(key)).kvs
        before, at = (int(found[0].value), found[0].mod_revision) if found else (0, 0)
        put = txn.put(key, str(before + amount))
        answer = await client.ours.txn([txn.mod_revision(key).equals(at)], [put])
        return self._added(key, before, amount, answer.succeeded, answer.header.revision)

    def _added(self, key: str, before: int, amount: int, done: bool, revision: int) -> tuple[Any, int, dict[str, Any]]:
        if not done:
            raise NotDone("compare", revision)
        return before + amount, revision, {"wrote": {key: str(before + amount)}}

    async def _read(self, client: Client, key: str) -> tuple[Any, int, dict[str, Any]]:
        answer = await client.range(key)
        return int(answer.kvs[0].value) if answer.kvs else 0, answer.header.revision, {}

    async def _read_by_ours(self, client: Client, key: str) -> tuple[Any, int, dict[str, Any]]:
        answer = await client.ours.get(key)
        return int(answer.kvs[0].value) if answer.kvs else 0, answer.header.revision, {}

    async def final(self, client: Client) -> bool:
        keys = {f"{self.prefix}{epoch:04}/{number}" for epoch in range(self.epoch + 1) for number in range(4)}
        for key in sorted(keys):
            if await client.record("read", key, None, self._read(client, key)) is None:
                return False
        return True
