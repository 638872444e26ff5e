"""Committed entries on their way to the state machine, which may be slower than the log.

A long apply must not hold back heartbeats and acknowledgements, so it runs in a task of its own behind
this queue. The queue is bounded by the core: it hands out no more than Config.apply_bytes_max ahead of
what `RawNode.applied` has reported, and reads the rest from the log once the state machine has caught up.
"""

import asyncio
from abc import ABC, abstractmethod

from raft.types import Entry, Index


class StateMachine(ABC):
    """What the log is replicated for. Must be deterministic."""

    @property
    @abstractmethod
    def applied_index(self) -> Index:
        """The last entry whose effect is in the state; 0 at first. Read at start and after each apply."""

    @abstractmethod
    async def apply(self, entries: list[Entry]) -> None:
        """Apply in order, without gaps. NOOP and CONFIGURATION entries come too and only move applied_index.

        May yield to the loop. Any exception is final: the state is unknown and the node stops.
        """


class CommittedQueue:
    """One side puts, one task takes all that is there."""

    def __init__(self) -> None:
        self.bytes_ahead = 0  # put and not yet reported as done
        self._entries: list[Entry] = []
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def put(self, entries: list[Entry]) -> None:
        self._entries += entries
        self.bytes_ahead += _size(entries)
        self._wake()

    async def take(self) -> list[Entry]:
        """Everything that waits, at least one entry; [] once closed."""
        while not self._entries and not self._closed:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._closed:
            return []
        entries, self._entries = self._entries, []
        return entries

    def done(self, entries: list[Entry]) -> None:
        """These are applied."""
        self.bytes_ahead -= _size(entries)

    def close(self) -> None:
        """Let take() return []."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _size(entries: list[Entry]) -> int:
    return sum([len(entry.data) for entry in entries])
