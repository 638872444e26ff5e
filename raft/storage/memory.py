"""MemoryStorage: the log in a list, for tests and simulations. What `save` was given is there at once.

It outlives a simulated restart: hand the same object to the next node, which calls `load` again.
It passes the same suite as the log on disk (tests/raft/test_storage.py).
"""

from typing import final

from raft.errors import Compacted
from raft.storage.base import Loaded, LogStorage, state_after_reset
from raft.types import Configuration, Entry, EntryKind, HardState, Index, Term


@final
class MemoryStorage(LogStorage):
    def __init__(self, configuration: Configuration) -> None:
        self._hard_state = HardState(0, 0, 0)
        self._configuration = configuration  # in force at _base_index
        self._context = b""
        self._base_index = 0  # the log starts after _base_index@_base_term
        self._base_term = 0
        self._entries: list[Entry] = []  # _entries[i].index == _base_index + 1 + i

    @property
    def first_index(self) -> Index:
        return self._base_index + 1

    @property
    def last_index(self) -> Index:
        return self._base_index + len(self._entries)

    @property
    def hard_state(self) -> HardState:
        """What was saved last, as it was saved."""
        return self._hard_state

    def term_at(self, index: Index) -> Term:
        if index < self._base_index:
            raise Compacted(f"term at {index}: the log starts at {self.first_index}")
        assert index <= self.last_index, f"term at {index}: the log ends at {self.last_index}"
        return self._base_term if index == self._base_index else self._entries[index - self._base_index - 1].term

    def entries(self, low: Index, high: Index, bytes_max: int) -> list[Entry]:
        if low < self.first_index:
            raise Compacted(f"entries from {low}: the log starts at {self.first_index}")
        assert high <= self.last_index, f"entries to {high}: the log ends at {self.last_index}"
        found: list[Entry] = []
        size = 0
        for entry in self._entries[low - self.first_index : high - self.first_index + 1]:
            size += len(entry.data)
            if found and size > bytes_max:
                break
            found.append(entry)
        return found

    def load(self) -> Loaded:
        state = self._hard_state
        commit = min(state.commit, self.last_index)
        changes = [entry for entry in self._entries if entry.kind is EntryKind.CONFIGURATION]
        return Loaded(HardState(state.term, state.vote, commit), self._configuration, changes, self._context)

    def save(self, hard_state: HardState | None, entries: list[Entry], must_sync: bool) -> None:
        if entries:
            first = entries[0].index
            assert self.first_index <= first <= self.last_index + 1, f"gap: {first} after {self.last_index}"
            del self._entries[first - self.first_index :]
            self._entries.extend(entries)
        if hard_state is not None:
            self._hard_state = hard_state

    def reset(self, index: Index, term: Term, configuration: Configuration, context: bytes = b"") -> None:
        self._entries = []
        self._base_index = index
        self._base_term = term
        self._configuration = configuration
        self._context = context
        self._hard_state = state_after_reset(self._hard_state, index, term)

    def compact(self, index: Index, configuration: Configuration, context: bytes = b"") -> None:
        if index < self.first_index:
            return
        assert index <= self.last_index, f"compact to {index}: the log ends at {self.last_index}"
        self._base_term = self.term_at(index)
        del self._entries[: index - self._base_index]
        self._base_index = index
        self._configuration = configuration
        self._context = context

    def bytes_after(self, index: Index) -> int:
        return sum(len(entry.data) for entry in self._entries[index - self._base_index :])

    def bytes_stored(self) -> int:
        return sum(len(entry.data) for entry in self._entries)

    def close(self) -> None:
        """Nothing to release: the content stays for the next `load`."""
