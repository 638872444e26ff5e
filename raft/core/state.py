"""Raft: the state of Figure 3.1 as one struct. The rules are functions on it, one file for each topic.

`send` decides when a message may leave. A message that promises something about our disk, or that
claims something only our disk can keep, waits for the save: votes, requests for votes (they claim a
log), acknowledgements. A leader's appends and heartbeats leave beside the leader's own fsync
(thesis 10.2.1): its own disk counts in the commit rule like any other.
"""

from collections import deque
from typing import final

from raft.config import Config
from raft.core.log import RaftLog
from raft.core.ports import Rng, Tracer
from raft.core.progress import Progress
from raft.messages import AppendEntriesResponse, Message, RequestVote, RequestVoteResponse
from raft.types import NO_NODE, Configuration, Entry, HardState, Index, NodeId, ReadState, Role, SnapshotMeta, Term

READS_WAITING_MAX = 4096  # asked and not yet in a round; the oldest is forgotten, whoever asked asks again
READ_ROUNDS_MAX = 1024  # begun and not yet confirmed; likewise


@final
class ReadRound:
    """Reads that one quorum of echoes confirms together."""

    __slots__ = ("index", "number", "requests")

    def __init__(self, number: int, index: Index, requests: list[tuple[NodeId, int]]) -> None:
        self.number = number
        self.index = index  # commit index when the round began
        self.requests = requests  # (who asked, context)


@final
class Raft:
    __slots__ = (
        "clock",
        "config",
        "configuration",
        "configurations",
        "election_elapsed",
        "election_timeout",
        "first_context",
        "handed_over",
        "heartbeat_due",
        "heartbeat_elapsed",
        "leader_id",
        "leader_lost",
        "lease_ticks",
        "leaving",
        "log",
        "messages",
        "messages_after_save",
        "next_context",
        "node_id",
        "noop_index",
        "progress",
        "promised_to",
        "promised_until",
        "read_context",
        "read_round",
        "read_rounds",
        "read_states",
        "reads_waiting",
        "replicated_index",
        "rng",
        "role",
        "round_clocks",
        "saved_state",
        "send_due",
        "snapshot",
        "snapshots_to_send",
        "term",
        "tracer",
        "transfer_elapsed",
        "transfer_target",
        "uncommitted",
        "uncommitted_bytes",
        "vote",
        "votes",
    )

    def __init__(
        self,
        config: Config,
        log: RaftLog,
        state: HardState,
        configurations: list[tuple[Index, Configuration, bytes]],
        rng: Rng,
        tracer: Tracer | None,
    ) -> None:
        self.config = config
        self.node_id = config.node_id
        self.rng = rng
        self.tracer = tracer
        self.log = log
        # The one in force is the newest in our log, committed or not (4.1). Before it: those that a truncation or a
        # snapshot may need, each with the index of its entry and its context; the first stands at first_index - 1.
        self.configurations = configurations
        self.configuration = configurations[-1][1]
        self.snapshot: SnapshotMeta | None = None  # arrived, not yet installed: our log is about to be replaced

        self.term: Term = state.term  # latest seen; only grows
        self.vote: NodeId = state.vote  # in this term; set once
        self.saved_state = state  # what the disk is known to hold
        self.role = Role.FOLLOWER
        self.leader_id: NodeId = NO_NODE  # of this term; set once, unless a leader gives up
        self.replicated_index: Index = 0  # durable on all who were members then; only grows in a term

        self.clock = 0  # ticks that have passed since the start, those of a stall too
        self.election_elapsed = 0  # ticks since a leader was heard; on a leader, since check-quorum looked
        self.election_timeout = 0  # ticks; drawn anew each time
        self.heartbeat_elapsed = 0
        self.leader_lost = False  # its process is gone: it needs no protection from elections (6.2)
        # With lease reads: no vote for anybody but `promised_to` before the clock says so. A process that starts
        # may have promised it just before.
        self.promised_until = config.election_ticks
        self.promised_to: NodeId = NO_NODE
        self.votes: dict[NodeId, bool] = {}  # candidate: the first answer of each voter (S-03)

        # Leader only, made new in each term.
        self.progress: dict[NodeId, Progress] = {}  # every member, in id order, ourselves too
        self.leaving: dict[NodeId, int] = {}  # who left and is still told; until which clock
        self.snapshots_to_send: list[NodeId] = []  # for the next Ready
        self.noop_index: Index = 0  # the first entry of our term; from here on every entry is of our term
        self.uncommitted: deque[tuple[Index, int]] = deque()  # (last index, bytes) of each proposal not committed
        self.uncommitted_bytes = 0
        self.transfer_target: NodeId = NO_NODE
        self.transfer_elapsed = 0
        self.handed_over = False  # somebody was told to campaign in spite of our lease, in this term
        self.heartbeat_due = False  # the next flush reaches every member
        self.send_due = False  # somebody may have to be told something: flush looks who
        self.read_round = 0  # number of the newest round; echoes carry it with the term
        # Lease reads: how old a quorum's echo may be, and when each of the last rounds began (number, clock).
        self.lease_ticks = int((config.election_ticks - 1) * (1 - config.lease_read_drift) - 1)
        self.round_clocks: deque[tuple[int, int]] = deque(maxlen=config.election_ticks)
        self.read_rounds: deque[ReadRound] = deque(maxlen=READ_ROUNDS_MAX)  # not confirmed, oldest first
        self.reads_waiting: deque[tuple[NodeId, int]] = deque(maxlen=READS_WAITING_MAX)  # for the next round

        # A context is never used twice, not even by the process after a restart: a late answer must not
        # confirm a newer read (S-38). Answers to contexts that this process did not ask for are dropped.
        self.first_context = rng.below(2**62)
        self.next_context = self.first_context
        self.read_context: int | None = None  # asked and not yet sent: later reads share it

        # What the next Ready takes.
        self.messages: list[Message] = []
        self.messages_after_save: list[Message] = []
        self.read_states: list[ReadState] = []


def send(r: Raft, message: Message) -> None:
    """Queue for the next Ready. What leaves before a save must be true without it."""
    assert message.to != r.node_id, "a message to ourselves"
    if (
        isinstance(message, (AppendEntriesResponse, RequestVote, RequestVoteResponse))
        # Until our term is on disk we might come back in an older one; nothing may be said in its name.
        or r.saved_state.term != r.term
    ):
        r.messages_after_save.append(message)
    else:
        r.messages.append(message)


def trace(r: Raft, fact: str) -> None:
    if r.tracer is not None:
        r.tracer.emit(r.node_id, r.term, fact)


def append_entries(r: Raft, entries: list[Entry]) -> None:
    """A leader's own log grows: its followers have to hear."""
    r.log.append(entries)
    r.send_due = True


def is_voter(r: Raft, node_id: NodeId) -> bool:
    return node_id in r.configuration.voters or node_id in r.configuration.voters_outgoing


def is_member(r: Raft, node_id: NodeId) -> bool:
    return is_voter(r, node_id) or node_id in r.configuration.learners
