"""LogStorage: where a node keeps its log, term and vote.

The driver calls `save` once per Ready: one write, at most one fsync. What `save` was given counts as
stored only when it has returned, and then for ever. Every error of it is final: the process must
stop, since after a failed fsync nobody knows what the disk holds (RELIABILITY.md 1c).

`save` may run in a thread while the loop reads. The loop then reads only what earlier saves stored
and this one does not replace; the core keeps everything newer in memory until `save` has returned.
`save`, `reset` and `compact` may be called from different threads; they wait for each other.
"""

from abc import abstractmethod
from dataclasses import dataclass, field

from raft.core.ports import LogReader
from raft.types import NO_NODE, Configuration, Entry, HardState, Index, Term


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a restarting node finds."""

    hard_state: HardState
    configuration: Configuration  # as of first_index - 1; CONFIGURATION entries after it change it
    configuration_entries: list[Entry] = field(default_factory=list)  # those that the log still holds, in order
    context: bytes = b""  # of the entry that made `configuration`


class LogStorage(LogReader):
    """A LogReader that can be written. Implementations share tests/raft/test_storage.py."""

    written_bytes = 0  # of records, since it was opened; only of a log on a disk

    @abstractmethod
    def load(self) -> Loaded:
        """Open, repair a torn tail and return what is stored. Called once, before all else.

        A configuration without voters: there is no log yet, `reset` starts one. The commit index is at most
        last_index. Raises Corrupt, UnknownFormat, InUse, StorageError.
        """

    @abstractmethod
    def save(self, hard_state: HardState | None, entries: list[Entry], must_sync: bool) -> None:
        """Append `entries`, cutting off first whatever lies at or after entries[0].index, and `hard_state`.

        With must_sync, these and all earlier saves are on the disk when this returns. Raises StorageError,
        which is final: every later call raises it again.
        """

    @abstractmethod
    def reset(self, index: Index, term: Term, configuration: Configuration, context: bytes = b"") -> None:
        """Forget the whole log; it now starts after index@term. Used to bootstrap (0@0) and by snapshots. Durable.

        The commit index becomes `index`. Term and vote stay, unless the stored term is older than `term`: it
        becomes `term`, without a vote, since a log newer than its node's term could be appended to in an old one.
        """

    @abstractmethod
    def compact(self, index: Index, configuration: Configuration, context: bytes = b"") -> None:
        """Entries up to `index` are no longer needed; `configuration` and its context are in force at `index`.

        May keep more than asked for. A no-op when index < first_index.
        """

    @abstractmethod
    def bytes_after(self, index: Index) -> int:
        """What the entries after `index` take, in bytes, about; first_index - 1 <= index <= last_index."""

    @abstractmethod
    def bytes_stored(self) -> int:
        """What the log takes on disk, in bytes."""

    @abstractmethod
    def close(self) -> None: ...


def state_after_reset(state: HardState, index: Index, term: Term) -> HardState:
    """What `reset` leaves of the hard state."""
    if state.term < term:
        return HardState(term, NO_NODE, index)
    return HardState(state.term, state.vote, index)
