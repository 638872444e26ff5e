"""What all workloads share: a client whose operations are asked, recorded and classified here.

Keys end: after EPOCH operations all clients go on to new ones, so that no key has more history than a search bears.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable
from typing import Any

import grpc.aio

from kvstore.pb import rpc_pb2
from tests.e2e.history import CALL_SECONDS, DEFINITE_FAILURES, Endpoint
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


def kv_compare(key: bytes, *, value: bytes | None = None, mod_revision: int = 0) -> rpc_pb2.Compare:
    compare = rpc_pb2.Compare(key=key, result=rpc_pb2.Compare.EQUAL)
    if value is not None:
        compare.target, compare.value = rpc_pb2.Compare.VALUE, value
    else:
        compare.target, compare.mod_revision = rpc_pb2.Compare.MOD, mod_revision
    return compare
