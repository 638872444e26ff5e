"""Elections, rule by rule (thesis 3.3, 3.4, 3.6.1, 6.2, 9.6)."""

import pytest

from raft.messages import AppendEntries, AppendEntriesResponse, Heartbeat, RequestVote, RequestVoteResponse, TimeoutNow
from raft.types import NO_NODE, Role
from tests.raft.paper.bench import Bench, ack, beat, leader, vote


def test_nodes_start_as_followers() -> None:
    """3.4: when servers start up, they begin as followers."""
    assert Bench("1@1", term=4).raw.role is Role.FOLLOWER


def test_follower_campaigns_when_it_hears_nothing_for_an_election_timeout() -> None:
    """3.4: no communication over the election timeout: increment the term, vote for self, ask all others."""
    bench = Bench("1@1 2@2", term=2, pre_vote=False)
    bench.tick(20)
    asked = bench.sent_of(RequestVote)
    assert (bench.raw.role, bench.raw.term, bench.r.vote) == (Role.CANDIDATE, 3, 1)
    assert [(m.to, m.term, m.last_index, m.last_term, m.pre_vote) for m in asked] == [
        (2, 3, 2, 2, False),
        (3, 3, 2, 2, False),
    ]


def test_heartbeats_keep_a_follower_from_campaigning() -> None:
    """3.4: a server remains a follower as long as it receives valid RPCs from a leader."""
    bench = Bench(term=1)
    for _ in range(10):
        bench.step(Heartbeat(1, 2, 1, 0))
        bench.tick(9)
    assert bench.raw.role is Role.FOLLOWER


def test_election_timeouts_are_random_within_n_and_2n() -> None:
    """3.4: randomised election timeouts, so that split votes are rare."""
    bench = Bench(term=1)
    seen = set()
    for _ in range(200):
        bench.step(Heartbeat(1, 2, 1, 0))
        seen.add(bench.r.election_timeout)
    assert seen <= set(range(10, 20))
    assert len(seen) == 10


def test_candidate_wins_with_a_majority_of_votes() -> None:
    """3.4: a candidate wins with votes from a majority of the servers for the same term."""
    bench = Bench(voters=(1, 2, 3, 4, 5), pre_vote=False)
    bench.campaign()
    bench.work()
    bench.step(vote(2, 1))
    assert bench.raw.role is Role.CANDIDATE
    bench.step(vote(3, 1))
    assert bench.raw.role is Role.LEADER


def test_votes_are_counted_per_sender() -> None:
    """3.4, S-03: the same answer twice is one vote."""
    bench = Bench(voters=(1, 2, 3, 4, 5), pre_vote=False)
    bench.campaign()
    bench.work()
    bench.step(vote(2, 1), vote(2, 1), vote(2, 1))
    assert bench.raw.role is Role.CANDIDATE


def test_candidate_gives_up_when_a_majority_refuses() -> None:
    """3.4: no majority is left to win."""
    bench = Bench(pre_vote=False)
    bench.campaign()
    bench.work()
    bench.step(vote(2, 1, False), vote(3, 1, False))
    assert bench.raw.role is Role.FOLLOWER


def test_split_vote_starts_a_new_election() -> None:
    """3.4: with a split vote each candidate times out and starts a new election in a new term."""
    bench = Bench(pre_vote=False)
    bench.campaign()
    bench.work()
    bench.tick(20)
    assert (bench.raw.role, bench.raw.term) == (Role.CANDIDATE, 2)


def test_candidate_follows_a_leader_of_its_term() -> None:
    """3.4: AppendEntries from a leader whose term is at least as large: return to follower."""
    bench = Bench(pre_vote=False)
    bench.campaign()
    bench.work()
    bench.step(AppendEntries(1, 2, 1, 0, 0, [], 0))
    assert (bench.raw.role, bench.raw.leader_id) == (Role.FOLLOWER, 2)


def test_candidate_rejects_a_leader_of_an_older_term() -> None:
    """3.4: if the term in the RPC is smaller, the candidate rejects it and continues."""
    bench = Bench(term=4, pre_vote=False)
    bench.campaign()
    bench.work()
    bench.step(AppendEntries(1, 2, 4, 0, 0, [], 0))
    (answer,) = bench.sent_of(AppendEntriesResponse)
    assert (answer.term, answer.rejected) == (5, True)
    assert bench.raw.role is Role.CANDIDATE


def test_each_server_votes_for_at_most_one_candidate_in_a_term() -> None:
    """3.4: first come, first served."""
    bench = Bench(term=1)
    bench.step(RequestVote(1, 2, 2, 0, 0), RequestVote(1, 3, 2, 0, 0))
    assert [(m.to, m.granted) for m in bench.sent_of(RequestVoteResponse)] == [(2, True), (3, False)]


