"""Log replication and its safety, rule by rule (thesis 3.5, 3.6, 10.2)."""

import pytest

from raft.core.progress import ProgressState
from raft.errors import NotLeader, TooManyProposals
from raft.messages import AppendEntries, AppendEntriesResponse, Heartbeat, HeartbeatResponse
from raft.types import Entry, Role
from tests.raft.paper.bench import Bench, ack, beat, leader, positions, vote


def append(
    bench: Bench, prev: str, entries: str, commit: int = 0, term: int = 2, sender: int = 2
) -> list[AppendEntriesResponse]:
    index, of = prev.split("@")
    bench.step(AppendEntries(1, 2, term, int(index), int(of), positions(entries), commit))
    return bench.sent_of(AppendEntriesResponse)


def log_of(bench: Bench) -> str:
    log = bench.r.log
    return " ".join([f"{e.index}@{e.term}" for e in log.entries(1, log.last_index, 1 << 30)]) if log.last_index else ""


def test_only_the_leader_takes_proposals() -> None:
    """3.5: once a leader has been elected, it services client requests."""
    with pytest.raises(NotLeader):
        Bench(term=1).raw.propose([b"x"])


def test_leader_appends_and_sends_in_parallel_with_its_own_disk() -> None:
    """3.5, 10.2.1: AppendEntries leave beside the leader's own fsync."""
    bench = leader()
    bench.step(ack(2, 1, 1), ack(3, 1, 1))
    bench.work()
    bench.raw.propose([b"x"])
    bench.begin()
    assert [(m.to, m.prev_index, [e.data for e in m.entries]) for m in bench.sent] == [(2, 1, [b"x"]), (3, 1, [b"x"])]


def test_entry_commits_when_a_majority_has_stored_it() -> None:
    """3.5: committed once the leader has replicated it on a majority."""
    bench = leader(voters=(1, 2, 3, 4, 5))
    bench.step(ack(2, 1, 1))
    assert bench.raw.commit_index == 0
    bench.step(ack(3, 1, 1))
    assert bench.raw.commit_index == 1


def test_leaders_own_log_counts_only_when_saved() -> None:
    """10.2.1: the leader's disk counts like any other; a quorum may even do without it."""
    bench = leader()
    bench.step(ack(2, 1, 1), ack(3, 1, 1))
    bench.work()
    bench.raw.propose([b"x"])
    ready = bench.begin()
    bench.step(ack(2, 1, 2))
    assert bench.raw.commit_index == 1
    bench.save(ready)
    assert bench.raw.commit_index == 2
    bench.raw.propose([b"y"])
    bench.begin()
    bench.step(ack(2, 1, 3), ack(3, 1, 3))
    assert bench.raw.commit_index == 3


def test_single_voter_commits_after_its_save() -> None:
    """S-44: there is no other disk."""
    bench = leader(voters=(1,))
    bench.raw.propose([b"x"])
    ready = bench.begin()
    assert bench.raw.commit_index == 1
    bench.save(ready)
    assert bench.raw.commit_index == 2


def test_leader_commits_by_counting_only_entries_of_its_term() -> None:
    """3.6.2: only entries of the leader's current term are committed by counting replicas (S-12)."""
    bench = leader("1@1 2@2", term=3)
    bench.step(ack(2, 3, 2))
    assert bench.raw.commit_index == 0
    bench.step(ack(2, 3, 3))
    assert bench.raw.commit_index == 3


def test_committing_an_entry_commits_all_before_it() -> None:
    """3.5: this also commits all preceding entries in the leader's log, also those of previous leaders."""
    bench = leader("1@1 2@1", term=2)
    bench.step(ack(3, 2, 3))
    bench.work()
    assert [e.index for e in bench.committed] == [1, 2, 3]


def test_leader_tells_the_commit_index() -> None:
    """3.5: the leader includes the highest index it knows to be committed in future AppendEntries and heartbeats."""
    bench = leader()
    bench.step(ack(2, 1, 1))
    assert [(m.to, m.commit) for m in bench.sent_of(Heartbeat)] == [(2, 1)]
    bench.raw.propose([b"x"])
    assert [(m.to, m.commit) for m in bench.sent_of(AppendEntries)] == [(2, 1)]


