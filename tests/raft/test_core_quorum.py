"""Majorities: plain, joint, with learners, against a definition that counts subsets."""

from itertools import product

import pytest

from raft.core.quorum import VoteResult, reached, vote_result
from raft.types import INDEX_MAX, Configuration


@pytest.mark.parametrize(
    ("values", "expected"),
    [([5], 5), ([5, 3], 3), ([5, 3, 4], 4), ([5, 3, 4, 1], 3), ([1, 2, 3, 4, 5], 3), ([0, 0, 9], 0)],
)
def test_reached_by_a_majority(values: list[int], expected: int) -> None:
    voters = tuple(range(1, len(values) + 1))
    assert reached(Configuration(voters), dict(zip(voters, values, strict=True))) == expected


def test_who_never_answered_stands_at_zero() -> None:
    assert reached(Configuration((1, 2, 3)), {1: 9}) == 0


def test_no_voters_hold_nothing_back() -> None:
    assert reached(Configuration(()), {}) == INDEX_MAX


@pytest.mark.parametrize("outgoing", [(), (1, 2, 3), (3, 4), (4, 5, 6)])
def test_a_quorum_is_a_majority_of_each_half(outgoing: tuple[int, ...]) -> None:
    """4.3: agreement needs separate majorities of the old and the new configuration; learners never count."""
    configuration = Configuration((1, 2, 3), learners=(7,), voters_outgoing=outgoing)
    halves = [half for half in (configuration.voters, outgoing) if half]
    members = configuration.members()
    for answers in product((True, False, None), repeat=len(members)):
        votes = {member: answer for member, answer in zip(members, answers, strict=True) if answer is not None}
        won = all(sum(votes.get(v, False) for v in half) * 2 > len(half) for half in halves)
        possible = all(sum(votes.get(v, True) for v in half) * 2 > len(half) for half in halves)
        expected = VoteResult.WON if won else VoteResult.PENDING if possible else VoteResult.LOST
        assert vote_result(configuration, votes) is expected
        assert (reached(configuration, {member: int(vote) for member, vote in votes.items()}) >= 1) == won
