"""A session: a lease that lives as long as this process shows that it does, and what is bound to it.

Locks and elections hang their keys on one, so that they go when their owner does. Like etcd's Go client does it
(client/v3/concurrency), whose sessions, locks and elections these meet in one queue.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

from kvstore.client.errors import ClientError, SessionExpired, Unavailable
from kvstore.client.lease import KeepAlive

if TYPE_CHECKING:
    from kvstore.client.client import Client

SESSION_TTL: Final = 60  # seconds, etcd's
RETRY_SECONDS: Final = 0.1

T = TypeVar("T")


class Session:
    """Use as an async context manager: entering gets the lease, leaving ends it, and with it what is bound to it.

    ttl: seconds that the cluster waits for a sign of life.
    """

    def __init__(self, client: "Client", ttl: int = SESSION_TTL) -> None:
        self.client = client
        self.lease = 0
        self._ttl = ttl
        self._kept: KeepAlive | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.lease = (await self.client.lease_grant(self._ttl)).id
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._revoke)
            self._kept = await stack.enter_async_context(self.client.lease_keep_alive(self.lease))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _revoke(self) -> None:
        with suppress(ClientError):  # gone already, or it goes by itself
            await self.client.lease_revoke(self.lease)

    @property
    def is_lost(self) -> bool:
        return self._kept is None or self._kept.is_lost

    async def lost(self) -> None:
        """Return when it may have ended against our will: whoever holds something by it has to stop."""
        if self._kept is not None:
            await self._kept.lost()

    async def run(self, work: Awaitable[T]) -> T:
        """The result of `work`, or SessionExpired as soon as the session is lost."""
        task, lost = asyncio.ensure_future(work), asyncio.ensure_future(self.lost())
        try:
            await asyncio.wait([task, lost], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise SessionExpired("the session has ended while it was waited")
            return task.result()
        finally:
            task.cancel()
            lost.cancel()

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Ask until there is an answer, or the session is lost. Only for what may be asked twice."""
        while True:
            try:
                return await call()
            except Unavailable:
                if self.is_lost:
                    raise SessionExpired("the session has ended while no member answered") from None
            await asyncio.sleep(RETRY_SECONDS)
