"""RaftLog: the stable log that a LogReader holds, and the tail that is not yet known to be on disk.

      compacted        applied       stable        last
    ------|---------------|-------------|------------|---->
              LogReader                   tail

    first_index - 1 <= applied <= applying <= commit <= last     stable <= last
    commit may pass stable: the quorum that stored an entry need not include us.

The tail's entries leave for the disk in a Ready and join the stable part in `saved`. Whatever the tail
replaced on the disk counts no more from that moment on, although it lies there until the next save.
A conflict may cut the tail while a save is under way: `saved` takes only what is still in the log.
"""

from collections import deque
from typing import final

from raft.core.ports import LogReader
from raft.types import Entry, Index, Term


@final
class RaftLog:
    __slots__ = (
        "_applying",
        "_reader",
        "_tail",
        "applied_index",
        "applying_bytes",
        "applying_index",
        "commit_index",
        "last_index",
        "last_term",
        "stable_index",
    )

    def __init__(self, reader: LogReader, commit_index: Index, applied_index: Index) -> None:
        self._reader = reader
        self._tail: list[Entry] = []  # stable_index + 1 .. last_index
        self.last_index = reader.last_index
        self.last_term = reader.term_at(self.last_index)
        self.stable_index = self.last_index  # on our disk, and still part of the log
        assert reader.first_index - 1 <= applied_index, f"applied {applied_index} before {reader.first_index}"
        assert applied_index <= self.last_index, f"applied {applied_index} beyond last {self.last_index}"
        # The commit index is saved without an fsync of its own and may be older or, after damage, newer
        # than the log (S-49).
        self.commit_index = min(max(commit_index, applied_index), self.last_index)
        self.applying_index = applied_index  # handed out to be applied
        self.applied_index = applied_index  # in the state machine
        self.applying_bytes = 0  # of applied_index + 1 .. applying_index
        self._applying: deque[tuple[Index, int]] = deque()  # (last index, bytes) of each batch handed out

    @property
    def first_index(self) -> Index:
        return self._reader.first_index

    def term_at(self, index: Index) -> Term:
        """The term at first_index - 1 .. last_index. Raises Compacted below."""
        if index == self.last_index:
            return self.last_term
        assert 0 <= index < self.last_index, f"term at {index}: the log ends at {self.last_index}"
        if index > self.stable_index:
            return self._tail[index - self.stable_index - 1].term
        return self._reader.term_at(index)

    def matches(self, index: Index, term: Term) -> bool:
        """Whether the log holds index@term, and so everything before it too (3.5, Log Matching)."""
        return index <= self.last_index and self.term_at(index) == term

    def entries(self, low: Index, high: Index, bytes_max: int) -> list[Entry]:
        """Entries low..high, cut at `bytes_max` of data, never empty. Raises Compacted."""
        assert low <= high <= self.last_index, f"entries {low}..{high}: the log ends at {self.last_index}"
        stable = self.stable_index
        if low > stable:
            return _cut(self._tail[low - stable - 1 : high - stable], bytes_max)
        found = self._reader.entries(low, min(high, stable), bytes_max)
        if found[-1].index == stable < high:
            found = _cut(found + self._tail[: high - stable], bytes_max)
        return found

    def unstable_entries(self) -> list[Entry]:
        """What the next save has to store."""
        return self._tail[:]

    @property
    def has_unstable(self) -> bool:
        return bool(self._tail)

    def append(self, entries: list[Entry]) -> None:
        assert entries[0].index == self.last_index + 1, f"gap: {entries[0]} after {self.last_index}"
        self._tail.extend(entries)
        self.last_index = entries[-1].index
        self.last_term = entries[-1].term

    def truncate(self, index: Index) -> None:
        """Forget everything after `index`: another leader's log differs there (3.5)."""
        assert index >= self.commit_index, f"truncate to {index} below commit {self.commit_index}"
        if index < self.stable_index:
            self._tail.clear()
            self.last_term = self._reader.term_at(index)
            self.stable_index = index
        else:
            self.last_term = self.term_at(index)
            del self._tail[index - self.stable_index :]
        self.last_index = index

    def saved(self, entries: list[Entry]) -> None:
        """`entries` are on disk. They count as stable only as far as they are still the log (S-10, S-20)."""
        if not entries or entries[0].index != self.stable_index + 1:
            return  # cut below its beginning meanwhile: what was saved is no longer our log
        same = min(len(entries), len(self._tail))
        # Equal terms at an index mean equal entries up to it, so the highest match decides.
        while same and self._tail[same - 1].term != entries[same - 1].term:
            same -= 1
        del self._tail[:same]
        self.stable_index += same

    def restore(self, index: Index, term: Term) -> None:
        """A snapshot of the state machine took the place of the whole log; it starts after index@term (5.3)."""
        reader = self._reader
        assert (reader.first_index, reader.last_index) == (index + 1, index), (
            f"the stored log ends at {reader.last_index}"
        )
        self._tail.clear()
        self.last_index = self.stable_index = self.commit_index = self.applying_index = self.applied_index = index
        self.last_term = term
        self._applying.clear()
        self.applying_bytes = 0

    def commit_to(self, index: Index) -> None:
        assert index >= self.commit_index, f"commit went back {self.commit_index} -> {index}"
        assert index <= self.last_index, f"commit {index} beyond last {self.last_index}"
        self.commit_index = index

    def can_apply(self, bytes_max: int) -> bool:
        """Whether committed entries wait, and the state machine is not too far behind to take them."""
        return self.applying_index < self.commit_index and self.applying_bytes < bytes_max

    def take_committed(self, bytes_max: int) -> list[Entry]:
        """Hand out what is committed and was not handed out before, in order."""
        found = self.entries(self.applying_index + 1, self.commit_index, bytes_max)
        size = _size(found)
        self.applying_index = found[-1].index
        self.applying_bytes += size
        self._applying.append((self.applying_index, size))
        return found

    def applied(self, index: Index) -> None:
        assert index <= self.applying_index, f"applied {index} of ..{self.applying_index}"
        if index < self.applied_index:
            return  # said before a snapshot was installed, heard after it
        self.applied_index = index
        applying = self._applying
        while applying and applying[0][0] <= index:
            self.applying_bytes -= applying.popleft()[1]

    def conflict_hint(self, index: Index, term: Term, floor: Index) -> Index:
        """The highest position in floor..index whose term is not above `term`; `floor` is known to agree.

        A log that holds index@term cannot agree with this one after the answer: a whole term is
        skipped in one step instead of one entry (3.5, last paragraphs).
        """
        index = min(index, self.last_index)
        while index > floor and self.term_at(index) > term:
            index -= 1
        return index


def _size(entries: list[Entry]) -> int:
    size = 0
    for entry in entries:
        size += len(entry.data)
    return size


def _cut(entries: list[Entry], bytes_max: int) -> list[Entry]:
    size = 0
    for position, entry in enumerate(entries):
        size += len(entry.data)
        if size > bytes_max and position:
            return entries[:position]
    return entries
