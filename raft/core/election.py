"""Elections: campaign, pre-vote and vote (thesis 3.4, 3.6.1, 6.2, 9.6).

A follower that hears no leader for an election timeout first asks whether it could win (pre-vote, no
change of term), then campaigns: next term, own vote, RequestVote to every voter. A voter grants if it
has no other vote in this term and the candidate's log is at least as up to date as its own.

Who has heard a leader within an election timeout ignores requests for votes altogether: a member that
was cut off cannot depose a leader that works (6.2, "disruptive servers"). Only the leader itself lifts
that protection: it asks (S-05), or it hands over (3.10).

Our vote leaves only in Ready.messages_after_save, so a restarted node cannot vote twice (S-02); our own
vote counts only when it is saved too (S-10).
"""

from raft.core import quorum
from raft.core.roles import become_candidate, become_follower, become_leader, become_pre_candidate
from raft.core.state import Raft, is_voter, send, trace
from raft.messages import RequestVote, RequestVoteResponse
from raft.types import NO_NODE, NodeId, Role


def start(r: Raft) -> None:
    """The election timeout has passed."""
    if r.config.pre_vote:
        become_pre_candidate(r)
        _ask(r, pre_vote=True, transfer=False)
        record_vote(r, r.node_id, True)  # promises nothing, so it need not be saved
    else:
        campaign(r, transfer=False)


def campaign(r: Raft, transfer: bool) -> None:
    become_candidate(r)
    _ask(r, pre_vote=False, transfer=transfer)
    if r.saved_state.term == r.term and r.saved_state.vote == r.node_id:
        record_vote(r, r.node_id, True)


def promotable(r: Raft) -> bool:
    """Learners and removed members neither start an election nor win one (S-11)."""
    return r.role is not Role.LEADER and is_voter(r, r.node_id)


def protects_leader(r: Raft, m: RequestVote) -> bool:
    """Whether a leader was heard so recently that this request must not disturb it (6.2)."""
    return (
        r.config.check_quorum
        and r.leader_id not in (NO_NODE, m.sender)
        and not m.transfer
        and (r.role is Role.LEADER or r.election_elapsed < r.config.election_ticks)
    )


def handle_request_vote(r: Raft, m: RequestVote) -> None:
    """Grant or refuse. m.term is not below ours; for a pre-vote it is the term of the election to come."""
    if m.pre_vote:
        free = m.term > r.term or r.vote == m.sender
    else:
        free = r.vote == m.sender or (r.vote == NO_NODE and r.leader_id == NO_NODE)
    # Up to date: the later last term, or the longer log at the same one (3.6.1).
    log = r.log
    up_to_date = m.last_term > log.last_term or (m.last_term == log.last_term and m.last_index >= log.last_index)
    granted = free and up_to_date
    if granted and not m.pre_vote:
        r.vote = m.sender
        r.election_elapsed = 0  # give the candidate its time
        trace(r, f"voted for n{m.sender:x}")
    send(r, RequestVoteResponse(m.sender, r.node_id, m.term if granted else r.term, granted, m.pre_vote))


def refuse(r: Raft, m: RequestVote) -> None:
    """The answer tells a candidate of an older term what the term is (3.3)."""
    send(r, RequestVoteResponse(m.sender, r.node_id, r.term, False, m.pre_vote))


def handle_request_vote_response(r: Raft, m: RequestVoteResponse) -> None:
    wanted = Role.PRE_CANDIDATE if m.pre_vote else Role.CANDIDATE
    if r.role is not wanted or (m.granted and m.term != r.term + (1 if m.pre_vote else 0)):
        return  # of an earlier campaign
    record_vote(r, m.sender, m.granted)


def record_vote(r: Raft, voter: NodeId, granted: bool) -> None:
    if voter in r.votes:
        return  # one answer each, however often it arrives (S-03)
    r.votes[voter] = granted
    # A candidate without its own vote on disk could lead a term that a crash makes it forget.
    if r.node_id not in r.votes:
        return
    result = quorum.vote_result(r.configuration, r.votes)
    if result is quorum.VoteResult.LOST:
        become_follower(r, r.term, NO_NODE)
    elif result is quorum.VoteResult.WON:
        if r.role is Role.PRE_CANDIDATE:
            campaign(r, transfer=False)
        else:
            become_leader(r)


def check_quorum(r: Raft) -> None:
    """A leader that a quorum did not answer for an election timeout gives up (6.2): clients go elsewhere."""
    votes = {peer.node_id: peer.recent_active or peer.node_id == r.node_id for peer in r.progress.values()}
    for peer in r.progress.values():
        peer.recent_active = False
    if quorum.vote_result(r.configuration, votes) is not quorum.VoteResult.WON:
        trace(r, "lost its quorum")
        become_follower(r, r.term, NO_NODE)


def _ask(r: Raft, pre_vote: bool, transfer: bool) -> None:
    term = r.term + 1 if pre_vote else r.term
    for member in r.configuration.members():
        if member != r.node_id and is_voter(r, member):
            send(
                r,
                RequestVote(member, r.node_id, term, r.log.last_index, r.log.last_term, pre_vote, transfer),
            )
