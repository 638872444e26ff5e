"""Members that leave, the leader too (thesis 4.2.2, 4.2.3), rule by rule."""

import pytest

from raft.errors import NotLeader
from raft.messages import (
    AppendEntries,
    Heartbeat,
    HeartbeatResponse,
    ReadIndex,
    RequestVote,
    TimeoutNow,
)
from raft.types import Configuration, Role
from tests.raft.paper.bench import ack, beat, vote
from tests.raft.paper.members import append, change, entry, follower, ready_leader


def test_a_leader_that_leaves_does_not_count_itself() -> None:
    """4.2.2, S-36: it manages a cluster that does not include itself: it replicates, and counts for nothing."""
    bench = ready_leader()
    bench.raw.propose_configuration(change(removed=(1,)))
    bench.work()
    bench.step(ack(2, 1, 2), ack(3, 1, 2))
    bench.work()
    assert (bench.raw.configuration, bench.raw.role) == (Configuration((2, 3)), Role.LEADER)
    bench.step(ack(2, 1, 3))
    assert bench.raw.commit_index == 2
    bench.step(ack(3, 1, 3))
    assert bench.raw.commit_index == 3


def test_a_leader_that_left_hands_over_once_c_new_is_committed() -> None:
    """4.2.2: it steps down when C_new is committed; handing over spares the others an election timeout (3.10)."""
    bench = ready_leader()
    bench.raw.propose_configuration(change(removed=(1,)))
    bench.work()
    bench.step(ack(2, 1, 2), ack(3, 1, 2))
    bench.work()
    assert bench.sent_of(TimeoutNow) == []
    bench.step(ack(2, 1, 3), ack(3, 1, 3))
    assert len(bench.sent_of(TimeoutNow)) == 1
    with pytest.raises(NotLeader):
        bench.raw.propose([b"x"])
    bench.step(HeartbeatResponse(1, 2, 2))  # it has taken over
    assert bench.raw.role is Role.FOLLOWER
    bench.tick(100)
    assert bench.sent_of(RequestVote) == []


def test_a_leader_that_left_steps_down_if_nobody_takes_over() -> None:
    """4.2.2."""
    bench = ready_leader()
    bench.raw.propose_configuration(change(removed=(1,)))
    bench.work()
    bench.step(ack(2, 1, 2), ack(3, 1, 2))
    bench.work()
    bench.step(ack(2, 1, 3), ack(3, 1, 3))
    for _ in range(10):
        bench.step(beat(2, 1), beat(3, 1))
        bench.tick(1)
    assert bench.raw.role is Role.FOLLOWER


def test_who_c_new_leaves_out_campaigns_until_it_is_committed() -> None:
    """4.2.2, Figure 4.6: it may be the only one that holds C_new. Its own vote does not count."""
    joint = Configuration((2, 3), (), (1, 2, 3))
    bench = follower(pre_vote=False)
    bench.step(append(1, entry(2, 1, joint), entry(3, 1, Configuration((2, 3)))))
    bench.work()
    bench.tick(20)
    assert {m.to for m in bench.sent_of(RequestVote)} == {2, 3}
    bench.step(vote(2, 2))
    assert bench.raw.role is Role.CANDIDATE
    bench.step(vote(3, 2))
    assert bench.raw.role is Role.LEADER
    bench.work()
    bench.step(ack(2, 2, 4), ack(3, 2, 4))
    assert len(bench.sent_of(TimeoutNow)) == 1
    committed = follower(pre_vote=False)
    committed.step(append(1, entry(2, 1, joint), entry(3, 1, Configuration((2, 3))), commit=3))
    committed.tick(50)
    assert committed.sent_of(RequestVote) == []


def test_who_leaves_is_told_and_then_forgotten() -> None:
    """4.2.3: a server that knows that it was removed does not disturb; the leader owes it C_new and its commit."""
    bench = ready_leader()
    bench.raw.propose_configuration(change(removed=(3,)))
    bench.work()
    bench.step(ack(2, 1, 2), ack(3, 1, 2))
    assert {m.to for m in bench.sent_of(AppendEntries)} == {2, 3}  # C_new
    bench.step(ack(3, 1, 3), ack(2, 1, 3))
    assert {(m.to, m.commit) for m in bench.sent_of(Heartbeat)} == {(2, 3), (3, 3)}
    bench.tick(1)
    assert set(bench.raw.status().progress) == {1, 2}
    bench.raw.propose([b"x"])
    assert {m.to for m in bench.sent_of(AppendEntries)} == {2}


def test_who_leaves_and_does_not_answer_is_forgotten() -> None:
    """4.2.2: C_new does not wait for it."""
    bench = ready_leader()
    bench.raw.propose_configuration(change(removed=(3,)))
    bench.work()
    bench.step(ack(2, 1, 2))
    bench.work()
    bench.step(ack(2, 1, 3))
    assert set(bench.raw.status().progress) == {1, 2, 3}
    for _ in range(10):
        bench.step(beat(2, 1))
        bench.tick(1)
    assert set(bench.raw.status().progress) == {1, 2}


def test_answers_of_who_has_left_change_nothing() -> None:
    """4.2.3, PS#121: late acknowledgements and higher terms of removed servers do no harm."""
    bench = ready_leader()
    bench.raw.propose_configuration(change(removed=(3,)))
    bench.work()
    bench.step(ack(2, 1, 2))
    bench.step(HeartbeatResponse(1, 3, 9))  # while it is still told
    assert (bench.raw.role, bench.raw.term) == (Role.LEADER, 1)
    bench.work()
    bench.step(ack(2, 1, 3))
    for _ in range(10):
        bench.step(beat(2, 1))
        bench.tick(1)
    bench.work()
    bench.step(ack(3, 1, 3), ack(3, 9, 3), beat(3, 1), beat(3, 9), vote(3, 9, granted=False))
    bench.step(ReadIndex(1, 3, 1, 5))
    assert (bench.raw.role, bench.raw.term, bench.work()) == (Role.LEADER, 1, [])


def test_who_comes_back_starts_from_nothing() -> None:
    """What an earlier membership acknowledged says nothing about its disk now (S-33)."""
    bench = ready_leader(voters=(1, 2))
    bench.raw.propose_configuration(change(learners=(3,)))
    bench.work()
    bench.step(ack(2, 1, 2), ack(3, 1, 2))
    bench.work()
    bench.raw.propose_configuration(change(removed=(3,)))
    bench.work()
    bench.step(ack(2, 1, 3))
    bench.raw.propose_configuration(change(learners=(3,)))
    assert bench.raw.status().progress[3].match_index == 0


def test_a_removed_server_does_not_depose_a_leader() -> None:
    """4.2.3, S-07: who hears a leader ignores its requests, however high the term; it is told nothing."""
    bench = follower(voters=(1, 2))
    bench.step(RequestVote(1, 3, 99, 5, 5), RequestVote(1, 3, 99, 5, 5, pre_vote=True))
    assert (bench.work(), bench.raw.term) == ([], 1)


def test_a_transfer_to_a_member_that_leaves_is_given_up() -> None:
    """3.10, S-36: the target is removed in mid-transfer."""
    bench = ready_leader()
    bench.raw.propose_configuration(change(removed=(3,)))
    bench.raw.transfer_leadership(3)
    bench.work()
    bench.step(ack(2, 1, 2))  # commits C_old,new: C_new follows
    bench.raw.propose([b"x"])
    assert bench.sent_of(TimeoutNow) == []
