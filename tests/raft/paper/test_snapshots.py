"""Snapshots and compaction (thesis 5), rule by rule: the leader's side, then the follower's."""

import pytest

from raft.core.progress import ProgressState
from raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    RequestVote,
)
from raft.ready import Ready
from raft.types import Configuration, Entry, Index, NodeId, Role, SnapshotMeta, Term
from tests.raft.paper.bench import Bench, ack, beat, leader, positions

THREE = Configuration((1, 2, 3))


def compacted_leader(compacted: Index = 4, log: str = "1@1 2@1 3@1 4@1 5@1") -> Bench:
    """A leader of term 2 whose log starts after `compacted`; node 2 has everything, of node 3 nothing is known."""
    bench = leader(log, term=2)
    last = bench.r.log.last_index
    bench.step(ack(2, 2, last))
    bench.work()
    bench.storage.compact(compacted, THREE)
    return bench


def reject(
    sender: NodeId, rejected: Index, hint: Index = 0, term: Term = 2, hint_term: Term = 0
) -> AppendEntriesResponse:
    return AppendEntriesResponse(1, sender, term, hint, True, rejected, hint_term)


def asked(bench: Bench) -> list[NodeId]:
    """Who is to be sent a snapshot, by all Readys that are due."""
    found: list[NodeId] = []
    while bench.raw.has_ready():
        ready = bench.begin()
        found += ready.snapshots_to_send
        bench.save(ready)
    return found


def lagging(bench: Bench) -> Bench:
    """Node 3 turns out to have nothing."""
    bench.step(reject(3, bench.r.progress[3].next_index - 1))
    return bench


def snapshot(
    index: Index, term: Term, *, sender: NodeId = 2, in_term: Term = 1, configuration: Configuration = THREE
) -> InstallSnapshot:
    return InstallSnapshot(1, sender, in_term, index, term, configuration, b"ctx")


def install(bench: Bench, ready: Ready) -> None:
    """What a driver does for a Ready with a snapshot."""
    meta = ready.snapshot
    assert meta is not None
    bench.storage.reset(meta.index, meta.term, meta.configuration, meta.context)
    bench.save(ready)


# The leader


def test_the_leader_sends_a_snapshot_when_the_next_entry_is_compacted() -> None:
    """5.3: when the leader has already discarded the next log entry that it needs to send."""
    bench = lagging(compacted_leader())
    assert asked(bench) == [3]
    progress = bench.raw.status().progress[3]
    assert (progress.state, progress.snapshot_index) == (ProgressState.SNAPSHOT, 4)


def test_it_is_asked_for_once() -> None:
    """5.3: a transfer takes long; appends and repeated asking would not make it shorter."""
    bench = lagging(compacted_leader())
    assert asked(bench) == [3]
    for _ in range(5):
        bench.raw.propose([b"x"])
        bench.tick(1)
        bench.step(beat(2, 2), beat(3, 2), reject(3, 6), reject(3, 5))
        assert asked(bench) == []
    assert all(m.prev_index == 4 and not m.entries for m in bench.sent if m.to == 3 and isinstance(m, AppendEntries))


def test_heartbeats_go_on_during_a_transfer() -> None:
    """5.3, S-21: the follower must not campaign because it is being helped."""
    bench = lagging(compacted_leader())
    bench.work()
    bench.tick(1)
    assert {(m.to, m.commit) for m in bench.sent_of(Heartbeat)} == {(2, 6), (3, 0)}


def test_replication_goes_on_where_the_snapshot_ends() -> None:
    """5.3: what follows the snapshot comes from the log."""
    bench = lagging(compacted_leader())
    asked(bench)
    bench.work()
    bench.raw.propose([b"x"])
    bench.work()
    bench.step(ack(3, 2, 5))
    assert [(m.to, m.prev_index, len(m.entries)) for m in bench.sent_of(AppendEntries)] == [(3, 5, 2)]
    progress = bench.raw.status().progress[3]
    assert (progress.state, progress.snapshot_index, progress.match_index) == (ProgressState.REPLICATE, 0, 5)


