"""Who waits for a read round or for an index to be applied.

Each waiter is a future that is resolved exactly once and removed when its caller gives up, so a caller's
timeout leaves nothing behind.
"""

import asyncio

from raft.core.raw_node import Status
from raft.errors import Stopped
from raft.types import NO_NODE, Index, NodeId, ReadState

IndexFuture = asyncio.Future[Index]


class ReadWaiters:
    """Callers of Node.read_index, grouped into rounds (thesis 6.4).

    At most one round is under way; all who come meanwhile share the next, as only a round that began
    after a caller's arrival proves anything to it. A round that stays unanswered (its messages were
    lost, the leader changed) is begun anew under a new context. Contexts grow, and whatever confirms a
    round also confirms the older ones.
    """

    def __init__(self) -> None:
        self._arrived: dict[IndexFuture, None] = {}  # not in a round yet; a dict, as its order is fixed
        self._asked: dict[IndexFuture, int] = {}  # the first round that each joined
        self._asked_tick = 0  # when the newest round began

    def __len__(self) -> int:
        return len(self._arrived) + len(self._asked)

    async def wait(self) -> Index:
        future: IndexFuture = asyncio.get_running_loop().create_future()
        self._arrived[future] = None
        try:
            return await future
        finally:
            self._arrived.pop(future, None)
            self._asked.pop(future, None)

    def wants_round(self, tick: int, retry_ticks: int) -> bool:
        """Begin a round now?"""
        if self._asked:
            return tick - self._asked_tick >= retry_ticks
        return bool(self._arrived)

    def began(self, context: int, tick: int) -> None:
        """Whoever has arrived is in the round `context`."""
        for future in self._arrived:
            self._asked[future] = context
        self._arrived = {}
        self._asked_tick = tick

    def resolve(self, reads: list[ReadState]) -> None:
        """Answer all who joined a confirmed round or an older one."""
        for read in reads:
            for future in [future for future, joined in self._asked.items() if joined <= read.context]:
                del self._asked[future]
                if not future.done():
                    future.set_result(read.index)

    def fail(self, error: Stopped) -> None:
        for future in [*self._arrived, *self._asked]:
            if not future.done():
                future.set_exception(error)


class AppliedWaiters:
    """Callers of Node.wait_applied, by index: few indexes, many callers each."""

    def __init__(self) -> None:
        self._by_index: dict[Index, dict[IndexFuture, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_index.values()))

    async def wait(self, index: Index) -> None:
        future: IndexFuture = asyncio.get_running_loop().create_future()
        self._by_index.setdefault(index, {})[future] = None
        try:
            await future
        finally:
            waiting = self._by_index.get(index)
            if waiting is not None:
                waiting.pop(future, None)
                if not waiting:
                    del self._by_index[index]

    def resolve(self, applied: Index) -> None:
        if not self._by_index:
            return
        for index in [index for index in self._by_index if index <= applied]:
            for future in self._by_index.pop(index):
                if not future.done():
                    future.set_result(applied)

    def fail(self, error: Stopped) -> None:
        for waiting in self._by_index.values():
            for future in waiting:
                if not future.done():
                    future.set_exception(error)


class LeaderWatch:
    """A listener of Node.on_change: `changed` is set once another node leads."""

    def __init__(self, node_id: NodeId) -> None:
        self.changed = asyncio.Event()
        self._node_id = node_id

    def __call__(self, status: Status) -> None:
        if status.leader_id not in {NO_NODE, self._node_id}:
            self.changed.set()
