"""The housekeeper: the log may forget what a finished flush has made durable, and nothing else."""

import asyncio
from typing import Any

from kvstore.server.machine import Housekeeper
from raft.types import Entry


class FakeStore:
    ended: dict[int, int] = {}  # noqa: RUF012  # no lease has left rows behind

    def __init__(self) -> None:
        self.flushing: list[asyncio.Future[int]] = []

    async def flush(self) -> int:
        self.flushing.append(asyncio.get_running_loop().create_future())
        return await self.flushing[-1]


class FakeCompactor:
    pending = False

    def __init__(self) -> None:
        self.runs = 0

    async def run(self) -> None:
        self.runs += 1
        self.pending = False


class FakeNode:
    def __init__(self) -> None:
        self.compacted: list[int] = []

    async def compact(self, index: int) -> None:
        self.compacted.append(index)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def entries(count: int, size: int = 1) -> list[Entry]:
    return [Entry(index + 1, 1, bytes(size)) for index in range(count)]


async def started(**bounds: int) -> tuple[Housekeeper, Any, FakeNode, asyncio.Task[None]]:
    store, node = FakeStore(), FakeNode()
    housekeeper = Housekeeper(store, FakeCompactor(), **bounds)  # type: ignore[arg-type]
    task = asyncio.create_task(housekeeper.run(node))
    return housekeeper, store, node, task


async def test_the_log_is_compacted_after_the_flush_up_to_what_the_flush_says() -> None:
    housekeeper, store, node, task = await started(entries_max=3)
    housekeeper.applied(entries(2))
    await settle()
    assert store.flushing == []
    housekeeper.applied(entries(1))
    await settle()
    assert len(store.flushing) == 1
    assert node.compacted == []
    store.flushing[0].set_result(2)
    await settle()
    assert node.compacted == [2]
    task.cancel()


async def test_bytes_count_too_and_what_comes_during_a_flush_counts_for_the_next() -> None:
    housekeeper, store, _, task = await started(entries_max=1000, bytes_max=100)
    housekeeper.applied(entries(1, 100))
    await settle()
    housekeeper.applied(entries(1, 100))
    store.flushing[0].set_result(1)
    await settle()
    assert len(store.flushing) == 2
    task.cancel()


async def test_what_a_compact_request_has_hidden_is_removed_in_the_background() -> None:
    compactor = FakeCompactor()
    housekeeper = Housekeeper(FakeStore(), compactor, 10)  # type: ignore[arg-type]
    task = asyncio.create_task(housekeeper.run_compaction())
    housekeeper.visible()
    await settle()
    assert compactor.runs == 0
    compactor.pending = True
    housekeeper.visible()
    await settle()
    assert compactor.runs == 1
    task.cancel()