def test_a_member_that_stores_an_entry_after_its_commit_is_told_at_once() -> None:
    """3.5: the leader may tell only what the member has; so its late answer is the moment, not the next heartbeat."""
    bench = leader()
    bench.step(ack(2, 1, 1), ack(3, 1, 1))
    bench.work()
    bench.raw.propose([b"x"])
    bench.work()
    bench.step(ack(2, 1, 2))
    assert [(m.to, m.commit) for m in bench.sent_of(Heartbeat)] == [(2, 2)]
    bench.step(ack(3, 1, 2))
    assert [(m.to, m.commit) for m in bench.sent_of(Heartbeat)] == [(3, 2)]


def test_follower_takes_entries_that_follow_its_log() -> None:
    """3.5: the consistency check: prev_index and prev_term."""
    bench = Bench("1@1", term=1)
    (answer,) = append(bench, "1@1", "2@2 3@2")
    assert (answer.rejected, answer.match_index) == (False, 3)
    assert log_of(bench) == "1@1 2@2 3@2"


@pytest.mark.parametrize("prev", ["3@1", "2@2", "9@2"])
def test_follower_refuses_entries_that_do_not_follow_its_log(prev: str) -> None:
    """3.5: if the follower does not find an entry with that index and term, it refuses."""
    bench = Bench("1@1 2@1", term=1)
    (answer,) = append(bench, prev, "")
    assert (answer.rejected, answer.rejected_index) == (True, int(prev[0]))
    assert log_of(bench) == "1@1 2@1"


def test_conflicting_entries_are_replaced() -> None:
    """3.5: an existing entry that conflicts with a new one is deleted, and all that follow it."""
    bench = Bench("1@1 2@1 3@1 4@1", term=1)
    append(bench, "1@1", "2@1 3@2")
    assert log_of(bench) == "1@1 2@1 3@2"
    assert bench.storage.last_index == 3


def test_a_late_append_deletes_nothing() -> None:
    """3.5, S-16: entries that are already in the log stay, with what follows them."""
    bench = Bench("1@1 2@1 3@1", term=1)
    (answer,) = append(bench, "0@0", "1@1 2@1", term=1)
    assert (log_of(bench), answer.match_index) == ("1@1 2@1 3@1", 2)
    append(bench, "1@1", "", term=1)
    assert log_of(bench) == "1@1 2@1 3@1"


def test_an_append_before_the_commit_index_is_acknowledged_up_to_it() -> None:
    """3.6.3, S-16: what is committed agrees with every leader, and is never cut."""
    bench = Bench("1@1 2@1 3@1", term=1, commit=2)
    (answer,) = append(bench, "0@0", "1@2", term=2)
    assert (answer.rejected, answer.match_index) == (False, 2)
    assert log_of(bench) == "1@1 2@1 3@1"


def test_acknowledgement_leaves_after_the_save() -> None:
    """3.5, S-18: entries are on stable storage before the follower answers."""
    bench = Bench(term=1)
    bench.step(AppendEntries(1, 2, 1, 0, 0, positions("1@1"), 0))
    ready = bench.begin()
    assert bench.sent == []
    bench.save(ready)
    (answer,) = bench.sent
    assert isinstance(answer, AppendEntriesResponse)
    assert bench.storage.last_index == 1


def test_follower_applies_what_the_leader_has_committed() -> None:
    """3.5: once a follower learns that an entry is committed, it applies it in log order."""
    bench = Bench(term=1)
    append(bench, "0@0", "1@1 2@1 3@1", commit=2, term=1)
    assert [e.index for e in bench.committed] == [1, 2]


def test_follower_commits_only_what_this_append_verified() -> None:
    """3.5, S-15: min(leader commit, last new entry); a stale suffix of ours is not the leader's log."""
    bench = Bench("1@1 2@1 3@1", term=2)
    append(bench, "1@1", "", commit=3)
    assert bench.raw.commit_index == 1
    append(bench, "1@1", "2@1", commit=3)
    assert bench.raw.commit_index == 2


