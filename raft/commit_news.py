"""CommitNews: heartbeats that tell a member of a moved commit index, and nothing else.

Under load the next append tells it too, soon after our own state machine has applied what was committed: then the
heartbeat would cost every member a turn for nothing. So it waits until then, and for a client that has been answered
to ask again (NEWS_SECONDS), and leaves by itself when no append does. It waits no longer than a tick, however long the
apply takes. To hold a message back, and to lose one, is what any network does.

Who has forwarded requests of its own clients gets its news at once: their answers wait for its apply.
"""

from asyncio import TimerHandle, get_running_loop
from collections.abc import Callable
from typing import Final, final

from raft.messages import AppendEntries, Heartbeat, Message
from raft.types import NodeId

NEWS_SECONDS: Final = 0.002  # up to twice of it when news keep coming


@final
class CommitNews:
    def __init__(self, wake: Callable[[], None]) -> None:
        """wake: called when something may be due."""
        self._wake = wake
        self._waiting: dict[NodeId, Message] = {}
        self._forwarded: dict[NodeId, int] = {}  # at which tick each member did so last
        self._since = 0  # the tick at which the oldest began to wait
        self._is_old = False  # the oldest has waited for NEWS_SECONDS
        self._is_new = False  # it began to wait after the timer
        self._timer: TimerHandle | None = None

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
                    self._begin(tick)
                self._waiting[message.to] = message
                continue
            if isinstance(message, AppendEntries | Heartbeat):
                self._waiting.pop(message.to, None)
            now.append(message)
        return now

    def due(self, applied: bool, tick: int) -> list[Message]:
        """What has waited for long enough. applied: our own state machine has nothing to do."""
        if not self._waiting or not ((applied and self._is_old) or tick > self._since):
            return []
        messages, self._waiting = list(self._waiting.values()), {}
        return messages

    def _begin(self, tick: int) -> None:
        self._since = tick
        self._is_old = False
        self._is_new = True
        if self._timer is None:
            self._start_timer()

    def _start_timer(self) -> None:
        self._is_new = False
        self._timer = get_running_loop().call_later(NEWS_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        if self._is_new:
            self._start_timer()
            return
        self._is_old = True
        self._wake()