def test_late_answers_do_not_end_a_transfer() -> None:
    """S-14: an acknowledgement of an entry that was compacted says nothing about the snapshot."""
    bench = lagging(compacted_leader())
    asked(bench)
    bench.step(ack(3, 2, 2), ack(3, 2, 0), reject(3, 6), reject(3, 3))
    assert asked(bench) == []
    assert bench.raw.status().progress[3].state is ProgressState.SNAPSHOT


def test_a_lost_acknowledgement_of_a_snapshot_is_found() -> None:
    """S-25: or a crash right after it was installed; the leader asks with each heartbeat whether it is there."""
    bench = lagging(compacted_leader())
    asked(bench)
    bench.work()
    bench.tick(1)
    assert [(m.prev_index, m.prev_term, m.entries) for m in bench.sent_of(AppendEntries)] == [(4, 1, [])]
    bench.step(reject(3, 4), ack(3, 2, 4))
    bench.work()
    assert bench.raw.status().progress[3].state is ProgressState.REPLICATE
    bench.tick(1)
    assert bench.sent_of(AppendEntries) == []


def test_a_failed_transfer_is_repeated_once_the_member_answers() -> None:
    """5.3: not at once, and not to a member that is down."""
    bench = lagging(compacted_leader())
    asked(bench)
    bench.raw.snapshot_failed(3)
    assert bench.raw.status().progress[3].state is ProgressState.PROBE
    for _ in range(3):
        bench.tick(1)
        assert asked(bench) == []
    bench.step(beat(3, 2))
    assert asked(bench) == [3]


def test_the_end_of_a_transfer_that_does_not_matter_any_more() -> None:
    """The member may have got it from elsewhere, have left, or we lead no more."""
    bench = lagging(compacted_leader())
    asked(bench)
    bench.step(ack(3, 2, 6))
    for peer in (3, 2, 9, 1):
        bench.raw.snapshot_failed(peer)
    assert bench.raw.status().progress[3].state is ProgressState.REPLICATE
    bench.step(HeartbeatResponse(1, 2, 3))
    bench.raw.snapshot_failed(3)
    assert (bench.raw.role, asked(bench)) == (Role.FOLLOWER, [])


def test_a_snapshot_that_was_overtaken_by_compaction_is_followed_by_another() -> None:
    """S-21, S-24: a follower that needs the next snapshot before it has finished the first."""
    bench = lagging(compacted_leader())
    asked(bench)
    bench.storage.compact(6, THREE)
    bench.step(ack(3, 2, 4))
    assert asked(bench) == [3]
    bench.step(ack(3, 2, 6))
    assert asked(bench) == []
    assert bench.raw.status().progress[3].state is ProgressState.REPLICATE


def test_streaming_falls_back_to_a_snapshot() -> None:
    """5.3: also where the leader knew how far the follower was, and compacted beyond."""
    bench = compacted_leader(3)
    bench.step(ack(3, 2, 5))
    bench.work()
    bench.step(reject(3, 6))  # an append was lost: look again after 5, which is compacted now
    bench.storage.compact(6, THREE)
    assert asked(bench) == [3]


# The follower


def test_a_snapshot_replaces_a_shorter_log() -> None:
    """5.3: the follower discards its entire log; it is all superseded by the snapshot."""
    bench = Bench("1@1 2@1", term=1)
    bench.step(Heartbeat(1, 2, 1, 1), snapshot(9, 1))
    ready = bench.begin()
    assert ready.snapshot == SnapshotMeta(9, 1, THREE, b"ctx")
    assert (ready.entries, ready.committed, ready.must_sync) == ([], [], True)
    assert [m for m in bench.sent if isinstance(m, AppendEntriesResponse)] == []
    install(bench, ready)
    assert [(m.match_index, m.rejected) for m in bench.sent_of(AppendEntriesResponse)] == [(9, False)]
    status = bench.raw.status()
    assert (status.first_index, status.last_index, status.last_term, status.commit, status.applied) == (10, 9, 1, 9, 9)
    bench.step(AppendEntries(1, 2, 1, 9, 1, positions("10@1"), 10))
    bench.work()
    assert [entry.index for entry in bench.committed] == [10]


