"""What always holds: of one node, from one moment to the next, and of a whole cluster (Figure 3.2).

Tests and simulations call these after each step. They raise AssertionError with the node and the fact.

    check(r)                 fields of one node against each other; a change of members at a time, by adjacent steps
    check_delta(before, r)   against an earlier moment of the same process, `observe(r)`
    ClusterChecker           Election Safety, Leader Append-Only, Log Matching, Leader Completeness,
                             State Machine Safety; one vote a term; committed means durable on a quorum;
                             a snapshot is what was committed up to its index
"""

from itertools import pairwise
from typing import NamedTuple

from raft.core.membership import decode_configuration
from raft.core.ports import LogReader
from raft.core.progress import ProgressState
from raft.core.state import Raft
from raft.messages import AppendEntriesResponse, Message, RequestVote, RequestVoteResponse
from raft.types import NO_NODE, Configuration, Entry, EntryKind, HardState, Index, NodeId, Role, SnapshotMeta, Term


class Moment(NamedTuple):
    term: Term
    vote: NodeId
    role: Role
    leader_id: NodeId
    commit_index: Index
    applied_index: Index
    last_index: Index
    replicated_index: Index
    match_indexes: dict[NodeId, Index]
    members: tuple[NodeId, ...]


def observe(r: Raft) -> Moment:
    log = r.log
    return Moment(
        r.term,
        r.vote,
        r.role,
        r.leader_id,
        log.commit_index,
        log.applied_index,
        log.last_index,
        r.replicated_index,
        {peer.node_id: peer.match_index for peer in r.progress.values()},
        r.configuration.members(),
    )


def check(r: Raft) -> None:
    log = r.log
    name = f"n{r.node_id:x}@{r.term}"
    if r.snapshot is None:  # while one is installed, the stored log may be ahead of what we know of it
        assert log.first_index - 1 <= log.applied_index, f"{name}: applied {log.applied_index} is compacted away"
    _check_configurations(r, name)
    assert log.applied_index <= log.applying_index <= log.commit_index, (
        f"{name}: applied, applying, commit out of order"
    )
    assert log.commit_index <= log.last_index, f"{name}: commit {log.commit_index} beyond last {log.last_index}"
    assert log.stable_index <= log.last_index, f"{name}: stable {log.stable_index} beyond last {log.last_index}"
    assert log.last_term <= r.term, f"{name}: last entry is of term {log.last_term}"
    assert log.applying_bytes >= 0, f"{name}: applying {log.applying_bytes} bytes"
    assert r.saved_state.term <= r.term, f"{name}: the disk is ahead of the term"
    if r.saved_state.term == r.term and r.saved_state.vote != NO_NODE:
        assert r.vote == r.saved_state.vote, f"{name}: vote {r.vote:x} differs from the saved one"
    assert r.replicated_index <= log.stable_index, f"{name}: replicated {r.replicated_index}, not stable here"
    if r.role is Role.LEADER:
        _check_leader(r, name)
    else:
        assert not r.progress, f"{name}: progress without leading"
        assert not r.read_rounds, f"{name}: read rounds without leading"
        assert not r.reads_waiting, f"{name}: reads wait without leading"
        assert r.transfer_target == NO_NODE, f"{name}: transfer without leading"
        assert not r.leaving, f"{name}: members leave without a leader"
        assert r.leader_id != r.node_id, f"{name}: follows itself"
    if r.role is Role.CANDIDATE:
        assert r.vote == r.node_id, f"{name}: a candidate votes for itself"
    if r.role in (Role.CANDIDATE, Role.PRE_CANDIDATE):
        assert r.leader_id == NO_NODE, f"{name}: campaigns although n{r.leader_id:x} leads"


def _check_configurations(r: Raft, name: str) -> None:
    """The newest of the log is in force; each came out of the one before in a step that overlaps with it (4.3)."""
    configurations = r.configurations
    assert r.configuration is configurations[-1][1], f"{name}: {r.configuration} is not the newest"
    if r.snapshot is None:
        assert configurations[-1][0] <= r.log.last_index, f"{name}: a configuration beyond the log"
    for before, after in pairwise(configurations):
        assert before[0] < after[0], f"{name}: configurations out of order"
        assert _adjacent(before[1], after[1]), f"{name}: {after[1]} cannot follow {before[1]}"


