"""Transport: carries messages between nodes. May lose, delay, reorder or repeat them; never blocks."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from raft.messages import Message
from raft.types import NodeId

Receive = Callable[[list[Message]], None]


class Transport(ABC):
    """One per node. Implementations share tests/raft/test_transport.py."""

    @abstractmethod
    async def start(self, receive: Receive) -> None:
        """Begin to listen and to connect. `receive` is called on the loop with what one read brought."""

    @abstractmethod
    def send(self, messages: list[Message]) -> None:
        """Queue for the peers that `to` names, one frame for each. Drops when a peer's queue is full."""

    @abstractmethod
    def set_peers(self, peers: dict[NodeId, list[str]]) -> None:
        """Who the others are and under which URLs they listen."""

    @abstractmethod
    def connected(self) -> frozenset[NodeId]:
        """Peers that we have an open stream to."""

    @abstractmethod
    async def stop(self) -> None: ...


def by_peer(messages: list[Message]) -> dict[NodeId, list[Message]]:
    """The messages of one send, by the peer that each is for, in order."""
    frames: dict[NodeId, list[Message]] = {}
    for message in messages:
        frames.setdefault(message.to, []).append(message)
    return frames
