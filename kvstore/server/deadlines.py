"""Many deadlines, one timer: a wheel of coarse slots.

A timer per request costs more than the request's own bookkeeping, and nobody needs a timeout of seconds
to be exact. Nothing is removed when a request is answered in time: the wheel forgets it when its slot
passes, so it holds the ids of one timeout's worth of requests at most.
"""

from math import ceil
from typing import Final, final

SLOT_SECONDS: Final = 0.25


@final
class Deadlines:
    """Ids by the time at which they are due; never given out early, and less than one slot late."""

    def __init__(self) -> None:
        self._slots: dict[int, list[int]] = {}

    def add(self, identities: list[int], deadline: float) -> None:
        """All are due at the same time."""
        self._slots.setdefault(ceil(deadline / SLOT_SECONDS), []).extend(identities)

    def due(self, now: float) -> list[int]:
        """Removes and returns them. Call it about once per SLOT_SECONDS."""
        passed = [slot for slot in self._slots if slot * SLOT_SECONDS <= now]
        return [identity for slot in sorted(passed) for identity in self._slots.pop(slot)]