def test_a_repeated_request_gets_the_same_vote() -> None:
    """3.4: the answer may have been lost."""
    bench = Bench(term=1)
    bench.step(RequestVote(1, 2, 2, 0, 0), RequestVote(1, 2, 2, 0, 0))
    assert [m.granted for m in bench.sent_of(RequestVoteResponse)] == [True, True]


def test_vote_survives_a_restart() -> None:
    """3.8, S-01, S-02: currentTerm and votedFor are on stable storage before the answer leaves."""
    bench = Bench(term=1)
    bench.step(RequestVote(1, 2, 2, 0, 0))
    ready = bench.begin()
    assert not bench.sent, "the vote left before it was saved"
    bench.save(ready)
    bench.restart()
    bench.step(RequestVote(1, 3, 2, 9, 9))
    assert [m.granted for m in bench.sent_of(RequestVoteResponse)] == [True, False]
    assert (bench.raw.term, bench.r.vote) == (2, 2)


def test_own_vote_counts_only_when_saved() -> None:
    """3.8, S-10: a candidate whose own vote is not on disk does not lead, whoever voted for it."""
    bench = Bench(pre_vote=False)
    bench.campaign()
    ready = bench.begin()
    bench.step(vote(2, 1), vote(3, 1))
    assert bench.raw.role is Role.CANDIDATE
    bench.save(ready)
    assert bench.raw.role is Role.LEADER


def test_own_vote_of_a_lost_election_does_not_count() -> None:
    """S-10: the save of an older term's vote comes back after the term has ended."""
    bench = Bench(pre_vote=False)
    bench.campaign()
    ready = bench.begin()
    bench.step(RequestVote(1, 2, 5, 0, 0))
    bench.campaign()
    bench.save(ready)
    assert (bench.raw.role, bench.raw.term, bench.r.votes) == (Role.CANDIDATE, 6, {})


@pytest.mark.parametrize(
    ("last_index", "last_term", "granted"),
    [(2, 3, True), (3, 2, True), (2, 2, True), (1, 2, False), (9, 1, False)],
)
def test_voter_refuses_a_candidate_whose_log_is_older_than_its_own(
    last_index: int, last_term: int, granted: bool
) -> None:
    """3.6.1: the later last term is more up to date; with equal terms the longer log."""
    bench = Bench("1@1 2@2", term=3)
    bench.step(RequestVote(1, 2, 4, last_index, last_term))
    assert [m.granted for m in bench.sent_of(RequestVoteResponse)] == [granted]
    assert bench.raw.term == 4


def test_a_larger_term_turns_everybody_into_a_follower() -> None:
    """3.3: a server that sees a larger term updates its own and reverts to follower."""
    bench = leader()
    bench.step(AppendEntriesResponse(1, 2, 9, 0, True))
    assert (bench.raw.role, bench.raw.term, bench.raw.leader_id) == (Role.FOLLOWER, 9, NO_NODE)


def test_a_request_of_an_older_term_is_refused() -> None:
    """3.3: a server rejects a request with a stale term number and tells its own (S-17)."""
    bench = Bench(term=5)
    bench.step(RequestVote(1, 2, 4, 9, 4))
    (answer,) = bench.sent_of(RequestVoteResponse)
    assert (answer.granted, answer.term) == (False, 5)


def test_answers_of_an_older_term_are_ignored() -> None:
    """3.3, S-17."""
    bench = Bench(term=4, pre_vote=False)
    bench.campaign()
    bench.work()
    bench.step(vote(2, 4), ack(2, 4, 9), beat(2, 4))
    assert (bench.raw.role, bench.r.votes) == (Role.CANDIDATE, {1: True})


def test_leader_appends_a_no_op_at_the_start_of_its_term() -> None:
    """6.4: each leader commits a blank no-op entry at the start of its term."""
    bench = leader("1@1", term=2)
    log = bench.r.log
    assert (log.last_index, log.last_term) == (2, 2)
    assert log.entries(2, 2, 1)[0].data == b""


def test_leader_sends_heartbeats_at_each_interval() -> None:
    """3.4: leaders send periodic heartbeats to all followers."""
    bench = leader()
    bench.step(ack(2, 1, 1), ack(3, 1, 1))
    bench.work()
    bench.tick(1)
    assert [m.to for m in bench.sent_of(Heartbeat)] == [2, 3]


def test_learners_do_not_campaign() -> None:
    """4.2.1, S-11: a non-voting server never starts an election."""
    bench = Bench(voters=(2, 3), learners=(1,))
    bench.tick(100)
    bench.step(Heartbeat(1, 2, 1, 0), TimeoutNow(1, 2, 1))
    assert bench.raw.role is Role.FOLLOWER


def test_votes_of_learners_do_not_count() -> None:
    """4.2.1, S-11."""
    bench = Bench(voters=(1, 2, 3), learners=(4, 5), pre_vote=False)
    bench.campaign()
    assert {m.to for m in bench.sent_of(RequestVote)} == {2, 3}
    bench.step(vote(4, 1), vote(5, 1))
    assert bench.raw.role is Role.CANDIDATE


