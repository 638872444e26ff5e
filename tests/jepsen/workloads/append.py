"""Transactions that append to lists and read them, by compare of what was read (mod_revision)."""

from __future__ import annotations

import json
import random
from typing import Any

import grpc.aio

from kvstore.pb import rpc_pb2
from tests.jepsen.workloads.base import KEYS, Client, NotDone, Workload, kv_compare


class Append(Workload):
    """A transaction is a list of ["append", key, element] and ["r", key, list or null], done in this order."""

    prefix = "append/"

    async def one(self, client: Client, rng: random.Random) -> None:
        steps: list[list[Any]] = []
        for _ in range(rng.randint(1, 3)):
            append = rng.random() < 0.5
            steps.append(["append", self.key(rng), next(self.values)] if append else ["r", self.key(rng), None])
        await client.record("txn", "", steps, self._txn(client, steps))

    async def _txn(self, client: Client, steps: list[list[Any]]) -> tuple[Any, int, dict[str, Any]]:
        keys = sorted({key for _, key, _ in steps})
        reads = [rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key.encode())) for key in keys]
        try:
            answer = await client.txn(rpc_pb2.TxnRequest(success=reads))
        except grpc.aio.AioRpcError as error:
            raise NotDone(f"read: {error.code().name}") from None
        kvs = {key: one.response_range.kvs for key, one in zip(keys, answer.responses, strict=True)}
        lists = {key: json.loads(found[0].value) if found else [] for key, found in kvs.items()}
        done = _apply(steps, lists)
        written = sorted({key for what, key, _ in steps if what == "append"})
        revision, more = answer.header.revision, {}
        if written:
            compare = [
                kv_compare(key.encode(), mod_revision=found[0].mod_revision if found else 0)
                for key, found in kvs.items()
            ]
            puts = [
                rpc_pb2.RequestOp(
                    request_put=rpc_pb2.PutRequest(key=key.encode(), value=json.dumps(lists[key]).encode())
                )
                for key in written
            ]
            answer = await client.txn(rpc_pb2.TxnRequest(compare=compare, success=puts))
            revision = answer.header.revision
            if not answer.succeeded:
                raise NotDone("compare", revision)
            more = {"wrote": {key: json.dumps(lists[key]) for key in written}}
        return done, revision, more

    async def final(self, client: Client) -> bool:
        for epoch in range(self.epoch + 1):
            steps = [["r", f"{self.prefix}{epoch:04}/{number}", None] for number in range(KEYS)]
            if await client.record("txn", "", steps, self._txn(client, steps)) is None:
                return False
        return True


def _apply(steps: list[list[Any]], lists: dict[str, list[int]]) -> list[list[Any]]:
    """What the steps see; `lists` is changed."""
    done: list[list[Any]] = []
    for what, key, element in steps:
        if what == "append":
            lists[key].append(element)
            done.append([what, key, element])
        else:
            done.append([what, key, list(lists[key])])
    return done
