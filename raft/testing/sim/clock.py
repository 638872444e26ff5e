"""SimClock: virtual time in microseconds, and a heap of what is going to happen.

Nothing happens between two events, so time jumps from one to the next. Events of the same moment happen
in the order in which they were made: a seed replays them.
"""

from collections.abc import Callable, Generator
from heapq import heappop, heappush
from typing import Any, TypeAlias, TypeVar, final

SECOND = 1_000_000
MILLISECOND = 1_000

Handler = Callable[[Any], None]  # the argument is whatever was given with the event
Result = TypeVar("Result")
Script: TypeAlias = Generator[int, None, Result]  # acts, and yields how long it waits, in microseconds


@final
class SimClock:
    def __init__(self) -> None:
        self.now = 0  # microseconds
        self.events = 0  # happened so far
        self._heap: list[tuple[int, int, Handler, Any]] = []
        self._made = 0

    def at(self, time: int, handler: Handler, argument: Any) -> None:
        """Call handler(argument) at `time`, or now if that has passed."""
        self._made += 1
        heappush(self._heap, (max(time, self.now), self._made, handler, argument))

    def after(self, delay: int, handler: Handler, argument: Any) -> None:
        self._made += 1
        heappush(self._heap, (self.now + delay, self._made, handler, argument))

    def play(self, script: Script[None]) -> None:
        """Go on with `script`, now and whenever the time that it waits for has passed."""
        delay = next(script, None)
        if delay is not None:
            self.after(delay, self.play, script)

    def run(self, until: int) -> None:
        """Let everything happen up to `until`, inclusive."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, handler, argument = heappop(heap)
            self.events += 1
            handler(argument)
        self.now = max(self.now, until)
