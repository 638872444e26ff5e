"""Leadership transfer (thesis 3.10).

The leader takes no more proposals, brings the target's log up to its own, then tells it to campaign at
once (TimeoutNow). The target's requests for votes say so, since voters would protect the leader that
asked for it. If the target does not lead within an election timeout, the leader goes on as before.
"""

from raft.core import election
from raft.core.roles import become_follower
from raft.core.state import Raft, is_voter, send, trace
from raft.messages import TimeoutNow
from raft.types import NO_NODE, NodeId, Role


def transfer_leadership(r: Raft, to: NodeId) -> None:
    """Hand over to `to`, or with NO_NODE to the most up to date voter. Does nothing where that is impossible."""
    if r.role is not Role.LEADER:
        trace(r, "does not transfer leadership: not the leader")
        return
    target = to or _best_target(r)
    if target == r.node_id or target not in r.progress or not is_voter(r, target):
        trace(r, f"does not transfer leadership: n{target:x} cannot take it")
        return
    if target == r.transfer_target:
        return
    r.transfer_target = target
    r.transfer_elapsed = 0
    trace(r, f"transfers leadership to n{target:x}")
    if not _maybe_time_out_target(r):
        r.send_due = True


def acknowledged(r: Raft, sender: NodeId) -> None:
    """`sender` has acknowledged entries: it may be the target, and complete now."""
    if sender == r.transfer_target:
        _maybe_time_out_target(r)


def tick(r: Raft) -> None:
    if r.transfer_target == NO_NODE:
        return
    r.transfer_elapsed += 1
    if r.transfer_elapsed >= r.config.election_ticks:
        trace(r, f"gives up the transfer to n{r.transfer_target:x}")
        r.transfer_target = NO_NODE
        if not is_voter(r, r.node_id) and r.configurations[-1][0] <= r.log.commit_index:
            become_follower(r, r.term, NO_NODE)  # who left does not lead on (4.2.2)


def handle_timeout_now(r: Raft, m: TimeoutNow) -> None:
    if m.sender != r.leader_id or not election.promotable(r):
        trace(r, f"dropped TimeoutNow from n{m.sender:x}")
        return
    # The leader wants this election: no pre-vote, which its own lease would refuse (9.6).
    election.campaign(r, transfer=True)


def _maybe_time_out_target(r: Raft) -> bool:
    if r.progress[r.transfer_target].match_index < r.log.last_index:
        return False
    r.handed_over = True
    send(r, TimeoutNow(r.transfer_target, r.node_id, r.term))
    return True


def _best_target(r: Raft) -> NodeId:
    """The voter that lacks least; of equal ones, one that was heard lately, so that no dead one is chosen."""
    best = NO_NODE
    best_rank = (-1, False)
    for peer in r.progress.values():
        rank = (peer.match_index, peer.recent_active)
        if peer.node_id != r.node_id and is_voter(r, peer.node_id) and rank > best_rank:
            best = peer.node_id
            best_rank = rank
    return best