def test_a_snapshot_discards_a_conflicting_log() -> None:
    """5.3, S-22: entries that conflict with the snapshot, and all that follows them, are removed."""
    bench = Bench("1@1 2@1 3@2 4@2 5@2", term=3)
    bench.step(Heartbeat(1, 2, 3, 0), snapshot(4, 3, in_term=3))
    install(bench, bench.begin())
    bench.work()
    assert (bench.r.log.last_index, bench.r.log.last_term) == (4, 3)
    bench.restart()  # nothing of the old log comes back (S-23)
    assert (bench.r.log.last_index, bench.r.log.last_term, bench.raw.commit_index) == (4, 3, 4)


def test_a_snapshot_of_a_prefix_keeps_what_follows() -> None:
    """5.3: if the log holds the snapshot's last entry, the entries after it are still valid and are retained."""
    bench = Bench("1@1 2@1 3@1 4@1", term=1)
    bench.step(Heartbeat(1, 2, 1, 1), snapshot(3, 1))
    ready = bench.begin()
    assert ready.snapshot is None
    bench.save(ready)
    assert [m.match_index for m in bench.sent_of(AppendEntriesResponse)] == [3]
    assert (bench.r.log.last_index, bench.raw.commit_index) == (4, 3)
    assert [entry.index for entry in bench.committed] == [1, 2, 3]


@pytest.mark.parametrize("index", [1, 2, 3])
def test_an_old_snapshot_changes_nothing(index: Index) -> None:
    """S-26: at or below commit; the log stands, and the leader is told how far it agrees."""
    bench = Bench("1@1 2@1 3@1 4@1", term=1, commit=3)
    bench.step(snapshot(index, 1))
    ready = bench.begin()
    assert ready.snapshot is None
    bench.save(ready)
    assert [m.match_index for m in bench.sent_of(AppendEntriesResponse)] == [3]
    assert bench.r.log.last_index == 4


def test_a_snapshot_brings_its_configuration() -> None:
    """5.1, S-26: the latest configuration in the log as of its last entry."""
    four = Configuration((2, 3, 4), (1,))
    bench = Bench(voters=())
    bench.step(snapshot(7, 2, in_term=5, configuration=four))
    install(bench, bench.begin())
    assert bench.raw.configurations == [(7, four, b"ctx")]
    bench.restart()
    assert bench.raw.configurations == [(7, four, b"ctx")]


def test_a_snapshot_makes_its_sender_the_leader() -> None:
    """5.3: InstallSnapshot follows the term rules of AppendEntries."""
    bench = Bench("1@1", term=1)
    bench.step(snapshot(7, 2, in_term=3))
    assert (bench.raw.term, bench.raw.leader_id) == (3, 2)
    bench.step(snapshot(8, 2, sender=3, in_term=3))  # nobody else leads this term
    assert bench.begin().snapshot == SnapshotMeta(7, 2, THREE, b"ctx")


def test_a_snapshot_of_an_old_term_is_refused() -> None:
    """5.3: reply immediately if term < currentTerm."""
    bench = Bench("1@1", term=4)
    bench.step(snapshot(7, 2, in_term=3))
    assert [(m.term, m.rejected) for m in bench.sent_of(AppendEntriesResponse)] == [(4, True)]
    assert bench.r.snapshot is None


def test_a_candidate_gives_way_to_a_snapshot() -> None:
    """3.4, 5.3: its sender is the leader of the term."""
    bench = Bench("1@1", term=1, pre_vote=False)
    bench.campaign()
    bench.work()
    bench.step(snapshot(7, 1, in_term=2))
    assert (bench.raw.role, bench.raw.leader_id) == (Role.FOLLOWER, 2)


def installing() -> tuple[Bench, Ready]:
    """A follower in the middle of the installation of 9@1."""
    bench = Bench("1@1 2@1", term=1)
    bench.step(Heartbeat(1, 2, 1, 1))
    bench.work()
    bench.step(snapshot(9, 1))
    return bench, bench.begin()