def test_commit_index_never_goes_back() -> None:
    """3.5, S-13."""
    bench = Bench("1@1 2@1", term=1, commit=2)
    append(bench, "2@1", "", commit=1)
    bench.step(Heartbeat(1, 2, 2, 0))
    assert bench.raw.commit_index == 2


def test_heartbeat_commits_no_more_than_the_follower_acknowledged() -> None:
    """3.5: a heartbeat proves nothing about the follower's log."""
    bench = leader()
    bench.step(ack(2, 1, 1))
    bench.work()
    bench.tick(1)
    assert [(m.to, m.commit) for m in bench.sent_of(Heartbeat)] == [(2, 1), (3, 0)]


def test_heartbeat_beyond_the_log_is_dropped() -> None:
    """RELIABILITY 4b: traced, not asserted, and not answered."""
    bench = Bench("1@1", term=1)
    bench.step(Heartbeat(1, 2, 1, 2))
    assert (bench.work(), bench.raw.leader_id) == ([], 0)
    assert "beyond" in bench.tracer.lines[-1]


def test_leader_steps_back_after_a_refusal_and_skips_a_term() -> None:
    """3.5: the follower can include the term of the conflicting entry; the leader skips all entries of that term."""
    bench = leader("1@1 2@1 3@4 4@4", term=5)
    bench.step(AppendEntriesResponse(1, 2, 5, 4, True, 4, 2))
    (probe,) = bench.sent_of(AppendEntries)
    assert (probe.prev_index, probe.prev_term) == (2, 1)


def test_follower_hints_past_its_own_conflicting_terms() -> None:
    """3.5: the other half: terms of ours above the leader's cannot agree."""
    bench = Bench("1@1 2@3 3@3 4@3", term=4)
    (answer,) = append(bench, "4@2", "", term=5)
    assert (answer.match_index, answer.hint_term) == (1, 1)


def test_follower_with_a_short_log_answers_with_its_end() -> None:
    """3.5."""
    (answer,) = append(Bench("1@1 2@1", term=1), "7@2", "")
    assert (answer.match_index, answer.hint_term) == (2, 1)


def test_late_refusals_are_ignored() -> None:
    """S-14: refused positions that are not the open probe's, or known to agree."""
    bench = leader("1@1 2@1 3@1", term=2)
    bench.step(AppendEntriesResponse(1, 2, 2, 0, True, 1, 0))
    assert bench.r.progress[2].next_index == 4
    bench.step(ack(2, 2, 4), AppendEntriesResponse(1, 2, 2, 0, True, 3, 0))
    assert bench.r.progress[2].next_index == 5


def test_match_index_never_goes_back() -> None:
    """S-14: repeated and overtaken answers; next_index stays above."""
    bench = leader("1@1 2@1", term=2)
    bench.step(ack(2, 2, 3), ack(2, 2, 1))
    peer = bench.r.progress[2]
    assert (peer.match_index, peer.next_index, peer.state) == (3, 4, ProgressState.REPLICATE)


def test_leader_probes_with_one_append_at_a_time() -> None:
    """10.2.1: until the logs are known to agree, further appends would only be refused."""
    bench = leader()
    bench.raw.propose([b"x"])
    assert bench.sent_of(AppendEntries) == []
    bench.step(ack(2, 1, 1))
    assert [(m.to, m.prev_index) for m in bench.sent_of(AppendEntries)] == [(2, 1)]


def test_lost_probe_is_sent_again() -> None:
    """3.5: the leader retries AppendEntries indefinitely."""
    bench = leader()
    bench.tick(1)
    bench.work()
    bench.step(beat(2, 1))
    assert [m.to for m in bench.sent_of(AppendEntries)] == [2]


