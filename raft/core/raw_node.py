"""RawNode: the whole of Raft behind a few calls, without clock, disk or network.

    step, tick, propose, read_index, ...    what happens to the node
    has_ready -> ready -> ... -> saved      what the driver owes it, one batch at a time
    applied                                 the state machine has caught up

The order of work in one Ready is written in raft/ready.py. Between `ready` and `saved` everything else
may go on; what it brings belongs to the next Ready. After a stall, step what has arrived before ticking:
a leader that was heard must not be deposed because its messages had to wait.
"""

from dataclasses import dataclass
from typing import final

from raft.config import Config
from raft.core import election, membership, reads, replication, roles, snapshots, transfer
from raft.core import step as steps
from raft.core.log import RaftLog
from raft.core.ports import LogReader, Rng, Tracer
from raft.core.progress import ProgressState
from raft.core.state import Raft
from raft.messages import Message
from raft.ready import Ready
from raft.storage.base import Loaded
from raft.types import Configuration, ConfigurationChange, Entry, HardState, Index, NodeId, Role, Term


@dataclass(frozen=True, slots=True)
class ProgressStatus:
    """What a leader knows of one member."""

    match_index: Index
    next_index: Index
    state: ProgressState
    recent_active: bool
    inflight_count: int  # appends sent and not yet answered
    inflight_bytes: int  # of their entries' data
    snapshot_index: Index  # it waits for a snapshot of at least this index; 0: it does not


@dataclass(frozen=True, slots=True)
class Status:
    """A moment of one node, for people and metrics."""

    node_id: NodeId
    term: Term
    vote: NodeId
    role: Role
    leader_id: NodeId  # NO_NODE while none is known
    commit: Index
    applied: Index
    first_index: Index
    last_index: Index
    last_term: Term
    replicated_index: Index  # durable on every member, as far as is known: logs may be compacted up to here
    progress: dict[NodeId, ProgressStatus]  # on a leader, itself included; else empty
    read_pending: int  # read rounds waiting for a quorum, and reads waiting for a round
    uncommitted_bytes: int
    configuration: Configuration  # the newest in the log, committed or not
    pending_change: bool  # that one is joint, or not known to be committed
    lease: bool  # on a leader with lease_reads: reads are answered without a round now


