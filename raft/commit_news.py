"""CommitNews: heartbeats that tell a member of a moved commit index, and nothing else.

Under load the next append tells it too, as soon as our own state machine has applied what was committed: then the
heartbeat would cost every member a turn for nothing. So it waits until then, and leaves by itself when no append does.
It waits no longer than a tick, however long the apply takes. To hold a message back, and to lose one, is what any
network does.

Who has forwarded requests of its own clients gets its news at once: their answers wait for its apply.
"""

from typing import final

from raft.messages import AppendEntries, Heartbeat, Message
from raft.types import NodeId


@final
class CommitNews:
    def __init__(self) -> None:
        self._waiting: dict[NodeId, Message] = {}
        self._forwarded: dict[NodeId, int] = {}  # at which tick each member did so last
        self._since = 0  # the tick at which the oldest began to wait

    def forwarded(self, node_id: NodeId, tick: int) -> None:
        """Clients of that member wait for it."""
        self._forwarded[node_id] = tick

    def hold(self, messages: list[Message], tick: int) -> list[Message]:
        """What is to leave now."""
        now: list[Message] = []
        for message in messages:
            is_news = isinstance(message, Heartbeat) and message.quiet
            if is_news and tick > self._forwarded.get(message.to, -2) + 1:
                if not self._waiting:
                    self._since = tick
                self._waiting[message.to] = message
                continue
            if isinstance(message, AppendEntries | Heartbeat):
                self._waiting.pop(message.to, None)
            now.append(message)
        return now

    def due(self, applied: bool, tick: int) -> list[Message]:
        """What has waited for long enough. applied: our own state machine has nothing to do."""
        if not self._waiting or not (applied or tick > self._since):
            return []
        messages, self._waiting = list(self._waiting.values()), {}
        return messages
