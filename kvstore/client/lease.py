"""Keeping leases alive: any number of them on one stream per client.

Each lease is asked for every third of its TTL. When the stream breaks, or a member does not answer, or it has
no leader, the next member is asked for all of them at once: members pass keep-alives on to the leader, so any
will do, and a leader change costs a lease nothing as long as somebody answers within its TTL.

A lease is lost when the server says that it is gone, and also when no answer came for a whole TTL since the
last one that was asked for: then the server may have revoked it, and who holds a lock by it must not go on.
"""

import asyncio
import functools
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import grpc.aio

from kvstore.client.endpoints import Endpoint, EndpointPool, to_client_error
from kvstore.client.errors import ClientError, NotFound, Unavailable
from kvstore.client.types import LeaseKept
from kvstore.errors import LEASE_NOT_FOUND
from kvstore.pb import rpc_pb2

PARTS: Final = 3  # of its TTL, after which a lease is asked for again
PATIENCE_MAX: Final = 2.0  # seconds without any answer, before another member is asked
LOOK_SECONDS: Final = 0.25
_Once: TypeAlias = Callable[..., Awaitable[rpc_pb2.LeaseKeepAliveResponse]]
_EOF: Final = grpc.aio.EOF  # type: ignore[attr-defined]  # missing from the stubs


class KeepAlive:
    """`async with` it: entering returns when the lease has been kept alive once, within `timeout`.

    Raises NotFound when there is no such lease. Leaving stops; the lease lives on for its TTL.
    As an iterator it gives each renewal from then on, until the lease is lost.
    """

    def __init__(self, hub: "LeaseHub", lease: int, timeout: float) -> None:
        self.lease = lease
        self.ttl = 0  # seconds; 0 until the server has said it
        self.renewals = 0
        self.last: LeaseKept | None = None  # the newest renewal
        self._hub = hub
        self._timeout = timeout
        self._asked_at: float | None = None  # not answered yet
        self._answered = asyncio.Event()  # since it was looked at last
        self._lost = asyncio.Event()
        self._error: ClientError | None = None
        self._next: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._hub.add(self)
        try:
            async with asyncio.timeout(self._timeout):
                await self._answered.wait()
        except TimeoutError:
            self.close()
            reason = self._hub.last_failure
            raise Unavailable(
                f"no member kept the lease alive within {self._timeout:.1f} s" + (f": {reason}" if reason else "")
            ) from None
        except asyncio.CancelledError:
            self.close()
            raise
        if self._error is not None:
            raise self._error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_lost(self) -> bool:
        return self._lost.is_set()

    async def lost(self) -> None:
        """Return when the lease is lost; not before."""
        await self._lost.wait()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LeaseKept:
        self._answered.clear()
        if not self.is_lost:
            await self._answered.wait()
        if self.is_lost or self.last is None:
            raise StopAsyncIteration
        return self.last

    def close(self) -> None:
        self._hub.remove(self)
        for timer in (self._next, self._expiry):
            if timer is not None:
                timer.cancel()

    # ---- called by the hub ----

    def ask(self) -> None:
        self._asked_at = _now()
        self._hub.send(self.lease)

    def answered(self, message: rpc_pb2.LeaseKeepAliveResponse) -> None:
        ttl = message.TTL
        if not ttl:
            self.lose(NotFound(LEASE_NOT_FOUND.message))
            return
        asked, self._asked_at = self._asked_at or _now(), None
        loop = asyncio.get_running_loop()
        for timer in (self._next, self._expiry):
            if timer is not None:
                timer.cancel()
        self._next = loop.call_at(asked + ttl / PARTS, self.ask)
        silence = Unavailable(f"no answer for {ttl} s: the lease may be gone")
        self._expiry = loop.call_at(asked + ttl, self.lose, silence)
        self.ttl = ttl
        self.last = LeaseKept.of(message)
        self.renewals += 1
        self._answered.set()

    def lose(self, error: ClientError) -> None:
        self._error = error
        self.close()
        self._lost.set()
        self._answered.set()

    @property
    def waits(self) -> bool:
        """It was asked for and has no answer yet."""
        return self._asked_at is not None

    @property
    def patience(self) -> float:
        """How long the stream may be silent, so that there is time for another member."""
        return min(PATIENCE_MAX, self.ttl / (2 * PARTS)) if self.ttl else PATIENCE_MAX