def test_window_is_bounded_in_count_and_bytes() -> None:
    """10.2.1 pipelining, bounded; S-19: nothing leaks when the follower answers or is probed again."""
    for settings in ({"inflight_appends_max": 2}, {"inflight_bytes_max": 20}):
        bench = leader(**settings)
        bench.step(ack(2, 1, 1))
        bench.work()
        for _ in range(5):
            bench.raw.propose([b"0123456789"])
            bench.work()
        peer = bench.r.progress[2]
        assert (peer.inflight_count, peer.inflight_bytes, peer.next_index) == (2, 20, 4)
        bench.step(ack(2, 1, 3))
        bench.work()
        assert peer.next_index > 4
        bench.step(AppendEntriesResponse(1, 2, 1, 3, True, 5, 1))
        assert (peer.inflight_count, peer.inflight_bytes, peer.state) == (0, 0, ProgressState.PROBE)


def test_appends_are_cut_in_bytes() -> None:
    """append_bytes_max, but never without an entry; what is left goes in the next."""
    bench = leader(append_bytes_max=15)
    bench.step(ack(2, 1, 1))
    bench.work()
    bench.raw.propose([b"0123456789", b"0123456789", b"a larger one than the bound"])
    assert [len(m.entries) for m in bench.sent_of(AppendEntries)] == [1, 1, 1]


def test_uncommitted_bytes_are_bounded() -> None:
    """A leader that cannot commit does not grow; committing makes room again."""
    bench = leader(uncommitted_bytes_max=10)
    bench.step(ack(2, 1, 1))
    bench.raw.propose([b"larger than the bound"])
    with pytest.raises(TooManyProposals):
        bench.raw.propose([b"x"])
    bench.work()
    bench.step(ack(2, 1, 2))
    bench.raw.propose([b"0123456789"])
    assert bench.raw.status().uncommitted_bytes == 10


def test_applying_is_bounded_in_bytes() -> None:
    """Committed entries are handed out only as fast as they are applied."""
    bench = Bench("1@1 2@1 3@1", term=1, commit=3, apply_bytes_max=2)
    ready = bench.raw.ready()
    assert [e.index for e in ready.committed] == [1, 2]
    bench.raw.saved(ready)
    assert not bench.raw.has_ready()
    bench.raw.applied(2)
    assert [e.index for e in bench.raw.ready().committed] == [3]


def test_entries_cut_during_their_save_do_not_become_stable() -> None:
    """S-10, S-20: a newer leader replaces entries while they are on the way to the disk."""
    bench = Bench("1@1", term=1)
    bench.step(AppendEntries(1, 2, 1, 1, 1, positions("2@1 3@1"), 0))
    ready = bench.begin()
    bench.step(AppendEntries(1, 3, 2, 2, 1, positions("3@2"), 0))
    bench.save(ready)
    assert (bench.r.log.stable_index, bench.r.log.last_index) == (2, 3)
    bench.work()
    assert [bench.storage.term_at(i) for i in (1, 2, 3)] == [1, 1, 2]


def test_entries_cut_below_the_ones_under_way_do_not_become_stable() -> None:
    """S-20: the cut reaches into what was stable before."""
    bench = Bench("1@1 2@1", term=1)
    bench.step(AppendEntries(1, 2, 1, 2, 1, positions("3@1"), 0))
    ready = bench.begin()
    bench.step(AppendEntries(1, 3, 2, 1, 1, positions("2@2"), 0))
    bench.save(ready)
    assert (bench.r.log.stable_index, bench.r.log.last_index) == (1, 2)
    bench.work()
    assert (bench.storage.last_index, bench.storage.term_at(2)) == (2, 2)


def test_acknowledgements_of_an_earlier_leadership_do_not_count() -> None:
    """S-10: answers carry the term."""
    bench = leader("1@1", term=2)
    bench.step(ack(2, 1, 2), ack(3, 1, 2))
    assert bench.raw.commit_index == 0


def test_replicated_index_is_what_every_member_has() -> None:
    """Logs may be compacted up to it: the slowest member decides, a learner too."""
    bench = Bench(voters=(1, 2), learners=(3,), pre_vote=False)
    bench.campaign()
    bench.work()
    bench.step(vote(2, 1))
    bench.work()
    bench.step(ack(2, 1, 1))
    assert bench.raw.status().replicated_index == 0
    bench.step(ack(3, 1, 1))
    assert bench.raw.status().replicated_index == 1
    bench.tick(1)
    assert {m.replicated_index for m in bench.sent_of(Heartbeat)} == {1}


