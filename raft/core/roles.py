"""The four roles (thesis 3.3, 9.6). Only this file writes `role`, and only it ends a term.

                    no leader heard                a quorum would vote               a quorum voted
    FOLLOWER -----------------------> PRE_CANDIDATE ---------------> CANDIDATE -----------------> LEADER
        ^                                   |                            |                          |
        +--- higher term, or the leader of this term, or refused by a quorum; a leader without quorum

What belongs to one term (vote, votes, progress, reads, transfer) is forgotten when it ends.
"""

from raft.core.progress import Progress
from raft.core.state import Raft, append_entries, trace
from raft.messages import RequestVote
from raft.types import NO_NODE, Entry, EntryKind, NodeId, Role, Term


def become_follower(r: Raft, term: Term, leader_id: NodeId) -> None:
    assert term >= r.term, f"term went back {r.term} -> {term}"
    changed = r.role is not Role.FOLLOWER or term != r.term or leader_id != r.leader_id
    if r.role in (Role.CANDIDATE, Role.PRE_CANDIDATE):
        # Requests that have not left claim a log that the leader may replace before they do.
        r.messages_after_save = [sent for sent in r.messages_after_save if not isinstance(sent, RequestVote)]
    _reset(r, term)
    r.role = Role.FOLLOWER
    r.leader_id = leader_id
    if changed and r.tracer is not None:
        trace(r, f"became follower of n{leader_id:x}" if leader_id else "became follower")


def become_pre_candidate(r: Raft) -> None:
    """Ask whether an election could be won; the term stays and so does the vote (9.6)."""
    assert r.role is not Role.LEADER, "a leader does not campaign"
    _reset(r, r.term)  # votes of an earlier campaign and the old leader are forgotten (S-06)
    r.role = Role.PRE_CANDIDATE
    trace(r, "became pre-candidate")


def become_candidate(r: Raft) -> None:
    assert r.role is not Role.LEADER, "a leader does not campaign"
    _reset(r, r.term + 1)
    r.role = Role.CANDIDATE
    r.vote = r.node_id
    trace(r, "became candidate")


def become_leader(r: Raft) -> None:
    assert r.role is Role.CANDIDATE, f"{r.role.name} cannot become leader"
    assert r.saved_state.term == r.term, "leads a term that a crash could make us forget"
    _reset(r, r.term)
    r.role = Role.LEADER
    r.leader_id = r.node_id
    next_index = r.log.last_index + 1
    members = sorted({*r.configuration.members(), r.node_id})  # C_new may leave us out (4.2.2)
    r.progress = {member: Progress(member, next_index) for member in members}
    own = r.progress[r.node_id]
    own.accept(r.log.stable_index)
    own.next_index = next_index
    r.noop_index = next_index
    trace(r, "became leader")
    # Nothing of an older term commits by counting; the no-op commits all of it at once (3.6.2, 6.4).
    append_entries(r, [Entry(next_index, r.term, b"", EntryKind.NOOP)])


def reset_election_timer(r: Raft) -> None:
    """Randomised, so that split votes are rare and end (3.4)."""
    election_ticks = r.config.election_ticks
    r.election_elapsed = 0
    r.election_timeout = election_ticks + r.rng.below(election_ticks)
    r.leader_lost = False


def _reset(r: Raft, term: Term) -> None:
    if term != r.term:
        r.term = term
        r.vote = NO_NODE
        r.replicated_index = 0
    r.leader_id = NO_NODE
    reset_election_timer(r)
    r.heartbeat_elapsed = 0
    r.votes = {}
    r.progress = {}
    r.leaving = {}
    r.snapshots_to_send = []
    r.noop_index = 0
    r.uncommitted.clear()
    r.uncommitted_bytes = 0
    r.transfer_target = NO_NODE
    r.transfer_elapsed = 0
    r.handed_over = False
    r.heartbeat_due = False
    r.send_due = False
    # Reads of a lost leadership are never answered; whoever waits asks again with a new context.
    r.read_round = 0
    r.read_rounds.clear()
    r.round_clocks.clear()
    r.reads_waiting.clear()
    r.read_context = None
