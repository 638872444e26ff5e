"""Linearizable reads (thesis 6.4) and leadership transfer (3.10), rule by rule."""

import pytest

from raft.errors import NotLeader
from raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from raft.types import Role
from tests.raft.paper.bench import Bench, ack, beat, leader, positions


def ready_leader(voters: tuple[int, ...] = (1, 2, 3)) -> Bench:
    """A leader of term 1 whose no-op is committed and known to all."""
    bench = leader(voters=voters)
    bench.step(*[ack(voter, 1, 1) for voter in voters if voter != 1])
    bench.work()
    return bench


def test_a_read_waits_for_a_majority_of_heartbeats() -> None:
    """6.4: the leader exchanges heartbeats with a majority before it answers reads."""
    bench = ready_leader((1, 2, 3, 4, 5))
    context = bench.raw.read_index()
    assert {m.read_round for m in bench.sent_of(Heartbeat)} == {1}
    bench.step(beat(2, 1, 1))
    bench.work()
    assert bench.reads == {}
    bench.step(beat(3, 1, 1))
    bench.work()
    assert bench.reads == {context: 1}


def test_reads_between_two_readys_share_a_round() -> None:
    """6.4: one round of heartbeats amortises any number of reads."""
    bench = ready_leader()
    assert bench.raw.read_index() == bench.raw.read_index()
    bench.step(ReadIndex(1, 2, 1, 77))
    assert len(bench.sent_of(Heartbeat)) == 2
    bench.step(beat(3, 1, 1))
    assert [(m.to, m.context, m.index) for m in bench.sent_of(ReadIndexResponse)] == [(2, 77, 1)]
    assert len(bench.reads) == 1


def test_an_echo_of_an_earlier_message_does_not_confirm() -> None:
    """6.4, S-38: only messages sent after the read arrived prove anything."""
    bench = ready_leader()
    first = bench.raw.read_index()
    bench.work()
    second = bench.raw.read_index()
    bench.step(beat(2, 1, 1))
    bench.work()
    assert list(bench.reads) == [first]
    bench.step(beat(2, 1, 2))
    bench.work()
    assert list(bench.reads) == [first, second]


def test_a_later_echo_confirms_earlier_rounds_too() -> None:
    """6.4."""
    bench = ready_leader()
    first = bench.raw.read_index()
    bench.work()
    second = bench.raw.read_index()
    bench.work()
    bench.step(beat(2, 1, 2))
    bench.work()
    assert list(bench.reads) == [first, second]


def test_rejections_and_acknowledgements_are_echoes() -> None:
    """6.4: whatever a follower answers in our term says that it knows no newer one."""
    bench = ready_leader()
    bench.raw.propose([b"x"])
    bench.raw.read_index()
    assert {m.read_round for m in bench.sent_of(AppendEntries)} == {1}
    bench.step(AppendEntriesResponse(1, 2, 1, 1, True, 1, 1, read_round=1))
    bench.work()
    assert len(bench.reads) == 1


def test_followers_echo_the_round_in_every_answer() -> None:
    """6.4."""
    bench = Bench("1@1", term=1)
    bench.step(
        Heartbeat(1, 2, 1, 0, 5),
        AppendEntries(1, 2, 1, 1, 1, positions("2@1"), 0, 6),
        AppendEntries(1, 2, 1, 9, 1, [], 0, 7),
    )
    answers = bench.work()
    assert [m.read_round for m in answers if isinstance(m, (HeartbeatResponse, AppendEntriesResponse))] == [5, 6, 7]


def test_a_new_leader_answers_no_read_before_its_no_op_commits() -> None:
    """6.4, S-37: its commit index may lag behind what is committed."""
    bench = leader("1@1 2@1", term=2)
    context = bench.raw.read_index()
    bench.work()
    bench.step(beat(2, 2), beat(3, 2))
    bench.work()
    assert bench.reads == {}
    bench.step(ack(2, 2, 3))
    bench.work()
    bench.step(beat(2, 2, 1))
    bench.work()
    assert bench.reads == {context: 3}


