"""Mutual exclusion, on plain keys; meets `etcdctl lock`, Go's concurrency.Mutex and the Lock service in one queue.

    async with client.lock("jobs/nightly") as lock:
        await storage.write(report, fence=lock.revision)

A lock is a promise among those who ask for it, and it ends with its session: a holder that was cut off, or stopped for
longer than the TTL, is not the holder any more, and may not know it yet. Two things help. `revision` grows from holder
to holder: whatever the lock protects should refuse a lower one than it has seen. And `lost()` tells when to stop.
"""

import asyncio
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from kvstore.client.claims import Claim, Claimant
from kvstore.client.errors import ClientError
from kvstore.client.session import Session
from kvstore.client.types import Bytes, Header

if TYPE_CHECKING:
    from kvstore.client.client import Client

LOCK_TTL: Final = 10  # seconds; etcdctl's


class Lock(Claimant):
    """Made by Client.lock. Entering waits, for ever if need be, until it is ours; leaving gives it back.

    Raises SessionExpired when the session is lost meanwhile. Under one session it is had only once: who has it, has it.
    """

    def __init__(self, client: "Client", name: Bytes, ttl: int = LOCK_TTL, session: Session | None = None) -> None:
        super().__init__(client, name, ttl, session)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self._own_session:
                await stack.enter_async_context(self._session)
            claim = self._claim = Claim(self._session, self._name)
            stack.push_async_callback(_leave, claim)
            await claim.win()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def header(self) -> Header:
        """Of the answer that gave it to us."""
        assert self._held.header is not None
        return self._held.header

    def _not_held(self) -> Exception:
        return RuntimeError("the lock has not been entered")


async def _leave(claim: Claim) -> None:
    await asyncio.shield(_give_back(claim))


async def _give_back(claim: Claim) -> None:
    """Goes on when nobody waits for it any more, so nobody may be there to take its error."""
    with suppress(ClientError):  # then it goes with the session
        await claim.leave()
