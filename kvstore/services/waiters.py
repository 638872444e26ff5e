"""The queue that Lock and Election share (etcd client/v3/concurrency): one key for each who waits, under a prefix.

    name/<lease in hexadecimal>     bound to the lease, created once; the oldest one has the lock, or leads

Who comes later waits until no key that is older than its own is left. It watches the youngest of those only, so that
an end wakes one waiter and not all. A waiter whose call ends takes its key away, also when the call ends while the
key is being made; only the end of the whole process leaves it to its lease.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Final, TypeAlias, final

import structlog

from kvstore.errors import TOO_MANY_REQUESTS, KvError
from kvstore.pb.kv_pb2 import Event, KeyValue
from kvstore.pb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    LeaseGrantRequest,
    PutRequest,
    RangeRequest,
    RangeResponse,
    RequestOp,
    ResponseHeader,
    TxnRequest,
    TxnResponse,
    WatchCreateRequest,
)
from kvstore.services.inner import InnerClient, unknown

log = structlog.get_logger(__name__)

SESSION_TTL: Final = 60  # seconds; of the lease of a caller that names none, which nobody keeps alive (etcd)
WAITERS_MAX: Final = 10_000  # calls of both services that wait or observe; each has a task and a watch
TIDY_SECONDS: Final = 1.0  # at a stop, for the keys of those whose calls were just ended

Value: TypeAlias = tuple[ResponseHeader, KeyValue]


@final
class Waiters:
    """How many wait, and what has to be tidied up behind those that went."""

    def __init__(self, most: int = WAITERS_MAX) -> None:
        self._most = most
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()  # the loop keeps only weak references to tasks

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Raises KvError when there are too many."""
        if self._count >= self._most:
            raise unknown(TOO_MANY_REQUESTS)
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1

    def tidy(self, work: Coroutine[Any, Any, Any]) -> None:
        """To be done whether or not the caller is still there."""
        task = asyncio.create_task(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=TIDY_SECONDS)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _quietly(work: Coroutine[Any, Any, Any]) -> None:
    try:
        await work
    except KvError as error:
        log.info("a waiter's key is left to its lease", reason=error.message)
    except Exception:  # top of a task
        log.exception("a waiter's key could not be removed")


@final
class Claim:
    """One waiter's key, and the revision that created it: both together name it for ever."""

    def __init__(self, inner: InnerClient, key: bytes, revision: int, lease: int) -> None:
        self._inner = inner
        self.key = key
        self.revision = revision
        self.lease = lease

    async def put(self, value: bytes) -> TxnResponse:
        """A new value, if the key is still the same; `succeeded` tells."""
        return await self._if_same(RequestOp(request_put=PutRequest(key=self.key, value=value, lease=self.lease)))

    async def delete(self) -> TxnResponse:
        """Give it up, if it is still the same."""
        return await self._if_same(RequestOp(request_delete_range=DeleteRangeRequest(key=self.key)))

    async def get(self) -> RangeResponse:
        return await self._inner.range(RangeRequest(key=self.key))

    async def _if_same(self, op: RequestOp) -> TxnResponse:
        compare = Compare(key=self.key, target=Compare.CREATE, create_revision=self.revision)
        return await self._inner.txn(TxnRequest(compare=[compare], success=[op]))


@final
class Queue:
    """All keys of one name, as one caller uses them."""

    def __init__(self, waiters: Waiters, inner: InnerClient, name: bytes) -> None:
        self._waiters = waiters
        self._inner = inner
        self._prefix = name + b"/"

    async def join(self, lease: int, value: bytes) -> tuple[Claim, TxnResponse]:
        """Put the caller's key, or find it as it is: `succeeded` tells. Then comes the answer to `first`."""
        if not lease:
            lease = await new_lease(self._inner)
        claim = Claim(self._inner, b"%b%x" % (self._prefix, lease), 0, lease)
        first = RequestOp(request_range=self._first())
        request = TxnRequest(
            compare=[Compare(key=claim.key, target=Compare.CREATE, create_revision=0)],
            success=[RequestOp(request_put=PutRequest(key=claim.key, value=value, lease=lease)), first],
            failure=[RequestOp(request_range=RangeRequest(key=claim.key)), first],
        )
        answer = asyncio.ensure_future(self._inner.txn(request))
        try:
            response = await asyncio.shield(answer)
        except asyncio.CancelledError:
            self._waiters.tidy(_abandon(claim, answer))
            raise
        claim.revision = _created(response)
        return claim, response

    async def first(self) -> RangeResponse:
        """The oldest key: who has it has the lock, or leads."""
        return await self._inner.range(self._first())

    async def wait_first(self, claim: Claim) -> None:
        """Until no older key is left. The claim is given up when that fails, or its caller goes."""
        try:
            await self._wait_first(claim.revision)
        except BaseException:
            self._waiters.tidy(claim.delete())
            raise

    async def _wait_first(self, revision: int) -> None:
        while True:
            # The youngest of the older ones.
            found = await self._inner.range(
                self._range(sort_order=RangeRequest.DESCEND, max_create_revision=revision - 1)
            )
            if not found.kvs:
                return
            await self._wait_deleted(found.kvs[0].key, found.header.revision)

    async def _wait_deleted(self, key: bytes, revision: int) -> None:
        """Until this key, which was there at `revision`, is gone; or may be."""
        request = WatchCreateRequest(key=key, start_revision=revision + 1, filters=[WatchCreateRequest.NOPUT])
        async with aclosing(self._inner.watch(request)) as responses:
            async for _ in responses:
                return

    async def observe(self) -> AsyncGenerator[Value, None]:
        """Who is first, each value that the first puts, and who is first after that. What is compacted is left out."""
        while True:
            found = await self.first()
            value = (found.header, found.kvs[0]) if found.kvs else await self._next_put(found.header.revision + 1)
            if value is None:
                continue
            yield value
            header, kv = value
            request = WatchCreateRequest(key=kv.key, start_revision=header.revision + 1)
            async with aclosing(self._inner.watch(request)) as responses:
                async for response in responses:
                    for event in response.events:
                        if event.type == Event.DELETE:
                            break
                        yield response.header, event.kv
                    else:
                        continue
                    break

    async def _next_put(self, revision: int) -> Value | None:
        """The first one from `revision` on; None when it is compacted."""
        first = self._first()
        request = WatchCreateRequest(
            key=first.key, range_end=first.range_end, start_revision=revision, filters=[WatchCreateRequest.NODELETE]
        )
        async with aclosing(self._inner.watch(request)) as responses:
            async for response in responses:
                header, kv = response.header, response.events[0].kv
                header.revision = kv.mod_revision  # the response may hold more
                return header, kv
        return None

    def _first(self) -> RangeRequest:
        return self._range(sort_order=RangeRequest.ASCEND)

    def _range(self, **options: Any) -> RangeRequest:
        end = self._prefix[:-1] + b"0"  # what follows "/"
        return RangeRequest(key=self._prefix, range_end=end, limit=1, sort_target=RangeRequest.CREATE, **options)


async def new_lease(inner: InnerClient) -> int:
    return (await inner.lease_grant(LeaseGrantRequest(TTL=SESSION_TTL))).ID


def _created(response: TxnResponse) -> int:
    """The revision that created the key of a `join`."""
    return (
        response.header.revision if response.succeeded else response.responses[0].response_range.kvs[0].create_revision
    )


async def _abandon(claim: Claim, answer: "asyncio.Future[TxnResponse]") -> None:
    """The caller went while the key was being made. One that was there before is not touched."""
    response = await answer
    if response.succeeded:
        claim.revision = _created(response)
        await claim.delete()