def test_read_index_is_the_commit_index_when_the_round_began() -> None:
    """6.4: the leader saves its current commit index as readIndex."""
    bench = ready_leader()
    context = bench.raw.read_index()
    bench.work()
    bench.raw.propose([b"x"])
    bench.work()
    bench.step(ack(2, 1, 2, read_round=1))
    bench.work()
    assert (bench.reads, bench.raw.commit_index) == ({context: 1}, 2)


def test_a_deposed_leader_answers_no_read() -> None:
    """6.4: it may have been superseded without knowing."""
    bench = ready_leader()
    bench.raw.read_index()
    bench.work()
    bench.step(HeartbeatResponse(1, 2, 2, 1), beat(3, 1, 1))
    bench.work()
    assert (bench.reads, bench.raw.status().read_pending) == ({}, 0)


def test_echoes_of_an_earlier_leadership_do_not_confirm() -> None:
    """S-38: rounds are numbered within a term, and answers carry the term."""
    bench = leader("1@1", term=2)
    bench.step(ack(2, 2, 2))
    bench.work()
    bench.raw.read_index()
    bench.work()
    bench.step(beat(2, 1, 1), beat(3, 1, 1))
    bench.work()
    assert bench.reads == {}


def test_a_single_voter_answers_at_once() -> None:
    """6.4: it is its own majority."""
    bench = leader(voters=(1,))
    context = bench.raw.read_index()
    bench.work()
    assert bench.reads == {context: 1}


def test_learners_do_not_confirm() -> None:
    """4.2.1: they are no part of a majority."""
    bench = Bench(voters=(1, 2), learners=(3,), pre_vote=False)
    bench.campaign()
    bench.work()
    bench.step(RequestVoteResponse(1, 2, 1, True))
    bench.work()
    bench.step(ack(2, 1, 1))
    bench.work()
    bench.raw.read_index()
    bench.work()
    bench.step(beat(3, 1, 1))
    bench.work()
    assert bench.reads == {}


def test_a_follower_asks_its_leader() -> None:
    """6.4: followers help with reads; they ask the leader for the index."""
    bench = Bench("1@1", term=1)
    assert bench.raw.read_index() is None
    bench.step(Heartbeat(1, 2, 1, 1))
    bench.work()
    context = bench.raw.read_index()
    assert context is not None
    assert [(m.to, m.context) for m in bench.sent_of(ReadIndex)] == [(2, context)]
    bench.step(ReadIndexResponse(1, 2, 1, context, 1))
    bench.work()
    assert bench.reads == {context: 1}


def test_contexts_are_never_used_twice() -> None:
    """S-38: also not by the process after a restart."""
    bench = Bench("1@1", term=1)
    seen = set()
    for _ in range(3):
        bench.step(Heartbeat(1, 2, 1, 1))
        for _ in range(3):
            seen.add(bench.raw.read_index())
            bench.work()
        bench.restart()
    assert len(seen) == 9


def test_an_answer_to_the_process_before_the_restart_confirms_nothing() -> None:
    """S-38: contexts begin anywhere, so the old one may be higher, and a round confirms all that are lower."""
    bench = Bench("1@1 2@1", term=1)
    for _ in range(4):
        bench.step(Heartbeat(1, 2, 1, 1))
        context = bench.raw.read_index()
        assert context is not None
        for never_asked in (context - 1, context + 1, 2**63):
            bench.step(ReadIndexResponse(1, 2, 1, never_asked, 1))
        bench.work()
        assert bench.reads == {}
        bench.restart()


def test_who_does_not_lead_drops_read_requests() -> None:
    """S-41: the asker asks again."""
    bench = Bench(term=1)
    bench.step(ReadIndex(1, 2, 1, 5))
    assert bench.work() == []


