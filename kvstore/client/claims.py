"""The queue that locks and elections share, on plain keys (etcd client/v3/concurrency).

    name/<lease in hexadecimal>     bound to the session's lease, created once; the oldest one holds, or leads

Who comes later watches the youngest key that is older than its own: an end wakes one waiter and not all. Every step may
be asked twice, since a key's name says whose it is; so a member that fails on the way costs nothing but time.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any

from kvstore.client import txn
from kvstore.client.errors import Compacted, SessionExpired
from kvstore.client.session import Session
from kvstore.client.types import Bytes, GetResult, Header, KeyValue, to_bytes

if TYPE_CHECKING:
    from kvstore.client.client import Client


def prefix_of(name: Bytes) -> bytes:
    return to_bytes(name) + b"/"


class Claim:
    """Our key. The revision that created it is greater than that of whoever was first before us."""

    def __init__(self, session: Session, name: Bytes) -> None:
        self._session = session
        self._client = session.client
        self._prefix = prefix_of(name)
        self.key = b"%b%x" % (self._prefix, session.lease)
        self.revision = 0
        self.header: Header | None = None  # of the answer that told that we are first

    async def win(self, value: Bytes = b"") -> None:
        """Return when nobody is before us. Raises SessionExpired. Whoever gives up waiting has to `leave`."""
        await self._session.run(self._win(to_bytes(value)))

    async def _win(self, value: bytes) -> None:
        get, first = txn.get(self.key), txn.get(self._prefix, **_FIRST)
        absent = [txn.create_revision(self.key).equals(0)]
        put = txn.put(self.key, value, lease=self._session.lease)
        joined = await self._session.ask(partial(self._client.txn, absent, [put, get, first], [get, first]))
        own, holder = (_only(result) for result in joined.responses[-2:])
        self.revision = own.create_revision
        if own.value != value:
            await self.put(value)
        if holder.key == self.key:
            self.header = joined.header
            return
        while before := await self._session.ask(self._before):
            await wait_deleted(self._client, before[0], before[1])
        found = await self._session.ask(partial(self._client.get, self.key))
        if not found.kvs or found.kvs[0].create_revision != self.revision:
            raise SessionExpired("the session has ended while it was waited")
        self.header = found.header

    async def _before(self) -> tuple[bytes, int] | None:
        """The youngest key that is older than ours, and when it was there."""
        found = await self._client.get(
            self._prefix, prefix=True, limit=1, sort_by="create", order="descend", max_create_revision=self.revision - 1
        )
        return (found.kvs[0].key, found.header.revision) if found.kvs else None

    async def put(self, value: Bytes) -> bool:
        """A new value; False when the key is not ours any more."""
        put = txn.put(self.key, value, lease=self._session.lease)
        return (await self._session.ask(partial(self._client.txn, [self._is_ours()], [put]))).succeeded

    async def leave(self) -> None:
        """Take the key away, if it is there. Raises ClientError; then it goes with the session."""
        await self._session.ask(partial(self._client.delete, self.key))

    def _is_ours(self) -> Any:
        return txn.create_revision(self.key).equals(self.revision)


class Claimant(ABC):
    """What locks and elections are to who has one: a key, for as long as its session lives."""

    def __init__(self, client: "Client", name: Bytes, ttl: int, session: Session | None) -> None:
        """session: another's, which outlives this; None: one of our own."""
        self._own_session = session is None
        self._session = Session(client, ttl) if session is None else session
        self._name = name
        self._claim: Claim | None = None

    @property
    def key(self) -> bytes:
        """It is there for as long as the claim is ours: a compare for transactions."""
        return self._held.key

    @property
    def revision(self) -> int:
        """That created the key: greater than that of everybody before."""
        return self._held.revision

    @property
    def is_lost(self) -> bool:
        return self._session.is_lost

    async def lost(self) -> None:
        """Return when it may not be ours any more, though we have not given it back; not before."""
        await self._session.lost()

    @property
    def _held(self) -> Claim:
        if self._claim is None:
            raise self._not_held()
        return self._claim

    @abstractmethod
    def _not_held(self) -> Exception: ...


_FIRST: Any = {"prefix": True, "limit": 1, "sort_by": "create", "order": "ascend"}


def _only(result: Any) -> KeyValue:
    assert isinstance(result, GetResult)
    return result.kvs[0]


async def first(client: "Client", name: Bytes) -> GetResult:
    """The oldest key of a name, in a list of at most one."""
    return await client.get(prefix_of(name), **_FIRST)


async def wait_deleted(client: "Client", key: bytes, revision: int) -> None:
    """Until a key that was there at `revision` is gone; or may be, when what happened since is compacted."""
    async with client.watch(key, start_revision=revision + 1, only="DELETE") as watch:
        try:
            await anext(watch)
        except Compacted:
            return


async def observe(client: "Client", name: Bytes) -> AsyncIterator[GetResult]:
    """Who is first, each value that the first puts, and who is first after that. What is compacted is left out."""
    while True:
        found = await first(client, name)
        options: Any = {"start_revision": found.header.revision + 1}
        if found.kvs:
            key = found.kvs[0].key
            yield found
        else:
            key, options = prefix_of(name), options | {"prefix": True, "only": "PUT"}
        async with client.watch(key, **options) as watch:
            try:
                async for response in watch:
                    for event in response.events:
                        if not found.kvs or event.type == "DELETE":
                            break  # look again: it need not be the next one
                        yield GetResult(response.header, (event.kv,), False, 1)
                    else:
                        continue
                    break
            except Compacted:
                continue
