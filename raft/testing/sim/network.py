"""SimNetwork: delays, loses, repeats, reorders, holds and cuts off messages.

    partition, one-way cut    (sender, to) in `cut`: lost
    clog                      held until the link is clear, then all at once
    loss, duplicate           one message
    replay                    any older message of the last few hundred arrives once more
    fifo off                  each message has its own delay: later ones overtake
    hold                      of some links or kinds, until somebody releases it

What is under way arrives even if the link is cut meanwhile, and after any number of terms.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import Final, TypeAlias, final

from raft.codec import decode_batch, encode_batch
from raft.messages import Message
from raft.testing.sim.clock import SimClock
from raft.testing.sim.options import Options
from raft.types import NodeId

Link: TypeAlias = tuple[NodeId, NodeId]  # sender, to

_REMEMBERED: Final = 256  # old messages that may come again


@final
class Hold:
    """Messages to a node wait here, in order, instead of arriving."""

    __slots__ = ("held", "kinds", "to")

    def __init__(self, to: NodeId, kinds: tuple[type, ...]) -> None:
        self.to = to
        self.kinds = kinds  # none: all
        self.held: list[Message] = []

    def takes(self, message: Message) -> bool:
        return message.to == self.to and (not self.kinds or isinstance(message, self.kinds))


@final
class SimNetwork:
    def __init__(
        self, options: Options, clock: SimClock, injected: Counter[str], deliver: Callable[[Message], None]
    ) -> None:
        self.clogged: dict[Link, int] = {}  # until when
        self.messages = 0  # sent so far
        self._cuts: Counter[Link] = Counter()  # how many faults cut the link
        self._isolated: list[NodeId] = []
        self._holds: list[Hold] = []
        self._clock = clock
        self._injected = injected
        self._deliver = deliver
        self._rng = options.stream("network")
        self._encoded = options.encoded
        self._fifo = options.fifo
        self._delay = options.network_delay
        self._loss = options.message_faults.get("loss", 0.0)
        self._duplicate = options.message_faults.get("duplicate", 0.0)
        self._replay = options.message_faults.get("replay", 0.0)
        self._last: dict[Link, int] = {}  # when the newest message of each link arrives
        self._old: deque[Message] = deque(maxlen=_REMEMBERED)

    def cut(self, links: list[Link]) -> None:
        self._cuts.update(links)

    def mend(self, links: list[Link]) -> None:
        self._cuts.subtract(links)

    def hold(self, to: NodeId, kinds: tuple[type, ...] = ()) -> Hold:
        """Whatever is sent to `to` from now on waits for `release`."""
        hold = Hold(to, kinds)
        self._holds.append(hold)
        return hold

    def release(self, hold: Hold) -> None:
        """All that was held arrives now, in the order in which it was sent."""
        if hold in self._holds:
            self._holds.remove(hold)
            for message in hold.held:
                self._clock.after(0, self._deliver, message)

    def release_newest(self, hold: Hold) -> None:
        """The last message that was held overtakes all others."""
        if hold.held:
            self._clock.after(0, self._deliver, hold.held.pop())

    def calm(self, isolated: list[NodeId]) -> None:
        """No more faults, except that nothing leaves or reaches `isolated`."""
        self._loss = self._duplicate = self._replay = 0.0
        self._fifo = True
        self._cuts.clear()
        self.clogged.clear()
        for hold in list(self._holds):
            self.release(hold)
        self._isolated = isolated

    def is_cut(self, link: Link) -> bool:
        return self._cuts.get(link, 0) > 0 or (
            bool(self._isolated) and (link[0] in self._isolated or link[1] in self._isolated)
        )

    def time_for(self, link: Link) -> int:
        """Until something that is sent beside the messages has arrived."""
        clear = self.clogged.get(link, 0) - self._clock.now if self.clogged else 0
        return max(clear, 0) + (self._delay >> 1) + int(self._rng.random() * self._delay)

    def breaks(self) -> bool:
        """Whether a stream breaks now: it repeats what is lost, until it gives up."""
        return bool(self._loss) and self._rng.random() < self._loss / 4

    def send(self, messages: list[Message]) -> None:
        if self._encoded:
            messages = decode_batch(encode_batch(messages))
        rng = self._rng
        for message in messages:
            self.messages += 1
            link = (message.sender, message.to)
            if self._cuts.get(link, 0) > 0 or (self._isolated and self.is_cut(link)):
                self._injected["cut off"] += 1
                continue
            if self._loss and rng.random() < self._loss:
                self._injected["loss"] += 1
                continue
            self._arrive(message, link)
            if self._duplicate and rng.random() < self._duplicate:
                self._injected["duplicate"] += 1
                self._arrive(message, link)
            if self._replay:
                self._old.append(message)
                if rng.random() < self._replay:
                    self._injected["replay"] += 1
                    self._clock.after(rng.exponential(self._delay), self._deliver, rng.choice(self._old))

    def _arrive(self, message: Message, link: Link) -> None:
        clock = self._clock
        delay = self._delay
        for hold in self._holds:
            if hold.takes(message):
                self._injected["held back"] += 1
                hold.held.append(message)
                return
        time = clock.now + (delay >> 1) + int(self._rng.random() * delay)
        if not self._fifo and self._rng.random() < 0.1:
            time += self._rng.exponential(8 * delay)
        if self.clogged:
            time = max(time, self.clogged.get(link, 0))
        if self._fifo:
            time = max(time, self._last.get(link, 0))
            self._last[link] = time
        clock.at(time, self._deliver, message)
