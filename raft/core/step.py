"""What happens next: the term rules (thesis 3.3), then one topic after the other.

`step`, `tick`, `flush` and `saved` are the only places that sequence two topics. What a peer sends is
checked here and dropped with a trace when it cannot be true; the topics may then rely on it.
"""

from raft.core import election, following, membership, reads, replication, snapshots, transfer
from raft.core.roles import become_follower
from raft.core.state import Raft, is_member, send, trace
from raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Forward,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from raft.types import INDEX_MAX, NO_NODE, Entry, EntryKind, HardState, Role, SnapshotMeta

CONFIGURATION = EntryKind.CONFIGURATION
FROM_LEADER = (AppendEntries, Heartbeat, InstallSnapshot)  # only who leads its term sends these


def step(r: Raft, m: Message) -> None:
    fault = _fault(r, m)
    if fault:
        trace(r, f"dropped {type(m).__name__} from n{m.sender:x}: {fault}")
        return
    if m.term < r.term:
        _answer_old_term(r, m)
        return
    if isinstance(m, RequestVote) and election.protects_leader(r, m):
        trace(r, f"ignored RequestVote from n{m.sender:x}: n{r.leader_id:x} leads")
        return
    # A pre-vote and the grant of one speak of a term that nobody has begun (9.6).
    if m.term > r.term and not (
        (isinstance(m, RequestVote) and m.pre_vote) or (isinstance(m, RequestVoteResponse) and m.pre_vote and m.granted)
    ):
        become_follower(r, m.term, m.sender if isinstance(m, FROM_LEADER) else NO_NODE)
    if r.role is Role.LEADER:
        _step_leader(r, m)
    else:
        _step_follower(r, m)


def tick(r: Raft, passed: int) -> None:
    r.clock += passed
    r.election_elapsed += 1
    if r.role is not Role.LEADER:
        due = r.election_elapsed >= r.election_timeout
        if due and election.promotable(r) and not election.promised(r, r.node_id):
            election.start(r)
        return
    r.heartbeat_elapsed += 1
    if r.heartbeat_elapsed >= r.config.heartbeat_ticks:
        r.heartbeat_elapsed = 0
        r.heartbeat_due = True
        reads.tick(r)
    if r.leaving:
        membership.tick(r)
    transfer.tick(r)
    if r.role is Role.LEADER and r.election_elapsed >= r.config.election_ticks:
        r.election_elapsed = 0
        if r.config.check_quorum:
            election.check_quorum(r)


def flush(r: Raft) -> None:
    """Messages are about to leave: let them carry the newest round."""
    reads.begin(r)
    if r.send_due or r.heartbeat_due:
        replication.flush(r)


def saved(r: Raft, hard_state: HardState | None, entries: list[Entry], snapshot: SnapshotMeta | None) -> None:
    """All of it is on our disk."""
    if hard_state is not None:
        r.saved_state = hard_state
    if snapshot is not None:
        snapshots.installed(r, snapshot)
    r.log.saved(entries)
    if r.role is Role.LEADER:
        if entries and replication.handle_saved(r):
            membership.committed(r)
    elif r.role is Role.CANDIDATE and r.saved_state.term == r.term:
        election.record_vote(r, r.node_id, True)


def _step_leader(r: Raft, m: Message) -> None:
    if isinstance(m, AppendEntriesResponse):
        moved = replication.handle_append_entries_response(r, m)
        reads.echoed(r, m.sender, m.read_round)
        transfer.acknowledged(r, m.sender)
        if moved:
            membership.committed(r)
    elif isinstance(m, HeartbeatResponse):
        replication.handle_heartbeat_response(r, m)
        reads.echoed(r, m.sender, m.read_round)
    elif isinstance(m, ReadIndex):
        reads.handle_read_index(r, m)
    elif isinstance(m, RequestVote):
        election.handle_request_vote(r, m)
    elif isinstance(m, FROM_LEADER):
        trace(r, f"dropped {type(m).__name__} from n{m.sender:x}: we lead term {r.term}")


def _step_follower(r: Raft, m: Message) -> None:
    """Followers and candidates of both kinds: they differ only in whose answers they wait for."""
    if isinstance(m, FROM_LEADER):
        if r.leader_id != m.sender:
            if r.leader_id != NO_NODE:
                trace(r, f"dropped {type(m).__name__} from n{m.sender:x}: n{r.leader_id:x} leads term {r.term}")
                return
            become_follower(r, m.term, m.sender)
        if isinstance(m, AppendEntries):
            following.handle_append_entries(r, m)
        elif isinstance(m, Heartbeat):
            following.handle_heartbeat(r, m)
        else:
            snapshots.handle_install_snapshot(r, m)
    elif isinstance(m, RequestVote):
        election.handle_request_vote(r, m)
    elif isinstance(m, RequestVoteResponse):
        election.handle_request_vote_response(r, m)
    elif isinstance(m, ReadIndexResponse):
        reads.handle_read_index_response(r, m)
    elif isinstance(m, ReadIndex):
        trace(r, f"dropped ReadIndex from n{m.sender:x}: not the leader")
    elif isinstance(m, TimeoutNow):
        transfer.handle_timeout_now(r, m)


