"""What all workloads share: a client whose operations are asked, recorded and classified here.

Keys end: after EPOCH operations all clients go on to new ones, so that no key has more history than a search bears.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any

import grpc.aio

from kvstore.client import Client as OurClient
from kvstore.client.errors import ClientError
from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from tests.e2e.history import CALL_SECONDS, DEFINITE_FAILURES, Endpoint
from tests.jepsen.record import Writer

KEYS = 4  # of one epoch
EPOCH = 400  # operations; some 100 a key
FINAL_SECONDS = 30.0
READS = frozenset({"read", "stale", "at", "peek"})  # one that failed is as good as one never asked
HIGHER = "0"  # follows "/", so that [x/, x0) is everything below x/


class NotDone(Exception):
    """Certainly without effect: refused by a comparison, or before anything was asked for."""

    def __init__(self, why: str, revision: int = 0, saw: list[Any] | None = None) -> None:
        super().__init__(why)
        self.revision = revision
        self.saw = saw


def _may_be_done(error: grpc.aio.AioRpcError | ClientError) -> bool:
    return error.outcome_unknown if isinstance(error, ClientError) else error.code() not in DEFINITE_FAILURES


def _text(error: grpc.aio.AioRpcError | ClientError) -> str:
    if isinstance(error, ClientError):
        return f"{type(error).__name__}: {error.message}"
    return f"{error.code().name}: {error.details()}"


def state(kvs: Any) -> list[Any] | None:
    return [kvs[0].value.decode(), kvs[0].create_revision, kvs[0].mod_revision, kvs[0].version] if kvs else None


class Client:
    """One logical client. By grpcio's stubs, as any program may, on one member; or by ours, which goes elsewhere when
    its member is gone."""

    def __init__(self, number: int, count: int, endpoints: Sequence[Endpoint], writer: Writer) -> None:
        self.number = number
        self.process = number
        self.endpoint = endpoints[number % len(endpoints)]
        self.leases = rpc_pb2_grpc.LeaseStub(self.endpoint.channel)
        self.writer = writer
        self._count = count
        first = number % len(endpoints)
        self._targets = [one.target for one in (*endpoints[first:], *endpoints[:first])]
        self._ours: OurClient | None = None

    @property
    def ours(self) -> OurClient:
        if self._ours is None:
            self._ours = OurClient(self._targets, timeout=CALL_SECONDS)
        return self._ours

    async def close(self) -> None:
        if self._ours is not None:
            await self._ours.close()

    async def record(self, f: str, key: str, value: Any, action: Awaitable[tuple[Any, int, dict[str, Any]]]) -> Any:
        """Do it between two lines of the history. The value when it was ok, else None.

        `action` gives the value, the revision, and more fields of the line."""
        self.writer.line(self.process, "invoke", f, key, value, member=self.endpoint.name)
        try:
            result, revision, more = await action
        except NotDone as error:
            more = {"error": str(error)} | ({} if error.saw is None else {"saw": error.saw})
            self.writer.line(self.process, "fail", f, key, value, error.revision, **more)
            return None
        except (grpc.aio.AioRpcError, ClientError) as error:
            kind = "fail" if f in READS or not _may_be_done(error) else "info"
            self.writer.line(self.process, kind, f, key, value, error=_text(error))
            if kind == "info":
                self.process += self._count
            return None
        self.writer.line(self.process, "ok", f, key, result, revision, **more)
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
    patient = 1  # logical clients in the place of one: more, where they wait more than they ask

    def __init__(self) -> None:
        self.begun = 0
        self.values = itertools.count(1)

    @property
    def epoch(self) -> int:
        return self.begun // EPOCH

    def key(self, rng: random.Random) -> str:
        return f"{self.prefix}{self.epoch:04}/{rng.randrange(KEYS)}"

    async def work(self, client: Client, rng: random.Random, pause: float, stopping: asyncio.Event) -> None:
        """Until it shall stop: an operation about every `pause` seconds."""
        while not stopping.is_set():
            due = time.monotonic() + pause * rng.uniform(0.5, 1.5)
            self.begun += 1
            await self.one(client, rng)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def one(self, client: Client, rng: random.Random) -> None:
        """One random operation."""
        raise NotImplementedError

    def others(self, endpoints: Sequence[Endpoint], writer: Writer, seed: int) -> list[Coroutine[Any, Any, None]]:
        """Who is there beside the clients; they end when `final` has been done."""
        return []

    async def final(self, client: Client) -> bool:
        """Read everything, once all is healed. Whether it could be done."""
        return True


def kv_compare(key: bytes, *, value: bytes | None = None, mod_revision: int = 0) -> rpc_pb2.Compare:
    compare = rpc_pb2.Compare(key=key, result=rpc_pb2.Compare.EQUAL)
    if value is not None:
        compare.target, compare.value = rpc_pb2.Compare.VALUE, value
    else:
        compare.target, compare.mod_revision = rpc_pb2.Compare.MOD, mod_revision
    return compare