def test_nothing_is_appended_while_a_snapshot_is_installed() -> None:
    """S-25: the log is about to go; what would be acknowledged of it would be lost."""
    bench, ready = installing()
    bench.step(AppendEntries(1, 2, 1, 2, 1, positions("3@1"), 3), Heartbeat(1, 2, 1, 2))
    assert (bench.r.log.last_index, bench.raw.commit_index) == (2, 1)
    install(bench, ready)
    sent = bench.work()
    assert [m.match_index for m in sent if isinstance(m, AppendEntriesResponse)] == [9]
    assert len([m for m in sent if isinstance(m, HeartbeatResponse)]) == 1


def test_nobody_campaigns_while_it_installs_a_snapshot() -> None:
    """S-09: it would ask with a log that it is giving up, for ever."""
    bench, ready = installing()
    bench.tick(50)
    assert bench.raw.role is Role.FOLLOWER
    install(bench, ready)
    bench.work()
    bench.tick(1)
    assert {m.last_index for m in bench.sent_of(RequestVote)} == {9}


def test_a_second_snapshot_during_an_installation_is_dropped() -> None:
    """S-24: two in quick succession; the first one ends, the leader goes on from there."""
    bench, ready = installing()
    bench.step(snapshot(12, 1), snapshot(13, 2, sender=3, in_term=2))
    install(bench, ready)
    assert bench.r.log.last_index == 9
    sent = [m for m in bench.work() if isinstance(m, AppendEntriesResponse)]
    assert [(m.to, m.term, m.match_index) for m in sent] == [(2, 1, 9)]


def test_a_new_term_during_an_installation() -> None:
    """What the snapshot holds is committed in every term (3.6.3)."""
    bench, ready = installing()
    bench.step(Heartbeat(1, 3, 2, 0))
    install(bench, ready)
    bench.work()
    bench.step(AppendEntries(1, 3, 2, 9, 1, positions("10@2"), 10))
    bench.work()
    assert (bench.r.log.last_index, bench.raw.commit_index) == (10, 10)


def test_what_was_being_applied_when_the_snapshot_came() -> None:
    """The state machine may say late how far it was before the snapshot."""
    bench = Bench("1@1 2@1", term=1)
    bench.step(Heartbeat(1, 2, 1, 2))
    ready = bench.begin()
    bench.storage.save(ready.hard_state, ready.entries, True)
    bench.raw.saved(ready)  # handed out, not applied
    bench.step(snapshot(9, 1))
    install(bench, bench.begin())
    bench.raw.applied(2)
    assert bench.raw.applied_index == 9
    bench.raw.applied(9)


def test_entries_that_were_not_saved_yet_go_with_the_log() -> None:
    """S-20: an append and a snapshot between two Readys."""
    bench = Bench("1@1", term=1)
    bench.step(AppendEntries(1, 2, 1, 1, 1, positions("2@1 3@1"), 3))
    bench.step(snapshot(9, 1))
    ready = bench.begin()
    assert (ready.entries, ready.committed) == ([], [])
    install(bench, ready)
    assert [m.match_index for m in bench.sent_of(AppendEntriesResponse)] == [3, 9]  # 9 holds 3


@pytest.mark.parametrize(
    "message",
    [
        snapshot(0, 1),
        snapshot(5, 0),
        snapshot(5, 2),
        snapshot(2**63, 1),
        snapshot(5, 1, configuration=Configuration(())),
    ],
)
def test_a_snapshot_that_cannot_be_true_changes_nothing(message: InstallSnapshot) -> None:
    """RELIABILITY 4b: remote input is validated, never asserted."""
    bench = Bench("1@1", term=1)
    bench.step(message)
    assert (bench.work(), bench.r.snapshot, bench.raw.leader_id) == ([], None, 0)


def test_a_ready_with_a_snapshot_holds_entries_back() -> None:
    """Nothing that was committed before it is handed out with it or after it."""
    bench = Bench("1@1 2@1 3@1", term=1)
    bench.step(AppendEntries(1, 2, 1, 3, 1, [Entry(4, 1, b"x")], 4))
    bench.step(snapshot(9, 1))
    ready = bench.begin()
    assert ready.hard_state is not None
    assert ready.hard_state.commit == 9
    install(bench, ready)
    bench.work()
    assert bench.committed == []
