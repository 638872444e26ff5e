"""What rests on time: lease reads (thesis 6.4.1), and elections that do not wait for it (fast failover)."""

import pytest

from raft.config import Config
from raft.errors import ConfigError
from raft.messages import (
    Heartbeat,
    HeartbeatResponse,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from raft.types import ConfigurationChange, Role
from tests.raft.paper.bench import Bench, ack, beat, vote


def lease_leader(voters: tuple[int, ...] = (1, 2, 3), **more: int) -> Bench:
    """A leader of term 1 with lease reads and a committed no-op; no echo has come."""
    bench = Bench(voters=voters, lease_reads=True, **more)
    bench.tick(10)  # the promise that an earlier process of ours may have made
    bench.campaign()
    bench.work()
    others = [voter for voter in voters if voter != 1]
    bench.step(*[RequestVoteResponse(1, voter, 1, True, pre_vote=True) for voter in others])
    bench.work()
    bench.step(*[vote(voter, 1) for voter in others])
    bench.work()
    bench.step(*[ack(voter, 1, 1) for voter in others])
    bench.work()
    assert bench.raw.role is Role.LEADER
    return bench


def renewed(bench: Bench) -> Bench:
    """A heartbeat interval begins and node 2 answers."""
    bench.tick(1)
    bench.work()
    bench.step(beat(2, 1, bench.r.read_round))
    return bench


def read(bench: Bench) -> bool:
    """Whether a read is answered without asking anybody."""
    bench.work()
    bench.reads.clear()
    bench.raw.read_index()
    asked = [m for m in bench.work() if isinstance(m, Heartbeat)]
    assert bool(asked) != bool(bench.reads)
    return bool(bench.reads)


def test_with_a_lease_reads_need_no_round() -> None:
    """6.4.1: a leader whose heartbeats a majority has answered may answer reads without communication."""
    bench = lease_leader()
    assert not read(bench)
    renewed(bench)
    assert bench.raw.status().lease
    assert read(bench)
    bench.step(ReadIndex(1, 3, 1, 77))
    assert [(m.to, m.context, m.index) for m in bench.sent_of(ReadIndexResponse)] == [(3, 77, 1)]


def test_leases_are_off_by_default() -> None:
    """S-40."""
    assert Config(node_id=1).lease_reads is False


@pytest.mark.parametrize("setting", ["check_quorum", "pre_vote"])
def test_leases_need_what_keeps_the_promise(setting: str) -> None:
    """6.4.1: followers that vote although they hear a leader would break it (6.2)."""
    with pytest.raises(ConfigError):
        Config(node_id=1, lease_reads=True, **{setting: False})  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        Config(node_id=1, lease_reads=True, lease_read_drift=1.0)


def test_a_lease_ends() -> None:
    """6.4.1: election timeout / clock drift bound, counted from when the heartbeats were sent.

    (10 - 1) * (1 - 0.1) = 8.1: with the tick that is under way, 7 may have been counted.
    """
    bench = renewed(lease_leader())
    bench.tick(7)
    assert read(bench)
    bench.tick(1)
    assert not read(bench)


def test_a_lease_counts_from_the_sending() -> None:
    """6.4.1: an answer that took long proves little."""
    bench = lease_leader()
    bench.tick(1)
    bench.work()
    number = bench.r.read_round
    bench.tick(7)
    bench.step(beat(2, 1, number))
    assert bench.raw.status().lease
    bench.tick(1)
    assert not bench.raw.status().lease


def test_a_stall_ages_a_lease() -> None:
    """S-39, S-40: a driver that counts a stall as one tick says how many it stands for."""
    bench = renewed(lease_leader())
    bench.raw.tick(8)
    assert not read(bench)


def test_a_larger_drift_makes_the_lease_shorter() -> None:
    """6.4.1."""
    bench = renewed(lease_leader(lease_read_drift=0.5))  # type: ignore[arg-type]
    bench.tick(3)  # (10 - 1) * 0.5 - 1 = 3.5
    assert bench.raw.status().lease
    bench.tick(1)
    assert not bench.raw.status().lease


def test_a_lease_needs_a_majority() -> None:
    """6.4.1; a learner's answers never count (4.2.1)."""
    bench = lease_leader((1, 2, 3, 4, 5))
    renewed(bench)
    assert not bench.raw.status().lease
    bench.step(beat(3, 1, bench.r.read_round))
    assert bench.raw.status().lease


def test_a_transfer_ends_the_lease_for_good() -> None:
    """S-40: the target may campaign at any time after, and nobody will protect us."""
    bench = renewed(lease_leader())
    bench.raw.transfer_leadership(2)
    assert len(bench.sent_of(TimeoutNow)) == 1
    assert not bench.raw.status().lease
    for _ in range(10):
        renewed(bench)
    assert bench.r.transfer_target == 0
    assert not read(renewed(bench))


def test_a_deposed_leader_has_no_lease() -> None:
    """6.4.1."""
    bench = renewed(lease_leader())
    bench.step(HeartbeatResponse(1, 3, 2))
    status = bench.raw.status()
    assert (status.lease, status.role) == (False, Role.FOLLOWER)


def test_a_new_voter_makes_no_lease() -> None:
    """4.3, 6.4.1: quorums are those of the configuration in force."""
    bench = renewed(lease_leader((1, 2)))
    assert bench.raw.status().lease
    bench.raw.propose_configuration(ConfigurationChange(voters=(3, 4, 5)))
    assert not bench.raw.status().lease


def lease_follower() -> Bench:
    """Has heard leader 2 of term 1 just now."""
    bench = Bench("1@1", term=1, lease_reads=True)
    bench.tick(20)
    bench.work()
    bench.step(Heartbeat(1, 2, 1, 1))
    bench.work()
    return bench


@pytest.mark.parametrize("pre_vote", [True, False])
def test_who_heard_a_leader_votes_for_nobody_else(pre_vote: bool) -> None:
    """6.4.1, 6.2: for an election timeout; also when it learns of a newer term meanwhile."""
    for newer in (False, True):
        bench = lease_follower()
        if newer:
            bench.step(RequestVoteResponse(1, 2, 3, False))
        bench.work()
        bench.tick(9)
        bench.work()
        bench.step(RequestVote(1, 3, 3, 5, 1, pre_vote))
        assert bench.work() == []
        bench.tick(1)
        bench.work()
        bench.step(RequestVote(1, 3, 4, 5, 1, pre_vote))
        assert [m.granted for m in bench.sent_of(RequestVoteResponse)] == [True]


def test_a_promise_outlives_a_restart() -> None:
    """S-40: nobody remembers when it last heard a leader, so it may have been just now; also for its own campaign."""
    bench = lease_follower()
    bench.restart()
    bench.step(RequestVote(1, 3, 2, 5, 1))
    for _ in range(30):
        bench.raw.tick(0)  # a driver in a hurry
    assert bench.work() == []
    bench.tick(10)
    bench.step(RequestVote(1, 3, 2, 5, 1))
    assert [m.granted for m in bench.sent_of(RequestVoteResponse)] == [True]


def test_the_leader_itself_and_whom_it_sends_get_votes() -> None:
    """3.10, S-05: a lease protects the leader, not from itself."""
    for request in (RequestVote(1, 2, 2, 5, 1), RequestVote(1, 3, 2, 5, 1, transfer=True)):
        bench = lease_follower()
        bench.step(request)
        assert [m.granted for m in bench.sent_of(RequestVoteResponse)] == [True]


# A leader whose process is gone


def follower(**config: bool | int) -> Bench:
    bench = Bench("1@1", term=1, **config)
    bench.step(Heartbeat(1, 2, 1, 1))
    bench.work()
    return bench


def test_a_leader_that_is_gone_is_replaced_soon() -> None:
    """A short random delay instead of the election timeout; a pre-vote, so that who is wrong harms nobody (9.6)."""
    delays = set()
    for others_before in range(20):
        bench = follower(heartbeat_ticks=2)
        for _ in range(others_before):
            bench.r.rng.below(2)
        bench.raw.leader_unreachable()
        delay = 0
        while not bench.work():
            bench.tick(1)
            delay += 1
        assert bench.raw.role is Role.PRE_CANDIDATE
        delays.add(delay)
    assert delays == {1, 2, 3, 4}


def test_who_saw_it_too_does_not_protect_the_leader() -> None:
    """6.2: the others have to agree, and they do if their streams were refused as well."""
    bench = follower()
    bench.step(RequestVote(1, 3, 2, 5, 1, pre_vote=True))
    assert bench.sent_of(RequestVoteResponse) == []
    bench.raw.leader_unreachable()
    bench.step(RequestVote(1, 3, 2, 5, 1, pre_vote=True))
    assert [m.granted for m in bench.sent_of(RequestVoteResponse)] == [True]


def test_a_leader_that_is_heard_again_is_protected_again() -> None:
    """A refused stream is a hint; a message of the leader is a fact."""
    bench = follower()
    bench.raw.leader_unreachable()
    bench.step(Heartbeat(1, 2, 1, 1), RequestVote(1, 3, 2, 5, 1, pre_vote=True))
    bench.tick(9)
    assert bench.sent_of(RequestVoteResponse) == []
    assert bench.raw.role is Role.FOLLOWER


def test_a_leader_that_is_gone_matters_to_followers_only() -> None:
    """Nor where no pre-vote would hold back who is wrong, nor where a lease rests on the election timeout."""
    nobody = Bench(term=1)
    plain = follower(pre_vote=False)
    lease = lease_follower()
    for bench in (nobody, plain, lease):
        bench.raw.leader_unreachable()
        bench.tick(3)
        assert (bench.work(), bench.raw.role) == ([], Role.FOLLOWER)
    leading = lease_leader()
    leading.raw.leader_unreachable()
    assert leading.raw.role is Role.LEADER
