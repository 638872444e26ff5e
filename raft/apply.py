"""Committed entries on their way to the state machine, which may be slower than the log.

A long apply must not hold back heartbeats and acknowledgements, so it runs in a task of its own behind
this queue. The queue is bounded by the core: it hands out no more than Config.apply_bytes_max ahead of
what `RawNode.applied` has reported, and reads the rest from the log once the state machine has caught up.
"""

import asyncio
from abc import ABC, abstractmethod

from raft.errors import ConfigError
from raft.snapshot import ReceivedSnapshot, SnapshotReader, SnapshotWriter
from raft.types import Entry, Index, SnapshotMeta


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

    # Snapshots. Needed once the log is compacted before every member has it, or members are added later. The
    # ids, files and checksums of raft.snapshot; SmallStateMachine (raft.small_state) has all of it for a small state.

    @property
    def installed(self) -> SnapshotMeta | None:
        """The snapshot that was installed last, as far as this is known after a restart.

        A state that survives a restart must know it: a crash may come between `install_snapshot` and what the
        node then does to the log, and the next start finishes it (raft.snapshot.repair_log).
        """
        return None

    async def take_snapshot(self) -> SnapshotReader:
        """The state at one applied index, which is at least what `applied_index` was at the call.

        May come while an `apply` waits for something, and must not hold it up for long. An error is logged, and
        the snapshot is asked for again later.
        """
        raise ConfigError(f"{type(self).__name__} has no snapshots, but a member lacks what the log has compacted")

    def incoming(self) -> SnapshotWriter:
        """Where an arriving snapshot goes. Called for each transfer, on the loop; one is used at a time."""
        raise ConfigError(f"{type(self).__name__} takes no snapshots, but what this member lacks is compacted")

    async def install_snapshot(self, snapshot: ReceivedSnapshot) -> None:
        """Replace the whole state by the snapshot: durably, and wholly or not at all.

        Afterwards applied_index == snapshot.meta.index. No apply is under way. Any exception is final.
        """
        raise ConfigError(f"{type(self).__name__} takes no snapshots, but what this member lacks is compacted")


class CommittedQueue:
    """One side puts, one task takes all that is there."""

    def __init__(self) -> None:
        self.bytes_ahead = 0  # put and not yet reported as done
        self._entries_ahead = 0
        self._entries: list[Entry] = []
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def put(self, entries: list[Entry]) -> None:
        self._entries += entries
        self.bytes_ahead += _size(entries)
        self._entries_ahead += len(entries)
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
        self._entries_ahead -= len(entries)

    @property
    def idle(self) -> bool:
        """Everything that was put is applied."""
        return self._entries_ahead == 0

    def close(self) -> None:
        """Let take() return []."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _size(entries: list[Entry]) -> int:
    return sum([len(entry.data) for entry in entries])
