"""Puts and deletes of a few keys, compacted all along, and reads of what was: at a revision, and serializable ones, at
whichever member."""

from __future__ import annotations

import random
import time
from typing import Any

import grpc.aio

from kvstore.pb import rpc_pb2
from tests.e2e.history import CALL_SECONDS, LOW
from tests.jepsen.workloads.base import Client, NotDone, Workload, state

BEHIND = 400  # revisions that are looked at
COMPACT_SECONDS = 1.0
KEPT = 100  # revisions that a compaction leaves


class Reads(Workload):
    prefix = LOW.decode()

    def __init__(self) -> None:
        super().__init__()
        self._newest = 1
        self._compacted = 0
        self._compacts = time.monotonic()
        self._used: list[str] = []

    async def one(self, client: Client, rng: random.Random) -> None:
        if time.monotonic() >= self._compacts + COMPACT_SECONDS and self._newest > KEPT:
            self._compacts = time.monotonic()
            await client.record("compact", "", self._newest - KEPT, self._compact(client, self._newest - KEPT))
            return
        key = self.key(rng)
        f = rng.choices(["write", "delete", "at", "stale"], weights=[30, 20, 30, 20])[0]
        if f == "write":
            value = str(next(self.values))
            self._used = [*self._used[-40:], key]
            await client.record("write", key, value, self._write(client, key, value))
        elif f == "delete":
            await client.record("delete", key, None, self._delete(client, key))
        elif f == "at":
            # Around the compact revision too: what was deleted before it stays away.
            low = max(self._compacted, self._newest - BEHIND, 1)
            revision = rng.choice([low, rng.randint(low, self._newest)])
            key = rng.choice(self._used or [key])
            await client.record("at", key, revision, self._at(client, key, revision))
        else:
            await client.record("stale", key, None, self._stale(client, key))

    async def _write(self, client: Client, key: str, value: str) -> tuple[Any, int, dict[str, Any]]:
        revision = await client.put(key, value)
        self._newest = max(self._newest, revision)
        return value, revision, {}

    async def _delete(self, client: Client, key: str) -> tuple[Any, int, dict[str, Any]]:
        request = rpc_pb2.DeleteRangeRequest(key=key.encode(), prev_kv=True)
        answer = await client.endpoint.kv.DeleteRange(request, timeout=CALL_SECONDS)
        return answer.deleted, answer.header.revision, {"saw": state(answer.prev_kvs)}

    async def _at(self, client: Client, key: str, revision: int) -> tuple[Any, int, dict[str, Any]]:
        request = rpc_pb2.RangeRequest(key=key.encode(), revision=revision)
        try:
            answer = await client.endpoint.kv.Range(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.OUT_OF_RANGE:
                raise NotDone("compacted" if "compacted" in error.details() else "future") from None
            raise
        return revision, answer.header.revision, {"saw": state(answer.kvs)}

    async def _stale(self, client: Client, key: str) -> tuple[Any, int, dict[str, Any]]:
        request = rpc_pb2.RangeRequest(key=key.encode(), serializable=True)
        answer = await client.endpoint.kv.Range(request, timeout=CALL_SECONDS)
        return None, answer.header.revision, {"saw": state(answer.kvs)}

    async def _compact(self, client: Client, revision: int) -> tuple[Any, int, dict[str, Any]]:
        request = rpc_pb2.CompactionRequest(revision=revision)
        answer = await client.endpoint.kv.Compact(request, timeout=CALL_SECONDS)
        self._compacted = max(self._compacted, revision)
        return revision, answer.header.revision, {}
