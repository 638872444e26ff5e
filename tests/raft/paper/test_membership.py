"""Changes of membership (thesis 4.1, 4.2, 4.3), rule by rule."""

import pytest

from raft.core.membership import changed, decode_configuration, encode_configuration
from raft.errors import ChangeRefused, MalformedMessage, NotLeader
from raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from raft.types import Configuration, ConfigurationChange, Entry, EntryKind, Role
from tests.raft.paper.bench import Bench, ack, leader, positions, vote
from tests.raft.paper.members import append, change, entry, follower, ready_leader

# 4.1, 4.3: what is in force, and from when on


def test_a_configuration_is_in_force_from_the_append_on() -> None:
    """4.1: a server uses the latest configuration in its log, regardless of whether it is committed."""
    bench = ready_leader()
    assert bench.raw.propose_configuration(change(voters=(4,), context=b"four")) == 2
    joint = Configuration((1, 2, 3, 4), (), (1, 2, 3))
    assert bench.raw.configuration == joint
    assert bench.raw.configurations == [(0, Configuration((1, 2, 3)), b""), (2, joint, b"four")]
    receiver = follower()
    receiver.step(append(1, entry(2, 1, joint)))
    assert (receiver.raw.configuration, receiver.raw.commit_index) == (joint, 0)


def test_a_configuration_in_force_survives_a_restart() -> None:
    """4.1: it is what the log says, not what the process remembers (S-34)."""
    bench = follower()
    joint = Configuration((1, 2, 3, 4), (), (1, 2, 3))
    bench.step(append(1, entry(2, 1, joint, b"ctx"), Entry(3, 1, b"x")))
    bench.work()
    bench.restart()
    assert bench.raw.configurations == [(0, Configuration((1, 2, 3)), b""), (2, joint, b"ctx")]


def test_a_change_is_taken_back_when_its_entry_is_cut_off() -> None:
    """4.1: a server must be prepared to fall back to the previous configuration in its log."""
    bench = follower()
    joint = Configuration((1, 2, 3, 4), (), (1, 2, 3))
    bench.step(append(1, entry(2, 1, joint), entry(3, 1, Configuration((1, 2, 3, 4)))))
    bench.work()
    bench.step(AppendEntries(1, 3, 2, 2, 1, [Entry(3, 2, b"other")], 0))
    assert bench.raw.configuration == joint
    bench.step(AppendEntries(1, 3, 2, 1, 1, [Entry(2, 2, b"other")], 0))
    assert bench.raw.configurations == [(0, Configuration((1, 2, 3)), b"")]
    assert not bench.raw.pending_change


def test_joint_needs_both_majorities_to_commit() -> None:
    """4.3: agreement requires separate majorities from both the old and the new configuration."""
    bench = ready_leader()
    bench.raw.propose_configuration(change(voters=(4, 5), removed=(2, 3)))
    bench.work()
    assert bench.raw.configuration == Configuration((1, 4, 5), (), (1, 2, 3))
    bench.step(ack(4, 1, 2), ack(5, 1, 2))
    assert bench.raw.commit_index == 1
    bench.step(ack(2, 1, 2))
    assert bench.raw.commit_index == 2


def test_joint_needs_both_majorities_to_elect() -> None:
    """4.3, S-31: removed nodes that do not know it yet cannot elect a leader of their own."""
    joint = Configuration((1, 4, 5), (), (1, 2, 3))
    bench = follower(pre_vote=False)
    bench.step(append(1, entry(2, 1, joint)))
    bench.work()
    bench.campaign()
    assert {m.to for m in bench.sent_of(RequestVote)} == {2, 3, 4, 5}
    bench.step(vote(2, 2), vote(3, 2))
    assert bench.raw.role is Role.CANDIDATE
    bench.step(vote(4, 2))
    assert bench.raw.role is Role.LEADER
    other = follower(pre_vote=False)
    other.step(append(1, entry(2, 1, joint)))
    other.work()
    other.campaign()
    other.work()
    other.step(vote(4, 2), vote(5, 2))
    assert other.raw.role is Role.CANDIDATE


