"""The plain values that cross the boundary between the core, the log and the driver.

A position in the log is written `index@term` in traces and tests. Index 0 is the empty log's end; the
first entry has index 1. No value here holds a socket, a future, a logger or a clock.
"""

from enum import IntEnum
from struct import Struct
from typing import Final, TypeAlias, final

NodeId: TypeAlias = int  # 64 bits, never 0
Term: TypeAlias = int
Index: TypeAlias = int

NO_NODE: Final = 0  # "no vote", "no leader"
INDEX_MAX: Final = 2**63 - 1
MEMBERS_MAX: Final = 100_000  # voters, or learners, of one Configuration: anything larger is damage

_COUNTS: Final = Struct("<III")  # voters, learners, outgoing voters of a Configuration


class Role(IntEnum):
    """What a node is in its term (thesis 3.3); pre-candidate is thesis 9.6."""

    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


class EntryKind(IntEnum):
    """What an entry's data means: bytes of the state machine, nothing, or a Configuration."""

    COMMAND = 0
    NOOP = 1
    CONFIGURATION = 2


@final
class Entry:
    """One position of the replicated log. Never changed once made; shared by log, wire and apply."""

    __slots__ = ("data", "index", "kind", "term")

    def __init__(self, index: Index, term: Term, data: bytes, kind: EntryKind = EntryKind.COMMAND) -> None:
        self.index = index
        self.term = term
        self.data = data
        self.kind = kind

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Entry)
            and self.index == other.index
            and self.term == other.term
            and self.kind == other.kind
            and self.data == other.data
        )

    def __hash__(self) -> int:
        return hash((self.index, self.term))

    def __repr__(self) -> str:
        return f"Entry({self.index}@{self.term} {self.kind.name} {len(self.data)}B)"


@final
class HardState:
    """What must survive a crash besides the log (Figure 3.1, "persistent state")."""

    __slots__ = ("commit", "term", "vote")

    def __init__(self, term: Term, vote: NodeId, commit: Index) -> None:
        self.term = term
        self.vote = vote  # whom we voted for in this term, or NO_NODE
        self.commit = commit  # a lower bound: it may be older than the truth, and needs no fsync of its own

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, HardState)
            and self.term == other.term
            and self.vote == other.vote
            and self.commit == other.commit
        )

    def __hash__(self) -> int:
        return hash((self.term, self.vote, self.commit))

    def __repr__(self) -> str:
        return f"HardState(term={self.term} vote={self.vote:x} commit={self.commit})"


@final
class Configuration:
    """Who takes part (thesis 4). `voters_outgoing` is not empty only while a change is under way (4.3)."""

    __slots__ = ("_members", "learners", "voters", "voters_outgoing")

    def __init__(
        self,
        voters: tuple[NodeId, ...],
        learners: tuple[NodeId, ...] = (),
        voters_outgoing: tuple[NodeId, ...] = (),
    ) -> None:
        self.voters = tuple(sorted(voters))
        self.learners = tuple(sorted(learners))
        self.voters_outgoing = tuple(sorted(voters_outgoing))
        self._members = tuple(sorted({*self.voters, *self.learners, *self.voters_outgoing}))

    def members(self) -> tuple[NodeId, ...]:
        """Everyone who receives entries, in id order."""
        return self._members

    def pack(self) -> bytes:
        """As it stands in log and entries: three counts, then the ids. Whoever stores it adds a format number."""
        groups = (self.voters, self.learners, self.voters_outgoing)
        ids = [node_id for group in groups for node_id in group]
        return _COUNTS.pack(*[len(group) for group in groups]) + Struct(f"<{len(ids)}Q").pack(*ids)

    @staticmethod
    def unpack(data: bytes) -> "tuple[Configuration, bytes]":
        """The configuration, and the bytes that follow it. Raises ValueError; says nothing of what the ids mean."""
        if len(data) < _COUNTS.size:
            raise ValueError(f"a configuration of {len(data)} bytes")
        voters, learners, outgoing = _COUNTS.unpack_from(data)
        count = voters + learners + outgoing
        end = _COUNTS.size + 8 * count
        if max(voters, learners, outgoing) > MEMBERS_MAX or len(data) < end:
            raise ValueError(f"a configuration of {voters}, {learners} and {outgoing} members in {len(data)} bytes")
        ids = Struct(f"<{count}Q").unpack_from(data, _COUNTS.size)
        return Configuration(ids[:voters], ids[voters : voters + learners], ids[voters + learners :]), data[end:]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Configuration)
            and self.voters == other.voters
            and self.learners == other.learners
            and self.voters_outgoing == other.voters_outgoing
        )

    def __hash__(self) -> int:
        return hash((self.voters, self.learners, self.voters_outgoing))

    def __repr__(self) -> str:
        return f"Configuration(voters={self.voters} learners={self.learners} outgoing={self.voters_outgoing})"


@final
class ConfigurationChange:
    """What an operator asks for (thesis 4.1). Any change of the voters goes through a joint configuration (4.3)."""

    __slots__ = ("context", "learners", "removed", "voters")

    def __init__(
        self,
        voters: tuple[NodeId, ...] = (),
        learners: tuple[NodeId, ...] = (),
        removed: tuple[NodeId, ...] = (),
        context: bytes = b"",
    ) -> None:
        self.voters = voters  # become voters: new members, or learners that are promoted
        self.learners = learners  # join as learners
        self.removed = removed  # leave, voters and learners alike
        self.context = context  # travels with the entry, never looked at: peer addresses, who asked

    def __repr__(self) -> str:
        return f"ConfigurationChange(voters={self.voters} learners={self.learners} removed={self.removed})"


@final
class SnapshotMeta:
    """What of the log a snapshot of the state machine stands for: everything up to index@term (thesis 5.1)."""

    __slots__ = ("configuration", "context", "index", "term")

    def __init__(self, index: Index, term: Term, configuration: Configuration, context: bytes = b"") -> None:
        self.index = index
        self.term = term
        self.configuration = configuration  # in force at `index`
        self.context = context  # of the entry that made it

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, SnapshotMeta)
            and self.index == other.index
            and self.term == other.term
            and self.configuration == other.configuration
            and self.context == other.context
        )

    def __hash__(self) -> int:
        return hash((self.index, self.term))

    def __repr__(self) -> str:
        return f"SnapshotMeta({self.index}@{self.term} {self.configuration})"


@final
class ReadState:
    """A read round that a quorum has confirmed: reads of `context` may run once `index` is applied."""

    __slots__ = ("context", "index")

    def __init__(self, context: int, index: Index) -> None:
        self.context = context
        self.index = index

    def __repr__(self) -> str:
        return f"ReadState({self.context} at {self.index})"
