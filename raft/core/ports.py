"""All that the core may call. Each answer depends only on what went in before, so a seed replays it."""

from abc import ABC, abstractmethod

from raft.types import Entry, Index, NodeId, Term


class LogReader(ABC):
    """The stable part of the log, as far as it was saved."""

    @property
    @abstractmethod
    def first_index(self) -> Index:
        """The oldest entry that can be read; last_index + 1 when there is none."""

    @property
    @abstractmethod
    def last_index(self) -> Index: ...

    @abstractmethod
    def term_at(self, index: Index) -> Term:
        """The term at first_index - 1 .. last_index; 0 at index 0. Raises Compacted below."""

    @abstractmethod
    def entries(self, low: Index, high: Index, bytes_max: int) -> list[Entry]:
        """Entries low..high (inclusive), cut at `bytes_max` of data but never empty when low <= high.

        Raises Compacted when low < first_index.
        """


class Rng(ABC):
    """Randomness that a seed replays."""

    @abstractmethod
    def below(self, bound: int) -> int:
        """A uniform integer in 0..bound-1."""


class Tracer(ABC):
    """Receives one fact at each state change. Never decides anything."""

    @abstractmethod
    def emit(self, node_id: NodeId, term: Term, fact: str) -> None: ...
