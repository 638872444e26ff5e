"""A queue as a recipe over keys: an element is a key of its own, and the oldest by create_revision is taken by a
transaction that deletes it if it is still there."""

from __future__ import annotations

import random
from typing import Any

from kvstore.client import txn
from tests.jepsen.workloads.base import Client, NotDone, Workload

PREFIX = "queue/"
LENGTH_MAX = 200  # takers meet at its head and most are too late: unbounded, it would take minutes to empty


class Queue(Workload):
    prefix = PREFIX

    def __init__(self) -> None:
        super().__init__()
        self._length = 0  # at most: an element whose fate nobody knows counts

    async def one(self, client: Client, rng: random.Random) -> None:
        if self._length < LENGTH_MAX and rng.random() < 0.5:
            self._length += 1
            element = next(self.values)
            await client.record("enqueue", PREFIX, element, self._enqueue(client, element))
        else:
            await self._take(client)

    async def _take(self, client: Client) -> Any:
        """First look, then take: whose outcome is unknown is known then."""
        oldest = await client.record("peek", PREFIX, None, self._peek(client))
        if oldest:
            taken = await client.record("dequeue", PREFIX, oldest, self._dequeue(client, *oldest))
            self._length -= taken is not None
            return taken
        self._length = 0 if oldest == [] else self._length
        return oldest

    async def _enqueue(self, client: Client, element: int) -> tuple[Any, int, dict[str, Any]]:
        key = f"{PREFIX}{element:08}"
        answer = await client.ours.txn([txn.create_revision(key).equals(0)], [txn.put(key, str(element))])
        if not answer.succeeded:
            raise NotDone("compare", answer.header.revision)
        return element, answer.header.revision, {"wrote": {key: str(element)}}

    async def _peek(self, client: Client) -> tuple[Any, int, dict[str, Any]]:
        """[element, create_revision], or [] of an empty queue."""
        answer = await client.ours.get(PREFIX, prefix=True, limit=1, sort_by="create", order="ascend")
        found = [[int(kv.value), kv.create_revision] for kv in answer.kvs]
        return found[0] if found else [], answer.header.revision, {}

    async def _dequeue(self, client: Client, element: int, created: int) -> tuple[Any, int, dict[str, Any]]:
        key = f"{PREFIX}{element:08}"
        answer = await client.ours.txn([txn.create_revision(key).equals(created)], [txn.delete(key)])
        if not answer.succeeded:
            raise NotDone("compare", answer.header.revision)
        return [element, created], answer.header.revision, {"wrote": {key: None}}

    async def final(self, client: Client) -> bool:
        """Until it is empty."""
        while True:
            oldest = await client.record("peek", PREFIX, None, self._peek(client))
            if not oldest:
                return oldest is not None
            await client.record("dequeue", PREFIX, oldest, self._dequeue(client, *oldest))
