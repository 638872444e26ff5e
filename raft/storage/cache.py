"""EntryCache: the newest entries, as many as fit into a number of bytes. Followers and apply read mostly these."""

from typing import Final, final

from raft.types import Entry, Index

_OVERHEAD: Final = 150  # bytes of an Entry, its numbers and its place in the dict, beside its data


@final
class EntryCache:
    """Holds low..high without a gap. A reader may look up what a writer in another thread does not replace."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._low = 1  # the oldest that is held, if any
        self._entries: dict[Index, Entry] = {}

    def run(self, low: Index, high: Index, bytes_max: int) -> list[Entry]:
        """What is held of low..high, up to the first that is not, or that goes beyond `bytes_max` (included)."""
        entries = self._entries
        found: list[Entry] = []
        for index in range(low, high + 1):
            entry = entries.get(index)
            if entry is None:
                break
            found.append(entry)
            bytes_max -= len(entry.data)
            if bytes_max < 0:
                break
        return found

    def add(self, entries: list[Entry]) -> None:
        """They follow the newest one held."""
        if not self._entries:
            self._low = entries[0].index
        assert entries[0].index == self._low + len(self._entries), f"gap in the cache before {entries[0]}"
        for entry in entries:
            self._entries[entry.index] = entry
            self._bytes += len(entry.data) + _OVERHEAD
        while self._bytes > self._bytes_max:
            self._forget(self._low)
            self._low += 1

    def cut(self, index: Index) -> None:
        """Forget everything beyond `index`."""
        for beyond in range(max(index + 1, self._low), self._low + len(self._entries)):
            self._forget(beyond)

    def compact(self, index: Index) -> None:
        """Forget everything up to `index`."""
        while self._entries and self._low <= index:
            self._forget(self._low)
            self._low += 1

    def _forget(self, index: Index) -> None:
        self._bytes -= len(self._entries.pop(index).data) + _OVERHEAD
