"""Puts, deletes and pairs of puts in one transaction, compacted now and then; and watchers of all kinds beside them:
from now on, from the past, of one key or all, filtered, with previous values, in fragments; broken off and resumed at
another member. Half of them ask for progress."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import grpc.aio

from kvstore.pb import rpc_pb2
from tests.e2e.history import CALL_SECONDS, Endpoint
from tests.e2e.watches import WatchLog
from tests.jepsen.checkers.watch import request_of, response_of
from tests.jepsen.record import Writer
from tests.jepsen.workloads.base import HIGHER, Client, Workload, state

PREFIX = "watch/"
WATCHERS = 12
COMPACT_SECONDS = 2.0
KEPT = 150  # revisions that a compaction leaves
SESSION_SECONDS = (0.5, 8.0)
RESUME_SECONDS = 0.1


class Watch(Workload):
    prefix = PREFIX

    def __init__(self) -> None:
        super().__init__()
        self._newest = 1
        self._compacts = time.monotonic()
        self._last = 0  # revision that every watcher has to be told up to; 0: it goes on
        self._sessions = 0

    async def one(self, client: Client, rng: random.Random) -> None:
        if time.monotonic() >= self._compacts + COMPACT_SECONDS and self._newest > KEPT:
            self._compacts = time.monotonic()
            await client.record("compact", "", self._newest - KEPT, self._compact(client, self._newest - KEPT))
            return
        key, value = self.key(rng), str(next(self.values))
        f = rng.choices(["write", "delete", "pair"], weights=[60, 20, 20])[0]
        if f == "write":
            await client.record("write", key, value, self._write(client, key, value))
        elif f == "delete":
            await client.record("delete", key, None, self._delete(client, key))
        else:
            other = f"{key}/pair"
            await client.record("pair", key, [value, value], self._pair(client, key, other, value))

    async def _write(self, client: Client, key: str, value: str) -> tuple[Any, int, dict[str, Any]]:
        self._newest = max(self._newest, revision := await client.put(key, value))
        return value, revision, {}

    async def _delete(self, client: Client, key: str) -> tuple[Any, int, dict[str, Any]]:
        request = rpc_pb2.DeleteRangeRequest(key=key.encode(), prev_kv=True)
        answer = await client.endpoint.kv.DeleteRange(request, timeout=CALL_SECONDS)
        return answer.deleted, answer.header.revision, {"saw": state(answer.prev_kvs)}

    async def _pair(self, client: Client, one: str, other: str, value: str) -> tuple[Any, int, dict[str, Any]]:
        puts = [
            rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key.encode(), value=value.encode()))
            for key in (one, other)
        ]
        answer = await client.txn(rpc_pb2.TxnRequest(success=puts))
        return [value, value], answer.header.revision, {"wrote": {one: value, other: value}}

    async def _compact(self, client: Client, revision: int) -> tuple[Any, int, dict[str, Any]]:
        request = rpc_pb2.CompactionRequest(revision=revision)
        answer = await client.endpoint.kv.Compact(request, timeout=CALL_SECONDS)
        return revision, answer.header.revision, {}

    async def final(self, client: Client) -> bool:
        """One more write: whoever is told of it has been told everything."""
        revision = await client.record("write", f"{PREFIX}last", "last", self._write(client, f"{PREFIX}last", "last"))
        self._last = self._newest if revision else 0
        return bool(self._last)

    # Watchers

    def others(self, endpoints: Sequence[Endpoint], writer: Writer, seed: int) -> list[Coroutine[Any, Any, None]]:
        return [self._watcher(number, endpoints, writer, seed) for number in range(WATCHERS)]

    async def _watcher(self, number: int, endpoints: Sequence[Endpoint], writer: Writer, seed: int) -> None:
        """The first watch of each stream is of all keys, and goes on where the one before it ended."""
        rng = random.Random(f"{seed}/watch/{number}")
        start = 1
        while not self._last or start <= self._last:
            endpoint = rng.choice(endpoints)
            main = self._request(rng, start, whole=True)
            partial = [self._request(rng, rng.choice([0, start]), whole=False) for _ in range(rng.randrange(3))]
            logs = [WatchLog(endpoint.name, request) for request in (main, *partial)]
            compacted = await self._stream(rng, endpoint, logs, f"w{number}", writer)
            start = max(start, logs[0].told + 1, compacted)
            await asyncio.sleep(RESUME_SECONDS)

    def _request(self, rng: random.Random, start: int, *, whole: bool) -> rpc_pb2.WatchCreateRequest:
        request = rpc_pb2.WatchCreateRequest(start_revision=start, key=PREFIX.encode())
        request.range_end = f"{PREFIX[:-1]}{HIGHER}".encode()
        request.prev_kv = rng.random() < 0.5
        request.progress_notify = rng.random() < 0.5
        request.fragment = rng.random() < 0.3
        if not whole:
            request.key = self.key(rng).encode()
            request.range_end = b"" if rng.random() < 0.5 else request.key + HIGHER.encode()
            if rng.random() < 0.4:
                request.filters.append(
                    rng.choice([rpc_pb2.WatchCreateRequest.NOPUT, rpc_pb2.WatchCreateRequest.NODELETE])
                )
        return request

    async def _stream(
        self, rng: random.Random, endpoint: Endpoint, logs: list[WatchLog], process: str, writer: Writer
    ) -> int:
        """Until it breaks, it is enough, or all has been told. The compact revision that ended the main watch, or 0."""
        names = [self._sessions + at for at in range(len(logs))]
        self._sessions += len(logs)
        for name, log in zip(names, logs, strict=True):
            log.request.watch_id = name + 1
            writer.line(process, "invoke", "watch", str(name), request_of(log.request), member=endpoint.name)

        async def requests() -> AsyncIterator[rpc_pb2.WatchRequest]:
            for log in logs:
                yield rpc_pb2.WatchRequest(create_request=log.request)
            while True:
                await asyncio.sleep(rng.random())
                yield rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())

        by_id = {log.request.watch_id: (name, log) for name, log in zip(names, logs, strict=True)}
        call = endpoint.watch.Watch(requests())
        compacted = 0
        with suppress(grpc.aio.AioRpcError, TimeoutError):
            async with asyncio.timeout(rng.uniform(*SESSION_SECONDS)):
                async for response in call:
                    # Progress of the whole stream: each watch that has been created has everything up to it.
                    every = response.watch_id == -1 and not response.created
                    for name, log in by_id.values() if every else [by_id[response.watch_id]]:
                        if every and (not log.responses or log.responses[-1].canceled):
                            continue
                        log.took(response)
                        writer.line(
                            process, "info", "watch", str(name), response_of(response), response.header.revision
                        )
                    if logs[0].responses and logs[0].responses[-1].canceled:
                        compacted = logs[0].responses[-1].compact_revision
                        break
                    if self._last and logs[0].told >= self._last:
                        break
        call.cancel()
        return compacted