@final
class RawNode:
    def __init__(
        self, config: Config, log: LogReader, loaded: Loaded, applied: Index, rng: Rng, tracer: Tracer | None = None
    ) -> None:
        """`applied`: what the state machine has; nothing at or below it is handed out again."""
        raft_log = RaftLog(log, loaded.hard_state.commit, applied)
        configurations = [(log.first_index - 1, loaded.configuration, loaded.context)]
        for entry in loaded.configuration_entries:
            configurations.append((entry.index, *membership.decode_configuration(entry.data)))
        self._raft = Raft(config, raft_log, loaded.hard_state, configurations, rng, tracer)
        self._given = loaded.hard_state  # what the last Ready that changed it told the driver to save
        self._in_flight: Ready | None = None
        roles.become_follower(self._raft, loaded.hard_state.term, self._raft.leader_id)

    @property
    def term(self) -> Term:
        return self._raft.term

    @property
    def role(self) -> Role:
        return self._raft.role

    @property
    def leader_id(self) -> NodeId:
        return self._raft.leader_id

    @property
    def commit_index(self) -> Index:
        return self._raft.log.commit_index

    @property
    def last_index(self) -> Index:
        return self._raft.log.last_index

    @property
    def applied_index(self) -> Index:
        return self._raft.log.applied_index

    @property
    def configuration(self) -> Configuration:
        """The one in force: the newest in the log, committed or not."""
        return self._raft.configuration

    @property
    def configurations(self) -> list[tuple[Index, Configuration, bytes]]:
        """(index, configuration, context), oldest first: the one in force at first_index - 1, then each entry's."""
        membership.compacted(self._raft)
        return list(self._raft.configurations)

    def configuration_at(self, index: Index) -> tuple[Configuration, bytes]:
        """The configuration in force at `index` and its context; first_index - 1 <= index <= last_index."""
        return membership.in_force_at(self._raft, index)

    @property
    def pending_change(self) -> bool:
        """Whether the newest configuration is joint, or not known to be committed."""
        return membership.is_pending(self._raft)

    @property
    def raft(self) -> Raft:
        """The state itself, for tests and invariants. Nobody else looks inside."""
        return self._raft

    def tick(self, passed: int = 1) -> None:
        """A tick of Config's time unit has passed. It counts once for elections and heartbeats.

        passed: how many have really passed, which lease reads need to know: more after a stall, 0 when time is
        only pretended to pass, to hurry an election.
        """
        steps.tick(self._raft, passed)

    def step(self, message: Message) -> None:
        """A message has arrived. One that cannot be true is dropped with a trace, never raised."""
        steps.step(self._raft, message)

    def propose(self, data: list[bytes]) -> None:
        """Append one entry for each item. Raises NotLeader or TooManyProposals; then nothing was appended."""
        replication.propose(self._raft, data)

    def propose_configuration(self, change: ConfigurationChange) -> Index:
        """Begin a change of members; returns the index of its (first) entry. Raises NotLeader or ChangeRefused.

        It is done when `pending_change` is False again and `configuration` is what was asked for; it may also be
        undone by the next leader, like any entry that is not committed.
        """
        return membership.propose(self._raft, change)

    def snapshot_failed(self, peer: NodeId) -> None:
        """The transfer to `peer`, asked for by Ready.snapshots_to_send, is over and it does not have it.

        Call it also when the transfer seemed to succeed and `peer` still is in SNAPSHOT some time later: its
        member may have crashed before it said so. It is asked for again after `peer` has answered a heartbeat.
        """
        snapshots.failed(self._raft, peer)

    def leader_unreachable(self) -> None:
        """The process of the leader is gone: its stream was reset and a new one refused. Starts an election soon."""
        election.leader_unreachable(self._raft)

    def read_index(self) -> int | None:
        """Ask where a linearizable read may start; the answer is a Ready.reads with the context returned.

        All who ask before the next Ready share one context. A round that is lost (change of leader, lost
        message) never comes: ask again. None when no leader is known.
        """
        return reads.read_index(self._raft)

    def transfer_leadership(self, to: NodeId) -> None:
        """Hand over to `to`; with 0 to the most up to date voter. Traced and ignored where impossible."""
        transfer.transfer_leadership(self._raft, to)

    def has_ready(self) -> bool:
        r = self._raft
        log = r.log
        return (
            r.send_due
            or r.heartbeat_due
            or log.has_unstable
            or bool(r.messages)
            or bool(r.messages_after_save)
            or bool(r.read_states)
            or log.can_apply(r.config.apply_bytes_max)
            or log.commit_index != self._given.commit
            or r.term != self._given.term
            or r.vote != self._given.vote
            or reads.can_begin(r)
        )

    def ready(self) -> Ready:
        """All that the driver owes now. The next one only after `saved`."""
        assert self._in_flight is None, "a Ready is in flight"
        r = self._raft
        log = r.log
        steps.flush(r)
        given = self._given
        hard_state = None
        must_sync = log.has_unstable
        if r.term != given.term or r.vote != given.vote or log.commit_index != given.commit:
            hard_state = self._given = HardState(r.term, r.vote, log.commit_index)
            must_sync = must_sync or r.term != given.term or r.vote != given.vote
        apply_bytes_max = r.config.apply_bytes_max
        entries: list[Entry] = []
        committed: list[Entry] = []
        snapshot = r.snapshot
        if snapshot is None:
            entries = log.unstable_entries()
            if log.can_apply(apply_bytes_max):
                committed = log.take_committed(apply_bytes_max)
        else:  # it takes the place of the log and of what was applied: nothing of either is stored any more
            hard_state = self._given = HardState(r.term, r.vote, snapshot.index)
            must_sync = True
        ready = self._in_flight = Ready(
            hard_state,
            entries,
            r.messages,
            r.messages_after_save,
            committed,
            r.read_states,
            must_sync,
            snapshot,
            r.snapshots_to_send,
        )
        r.messages = []
        r.messages_after_save = []
        r.read_states = []
        r.snapshots_to_send = []
        return ready

    def saved(self, ready: Ready) -> None:
        """hard_state and entries of `ready` are on disk; its snapshot is installed and the log begins after it."""
        assert ready is self._in_flight, "not the Ready in flight"
        self._in_flight = None
        steps.saved(self._raft, ready.hard_state, ready.entries, ready.snapshot)

    def applied(self, index: Index) -> None:
        """The state machine has everything up to `index`. Bounds what is handed out ahead of it."""
        self._raft.log.applied(index)

    def status(self) -> Status:
        r = self._raft
        log = r.log
        return Status(
            node_id=r.node_id,
            term=r.term,
            vote=r.vote,
            role=r.role,
            leader_id=r.leader_id,
            commit=log.commit_index,
            applied=log.applied_index,
            first_index=log.first_index,
            last_index=log.last_index,
            last_term=log.last_term,
            replicated_index=r.replicated_index,
            progress={
                peer.node_id: ProgressStatus(
                    peer.match_index,
                    peer.next_index,
                    peer.state,
                    peer.recent_active,
                    peer.inflight_count,
                    peer.inflight_bytes,
                    peer.snapshot_index,
                )
                for peer in r.progress.values()
            },
            read_pending=len(r.read_rounds) + len(r.reads_waiting),
            uncommitted_bytes=r.uncommitted_bytes,
            configuration=r.configuration,
            pending_change=membership.is_pending(r),
            lease=reads.holds_lease(r),
        )
