"""One class for each RPC of the thesis, and the few that we add.

`to` and `sender` are node ids, `term` is the sender's. Everything a peer sends is checked by
`codec.decode` before it becomes one of these, and by the core before it is believed.
"""

from typing import TypeAlias, final

from raft.types import Configuration, Entry, Index, NodeId, Term


@final
class RequestVote:
    """Thesis 3.4; with `pre_vote` 9.6: `term` is then the one that the sender would campaign in."""

    __slots__ = ("last_index", "last_term", "pre_vote", "sender", "term", "to", "transfer")

    def __init__(
        self,
        to: NodeId,
        sender: NodeId,
        term: Term,
        last_index: Index,
        last_term: Term,
        pre_vote: bool = False,
        transfer: bool = False,
    ) -> None:
        self.to, self.sender, self.term = to, sender, term
        self.last_index = last_index
        self.last_term = last_term
        self.pre_vote = pre_vote
        self.transfer = transfer  # the leader asked for it (3.10): the receiver's lease does not protect the leader


@final
class RequestVoteResponse:
    """`term`: of the request where granted, else the voter's own."""

    __slots__ = ("granted", "pre_vote", "sender", "term", "to")

    def __init__(self, to: NodeId, sender: NodeId, term: Term, granted: bool, pre_vote: bool = False) -> None:
        self.to, self.sender, self.term = to, sender, term
        self.granted = granted
        self.pre_vote = pre_vote


@final
class AppendEntries:
    """Thesis 3.5. `entries` follow prev_index@prev_term without a gap; empty is a probe."""

    __slots__ = (
        "commit",
        "entries",
        "prev_index",
        "prev_term",
        "read_round",
        "replicated_index",
        "sender",
        "term",
        "to",
    )

    def __init__(
        self,
        to: NodeId,
        sender: NodeId,
        term: Term,
        prev_index: Index,
        prev_term: Term,
        entries: list[Entry],
        commit: Index,
        read_round: int = 0,
        replicated_index: Index = 0,
    ) -> None:
        self.to, self.sender, self.term = to, sender, term
        self.prev_index = prev_index
        self.prev_term = prev_term
        self.entries = entries
        self.commit = commit  # the leader's; may lie beyond the entries
        self.read_round = read_round  # echoed: confirms leadership for reads that joined this round or an older one
        self.replicated_index = replicated_index  # on every member's disk: a log may be compacted up to here


@final
class AppendEntriesResponse:
    __slots__ = ("hint_term", "match_index", "read_round", "rejected", "rejected_index", "sender", "term", "to")

    def __init__(
        self,
        to: NodeId,
        sender: NodeId,
        term: Term,
        match_index: Index,
        rejected: bool = False,
        rejected_index: Index = 0,
        hint_term: Term = 0,
        read_round: int = 0,
    ) -> None:
        self.to, self.sender, self.term = to, sender, term
        self.match_index = match_index  # accepted: logs agree up to here, on disk; rejected: probe here next
        self.rejected = rejected
        self.rejected_index = rejected_index  # the prev_index refused: tells a late answer from a fresh one
        self.hint_term = hint_term  # the follower's term at match_index: lets the leader skip a whole term
        self.read_round = read_round


@final
class Heartbeat:
    """An AppendEntries that probes nothing: keeps the leader, moves commit, confirms reads."""

    __slots__ = ("commit", "quiet", "read_round", "replicated_index", "sender", "term", "to")

    def __init__(
        self,
        to: NodeId,
        sender: NodeId,
        term: Term,
        commit: Index,
        read_round: int = 0,
        replicated_index: Index = 0,
        quiet: bool = False,
    ) -> None:
        self.to, self.sender, self.term = to, sender, term
        self.commit = commit  # at most the receiver's match_index: a heartbeat proves nothing about its log
        self.read_round = read_round
        self.replicated_index = replicated_index
        self.quiet = quiet  # only commit moved: an answer would say nothing


@final
class HeartbeatResponse:
    __slots__ = ("read_round", "sender", "term", "to")

    def __init__(self, to: NodeId, sender: NodeId, term: Term, read_round: int = 0) -> None:
        self.to, self.sender, self.term = to, sender, term
        self.read_round = read_round


@final
class ReadIndex:
    """A follower asks the leader where linearizable reads may start (thesis 6.4)."""

    __slots__ = ("context", "sender", "term", "to")

    def __init__(self, to: NodeId, sender: NodeId, term: Term, context: int) -> None:
        self.to, self.sender, self.term = to, sender, term
        self.context = context  # never used twice by this member, not even after a restart


@final
class ReadIndexResponse:
    __slots__ = ("context", "index", "sender", "term", "to")

    def __init__(self, to: NodeId, sender: NodeId, term: Term, context: int, index: Index) -> None:
        self.to, self.sender, self.term = to, sender, term
        self.context = context
        self.index = index


@final
class TimeoutNow:
    """Campaign at once (thesis 3.10): the leader hands over."""

    __slots__ = ("sender", "term", "to")

    def __init__(self, to: NodeId, sender: NodeId, term: Term) -> None:
        self.to, self.sender, self.term = to, sender, term


@final
class Forward:
    """Proposals of a follower for the leader. Sent once; a receiver that does not lead drops it."""

    __slots__ = ("data", "sender", "term", "to")

    def __init__(self, to: NodeId, sender: NodeId, term: Term, data: list[bytes]) -> None:
        self.to, self.sender, self.term = to, sender, term
        self.data = data


@final
class InstallSnapshot:
    """A snapshot of the leader has arrived here (thesis 5.3). It never travels: the snapshot comes on a channel of
    its own, and the receiving driver steps this once all of it is here and verified."""

    __slots__ = ("configuration", "context", "index", "sender", "snapshot_term", "term", "to")

    def __init__(
        self,
        to: NodeId,
        sender: NodeId,
        term: Term,
        index: Index,
        snapshot_term: Term,
        configuration: Configuration,
        context: bytes = b"",
    ) -> None:
        self.to, self.sender, self.term = to, sender, term
        self.index = index  # the last entry that it stands for
        self.snapshot_term = snapshot_term  # that entry's term
        self.configuration = configuration  # in force at `index`
        self.context = context


Message: TypeAlias = (
    RequestVote
    | RequestVoteResponse
    | AppendEntries
    | AppendEntriesResponse
    | Heartbeat
    | HeartbeatResponse
    | ReadIndex
    | ReadIndexResponse
    | TimeoutNow
    | Forward
    | InstallSnapshot
)