def _adjacent(before: Configuration, after: Configuration) -> bool:
    """Whether every quorum of one shares a voter with every quorum of the other."""
    if not before.voters:
        return True  # a member that joined begins with nothing
    if before.voters_outgoing:
        return after.voters == before.voters and not after.voters_outgoing
    return before.voters == (after.voters_outgoing or after.voters)


def _check_leader(r: Raft, name: str) -> None:
    log = r.log
    pending = [index for index, _, _ in r.configurations if index > max(log.commit_index, r.noop_index)]
    assert len(pending) <= 1, f"{name}: changes pending at {pending}"
    if pending:
        older = [index for index, _, _ in r.configurations if log.commit_index < index < pending[0]]
        assert not older, f"{name}: began a change at {pending} while {older} was not committed"
    assert r.leader_id == r.node_id, f"{name}: leads but follows n{r.leader_id:x}"
    assert r.vote == r.node_id, f"{name}: leads without its own vote"
    assert log.last_term == r.term, f"{name}: leads without an entry of its term"
    assert r.noop_index < log.first_index or log.term_at(r.noop_index) == r.term, (
        f"{name}: the no-op is of another term"
    )
    members = r.configuration.members()
    assert list(r.progress) == sorted({*members, *r.leaving, r.node_id}), f"{name}: progress of others than the members"
    assert not set(r.leaving) & set(members), f"{name}: members leave that are members"
    assert r.node_id not in r.leaving, f"{name}: tells itself that it leaves"
    assert r.uncommitted_bytes == sum(size for _, size in r.uncommitted), f"{name}: uncommitted bytes leak"
    for peer in r.progress.values():
        of = f"{name}: progress of n{peer.node_id:x}"
        assert peer.match_index <= log.last_index, f"{of}: match {peer.match_index} beyond our last"
        assert peer.echoed_round <= peer.round_sent or peer.node_id == r.node_id, f"{of}: echoed an unsent round"
        assert peer.round_sent <= r.read_round, f"{of}: a round from the future"
        if peer.node_id == r.node_id:
            assert peer.match_index == log.stable_index, f"{of}: our own match is our disk"
            continue
        assert peer.match_index < peer.next_index <= log.last_index + 1, f"{of}: {peer.match_index}, {peer.next_index}"
        assert peer.inflight_count <= r.config.inflight_appends_max, f"{of}: too many appends in flight"
        assert peer.inflight_bytes >= 0, f"{of}: in-flight bytes {peer.inflight_bytes}"
        assert peer.inflight_count or not peer.inflight_bytes, f"{of}: in-flight bytes leak"
        if peer.state is ProgressState.SNAPSHOT:
            assert peer.snapshot_index > peer.match_index, f"{of}: waits for a snapshot that it has"
        else:
            assert not peer.snapshot_index, f"{of}: a snapshot of {peer.snapshot_index} without waiting for it"
        if peer.state is not ProgressState.REPLICATE:
            assert not peer.inflight_count, f"{of}: streams while it probes"


def check_delta(before: Moment, r: Raft) -> Moment:
    """Returns the moment that it looked at, for the next call."""
    now = observe(r)
    name = f"n{r.node_id:x}@{r.term}"
    assert now.term >= before.term, f"{name}: term went back from {before.term}"
    assert now.commit_index >= before.commit_index, f"{name}: commit went back from {before.commit_index}"
    assert now.applied_index >= before.applied_index, f"{name}: applied went back from {before.applied_index}"
    if now.term == before.term:
        assert before.vote in (NO_NODE, now.vote), f"{name}: voted n{before.vote:x}, then n{now.vote:x}"
        assert now.replicated_index >= before.replicated_index, f"{name}: replicated went back in a term"
        if NO_NODE not in (before.leader_id, now.leader_id):
            assert now.leader_id == before.leader_id, f"{name}: two leaders in a term"
        if before.role is Role.LEADER and now.role is Role.LEADER:
            assert now.last_index >= before.last_index, f"{name}: a leader removed entries of its log"
            for member, match_index in before.match_indexes.items():
                if member in now.members and member in before.members:
                    assert now.match_indexes[member] >= match_index, f"{name}: match of n{member:x} went back"
            if now.commit_index > before.commit_index:
                assert now.commit_index >= r.noop_index, f"{name}: counted replicas of an older term's entry"
    return now