def test_follower_keeps_the_replicated_index_of_its_term() -> None:
    """What another term's leader said is asked for anew."""
    bench = Bench("1@1 2@1", term=1)
    bench.step(Heartbeat(1, 2, 1, 0, 0, 2), Heartbeat(1, 2, 1, 0, 0, 1))
    assert bench.raw.status().replicated_index == 2
    bench.step(Heartbeat(1, 3, 2, 0, 0, 0))
    assert bench.raw.status().replicated_index == 0


def test_restart_clamps_a_commit_index_beyond_the_log() -> None:
    """S-49: the commit index is saved without an fsync of its own."""
    assert Bench("1@1", term=1, commit=9).raw.commit_index == 1


def test_moved_commit_index_needs_no_fsync() -> None:
    """Ready.must_sync: term, vote or entries."""
    bench = leader()
    bench.step(ack(2, 1, 1))
    ready = bench.begin()
    assert ready.hard_state is not None
    assert (ready.hard_state.commit, ready.must_sync) == (1, False)


@pytest.mark.parametrize(
    "message",
    [
        AppendEntries(1, 2, 1, 0, 0, [Entry(2, 1, b"")], 0),  # a gap
        AppendEntries(1, 2, 1, 0, 0, [Entry(1, 2, b"")], 0),  # from the future
        AppendEntries(1, 2, 3, 1, 1, [Entry(2, 3, b""), Entry(3, 2, b"")], 0),  # terms go back
        AppendEntries(1, 2, 1, -1, 0, [], 0),
        AppendEntries(1, 2, 1, 0, 0, [], -1),
        AppendEntries(2, 3, 1, 0, 0, [], 0),  # not for us
        AppendEntries(1, 1, 1, 0, 0, [], 0),  # from ourselves
        Heartbeat(1, 2, 2**64, 0),
        Heartbeat(1, 2, 1, -1),
    ],
    ids=lambda m: f"{type(m).__name__}-{m.sender}-{m.term}",
)
def test_messages_that_cannot_be_true_change_nothing(message: AppendEntries | Heartbeat) -> None:
    """RELIABILITY 4b: remote input is validated, never asserted."""
    bench = Bench("1@1", term=1)
    bench.step(message)
    assert (bench.work(), bench.raw.term, bench.raw.leader_id) == ([], 1, 0)
    assert "dropped" in bench.tracer.lines[-1]


def test_leader_drops_answers_that_cannot_be_true() -> None:
    """RELIABILITY 4b."""
    bench = leader()
    bench.step(ack(2, 1, 99), ack(2, 1, -1), ack(2, 1, 1, read_round=7), beat(2, 1, 7), Heartbeat(1, 2, 1, 0))
    assert (bench.raw.commit_index, bench.raw.role) == (0, Role.LEADER)
    assert not bench.r.progress[2].recent_active


def test_a_second_leader_in_a_term_is_not_believed() -> None:
    """3.6, Election Safety."""
    bench = Bench(term=1)
    bench.step(Heartbeat(1, 2, 1, 0), Heartbeat(1, 3, 1, 0))
    assert bench.raw.leader_id == 2
    assert [m.to for m in bench.sent_of(HeartbeatResponse)] == [2]


def test_compacted_entries_are_not_sent() -> None:
    """A member that lacks them needs a snapshot; until then only heartbeats go to it."""
    bench = leader("1@1 2@1 3@1", term=2)
    bench.step(ack(2, 2, 4))
    bench.work()
    bench.storage.compact(4, bench.r.configuration)
    bench.step(AppendEntriesResponse(1, 3, 2, 1, True, 3, 1))
    assert bench.sent_of(AppendEntries) == []
    bench.tick(1)
    assert [m.to for m in bench.sent_of(Heartbeat)] == [2, 3]
    assert any("needs a snapshot" in line for line in bench.tracer.lines)