def test_pending_reads_are_bounded() -> None:
    """S-41: memory of reads that are never confirmed."""
    bench = ready_leader()
    for context in range(10_000):
        bench.step(ReadIndex(1, 2, 1, context))
    assert bench.raw.status().read_pending <= 4096
    for _ in range(3000):
        bench.raw.read_index()
        bench.work()
    assert bench.raw.status().read_pending <= 1024


def test_transfer_to_an_up_to_date_follower_sends_timeout_now() -> None:
    """3.10: the leader sends TimeoutNow when the target's log matches its own."""
    bench = ready_leader()
    bench.raw.transfer_leadership(3)
    assert [m.to for m in bench.sent_of(TimeoutNow)] == [3]


def test_transfer_first_brings_the_target_up_to_date() -> None:
    """3.10: the leader updates the target's log using the normal replication mechanism."""
    bench = ready_leader()
    bench.raw.propose([b"x"])
    bench.raw.transfer_leadership(3)
    assert bench.sent_of(TimeoutNow) == []
    bench.step(ack(2, 1, 2))
    assert bench.sent_of(TimeoutNow) == []
    bench.step(ack(3, 1, 2))
    assert [m.to for m in bench.sent_of(TimeoutNow)] == [3]


def test_no_proposals_during_a_transfer() -> None:
    """3.10: the prior leader stops accepting new client requests."""
    bench = ready_leader()
    bench.raw.transfer_leadership(3)
    with pytest.raises(NotLeader):
        bench.raw.propose([b"x"])


def test_transfer_is_given_up_after_an_election_timeout() -> None:
    """3.10: if it does not complete after about an election timeout, the leader resumes."""
    bench = ready_leader()
    bench.raw.transfer_leadership(3)
    for _ in range(10):
        bench.step(beat(2, 1))
        bench.tick(1)
    bench.raw.propose([b"x"])
    assert bench.r.log.last_index == 2


@pytest.mark.parametrize("target", [1, 9])
def test_transfer_to_nobody_does_nothing(target: int) -> None:
    """3.10: ourselves, or no member."""
    bench = ready_leader()
    bench.raw.transfer_leadership(target)
    bench.raw.propose([b"x"])
    assert bench.sent_of(TimeoutNow) == []


def test_transfer_without_a_target_takes_the_most_up_to_date() -> None:
    """3.10: that one needs least."""
    bench = ready_leader()
    bench.raw.propose([b"x"])
    bench.work()
    bench.step(ack(3, 1, 2))
    bench.raw.transfer_leadership(0)
    assert [m.to for m in bench.sent_of(TimeoutNow)] == [3]


def test_timeout_now_starts_an_election_at_once_and_past_the_lease() -> None:
    """3.10: the target starts a new election without waiting; voters are told why (6.2), and no pre-vote."""
    bench = Bench(term=1)
    bench.step(Heartbeat(1, 2, 1, 0), TimeoutNow(1, 2, 1))
    asked = bench.sent_of(RequestVote)
    assert {(m.to, m.term, m.pre_vote, m.transfer) for m in asked} == {(2, 2, False, True), (3, 2, False, True)}


def test_timeout_now_counts_only_from_the_leader() -> None:
    """3.10."""
    bench = Bench(term=1)
    bench.step(Heartbeat(1, 2, 1, 0), TimeoutNow(1, 3, 1))
    assert bench.raw.role is Role.FOLLOWER


def test_voters_and_the_leader_itself_give_way_to_a_transfer() -> None:
    """3.10, 6.2: the lease does not protect a leader that wants to go."""
    bench = Bench(term=1)
    bench.step(Heartbeat(1, 2, 1, 0), RequestVote(1, 3, 2, 0, 0, transfer=True))
    assert [m.granted for m in bench.sent_of(RequestVoteResponse)] == [True]
    bench = ready_leader()
    bench.step(RequestVote(1, 3, 2, 1, 1, transfer=True))
    assert bench.raw.role is Role.FOLLOWER
    assert [m.granted for m in bench.sent_of(RequestVoteResponse)] == [True]
