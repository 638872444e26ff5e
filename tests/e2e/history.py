"""A client that remembers: what it asked for, when, and what came back.

Every operation is told in the same few words, so that the checkers need to know no request type:

    saw     key -> its state just before the operation (a put and a delete ask for prev_kv, a txn's compare
            knows it, a read is nothing else)
    wrote   key -> what the operation made of it; None: deleted. Nothing, for reads and failed compares

What an outcome means is strict (RELIABILITY 2b). A definite failure is only what can be refused before it is
proposed; every other error leaves a write UNKNOWN: it may have happened, or may still happen. Failed reads are
worth nothing and not kept. Values are never used twice, so a value names its write.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import grpc
import grpc.aio

from kvstore.pb import kv_pb2, rpc_pb2, rpc_pb2_grpc

CALL_SECONDS = 1.5
BACKOFF_SECONDS = 0.05  # at most, after a failure
LOW, HIGH = b"chaos/", b"chaos0"  # all keys are in between
DEFINITE_FAILURES = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
CHANNEL_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 500),  # how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.keepalive_time_ms", 6000),  # servers take one ping in 5 s, and hang up on who sends more
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.max_receive_message_length", -1),
]


@dataclass(frozen=True, slots=True)
class KeyState:
    value: bytes
    create_revision: int = 0
    mod_revision: int = 0
    version: int = 0

    @classmethod
    def of(cls, kv: kv_pb2.KeyValue) -> KeyState:
        return cls(kv.value, kv.create_revision, kv.mod_revision, kv.version)


class Outcome(Enum):
    OK = "ok"
    FAILED = "failed"  # certainly not done
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Operation:
    """`saw` of an UNKNOWN operation is what it would have had to see to write what it would have written."""

    kind: str
    client: int
    member: str
    invoked: float  # monotonic seconds
    returned: float
    outcome: Outcome
    revision: int = 0  # of the answer's header
    saw: dict[bytes, KeyState | None] = field(default_factory=dict)
    wrote: dict[bytes, bytes | None] = field(default_factory=dict)
    stale: bool = False  # a serializable read: may be old, must have been true
    whole: tuple[bytes, bytes] | None = None  # a range read [low, high): `saw` holds all that was there


@dataclass(slots=True)
class WatchResponse:
    revision: int
    events: list[kv_pb2.Event]


@dataclass(slots=True)
class WatchSession:
    """One watch from its creation to the end of its stream."""

    member: str
    low: bytes
    high: bytes
    start_revision: int
    responses: list[WatchResponse] = field(default_factory=list)
    compact_revision: int = 0  # ended by the server, since nothing below is there any more

    @property
    def next_revision(self) -> int:
        """Where to go on: everything below has been told."""
        told = [one.events[-1].kv.mod_revision if one.events else one.revision for one in self.responses]
        return max([self.start_revision - 1, *told, self.compact_revision - 1]) + 1


@dataclass(slots=True)
class History:
    operations: list[Operation] = field(default_factory=list)
    watches: list[WatchSession] = field(default_factory=list)
    compact_revision: int = 0  # the highest that anybody has asked for


class Endpoint:
    """One member, as its clients reach it."""

    def __init__(self, name: str, target: str) -> None:
        self.name = name
        self.target = target
        self.channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        self.kv = rpc_pb2_grpc.KVStub(self.channel)
        self.watch = rpc_pb2_grpc.WatchStub(self.channel)


class Workload:
    """Clients and watchers on all members, in a thread with a loop of its own.

    Keys are prefix + epoch + number; an epoch ends after `epoch_operations`, so that no key's history is longer than
    a search for a linearization can bear.
    """

    def __init__(
        self,
        members: dict[str, str],
        seed: int,
        *,
        clients: int = 8,
        watchers: int = 3,
        keys: int = 4,
        epoch_operations: int = 300,
        pause: float = 0.0,
    ) -> None:
        """members: name -> host:port. pause: seconds at most between two operations of a client."""
        self.history = History()
        self._members = members
        self._seed = seed
        self._clients = clients
        self._watchers = watchers
        self._keys = keys
        self._epoch_operations = epoch_operations
        self._pause = pause
        self._values = itertools.count(1)
        self._begun = 0
        self._endpoints: list[Endpoint] = []
        self._stopping = False  # clients begin nothing more
        self._final_revision: int | None = None  # watchers end when they were told all up to it
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop_clients(self) -> None:
        self._stopping = True

    def stop(self, final_revision: int, timeout: float = 30) -> None:
        """Wait until the watchers have been told everything."""
        self._stopping = True
        self._final_revision = final_revision
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"watchers wait for revision {final_revision}: {self._behind()}"

    def _behind(self) -> list[str]:
        return [f"{one.member} from {one.start_revision} to {one.next_revision}" for one in self.history.watches[-8:]]

    async def _run(self) -> None:
        self._endpoints = [Endpoint(name, target) for name, target in self._members.items()]
        clients = [self._client(number) for number in range(self._clients)]
        watchers = [self._watcher(number) for number in range(self._watchers)]
        await asyncio.gather(*clients, *watchers)
        for endpoint in self._endpoints:
            await endpoint.channel.close(None)

    @property
    def written(self) -> int:
        """Acknowledged writes."""
        return sum(1 for one in self.history.operations if one.wrote and one.outcome is Outcome.OK)

    # Clients

    async def _client(self, number: int) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        while not self._stopping:
            operation = await self._one(rng, number, rng.choice(self._endpoints))
            done = operation is not None and operation.outcome is Outcome.OK
            await asyncio.sleep(rng.random() * (self._pause if done else BACKOFF_SECONDS))

    async def _one(self, rng: random.Random, client: int, endpoint: Endpoint) -> Operation | None:
        """One random operation; None when it was a read that failed."""
        self._begun += 1
        key = self._key(rng.randrange(self._keys))
        kind = rng.choices(
            ["put", "get", "stale", "range", "delete", "compare", "pair"], weights=[30, 20, 10, 8, 8, 16, 8]
        )[0]
        if kind == "put":
            return await self._put(client, endpoint, key)
        if kind == "delete":
            return await self._delete(client, endpoint, key)
        if kind == "compare":
            seen = await self._read("get", client, endpoint, key)
            return seen and await self._compare(client, endpoint, key, seen.saw[key])
        if kind == "pair":
            return await self._pair(client, endpoint, key, self._key(self._keys))
        return await self._read(kind, client, endpoint, key)

    def _key(self, number: int) -> bytes:
        return LOW + f"{self._begun // self._epoch_operations:04}/{number}".encode()

    def _value(self) -> bytes:
        return f"{self._seed}-{next(self._values)}".encode()

    async def _put(self, client: int, endpoint: Endpoint, key: bytes) -> Operation:
        value = self._value()
        operation = self._invoke("put", client, endpoint)
        operation.wrote = {key: value}
        request = rpc_pb2.PutRequest(key=key, value=value, prev_kv=True)
        response = await self._finish(operation, endpoint.kv.Put(request, timeout=CALL_SECONDS))
        if response is not None:
            operation.saw = {key: KeyState.of(response.prev_kv) if response.HasField("prev_kv") else None}
        return operation

    async def _delete(self, client: int, endpoint: Endpoint, key: bytes) -> Operation:
        operation = self._invoke("delete", client, endpoint)
        operation.wrote = {key: None}
        request = rpc_pb2.DeleteRangeRequest(key=key, prev_kv=True)
        response = await self._finish(operation, endpoint.kv.DeleteRange(request, timeout=CALL_SECONDS))
        if response is not None:
            operation.saw = {key: KeyState.of(response.prev_kvs[0]) if response.prev_kvs else None}
            if not response.deleted:
                operation.wrote = {}
        return operation

    async def _compare(self, client: int, endpoint: Endpoint, key: bytes, seen: KeyState | None) -> Operation:
        """Compare and swap; another read of the key when it fails."""
        value = self._value()
        compare = rpc_pb2.Compare(key=key, target=rpc_pb2.Compare.VERSION, version=0)
        if seen is not None:
            compare = rpc_pb2.Compare(key=key, target=rpc_pb2.Compare.VALUE, value=seen.value)
        request = rpc_pb2.TxnRequest(
            compare=[compare],
            success=[rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value, prev_kv=True))],
            failure=[rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key))],
        )
        operation = self._invoke("compare", client, endpoint)
        operation.saw = {key: None if seen is None else KeyState(seen.value)}
        operation.wrote = {key: value}
        response = await self._finish(operation, endpoint.kv.Txn(request, timeout=CALL_SECONDS))
        if response is None:
            return operation
        if response.succeeded:
            put = response.responses[0].response_put
            operation.saw = {key: KeyState.of(put.prev_kv) if put.HasField("prev_kv") else None}
        else:
            kvs = response.responses[0].response_range.kvs
            operation.saw = {key: KeyState.of(kvs[0]) if kvs else None}
            operation.wrote = {}
            operation.kind = "refused compare"
        return operation

    async def _pair(self, client: int, endpoint: Endpoint, one: bytes, other: bytes) -> Operation:
        """Two keys in one revision."""
        operation = self._invoke("pair", client, endpoint)
        values = {one: self._value(), other: self._value()}
        operation.wrote = {**values}
        puts = [
            rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value, prev_kv=True))
            for key, value in values.items()
        ]
        response = await self._finish(
            operation, endpoint.kv.Txn(rpc_pb2.TxnRequest(success=puts), timeout=CALL_SECONDS)
        )
        if response is not None:
            for key, answer in zip(values, response.responses, strict=True):
                put = answer.response_put
                operation.saw[key] = KeyState.of(put.prev_kv) if put.HasField("prev_kv") else None
        return operation

    async def _read(self, kind: str, client: int, endpoint: Endpoint, key: bytes) -> Operation | None:
        """get: linearizable. stale: serializable. range: the whole epoch, linearizable."""
        request = rpc_pb2.RangeRequest(key=key, serializable=kind == "stale")
        operation = self._invoke(kind, client, endpoint)
        operation.stale = request.serializable
        operation.saw = {key: None}
        if kind == "range":
            low = key[: key.rindex(b"/") + 1]
            operation.whole = (low, low[:-1] + b"0")  # "0" follows "/"
            request = rpc_pb2.RangeRequest(key=low, range_end=operation.whole[1])
            operation.saw = {low + str(number).encode(): None for number in range(self._keys + 1)}
        response = await self._finish(operation, endpoint.kv.Range(request, timeout=CALL_SECONDS), kept=False)
        if response is None:
            return None
        operation.saw.update({kv.key: KeyState.of(kv) for kv in response.kvs})
        self.history.operations.append(operation)
        return operation

    def _invoke(self, kind: str, client: int, endpoint: Endpoint) -> Operation:
        return Operation(kind, client, endpoint.name, time.monotonic(), float("inf"), Outcome.UNKNOWN)

    async def _finish(self, operation: Operation, call: Any, kept: bool = True) -> Any:
        """The response, or None; the outcome is noted. kept: in the history whatever comes back."""
        if kept:
            self.history.operations.append(operation)
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            operation.returned = time.monotonic()
            if error.code() in DEFINITE_FAILURES:
                operation.outcome = Outcome.FAILED
            return None
        operation.returned = time.monotonic()
        operation.outcome = Outcome.OK
        operation.revision = response.header.revision
        return response

    # Watchers

    async def _watcher(self, number: int) -> None:
        """Watch all keys from revision 1 on; when a stream ends, go on at some member where it ended."""
        rng = random.Random(f"{self._seed}/watch/{number}")
        start = 1
        while self._final_revision is None or start <= self._final_revision:
            endpoint = rng.choice(self._endpoints)
            session = WatchSession(endpoint.name, LOW, HIGH, start)
            self.history.watches.append(session)
            await self._watch(session, endpoint, rng)
            start = session.next_revision
            if self._final_revision is None and rng.random() < 0.2:  # sometimes from the past
                start = max(1, start - rng.randrange(200))
            await asyncio.sleep(BACKOFF_SECONDS)

    async def _watch(self, session: WatchSession, endpoint: Endpoint, rng: random.Random) -> None:
        """Until the stream breaks, we had enough of it, or there is nothing more to come."""
        create = rpc_pb2.WatchCreateRequest(
            key=session.low, range_end=session.high, start_revision=session.start_revision, prev_kv=True
        )

        async def requests() -> AsyncIterator[rpc_pb2.WatchRequest]:
            yield rpc_pb2.WatchRequest(create_request=create)
            while True:
                await asyncio.sleep(rng.random())
                yield rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())

        call = endpoint.watch.Watch(requests())
        try:
            async with asyncio.timeout(1 + 20 * rng.random()):
                async for response in call:
                    if response.canceled:
                        session.compact_revision = response.compact_revision
                        return
                    if response.created:
                        continue  # its header says nothing about events
                    session.responses.append(WatchResponse(response.header.revision, list(response.events)))
                    if self._final_revision is not None and session.next_revision > self._final_revision:
                        return
        except (grpc.aio.AioRpcError, TimeoutError):
            return
        finally:
            call.cancel()