def test_log_entries_go_to_both_configurations() -> None:
    """4.3: log entries are replicated to all servers in both configurations."""
    bench = ready_leader()
    bench.raw.propose_configuration(change(voters=(4,), removed=(3,)))
    assert {m.to for m in bench.sent_of(AppendEntries)} == {2, 3, 4}


def test_the_leader_appends_c_new_once_joint_is_committed() -> None:
    """4.3: once C_old,new has been committed, it is safe for a leader to create C_new; the context goes with it."""
    bench = ready_leader()
    bench.raw.propose_configuration(change(voters=(4,), context=b"ctx"))
    bench.work()
    bench.step(ack(2, 1, 2), ack(3, 1, 2))
    assert bench.raw.configurations[-1] == (3, Configuration((1, 2, 3, 4)), b"ctx")
    assert bench.raw.pending_change
    bench.work()
    bench.step(ack(2, 1, 3), ack(4, 1, 3))
    assert (bench.raw.commit_index, bench.raw.pending_change) == (3, False)


def test_c_new_waits_for_joint_itself() -> None:
    """4.3: entries before it may commit first; they say nothing about it."""
    bench = ready_leader()
    bench.raw.propose([b"x"])
    bench.raw.propose_configuration(change(voters=(4,)))
    bench.work()
    bench.step(ack(2, 1, 2), ack(3, 1, 2))
    assert (bench.raw.commit_index, bench.r.log.last_index) == (2, 3)


def test_c_new_commits_by_its_own_majority() -> None:
    """4.3: C_new is committed under the rules of C_new; who left does not count."""
    bench = ready_leader()
    bench.raw.propose_configuration(change(voters=(4, 5), removed=(2, 3)))
    bench.work()
    bench.step(ack(2, 1, 2), ack(4, 1, 2))
    bench.work()
    assert bench.raw.configuration == Configuration((1, 4, 5))
    bench.step(ack(2, 1, 3), ack(3, 1, 3))
    assert bench.raw.commit_index == 2
    bench.step(ack(4, 1, 3))
    assert bench.raw.commit_index == 3


def test_a_new_leader_completes_the_change() -> None:
    """4.3, S-30: C_old,new that the old leader left is committed under both majorities, then C_new follows."""
    joint = Configuration((1, 2, 3, 4), (), (1, 2, 3))
    bench = follower(pre_vote=False)
    bench.step(append(1, entry(2, 1, joint, b"ctx")))
    bench.work()
    bench.campaign()
    bench.work()
    bench.step(vote(2, 2), vote(4, 2))
    bench.work()
    assert bench.raw.role is Role.LEADER
    bench.step(ack(3, 2, 3))  # 1, 3: a majority of the old three, not of the four
    assert bench.raw.commit_index == 0
    bench.step(ack(4, 2, 3))
    assert bench.raw.configurations[-1] == (4, Configuration((1, 2, 3, 4)), b"ctx")
    with pytest.raises(ChangeRefused):
        bench.raw.propose_configuration(change(removed=(4,)))


def test_a_single_voter_can_grow_and_hand_over_everything() -> None:
    """4.3: any number of servers may come and go in one change."""
    bench = leader(voters=(1,))
    bench.raw.propose_configuration(change(voters=(2,), removed=(1,)))
    bench.work()
    assert bench.raw.commit_index == 1
    bench.step(ack(2, 1, 2))
    bench.work()
    assert bench.raw.configuration == Configuration((2,))
    bench.step(ack(2, 1, 3))
    assert [m.to for m in bench.sent_of(TimeoutNow)] == [2]


# 4.1: one change at a time


def test_no_change_while_one_is_pending() -> None:
    """4.1, S-29a: a leader must not begin a change before the last one has committed."""
    bench = ready_leader()
    bench.raw.propose_configuration(change(learners=(4,)))
    with pytest.raises(ChangeRefused, match="under way"):
        bench.raw.propose_configuration(change(learners=(5,)))
    bench.work()
    bench.step(ack(2, 1, 2))
    assert bench.raw.propose_configuration(change(learners=(5,))) == 3


