"""Transport: carries messages between nodes. May lose, delay, reorder or repeat them; never blocks.

Snapshots go another way, so that no message waits behind them (raft/snapshot.py).
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

from raft.messages import Message
from raft.snapshot import SnapshotHeader, SnapshotReader, SnapshotReceiver
from raft.types import NodeId

Receive = Callable[[list[Message]], None]


class Transport(ABC):
    """One per node. Implementations share tests/raft/test_transport.py."""

    # The node sets them before `start`.
    on_unreachable: Callable[[NodeId], None] | None = None  # its stream ended, and its address refuses a new one
    snapshot_bytes_per_second: int = 0  # how fast one snapshot may leave; 0: as fast as it goes

    @abstractmethod
    async def start(self, receive: Receive, receive_snapshot: SnapshotReceiver | None = None) -> None:
        """Begin to listen and to connect. `receive` is called on the loop with what one read brought.

        Without `receive_snapshot` incoming snapshots are refused.
        """

    @abstractmethod
    def send(self, messages: list[Message]) -> None:
        """Queue for the peers that `to` names, one frame for each. Drops when a peer's queue is full."""

    @abstractmethod
    async def send_snapshot(self, to: NodeId, header: SnapshotHeader, reader: SnapshotReader) -> None:
        """Returns once `to` has installed it. Goes on where an earlier attempt was cut off.

        Raises SnapshotFailed; and may be cancelled. Errors of `reader` pass through.
        """

    @abstractmethod
    def set_peers(self, peers: dict[NodeId, list[str]]) -> None:
        """Who the others are and under which URLs they listen."""

    @abstractmethod
    def connected(self) -> frozenset[NodeId]:
        """Peers that we have an open stream to."""

    @abstractmethod
    async def stop(self) -> None: ...


class Pace:
    """Keeps a transfer at or below a number of bytes per second."""

    def __init__(self, bytes_per_second: int) -> None:
        self._bytes_per_second = bytes_per_second
        self._due = 0.0  # when the next piece may leave, on the loop's clock

    async def spend(self, size: int) -> None:
        if not self._bytes_per_second:
            return
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now) + size / self._bytes_per_second
        await asyncio.sleep(self._due - now)


def by_peer(messages: list[Message]) -> dict[NodeId, list[Message]]:
    """The messages of one send, by the peer that each is for, in order."""
    frames: dict[NodeId, list[Message]] = {}
    for message in messages:
        frames.setdefault(message.to, []).append(message)
    return frames
