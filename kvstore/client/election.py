"""Who leads, on plain keys; meets `etcdctl elect`, Go's concurrency.Election and the Election service in one queue.

    async with client.election("jobs/leader") as election:
        await election.campaign("10.0.0.1")          # returns when we lead
        ...
        await election.proclaim("10.0.0.2")          # what others see of us

    async for kv in client.election("jobs/leader").observe():
        print(kv.value, "leads")

What is said of locks (kvstore/client/lock.py) is true of leaders: one that was cut off may not know it yet.
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kvstore.client import claims
from kvstore.client.claims import Claim, Claimant
from kvstore.client.errors import ClientError, NotLeader
from kvstore.client.session import SESSION_TTL, Session
from kvstore.client.types import Bytes, KeyValue

if TYPE_CHECKING:
    from kvstore.client.client import Client


class Election(Claimant):
    """Made by Client.election. Enter it to campaign; to look needs no entering."""

    def __init__(self, client: "Client", name: Bytes, ttl: int = SESSION_TTL, session: Session | None = None) -> None:
        super().__init__(client, name, ttl, session)
        self._client = client

    async def __aenter__(self) -> Self:
        if self._own_session:
            await self._session.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(ClientError):  # then it goes with the session
            await self.resign()
        if self._own_session:
            await self._session.__aexit__(kind, error, traceback)

    async def campaign(self, value: Bytes) -> None:
        """Return when we lead, which may be never. Raises SessionExpired."""
        claim = self._claim = Claim(self._session, self._name)
        try:
            await claim.win(value)
        except BaseException:
            with suppress(ClientError):
                await self.resign()
            raise

    async def proclaim(self, value: Bytes) -> None:
        """Tell who observes something new. Raises NotLeader."""
        if self._claim is None or not await self._claim.put(value):
            raise self._not_held()

    async def resign(self) -> None:
        """Let the next one lead; nothing when we do not."""
        if self._claim is not None:
            claim, self._claim = self._claim, None
            await claim.leave()

    async def leader(self) -> KeyValue | None:
        found = await claims.first(self._client, self._name)
        return found.kvs[0] if found.kvs else None

    async def observe(self) -> AsyncIterator[KeyValue]:
        """The leader, each of its proclamations, and every leader after it; never ends by itself."""
        async for found in claims.observe(self._client, self._name):
            yield found.kvs[0]

    def _not_held(self) -> NotLeader:
        return NotLeader("election: not leader")
