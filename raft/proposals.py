"""Where proposals wait until the node can take a batch: group commit without a timer.

The node pulls. While one fsync runs, proposals gather here; when it is done the node takes what is
there, as one batch. So batches grow with the load and a lone proposal waits for nobody.
"""

import logging
from abc import ABC, abstractmethod
from collections import deque

from raft.errors import RaftError
from raft.types import NodeId

logger = logging.getLogger("raft.proposals")


class ProposalSource(ABC):
    """Called by one node, on its loop, never re-entered. Whoever adds to it calls `Node.wake()`."""

    @abstractmethod
    def take(self, bytes_max: int, leading: bool) -> list[bytes]:
        """What to append now; when this node does not lead, what to forward to the leader, at most once.

        At most `bytes_max` in sum, but a single larger item goes alone. [] when nothing waits.
        """

    @property
    def has_more(self) -> bool:
        """Whether one more `take`, right after the last, may bring something."""
        return True

    @abstractmethod
    def receive(self, sender: NodeId, data: list[bytes]) -> None:
        """What a follower forwarded to us, the leader. Unchecked input: whoever implements this validates it."""

    @abstractmethod
    def returned(self, data: list[bytes], error: RaftError) -> None:
        """The last `take` was neither appended nor sent, for certain."""


class ProposalQueue(ProposalSource):
    """First in, first out, bounded in bytes. What cannot be appended any more is lost: the caller learns
    of success only through the state machine, as with any proposal."""

    def __init__(self, bytes_max: int = 16 * 1024 * 1024) -> None:
        self._bytes_max = bytes_max
        self._items: deque[bytes] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def has_more(self) -> bool:
        return bool(self._items)

    def put(self, data: bytes) -> bool:
        """Queue one proposal; False when the queue is full."""
        if self._bytes >= self._bytes_max:
            return False
        self._items.append(data)
        self._bytes += len(data)
        return True

    def take(self, bytes_max: int, leading: bool) -> list[bytes]:
        taken: list[bytes] = []
        size = 0
        while self._items and (not taken or size + len(self._items[0]) <= bytes_max):
            data = self._items.popleft()
            size += len(data)
            taken.append(data)
        self._bytes -= size
        return taken

    def receive(self, sender: NodeId, data: list[bytes]) -> None:
        for item in data:
            if not self.put(item):
                logger.warning("dropped proposals forwarded by %x: the queue is full", sender)
                return

    def returned(self, data: list[bytes], error: RaftError) -> None:
        # Nothing of it was appended, so proposing it again cannot double it.
        self._items.extendleft(reversed(data))
        self._bytes += sum(map(len, data))