class LeaseHub:
    def __init__(self, pool: EndpointPool, dial_timeout: float) -> None:
        self._pool = pool
        self._dial_timeout = dial_timeout
        self._kept: dict[int, list[KeepAlive]] = defaultdict(list)
        self._outbox: asyncio.Queue[int] | None = None
        self._task: asyncio.Task[None] | None = None
        self.last_failure: ClientError | None = None

    def add(self, kept: KeepAlive) -> None:
        self._kept[kept.lease].append(kept)
        if self._outbox is not None:
            kept.ask()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="lease stream")
            self._task.add_done_callback(self._ended)

    def remove(self, kept: KeepAlive) -> None:
        same = self._kept.get(kept.lease, [])
        if kept in same:
            same.remove(kept)
        if not same:
            self._kept.pop(kept.lease, None)
        if not self._kept and self._task is not None:
            self._task.cancel()
            self._task = self._outbox = None

    def send(self, lease: int) -> None:
        if self._outbox is not None:
            self._outbox.put_nowait(lease)

    async def close(self) -> None:
        task = self._task
        for kept in self._all():
            kept.close()
        if task is not None:
            with suppress(asyncio.CancelledError):
                await task

    def _all(self) -> list[KeepAlive]:
        return [kept for same in self._kept.values() for kept in same]

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail_all(ClientError(f"lease stream: {error}"))

    def _fail_all(self, error: ClientError) -> None:
        self._task = None
        for kept in self._all():
            kept.lose(error)

    async def _run(self) -> None:
        while True:
            endpoint = self._pool.pick()
            try:
                await endpoint.connect(self._dial_timeout)
                await self._follow(endpoint)
            except Unavailable as error:
                self.last_failure = error
                self._pool.failed(endpoint)
            except ClientError as error:
                if not endpoint.wants_login(error):
                    self._fail_all(error)
                    return
                self._pool.failed(endpoint)
            await asyncio.sleep(self._pool.wait_seconds())

    async def _follow(self, endpoint: Endpoint) -> None:
        """Keep all alive over one stream until it ends."""
        outbox = self._outbox = asyncio.Queue()
        for kept in self._all():
            kept.ask()
        call = endpoint.lease.LeaseKeepAlive(_requests(outbox), metadata=(("hasleader", "true"),))
        read: asyncio.Future[Any] | None = None
        silence = 0.0  # seconds, while something is waited for
        try:
            while True:
                read = read or asyncio.ensure_future(call.read())
                done, _ = await asyncio.wait([read], timeout=LOOK_SECONDS)
                if not done:
                    # Silence, not a late answer: a slow member that answers one after another is not asked anew.
                    patience = [kept.patience for kept in self._all() if kept.waits]
                    silence = silence + LOOK_SECONDS if patience else 0.0
                    if patience and min(patience) <= silence:
                        raise Unavailable(f"{endpoint.url} does not answer keep-alives")
                    continue
                message, read, silence = read.result(), None, 0.0
                if message is _EOF:
                    raise Unavailable(f"{endpoint.url} ended the lease stream")
                self._pool.succeeded(endpoint)
                for kept in list(self._kept.get(message.ID, ())):
                    kept.answered(message)
        except grpc.aio.AioRpcError as failure:
            raise to_client_error(failure, endpoint, mutation=False) from None
        finally:
            if read is not None:
                read.cancel()
            call.cancel()
            if self._outbox is outbox:
                self._outbox = None


async def _requests(outbox: "asyncio.Queue[int]") -> AsyncIterator[rpc_pb2.LeaseKeepAliveRequest]:
    while True:
        yield rpc_pb2.LeaseKeepAliveRequest(ID=await outbox.get())


def keep_alive_once(endpoint: Endpoint) -> _Once:
    """The stream, used for one request as if it was a unary call."""
    return functools.partial(_ask_once, endpoint)


async def _ask_once(
    endpoint: Endpoint, request: rpc_pb2.LeaseKeepAliveRequest, /, *, timeout: float | None = None
) -> rpc_pb2.LeaseKeepAliveResponse:
    call = endpoint.lease.LeaseKeepAlive(iter([request]), timeout=timeout)
    try:
        response: Any = await call.read()
    finally:
        call.cancel()
    if response is _EOF:
        raise Unavailable(f"{endpoint.url} ended the lease stream")
    kept: rpc_pb2.LeaseKeepAliveResponse = response
    return kept


def _now() -> float:
    return asyncio.get_running_loop().time()
