"""Read, write and compare-and-set of a few keys, each value unique."""

from __future__ import annotations

import random
from typing import Any

from kvstore.pb import rpc_pb2
from tests.e2e.history import LOW
from tests.jepsen.workloads.base import Client, NotDone, Workload, kv_compare, state


class Register(Workload):
    prefix = LOW.decode()

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, str] = {}  # what some client has seen or written lately: a good guess for a comparison

    async def one(self, client: Client, rng: random.Random) -> None:
        key, value = self.key(rng), str(next(self.values))
        f = rng.choices(["read", "write", "cas"], weights=[40, 30, 30])[0]
        if f == "cas" and key in self._last:
            expected = self._last[key]
            done = await client.record(f, key, [expected, value], self._cas(client, key, expected, value))
            seen = value if done else None
        elif f == "read":
            seen = await client.record(f, key, None, self._read(client, key))
        else:
            seen = await client.record("write", key, value, self._write(client, key, value))
        if seen is not None:
            self._last[key] = seen

    async def _read(self, client: Client, key: str) -> tuple[Any, int, dict[str, Any]]:
        answer = await client.range(key)
        saw = state(answer.kvs)
        return saw and saw[0], answer.header.revision, {"saw": saw}

    async def _write(self, client: Client, key: str, value: str) -> tuple[Any, int, dict[str, Any]]:
        return value, await client.put(key, value), {}

    async def _cas(self, client: Client, key: str, expected: str, value: str) -> tuple[Any, int, dict[str, Any]]:
        name = key.encode()
        compare = kv_compare(name, value=expected.encode())
        put = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=name, value=value.encode(), prev_kv=True))
        get = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=name))
        answer = await client.txn(rpc_pb2.TxnRequest(compare=[compare], success=[put], failure=[get]))
        if not answer.succeeded:
            raise NotDone("compare", answer.header.revision, state(answer.responses[0].response_range.kvs))
        saw = state([answer.responses[0].response_put.prev_kv])
        return [expected, value], answer.header.revision, {"saw": saw}