def _answer_old_term(r: Raft, m: Message) -> None:
    """Whoever is in an older term learns ours (3.3); a leader of it steps down, which also frees a
    candidate that everybody else ignores (S-06). Answers of an older term are late."""
    if isinstance(m, RequestVote):
        election.refuse(r, m)
    elif isinstance(m, AppendEntries):
        send(r, AppendEntriesResponse(m.sender, r.node_id, r.term, 0, True, m.prev_index))
    elif isinstance(m, Heartbeat):
        send(r, HeartbeatResponse(m.sender, r.node_id, r.term))
    elif isinstance(m, InstallSnapshot):
        send(r, AppendEntriesResponse(m.sender, r.node_id, r.term, 0, True, m.index))


def _fault(r: Raft, m: Message) -> str:  # noqa: PLR0911
    """Why the message cannot be true, or "". Says nothing of messages that are merely late.

    Who leads or campaigns may belong to a configuration that has not reached us, so it need not be a member of
    ours (4.2.1). Answers and questions come from members only: who left does not matter any more.
    """
    if m.to != r.node_id:
        return f"it is for n{m.to:x}"
    if m.sender in (r.node_id, NO_NODE):
        return "it is from ourselves"
    if not 0 <= m.term <= INDEX_MAX:
        return f"term {m.term}"
    if isinstance(m, AppendEntries):
        return _fault_in_entries(m)
    if isinstance(m, (AppendEntriesResponse, HeartbeatResponse)):
        return _fault_in_answer(r, m)
    if isinstance(m, Heartbeat):
        # The leader claims that we stored it; a heartbeat may only commit what we acknowledged.
        if m.term >= r.term and not 0 <= m.commit <= r.log.last_index:
            return f"commit={m.commit} beyond our last {r.log.last_index}"
        return ""
    return _fault_in_rare(r, m)


def _fault_in_rare(r: Raft, m: Message) -> str:
    if isinstance(m, (RequestVoteResponse, ReadIndex)):
        return "" if is_member(r, m.sender) else "not a member"
    if isinstance(m, RequestVote):
        return "negative index" if m.last_index < 0 or m.last_term < 0 else ""
    if isinstance(m, ReadIndexResponse):
        # A round that we asked for before we restarted confirms no read of now, although its number may be higher.
        asked = r.first_context <= m.context < r.next_context
        return "" if asked and m.index >= 0 else f"context {m.context} was never asked for"
    if isinstance(m, InstallSnapshot):
        return _fault_in_snapshot(m)
    return "proposals go to the driver" if isinstance(m, Forward) else ""


def _fault_in_answer(r: Raft, m: AppendEntriesResponse | HeartbeatResponse) -> str:
    answers_us = m.term == r.term and r.role is Role.LEADER
    if answers_us:
        peer = r.progress.get(m.sender)
        if peer is None:
            return "not a member"
        if m.read_round > peer.round_sent:
            return f"round {m.read_round} was never sent"
    elif m.term > r.term and not is_member(r, m.sender):
        return "not a member"
    if isinstance(m, AppendEntriesResponse):
        if m.match_index < 0 or m.hint_term < 0:
            return "negative index"
        if answers_us and not m.rejected and m.match_index > r.log.last_index:
            return f"match={m.match_index} beyond our last {r.log.last_index}"
    return ""


def _fault_in_snapshot(m: InstallSnapshot) -> str:
    if not (0 < m.index <= INDEX_MAX and 0 < m.snapshot_term <= m.term):
        return f"snapshot of {m.index}@{m.snapshot_term} in term {m.term}"
    if not m.configuration.voters:
        return "a snapshot without voters"
    return ""


def _fault_in_entries(m: AppendEntries) -> str:
    if m.prev_index < 0 or m.prev_term < 0 or m.commit < 0:
        return "negative index"
    index = m.prev_index
    term = m.prev_term
    for entry in m.entries:
        index += 1
        if entry.index != index:
            return f"entry {entry.index} where {index} belongs"
        if entry.term < term:
            return f"entry {index}@{entry.term} after term {term}"
        if entry.kind is CONFIGURATION and not membership.is_valid(entry):
            return f"entry {index} is no configuration"
        term = entry.term
    if term > m.term:
        return f"entry of term {term} in term {m.term}"
    return ""
