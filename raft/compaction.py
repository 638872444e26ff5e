"""Compactions: how much of the log a node may forget, and who waits for it."""

import asyncio

from raft.core.raw_node import RawNode
from raft.errors import Stopped
from raft.failpoints import fail_async
from raft.node_config import NodeConfig
from raft.runtime import Runtime
from raft.storage.base import LogStorage
from raft.types import Index


class Compactions:
    def __init__(self, config: NodeConfig, storage: LogStorage) -> None:
        self._config = config
        self._storage = storage
        self._asked: list[tuple[Index, asyncio.Future[None]]] = []

    def __bool__(self) -> bool:
        return bool(self._asked)

    async def wait(self, index: Index) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append((index, done))
        await done

    async def run(self, raw: RawNode, runtime: Runtime, applied: Index, pinned: Index | None) -> None:
        """For all who wait now. `pinned`: the log after it is wanted for a member that gets a snapshot."""
        count = len(self._asked)
        index = self._target(raw, applied, pinned)
        if index >= self._storage.first_index:
            await fail_async("raftBeforeCompact")
            await runtime.run(self._storage.compact, index, *raw.configuration_at(index))
        for _, future in self._asked[:count]:
            if not future.done():
                future.set_result(None)
        del self._asked[:count]

    def _target(self, raw: RawNode, applied: Index, pinned: Index | None) -> Index:
        """Up to where the log is not needed; below first_index when all of it is.

        What every member has nobody asks for; of the rest a window stays, for those that are a little behind: they
        get entries, which is cheaper than a snapshot, and does not throw them back while they catch up (S-21).
        """
        storage = self._storage
        index = min(max([index for index, _ in self._asked]), applied, storage.last_index)
        if index < storage.first_index:
            return index
        index = max(min(index, raw.status().replicated_index), self._before_window(index))
        if (
            pinned is not None
            and storage.first_index - 1 <= pinned < index
            and storage.bytes_after(pinned) <= self._config.snapshot_pin_bytes
        ):
            return pinned
        return index

    def _before_window(self, index: Index) -> Index:
        """The highest position up to `index` that has catch_up_bytes or catch_up_entries behind it; first_index - 1
        when none has."""
        low = max(self._storage.first_index - 1, min(index, self._storage.last_index - self._config.catch_up_entries))
        high = index
        while low < high:
            middle = (low + high + 1) // 2
            if self._storage.bytes_after(middle) >= self._config.catch_up_bytes:
                low = middle
            else:
                high = middle - 1
        return low

    def fail(self, error: Stopped) -> None:
        for _, future in self._asked:
            if not future.done():
                future.set_exception(error)
        self._asked.clear()
