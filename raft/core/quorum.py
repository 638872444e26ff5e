"""Majorities, as maths without state. One function serves commits, read rounds and check-quorum alike.

While a change of members is under way (thesis 4.3) a decision needs a majority of the old voters and
a majority of the new ones. Learners never count.
"""

from enum import IntEnum

from raft.types import INDEX_MAX, Configuration, NodeId


class VoteResult(IntEnum):
    PENDING = 0
    WON = 1
    LOST = 2


def reached(configuration: Configuration, values: dict[NodeId, int]) -> int:
    """The highest value that a quorum has reached; who is not in `values` stands at 0.

    Match indexes give the commit index, echoed rounds the confirmed read round.
    """
    index = _reached_by_majority(configuration.voters, values)
    if configuration.voters_outgoing:
        index = min(index, _reached_by_majority(configuration.voters_outgoing, values))
    return index


def vote_result(configuration: Configuration, votes: dict[NodeId, bool]) -> VoteResult:
    """Whether a quorum said yes, can no longer say yes, or may still do so."""
    result = _vote_of_majority(configuration.voters, votes)
    if configuration.voters_outgoing:
        other = _vote_of_majority(configuration.voters_outgoing, votes)
        if VoteResult.LOST in (result, other):
            return VoteResult.LOST
        return VoteResult.WON if result == other == VoteResult.WON else VoteResult.PENDING
    return result


def _reached_by_majority(voters: tuple[NodeId, ...], values: dict[NodeId, int]) -> int:
    if not voters:
        return INDEX_MAX  # an empty half of a joint configuration never holds back the other half
    ascending = sorted([values.get(voter, 0) for voter in voters])
    return ascending[(len(voters) - 1) // 2]


def _vote_of_majority(voters: tuple[NodeId, ...], votes: dict[NodeId, bool]) -> VoteResult:
    if not voters:
        return VoteResult.WON
    majority = len(voters) // 2 + 1
    granted = 0
    missing = 0
    for voter in voters:
        vote = votes.get(voter)
        if vote is None:
            missing += 1
        elif vote:
            granted += 1
    if granted >= majority:
        return VoteResult.WON
    return VoteResult.PENDING if granted + missing >= majority else VoteResult.LOST
