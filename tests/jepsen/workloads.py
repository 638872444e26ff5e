"""What clients do. A workload makes operations from chance; each is asked, recorded and classified here.

    register   read, write and compare-and-set of a few keys, each value unique
    append     transactions that append to lists and read them, by compare of what was read (mod_revision)
    set        unique elements, a key each, read as a range

Keys end: after EPOCH operations all clients go on to new ones, so that no key has more history than a search bears.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

from kvstore.pb import rpc_pb2
from tests.e2e.history import CALL_SECONDS, DEFINITE_FAILURES, LOW, Endpoint
from tests.jepsen.record import Writer

KEYS = 4  # of one epoch
EPOCH = 400  # operations; some 100 a key
FINAL_SECONDS = 30.0
HIGHER = "0"  # follows "/", so that [x/, x0) is everything below x/


class NotDone(Exception):
    """Certainly without effect: refused by a comparison, or before anything was asked for."""

    def __init__(self, why: str, revision: int = 0, saw: list[Any] | None = None) -> None:
        super().__init__(why)
        self.revision = revision
        self.saw = saw


def state(kvs: Any) -> list[Any] | None:
    return [kvs[0].value.decode(), kvs[0].create_revision, kvs[0].mod_revision, kvs[0].version] if kvs else None


class Client:
    """One logical client on one member."""

    def __init__(self, number: int, count: int, endpoint: Endpoint, writer: Writer) -> None:
        self.process = number
        self.endpoint = endpoint
        self._count = count
        self._writer = writer

    async def record(self, f: str, key: str, value: Any, action: Awaitable[tuple[Any, int, dict[str, Any]]]) -> Any:
        """Do it between two lines of the history. The value when it was ok, else None.

        `action` gives the value, the revision, and more fields of the line."""
        self._writer.line(self.process, "invoke", f, key, value, member=self.endpoint.name)
        try:
            result, revision, more = await action
        except NotDone as error:
            more = {"error": str(error)} | ({} if error.saw is None else {"saw": error.saw})
            self._writer.line(self.process, "fail", f, key, value, error.revision, **more)
            return None
        except grpc.aio.AioRpcError as error:
            harmless = f == "read" or error.code() in DEFINITE_FAILURES
            kind = "fail" if harmless else "info"
            self._writer.line(self.process, kind, f, key, value, error=f"{error.code().name}: {error.details()}")
            if not harmless:
                self.process += self._count
            return None
        self._writer.line(self.process, "ok", f, key, result, revision, **more)
        return result

    async def range(self, key: str, end: str = "", timeout: float = CALL_SECONDS) -> rpc_pb2.RangeResponse:
        request = rpc_pb2.RangeRequest(key=key.encode(), range_end=end.encode())
        response: rpc_pb2.RangeResponse = await self.endpoint.kv.Range(request, timeout=timeout)
        return response

    async def put(self, key: str, value: str) -> int:
        request = rpc_pb2.PutRequest(key=key.encode(), value=value.encode())
        return int((await self.endpoint.kv.Put(request, timeout=CALL_SECONDS)).header.revision)

    async def txn(self, request: rpc_pb2.TxnRequest) -> rpc_pb2.TxnResponse:
        response: rpc_pb2.TxnResponse = await self.endpoint.kv.Txn(request, timeout=CALL_SECONDS)
        return response


class Workload:
    """Shared by all clients of a run: which keys are in use, which values have been given."""

    prefix = ""

    def __init__(self) -> None:
        self.begun = 0
        self.values = itertools.count(1)

    @property
    def epoch(self) -> int:
        return self.begun // EPOCH

    def key(self, rng: random.Random) -> str:
        return f"{self.prefix}{self.epoch:04}/{rng.randrange(KEYS)}"

    async def one(self, client: Client, rng: random.Random) -> None:
        """One random operation."""
        raise NotImplementedError

    async def final(self, client: Client) -> bool:
        """Read everything, once all is healed. Whether it could be done."""
        return True


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


def kv_compare(key: bytes, *, value: bytes | None = None, mod_revision: int = 0) -> rpc_pb2.Compare:
    compare = rpc_pb2.Compare(key=key, result=rpc_pb2.Compare.EQUAL)
    if value is not None:
        compare.target, compare.value = rpc_pb2.Compare.VALUE, value
    else:
        compare.target, compare.mod_revision = rpc_pb2.Compare.MOD, mod_revision
    return compare


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
        revision = answer.header.revision
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
        return done, revision, {}

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


class Set(Workload):
    prefix = "set/"

    async def one(self, client: Client, rng: random.Random) -> None:
        name = f"{self.prefix}{self.epoch:04}"
        if rng.random() < 0.8:
            element = next(self.values)
            await client.record("add", name, element, self._add(client, name, element))
        else:
            await client.record("read", name, None, self._read(client, name))

    async def _add(self, client: Client, name: str, element: int) -> tuple[Any, int, dict[str, Any]]:
        return element, await client.put(f"{name}/{element}", str(element)), {}

    async def _read(self, client: Client, name: str) -> tuple[Any, int, dict[str, Any]]:
        answer = await client.range(f"{name}/", f"{name}{HIGHER}")
        return sorted(int(kv.value) for kv in answer.kvs), answer.header.revision, {}

    async def final(self, client: Client) -> bool:
        for epoch in range(self.epoch + 1):
            name = f"{self.prefix}{epoch:04}"
            if await client.record("read", name, None, self._read(client, name)) is None:
                return False
        return True


WORKLOADS: dict[str, Callable[[], Workload]] = {"register": Register, "append": Append, "set": Set}