def test_no_change_before_an_entry_of_the_own_term_is_committed() -> None:
    """4.1 as corrected in 2015, S-29b: else two changes of two terms may not overlap."""
    bench = leader()
    with pytest.raises(ChangeRefused, match="its term"):
        bench.raw.propose_configuration(change(learners=(4,)))
    assert bench.r.log.last_index == 1
    bench.step(ack(2, 1, 1))
    bench.raw.propose_configuration(change(learners=(4,)))


def test_only_a_leader_changes_members() -> None:
    """4.1."""
    with pytest.raises(NotLeader):
        follower().raw.propose_configuration(change(learners=(4,)))
    bench = ready_leader()
    bench.raw.transfer_leadership(2)
    with pytest.raises(NotLeader):
        bench.raw.propose_configuration(change(learners=(4,)))


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (change(), "names nobody"),
        (change(voters=(0,)), "names nobody"),
        (change(voters=(5, 5)), "twice"),
        (change(voters=(5,), removed=(5,)), "twice"),
        (change(removed=(9,)), "n9 is no member"),
        (change(voters=(2,)), "n2 is a member already"),
        (change(learners=(2,)), "n2 is a member already"),
        (change(learners=(4,)), "n4 is a member already"),
        (change(removed=(1, 2, 3)), "no voter"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(asked: ConfigurationChange, reason: str) -> None:
    with pytest.raises(ChangeRefused, match=reason):
        changed(Configuration((1, 2, 3), (4,)), asked)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (change(learners=(5,)), Configuration((1, 2, 3), (4, 5))),
        (change(removed=(4,)), Configuration((1, 2, 3))),
        (change(voters=(4,)), Configuration((1, 2, 3, 4), (), (1, 2, 3))),
        (change(voters=(5,), removed=(3,)), Configuration((1, 2, 5), (4,), (1, 2, 3))),
        (change(voters=(4,), learners=(6,), removed=(1, 2)), Configuration((3, 4), (6,), (1, 2, 3))),
        (change(removed=(1, 2), context=b"x"), Configuration((3,), (4,), (1, 2, 3))),
    ],
)
def test_a_change_of_voters_is_joint_and_one_of_learners_is_not(
    asked: ConfigurationChange, expected: Configuration
) -> None:
    """4.3; 4.2.1: learners are no part of any majority."""
    assert changed(Configuration((1, 2, 3), (4,)), asked) == expected


# 4.2.1: new members, and who may speak


def test_a_new_member_is_sent_entries_from_the_append_on() -> None:
    """4.2.1: it receives log entries and does not count, as long as it is a learner."""
    bench = ready_leader(voters=(1, 2))
    bench.raw.propose_configuration(change(learners=(9,)))
    assert [(m.to, m.prev_index) for m in bench.sent_of(AppendEntries)] == [(2, 1), (9, 1)]
    bench.step(AppendEntriesResponse(1, 9, 1, 0, True, 1, 0))
    assert [(m.to, m.prev_index) for m in bench.sent_of(AppendEntries)] == [(9, 0)]
    bench.step(ack(9, 1, 2))
    assert bench.raw.commit_index == 1
    bench.step(ack(2, 1, 2))
    assert bench.raw.commit_index == 2


def test_new_voters_do_not_cost_the_leader_its_quorum_before_they_can_answer() -> None:
    """6.2: check-quorum counts from when it could hear them."""
    bench = ready_leader(voters=(1,), election_ticks=4)
    bench.raw.propose_configuration(change(voters=(2, 3)))
    bench.tick(4)
    assert bench.raw.role is Role.LEADER
    bench.tick(4)
    assert bench.raw.role is Role.FOLLOWER


def test_a_member_without_configuration_follows_whoever_leads() -> None:
    """4.2.1: a server accepts AppendEntries from a leader that is not part of its latest configuration."""
    bench = Bench(voters=())
    bench.tick(100)
    assert bench.work() == []
    four = Configuration((2, 3, 4), (1,))
    bench.step(AppendEntries(1, 3, 7, 0, 0, [entry(1, 5, four), *positions("2@7")], 1))
    assert [m.match_index for m in bench.sent_of(AppendEntriesResponse)] == [2]
    assert (bench.raw.leader_id, bench.raw.configuration) == (3, four)