class ClusterChecker:
    """Remembers what any node ever did and compares each new step with it, also across crashes."""

    def __init__(self) -> None:
        self._leaders: dict[Term, NodeId] = {}
        self._votes: dict[tuple[NodeId, Term], NodeId] = {}
        self._entries: dict[tuple[Index, Term], tuple[EntryKind, bytes, Term]] = {}  # kind, data, term before
        self._committed: dict[Index, Entry] = {}
        self._committed_in: dict[Index, Term] = {}  # the term whose leader committed it
        self.commit_index: Index = 0  # the highest that any node ever committed
        self._configurations: dict[NodeId, Configuration] = {}  # in force when a node was last looked at
        self._checked: dict[NodeId, tuple[Index, Index, Term]] = {}  # commit, last, last term seen before

    def check(self, r: Raft, disks: dict[NodeId, LogReader]) -> None:
        """After a step of `r`. `disks`: what every node's disk holds, of crashed nodes too."""
        if r.role is Role.LEADER:
            if r.term not in self._leaders:
                self._leaders[r.term] = r.node_id
                self._check_leader_completeness(r)
            leader = self._leaders[r.term]
            assert leader == r.node_id, f"Election Safety: n{leader:x} and n{r.node_id:x} lead term {r.term}"
        self._check_log_matching(r)
        self._check_committed(r, disks)
        self._configurations[r.node_id] = r.configuration

    def promised(self, message: Message, hard_state: HardState, disk: LogReader) -> None:
        """`message` leaves a node whose disk holds this: what it says must survive a crash."""
        if isinstance(message, RequestVoteResponse) and message.granted and not message.pre_vote:
            self.voted(message.sender, message.term, message.to)
            kept = hard_state.term > message.term or (hard_state.term, hard_state.vote) == (message.term, message.to)
            assert kept, f"n{message.sender:x}: its vote in term {message.term} left before it was saved"
        elif isinstance(message, AppendEntriesResponse) and not message.rejected and message.term == hard_state.term:
            match = message.match_index
            assert match <= disk.last_index, f"n{message.sender:x}: acknowledged {match}, its disk ends before"
        if not (isinstance(message, (RequestVote, RequestVoteResponse)) and message.pre_vote):
            assert message.term <= hard_state.term, f"n{message.sender:x}: speaks in a term that is not saved"
        if isinstance(message, RequestVote) and not message.pre_vote:
            self.voted(message.sender, message.term, message.sender)
            assert message.last_index <= disk.last_index, f"n{message.sender:x}: claims a log that is not saved"

    def voted(self, voter: NodeId, term: Term, candidate: NodeId) -> None:
        """A vote has left `voter`, or it campaigns with its own."""
        first = self._votes.setdefault((voter, term), candidate)
        assert first == candidate, f"n{voter:x} voted for n{first:x} and n{candidate:x} in term {term}"

    def applied(self, node_id: NodeId, entry: Entry) -> None:
        known = self._committed.get(entry.index)
        assert known == entry, f"State Machine Safety: n{node_id:x} applied {entry}, committed was {known}"

    def installed(self, node_id: NodeId, snapshot: SnapshotMeta) -> None:
        """A node takes over a snapshot: of what was committed, with the configuration that was in force there."""
        known = self._committed.get(snapshot.index)
        assert known is not None, f"n{node_id:x} installs {snapshot}, which nobody has committed"
        assert known.term == snapshot.term, f"n{node_id:x} installs {snapshot}, committed was {known}"
        for index in range(snapshot.index, 0, -1):
            entry = self._committed[index]
            if entry.kind is EntryKind.CONFIGURATION:
                told = (snapshot.configuration, snapshot.context)
                assert told == decode_configuration(entry.data), f"{snapshot} has not the configuration of {entry}"
                return

    def _check_leader_completeness(self, r: Raft) -> None:
        for index in range(r.log.first_index, self.commit_index + 1):
            if self._committed_in[index] >= r.term:
                break  # by a newer leader than this one, whose election was decided late
            committed = self._committed[index]
            term = r.log.term_at(index) if index <= r.log.last_index else None
            assert term == committed.term, f"Leader Completeness: n{r.node_id:x}@{r.term} lacks {committed}"

    def _check_log_matching(self, r: Raft) -> None:
        log = r.log
        commit_index, last_index, last_term = self._checked.get(r.node_id, (log.commit_index, 0, 0))
        if last_index == log.last_index and last_term == log.last_term:
            return
        low = max(commit_index + 1, log.first_index)
        # Where the last position that was seen is still the same, so is everything before it.
        if low <= last_index < log.last_index and log.term_at(last_index) == last_term:
            low = last_index + 1
        if low > log.last_index:
            return
        before = log.term_at(low - 1)
        for entry in log.entries(low, log.last_index, 2**62):
            value = (entry.kind, entry.data, before)
            first = self._entries.setdefault((entry.index, entry.term), value)
            assert first == value, f"Log Matching: n{r.node_id:x} holds {entry} after term {before}, others differ"
            before = entry.term

    def _check_committed(self, r: Raft, disks: dict[NodeId, LogReader]) -> None:
        log = r.log
        seen = self._checked.get(r.node_id, (log.applied_index, 0, 0))
        if log.commit_index > seen[0]:
            low = max(seen[0] + 1, log.first_index)
            for entry in log.entries(low, log.commit_index, 2**62) if low <= log.commit_index else []:
                known = self._committed.setdefault(entry.index, entry)
                self._committed_in.setdefault(entry.index, r.term)
                assert known == entry, f"State Machine Safety: n{r.node_id:x} commits {entry}, others {known}"
            if log.commit_index > self.commit_index:
                self.commit_index = log.commit_index
                self._check_quorum(r, disks)
        self._checked[r.node_id] = (log.commit_index, log.last_index, log.last_term)

    def restarted(self, node_id: NodeId, commit_index: Index) -> None:
        """The process is a new one; it may have forgotten how far it had committed."""
        self._checked[node_id] = (commit_index, 0, 0)

    def _check_quorum(self, r: Raft, disks: dict[NodeId, LogReader]) -> None:
        """By the configuration from before this turn, or by both when it was left in the turn: committing C_old,new
        makes the leader append C_new at once, and C_new alone commits what stands between the two (4.3)."""
        before = self._configurations.get(r.node_id, r.configuration)
        newest = self._committed[r.log.commit_index]
        if before.voters_outgoing:
            for (index, joint, _), (_, after, _) in pairwise(r.configurations):
                if joint == before and index < newest.index:
                    if index in self._committed:  # a test may begin in the middle of a change
                        self._check_durable(before, self._committed[index], disks)
                    self._check_durable(after, newest, disks)
                    return
        self._check_durable(before, newest, disks)

    def _check_durable(self, configuration: Configuration, entry: Entry, disks: dict[NodeId, LogReader]) -> None:
        for voters in (configuration.voters, configuration.voters_outgoing):
            holders = [voter for voter in voters if voter in disks and _holds(disks[voter], entry)]
            assert not voters or len(holders) > len(voters) // 2, f"{entry} is committed, only {holders} hold it"


def _holds(disk: LogReader, entry: Entry) -> bool:
    if not disk.first_index <= entry.index <= disk.last_index:
        return entry.index < disk.first_index
    return disk.term_at(entry.index) == entry.term
