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

from kvstore.client.claims import Claim
from kvstore.client.errors import ClientError
from kvstore.client.session import Session
from kvstore.client.types import Bytes, Header

if TYPE_CHECKING:
    from kvstore.client.client import Client

LOCK_TTL: Final = 10  # seconds; etcdctl's


class Lock:
    """Made by Client.lock. Entering waits, for ever if need be, until it is ours; leaving gives it back.

    Raises SessionExpired when the session is lost meanwhile. Under one session it is had only once: who has it, has it.
    """

    def __init__(self, client: "Client", name: Bytes, ttl: int = LOCK_TTL, session: Session | None = None) -> None:
        self._own_session = session is None
        self._session = Session(client, ttl) if session is None else session
        self._name = name
        self._claim: Claim | None = None
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
    def key(self) -> bytes:
        """It is there for as long as the lock is ours: a compare for transactions."""
        return self._held.key

    @property
    def revision(self) -> int:
        """That created the key: greater than that of every holder before."""
        return self._held.revision

    @property
    def header(self) -> Header:
        """Of the answer that gave it to us."""
        assert self._held.header is not None
        return self._held.header

    @property
    def is_lost(self) -> bool:
        return self._session.is_lost

    async def lost(self) -> None:
        """Return when it may not be ours any more, though we have not given it back; not before."""
        await self._session.lost()

    @property
    def _held(self) -> Claim:
        if self._claim is None:
            raise RuntimeError("the lock has not been entered")
        return self._claim


async def _leave(claim: Claim) -> None:
    await asyncio.shield(_give_back(claim))


async def _give_back(claim: Claim) -> None:
    """Goes on when nobody waits for it any more, so nobody may be there to take its error."""
    with suppress(ClientError):  # then it goes with the session
        await claim.leave()