def test_a_vote_is_granted_to_a_candidate_that_is_not_a_member() -> None:
    """4.2.1: it may be needed, since the voter's log may lack the configuration with that candidate in it."""
    bench = Bench("1@1", term=1)
    bench.step(RequestVote(1, 9, 2, 5, 1))
    assert [(m.to, m.granted) for m in bench.sent_of(RequestVoteResponse)] == [(9, True)]


def test_a_voter_that_does_not_know_of_its_promotion_votes() -> None:
    """S-11: whoever asks has the configuration in which it counts."""
    bench = Bench("1@1", term=1, voters=(2, 3), learners=(1,))
    bench.step(RequestVote(1, 2, 2, 2, 1))
    assert [m.granted for m in bench.sent_of(RequestVoteResponse)] == [True]


def test_learners_and_strangers_never_campaign() -> None:
    """4.2.1, S-11: not by timeout, not because the leader asks, and not when the leader's process is gone."""
    for members in ({"voters": (2, 3), "learners": (1,)}, {"voters": (2, 3)}, {"voters": ()}):
        bench = Bench("1@1", term=1, **members)  # type: ignore[arg-type]
        bench.step(Heartbeat(1, 2, 1, 1), TimeoutNow(1, 2, 1))
        bench.raw.leader_unreachable()
        bench.tick(50)
        assert bench.sent_of(RequestVote) == []


def test_a_vote_of_somebody_who_is_no_member_does_not_count() -> None:
    """4.3: only voters of the configuration make a majority."""
    bench = Bench(pre_vote=False)
    bench.campaign()
    bench.work()
    bench.step(vote(8, 1), vote(9, 1))
    assert bench.raw.role is Role.CANDIDATE


# What the driver asks


def test_configuration_at() -> None:
    """5.1: a snapshot carries the configuration that was in force at its last entry."""
    bench = follower()
    four = Configuration((1, 2, 3), (4,))
    five = Configuration((1, 2, 3), (4, 5))
    bench.step(append(1, entry(2, 1, four, b"4"), Entry(3, 1, b"x"), entry(4, 1, five, b"5"), commit=3))
    bench.work()
    at = [bench.raw.configuration_at(index) for index in range(5)]
    assert at == [(Configuration((1, 2, 3)), b"")] * 2 + [(four, b"4")] * 2 + [(five, b"5")]
    bench.storage.compact(3, *bench.raw.configuration_at(3))
    assert bench.raw.configurations == [(3, four, b"4"), (4, five, b"5")]
    bench.restart()
    assert bench.raw.configurations == [(3, four, b"4"), (4, five, b"5")]


def test_status_shows_the_change() -> None:
    bench = ready_leader()
    bench.raw.propose_configuration(change(learners=(4,)))
    status = bench.raw.status()
    assert (status.configuration, status.pending_change) == (Configuration((1, 2, 3), (4,)), True)


# The data of an entry


@pytest.mark.parametrize(
    "configuration",
    [Configuration((1,)), Configuration((2**64 - 1, 1), (7, 9)), Configuration((1, 2), (3,), (2, 4))],
)
def test_an_encoded_configuration_comes_back(configuration: Configuration) -> None:
    for context in (b"", b"\x00context"):
        assert decode_configuration(encode_configuration(configuration, context)) == (configuration, context)


GOOD = encode_configuration(Configuration((1, 2)), b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:12],
        GOOD[:-1],
        b"\x09" + GOOD[1:],
        GOOD[:1] + b"\xff\xff\xff\xff" + GOOD[5:],
        encode_configuration(Configuration(()), b""),
        encode_configuration(Configuration((1, 1)), b""),
        encode_configuration(Configuration((0,)), b""),
    ],
)
def test_a_malformed_configuration_is_refused(data: bytes) -> None:
    """RELIABILITY 4b: remote input is validated, never asserted."""
    with pytest.raises(MalformedMessage):
        decode_configuration(data)
    bench = follower()
    bench.step(append(1, Entry(2, 1, data, EntryKind.CONFIGURATION)))
    assert (bench.work(), bench.r.log.last_index) == ([], 1)
