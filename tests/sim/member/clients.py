"""Clients: tasks of the world that call the members' services with encoded requests, and remember what came back.

Each names its change (metadata `request-id`), so that the log tells which of its requests took effect, and how often.
Keys are prefix + epoch + number; an epoch ends after some operations, so that no key's history is longer than a search
for a linearization can bear.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, final

from kvstore.errors import NOT_ENOUGH_STARTED, Code, KvError
from kvstore.pb import rpc_pb2 as pb
from raft.testing.sim.rng import SimRng
from tests.e2e.history import LOW, KeyState, Operation, Outcome
from tests.sim.member.loop import SECOND

if TYPE_CHECKING:
    from tests.sim.member.member import Member
    from tests.sim.member.world import World

KEYS: Final = 4
EPOCH_OPERATIONS: Final = 250
BACKOFF_SECONDS: Final = 0.05
# Refusals that say: certainly no effect (RELIABILITY 2b).
DEFINITE: Final = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.PERMISSION_DENIED,
        Code.UNAUTHENTICATED,
        Code.RESOURCE_EXHAUSTED,
    }
)
_KINDS: Final = {
    "put": 30,
    "get": 18,
    "stale": 8,
    "range": 8,
    "past": 6,
    "options": 5,
    "delete": 8,
    "clear": 2,
    "compare": 14,
    "pair": 7,
    "read txn": 3,
    "bad": 2,
    "hash": 1,
}


@dataclass(slots=True)
class Asked(Operation):
    """An operation with its request and answer."""

    request_id: str = ""
    method: str = ""
    request: Any = None
    response: Any = None
    error: KvError | None = None
    keys: list[bytes] = field(default_factory=list)


@final
class Client:
    def __init__(self, world: "World", number: int) -> None:
        self._world = world
        self._number = number
        self._rng: SimRng = world.options.stream(f"client {number}")
        self._count = 0

    async def run(self) -> None:
        world, rng = self._world, self._rng
        kinds = [kind for kind, weight in _KINDS.items() for _ in range(weight)]
        while not world.stopping:
            member = rng.choice(world.members)
            before = len(world.history.operations)
            await self.one(rng.choice(kinds), member)
            newest = world.history.operations[before:]
            failed = not newest or newest[-1].outcome is not Outcome.OK
            mean = world.options.think if not failed else int(BACKOFF_SECONDS * SECOND)
            await asyncio.sleep(rng.exponential(mean) / SECOND)

    async def one(self, kind: str, member: "Member") -> None:
        world, rng = self._world, self._rng
        world.begun += 1
        keys = self.epoch_keys()
        key = rng.choice(keys[:-1])
        if kind == "put":
            await self._put(member, key)
        elif kind in ("get", "stale"):
            await self._range("range", member, pb.RangeRequest(key=key, serializable=kind == "stale"), [key])
        elif kind == "range":
            low, high = self._bounds(keys)
            await self._range("range", member, pb.RangeRequest(key=low, range_end=high), keys)
        elif kind == "past":
            await self._past(member, keys)
        elif kind == "options":
            await self._options(member, keys)
        elif kind == "delete":
            await self._delete(member, pb.DeleteRangeRequest(key=key, prev_kv=rng.chance(0.7)), [key])
        elif kind == "clear":
            low, high = self._bounds(keys)
            await self._delete(member, pb.DeleteRangeRequest(key=low, range_end=high, prev_kv=True), keys)
        elif kind == "compare":
            await self._compare(member, key)
        elif kind == "pair":
            await self._pair(member, key, keys[-1])
        elif kind == "read txn":
            await self._read_txn(member, keys)
        elif kind == "hash":
            await self._hash(member)
        else:
            await self._bad(member, key)

    def epoch_keys(self) -> list[bytes]:
        epoch = self._world.begun // EPOCH_OPERATIONS
        return [LOW + f"{epoch:04}/{number}".encode() for number in range(KEYS + 1)]

    def _bounds(self, keys: list[bytes]) -> tuple[bytes, bytes]:
        low = keys[0][: keys[0].rindex(b"/") + 1]
        return low, low[:-1] + b"0"

    def value(self) -> bytes:
        self._world.values += 1
        padding = self._rng.choice(["", "", "", "x" * 300])
        return f"{self._world.values}{padding}".encode()

    # Kinds

    async def _put(self, member: "Member", key: bytes) -> None:
        request = pb.PutRequest(key=key, value=self.value(), prev_kv=self._rng.chance(0.5))
        asked = self.ask("put", member, request)
        asked.wrote = {key: request.value}
        response = await self.finish(asked, "Put", pb.PutResponse)
        if response is not None and request.prev_kv:
            asked.saw = {key: KeyState.of(response.prev_kv) if response.HasField("prev_kv") else None}

    async def _delete(self, member: "Member", request: pb.DeleteRangeRequest, keys: list[bytes]) -> None:
        asked = self.ask("delete", member, request)
        asked.wrote = dict.fromkeys(keys)
        response = await self.finish(asked, "DeleteRange", pb.DeleteRangeResponse)
        if response is not None:
            if request.prev_kv:
                asked.saw = dict.fromkeys(keys)
                asked.saw.update({kv.key: KeyState.of(kv) for kv in response.prev_kvs})
            elif not response.deleted:
                asked.saw = dict.fromkeys(keys)
            if not response.deleted:
                asked.wrote = {}

    async def _compare(self, member: "Member", key: bytes) -> None:
        """Read, then compare and swap: a lost update shows."""
        read = await self._range("range", member, pb.RangeRequest(key=key), [key])
        if read is None or self._world.stopping:
            return
        seen = read.saw[key]
        compare = pb.Compare(key=key, target=pb.Compare.VERSION, version=0)
        if seen is not None:
            compare = pb.Compare(key=key, target=pb.Compare.MOD, mod_revision=seen.mod_revision)
        put = pb.PutRequest(key=key, value=self.value(), prev_kv=True)
        request = pb.TxnRequest(
            compare=[compare],
            success=[pb.RequestOp(request_put=put)],
            failure=[pb.RequestOp(request_range=pb.RangeRequest(key=key))],
        )
        asked = self.ask("compare", member, request)
        asked.saw = {key: seen}
        asked.wrote = {key: put.value}
        response = await self.finish(asked, "Txn", pb.TxnResponse)
        if response is None:
            return
        if response.succeeded:
            answer = response.responses[0].response_put
            asked.saw = {key: KeyState.of(answer.prev_kv) if answer.HasField("prev_kv") else None}
        else:
            kvs = response.responses[0].response_range.kvs
            asked.saw = {key: KeyState.of(kvs[0]) if kvs else None}
            asked.wrote = {}

    async def _pair(self, member: "Member", one: bytes, other: bytes) -> None:
        """Two keys in one revision."""
        puts = [pb.PutRequest(key=key, value=self.value(), prev_kv=True) for key in (one, other)]
        request = pb.TxnRequest(success=[pb.RequestOp(request_put=put) for put in puts])
        asked = self.ask("pair", member, request)
        asked.wrote = {put.key: put.value for put in puts}
        response = await self.finish(asked, "Txn", pb.TxnResponse)
        if response is not None:
            for put, answer in zip(puts, response.responses, strict=True):
                previous = answer.response_put
                asked.saw[put.key] = KeyState.of(previous.prev_kv) if previous.HasField("prev_kv") else None

    async def _range(self, kind: str, member: "Member", request: pb.RangeRequest, keys: list[bytes]) -> Asked | None:
        """keys: all that the answer tells about; none when it is not their newest state."""
        asked = self.ask(kind, member, request)
        asked.stale = request.serializable
        response = await self.finish(asked, "Range", pb.RangeResponse)
        if response is None:
            return None
        asked.saw = dict.fromkeys(keys)
        if keys:
            asked.saw.update({kv.key: KeyState.of(kv) for kv in response.kvs})
        return asked

    async def _past(self, member: "Member", keys: list[bytes]) -> None:
        newest = self._world.newest_revision
        revision = max(1, newest + 3 - self._rng.below(60))
        low, high = self._bounds(keys)
        request = pb.RangeRequest(
            key=low, range_end=high, revision=revision, serializable=self._rng.chance(0.4), limit=self._rng.below(3)
        )
        await self._range("past", member, request, [])

    async def _options(self, member: "Member", keys: list[bytes]) -> None:
        rng = self._rng
        low, high = self._bounds(keys)
        request = pb.RangeRequest(
            key=LOW if rng.chance(0.3) else low,
            range_end=high,
            limit=rng.below(4),
            sort_order=rng.below(3),
            sort_target=rng.below(5),
            keys_only=rng.chance(0.3),
            count_only=rng.chance(0.2),
            serializable=rng.chance(0.3),
        )
        await self._range("options", member, request, [])

    async def _read_txn(self, member: "Member", keys: list[bytes]) -> None:
        ranges = [pb.RangeRequest(key=key) for key in keys[:2]]
        compare = pb.Compare(key=keys[0], target=pb.Compare.VERSION, result=pb.Compare.GREATER, version=1)
        request = pb.TxnRequest(
            compare=[compare],
            success=[pb.RequestOp(request_range=one) for one in ranges],
            failure=[pb.RequestOp(request_range=ranges[0])],
        )
        await self.finish(self.ask("read txn", member, request), "Txn", pb.TxnResponse)

    async def _bad(self, member: "Member", key: bytes) -> None:
        """What must be refused, and must leave nothing."""
        value = self.value()
        requests: list[tuple[str, Any, type[Any]]] = [
            ("Put", pb.PutRequest(key=b"", value=value), pb.PutResponse),
            ("Put", pb.PutRequest(key=key, value=value, lease=987654321), pb.PutResponse),
            (
                "Txn",
                pb.TxnRequest(
                    success=[
                        pb.RequestOp(request_put=pb.PutRequest(key=key, value=value)),
                        pb.RequestOp(request_put=pb.PutRequest(key=key + b"/no", ignore_value=True)),
                    ]
                ),
                pb.TxnResponse,
            ),
            (
                "Txn",
                pb.TxnRequest(
                    success=[
                        pb.RequestOp(request_put=pb.PutRequest(key=key, value=value)),
                        pb.RequestOp(request_range=pb.RangeRequest(key=key, revision=2**40)),
                    ]
                ),
                pb.TxnResponse,
            ),
        ]
        method, request, answer = self._rng.choice(requests)
        await self.finish(self.ask("bad", member, request), method, answer)

    async def _hash(self, member: "Member") -> None:
        request = pb.HashKVRequest(revision=max(0, self._world.newest_revision - self._rng.below(5)))
        asked = self.ask("hash", member, request)
        asked.stale = True
        await self.finish(asked, "HashKV", pb.HashKVResponse, service="Maintenance")

    # Calls

    def ask(self, kind: str, member: "Member", request: Any) -> Asked:
        self._count += 1
        asked = Asked(kind, self._number, member.name, self._world.loop.now / SECOND, float("inf"), Outcome.UNKNOWN)
        asked.request = request
        asked.request_id = f"c{self._number}/{self._count}"
        self._world.history.operations.append(asked)
        return asked

    async def finish(
        self, asked: Asked, method: str, answer: type[Any], service: str = "KV", timeout: float | None = None
    ) -> Any:
        """The response, or None; the outcome is noted."""
        world = self._world
        member = world.by_name[asked.member]
        asked.method = method
        world.pending[asked.request_id] = asked
        if timeout is None:
            timeout = self._rng.choice([0.5, 1.0, 1.0, 3.0, 3.0, 9.0])
        try:
            link = member.link
            if link is None:
                raise KvError(Code.UNAVAILABLE, "no connection")
            data = await link.call(
                f"/etcdserverpb.{service}/{method}",
                asked.request.SerializeToString(),
                timeout,
                {"request-id": asked.request_id},
            )
        except KvError as error:
            asked.error = error
            if error.code in DEFINITE or error == NOT_ENOUGH_STARTED:  # which has etcd's code, Unknown
                asked.outcome = Outcome.FAILED
            elif error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                world.complain(f"{error!r} for {asked}")
            return None
        finally:
            asked.returned = world.loop.now / SECOND
            del world.pending[asked.request_id]
            if world.tracing:
                what = asked.error.message if asked.error is not None else "ok"
                world.note(None, "client", f"{asked.request_id} {asked.kind} at {asked.member}: {what}")
        asked.response = response = answer.FromString(data)
        asked.outcome = Outcome.OK
        asked.revision = response.header.revision
        world.answered(asked)
        return response


async def compact_now_and_then(world: "World", rate: float, finish: Callable[[], bool]) -> None:
    """An operator who compacts up to some revision of late."""
    client = Client(world, 0)
    rng = world.options.stream("compactions")
    while not finish():
        await asyncio.sleep(rng.exponential(SECOND / rate) / SECOND)
        if finish() or world.newest_revision < 3:
            continue
        revision = max(1, world.newest_revision - rng.below(30))
        world.compacted = max(world.compacted, revision)
        request = pb.CompactionRequest(revision=revision, physical=rng.chance(0.3))
        asked = client.ask("compact", rng.choice(world.members), request)
        await client.finish(asked, "Compact", pb.CompactionResponse, timeout=20.0)
