"""Unique elements, a key each, read as a range."""

from __future__ import annotations

import random
from typing import Any

from tests.jepsen.workloads.base import HIGHER, Client, Workload


class Set(Workload):
    prefix = "set/"

    async def one(self, client: Client, rng: random.Random) -> None:
        name = f"{self.prefix}{self.epoch:04}"
        if rng.random() < 0.8:
            element = next(self.values)
            await client.record("add", name, element, self._add(client, name, element))
        else:
            await client.record("read", name, None, self._read(client, name))

    async def _add(self, client: Client, name: str, element: int) -> tuple[Any, int, dict[str, Any]]:
        return element, await client.put(f"{name}/{element}", str(element)), {}

    async def _read(self, client: Client, name: str) -> tuple[Any, int, dict[str, Any]]:
        answer = await client.range(f"{name}/", f"{name}{HIGHER}")
        return sorted(int(kv.value) for kv in answer.kvs), answer.header.revision, {}

    async def final(self, client: Client) -> bool:
        for epoch in range(self.epoch + 1):
            name = f"{self.prefix}{epoch:04}"
            if await client.record("read", name, None, self._read(client, name)) is None:
                return False
        return True
