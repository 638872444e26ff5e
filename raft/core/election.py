"""Elections: campaign, pre-vote and vote (thesis 3.4, 3.6.1, 6.2, 9.6).

A follower that hears no leader for an election timeout first asks whether it could win (pre-vote, no
change of term), then campaigns: next term, own vote, RequestVote to every voter. A voter grants if it
has no other vote in this term and the candidate's log is at least as up to date as its own.

Who has heard a leader within an election timeout ignores requests for votes altogether: a member that
was cut off cannot depose a leader that works (6.2, "disruptive servers"). Only the leader itself lifts
that protection: it asks (S-05), or it hands over (3.10); and its death does, where the driver has seen it.

Our vote leaves only in Ready.messages_after_save, so a restarted node cannot vote twice (S-02); our own
vote counts only when it is saved too (S-10).
"""

from raft.core import quorum
from raft.core.roles import (
    become_candidate,
    become_follower,
    become_leader,
    become_pre_candidate,
    reset_election_timer,
)
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
    """Learners and removed members neither start an election nor win one (S-11); nor does who is about to replace
    its log (S-09).

    A voter that C_new leaves out may be one of the few that hold C_new, and then nobody else can be elected. It
    stays a candidate, without counting its own vote, until C_new is committed (4.2.2, Figure 4.6).
    """
    if r.role is Role.LEADER or r.snapshot is not None:
        return False
    if is_voter(r, r.node_id):
        return True
    if r.configurations[-1][0] <= r.log.commit_index or len(r.configurations) < 2:
        return False
    before = r.configurations[-2][1]
    return r.node_id in before.voters or r.node_id in before.voters_outgoing


def protects_leader(r: Raft, m: RequestVote) -> bool:
    """Whether a leader was heard so recently that this request must not disturb it (6.2)."""
    if m.transfer:
        return False
    if promised(r, m.sender):
        return True
    return (
        r.config.check_quorum
        and m.term > r.term
        and r.leader_id not in (NO_NODE, m.sender)
        and (r.role is Role.LEADER or (r.election_elapsed < r.config.election_ticks and not r.leader_lost))
    )


def promised(r: Raft, candidate: NodeId) -> bool:
    """Lease reads: whether a leader may still answer reads because we heard it. Outlives its term."""
    return r.config.lease_reads and r.clock < r.promised_until and r.promised_to != candidate


def heard_leader(r: Raft, leader_id: NodeId) -> None:
    config = r.config
    reset_election_timer(r)
    if config.lease_reads:
        r.promised_until = r.clock + config.election_ticks
        r.promised_to = leader_id


def leader_unreachable(r: Raft) -> None:
    """The leader's process is gone, says the driver: ask for an election now, not after the election timeout.

    After a short random delay, lest all that saw it campaign at once. A pre-vote, so that one who is wrong harms
    nobody: those who hear the leader refuse it. A lease rests on the timeout, so it takes this away.
    """
    if r.role is not Role.FOLLOWER or r.leader_id == NO_NODE or not r.config.pre_vote or r.config.lease_reads:
        return
    r.leader_lost = True
    delay = 1 + r.rng.below(2 * r.config.heartbeat_ticks)
    r.election_timeout = min(r.election_timeout, r.election_elapsed + delay)
    trace(r, f"cannot reach the leader n{r.leader_id:x}")


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
