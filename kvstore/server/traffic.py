"""What goes between this member and its peers, for /metrics: bytes each way, and how long an answer takes.

A round trip is a leader's heartbeat and the answer to it; who does not lead sends none, and measures none.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any, final

from kvstore.measure import Histogram
from raft.messages import Heartbeat, HeartbeatResponse

if TYPE_CHECKING:
    from raft.messages import Message


@final
class PeerTraffic:
    def __init__(self, transport: Any) -> None:
        """transport: one that tells; of one that does not, all stays zero."""
        self.sent_bytes: Counter[int] = Counter()  # by peer
        self.received_bytes: Counter[int] = Counter()
        self.disconnects: Counter[int] = Counter()
        self.round_trips: dict[int, Histogram] = {}
        self._asked: dict[int, float] = {}  # when a heartbeat was sent that is not answered yet
        transport.on_sent = self._sent
        transport.on_received = self._received

    def _sent(self, peer: int, messages: "list[Message]", size: int) -> None:
        self.sent_bytes[peer] += size
        last = messages[-1]
        if isinstance(last, Heartbeat) and not last.quiet:  # a quiet one is not answered
            self._asked.setdefault(peer, Histogram.now())

    def _received(self, peer: int, messages: "list[Message]", size: int) -> None:
        self.received_bytes[peer] += size
        if not messages or not isinstance(messages[0], HeartbeatResponse):
            return
        asked = self._asked.pop(peer, None)
        if asked is not None:
            self.round_trips.setdefault(peer, Histogram(0.0001, 16)).observe(Histogram.now() - asked)