def test_a_learner_still_votes_when_asked() -> None:
    """4.2.1, S-11: it may be a voter and not know it yet."""
    bench = Bench(voters=(2, 3), learners=(1,))
    bench.step(RequestVote(1, 2, 1, 0, 0))
    assert [m.granted for m in bench.sent_of(RequestVoteResponse)] == [True]


def test_who_heard_a_leader_ignores_requests_for_votes() -> None:
    """6.2 (4.2.3): within the minimum election timeout of hearing a leader, no vote and no new term."""
    bench = Bench(term=1)
    bench.step(Heartbeat(1, 2, 1, 0))
    bench.tick(9)
    bench.work()
    bench.step(RequestVote(1, 3, 7, 9, 9))
    assert (bench.work(), bench.raw.term) == ([], 1)
    bench.tick(1)
    bench.step(RequestVote(1, 3, 7, 9, 9))
    assert (bench.r.vote, bench.raw.term) == (3, 7)


def test_the_leader_that_is_heard_may_itself_ask() -> None:
    """S-05: a leader that gave up leadership campaigns again while its followers still believe in it."""
    bench = Bench(term=1)
    bench.step(Heartbeat(1, 2, 1, 0), RequestVote(1, 2, 2, 0, 0, pre_vote=True))
    assert [m.granted for m in bench.sent_of(RequestVoteResponse)] == [True]


def test_leader_without_answers_from_a_quorum_steps_down() -> None:
    """6.2: a leader steps down if an election timeout elapses without a round of heartbeats to a majority."""
    bench = leader()
    bench.step(ack(2, 1, 1))
    bench.tick(10)
    assert bench.raw.role is Role.LEADER
    bench.tick(10)
    assert bench.raw.role is Role.FOLLOWER


def test_stuck_candidate_of_a_higher_term_is_freed() -> None:
    """S-06: it answers the leader's heartbeat with its term; the leader steps down instead of being ignored."""
    bench = Bench(term=3)
    bench.step(Heartbeat(1, 2, 2, 0))
    (answer,) = bench.work()
    assert answer.term == 3


def test_pre_vote_changes_neither_term_nor_vote() -> None:
    """9.6: a candidate only increments its term if it first learns that it could win."""
    bench = Bench("1@1", term=1)
    bench.campaign()
    asked = bench.sent_of(RequestVote)
    assert (bench.raw.role, bench.raw.term, bench.r.vote) == (Role.PRE_CANDIDATE, 1, NO_NODE)
    assert [(m.to, m.term, m.pre_vote) for m in asked] == [(2, 2, True), (3, 2, True)]
    bench.step(vote(2, 2, pre_vote=True))
    assert (bench.raw.role, bench.raw.term) == (Role.CANDIDATE, 2)


def test_granting_a_pre_vote_promises_nothing() -> None:
    """9.6: two pre-candidates of the same term may both be told yes."""
    bench = Bench(term=1)
    bench.step(RequestVote(1, 2, 2, 0, 0, pre_vote=True), RequestVote(1, 3, 2, 0, 0, pre_vote=True))
    assert [(m.term, m.granted) for m in bench.sent_of(RequestVoteResponse)] == [(2, True), (2, True)]
    assert (bench.raw.term, bench.r.vote) == (1, NO_NODE)


def test_pre_vote_is_refused_to_a_shorter_log() -> None:
    """9.6: the Pre-Vote is granted if the candidate's log is sufficiently up to date."""
    bench = Bench("1@1", term=1)
    bench.step(RequestVote(1, 2, 2, 0, 0, pre_vote=True))
    assert [(m.term, m.granted) for m in bench.sent_of(RequestVoteResponse)] == [(1, False)]


def test_pre_vote_is_refused_while_a_leader_is_heard() -> None:
    """9.6: granted only if no valid heartbeat came for at least a baseline election timeout."""
    bench = Bench(term=1)
    bench.step(Heartbeat(1, 2, 1, 0), RequestVote(1, 3, 2, 9, 9, pre_vote=True))
    assert bench.sent_of(RequestVoteResponse) == []


def test_answers_to_an_earlier_pre_vote_do_not_elect() -> None:
    """S-06: becoming pre-candidate again forgets the votes, and only grants for the next term count."""
    bench = Bench(term=1, voters=(1, 2, 3, 4, 5))
    bench.campaign()
    bench.step(vote(2, 2, pre_vote=True))
    bench.campaign()
    bench.step(vote(3, 9, pre_vote=True))
    assert (bench.raw.role, bench.r.votes) == (Role.PRE_CANDIDATE, {1: True})


def test_single_voter_elects_itself() -> None:
    """3.4: a majority of one."""
    bench = Bench(voters=(1,))
    bench.tick(20)
    bench.work()
    assert (bench.raw.role, bench.raw.commit_index) == (Role.LEADER, 1)
