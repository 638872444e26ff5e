"""Linearizable reads without log entries (thesis 6.4), in numbered rounds.

A leader may be deposed without knowing it. Before it answers a read it must hear, from a quorum, echoes
of messages that it sent after the read arrived: then no newer leader can have committed anything by
that time. Every append and heartbeat carries the number of the newest round, every answer echoes it,
rejections too, and the term of an answer says whose number it is.

    read arrives -> waits -> `begin` (one round for all that wait, just before the next messages leave)
                 -> a quorum has echoed that number or a later one -> `confirm` answers (context, index)

A read never joins a round that has begun: an echo under way proves nothing about the time after it was
sent. A follower asks its leader for the index and answers its own readers.

Lease reads (6.4.1), `Config.lease_reads`: who hears a leader votes for nobody else for election_ticks of
its own clock, so a leader need not ask again while a quorum's echoes are young. Each heartbeat interval
begins a round; if a quorum has echoed one that began n ticks ago, with

    n + 1 <= (election_ticks - 1) * (1 - lease_read_drift)

no other leader can have been elected: n + 1 ticks is more than has really passed, election_ticks - 1 is
less than what each of them waits, and no clock runs faster than 1 / (1 - lease_read_drift) of the leader's.
That bound is an assumption about clocks and about drivers: every tick must be told, those of a stall too
(`RawNode.tick(passed)`), before a read is asked. All members need the same setting. A voter keeps its
promise over terms, and a starting one as if it had just made it; a leader that sent a TimeoutNow has no
lease for the rest of its term, since its target may campaign at any time (S-40).
"""

from raft.core import quorum
from raft.core.state import Raft, ReadRound, send
from raft.messages import ReadIndex, ReadIndexResponse
from raft.types import INDEX_MAX, NO_NODE, Index, NodeId, ReadState, Role


def read_index(r: Raft) -> int | None:
    """Ask for a round; all who ask before the next Ready share it. None: no leader is known."""
    if r.leader_id == NO_NODE:
        return None
    if r.read_context is None:
        r.read_context = r.next_context
        r.next_context += 1
        if r.role is Role.LEADER:
            r.reads_waiting.append((r.node_id, r.read_context))
        else:
            send(r, ReadIndex(r.leader_id, r.node_id, r.term, r.read_context))
    return r.read_context


def handle_read_index(r: Raft, m: ReadIndex) -> None:
    r.reads_waiting.append((m.sender, m.context))


def handle_read_index_response(r: Raft, m: ReadIndexResponse) -> None:
    r.read_states.append(ReadState(m.context, m.index))


def can_begin(r: Raft) -> bool:
    """Reads wait, on a leader that may answer them.

    A new leader's commit index may lag behind what its predecessor committed, until an entry of its own
    term commits (6.4, S-37). The reads wait for that.
    """
    return bool(r.reads_waiting) and r.log.commit_index >= r.noop_index


def begin(r: Raft) -> None:
    """Open a round for all waiting reads. Called just before messages leave, so all of them carry it."""
    r.read_context = None
    if not can_begin(r):
        return
    if r.config.lease_reads and holds_lease(r):
        for asker, context in r.reads_waiting:
            _answer(r, asker, context, r.log.commit_index)
        r.reads_waiting.clear()
        return
    r.read_round += 1
    r.read_rounds.append(ReadRound(r.read_round, r.log.commit_index, list(r.reads_waiting)))
    r.reads_waiting.clear()
    r.send_due = True
    r.progress[r.node_id].echoed_round = r.read_round
    confirm(r)  # a single voter is its own quorum


def echoed(r: Raft, sender: NodeId, read_round: int) -> None:
    """`sender` still took us for the leader of this term when it answered."""
    if read_round > r.progress[sender].echoed_round:
        r.progress[sender].echoed_round = read_round
        for number, clock in r.round_clocks:  # empty without lease reads
            if number <= read_round:
                r.progress[sender].lease_clock = clock
        if r.read_rounds:
            confirm(r)


def confirm(r: Raft) -> None:
    """Answer every round that a quorum has echoed."""
    rounds = quorum.reached(r.configuration, {peer.node_id: peer.echoed_round for peer in r.progress.values()})
    assert rounds <= r.read_round or rounds == INDEX_MAX, f"round {rounds} echoed, {r.read_round} begun"
    while r.read_rounds and r.read_rounds[0].number <= rounds:
        confirmed = r.read_rounds.popleft()
        for asker, context in confirmed.requests:
            _answer(r, asker, context, confirmed.index)


def tick(r: Raft) -> None:
    """A heartbeat interval of a leader begins: its echoes renew the lease."""
    if r.config.lease_reads:
        r.read_round += 1
        r.round_clocks.append((r.read_round, r.clock))
        r.progress[r.node_id].echoed_round = r.read_round


def holds_lease(r: Raft) -> bool:
    """Whether nobody else can lead yet, as far as clocks can be trusted."""
    if not r.config.lease_reads or r.role is not Role.LEADER or r.handed_over or r.transfer_target != NO_NODE:
        return False
    clocks = {peer.node_id: peer.lease_clock for peer in r.progress.values()}
    clocks[r.node_id] = r.clock
    return r.clock - quorum.reached(r.configuration, clocks) <= r.lease_ticks


def _answer(r: Raft, asker: NodeId, context: int, index: Index) -> None:
    if asker == r.node_id:
        r.read_states.append(ReadState(context, index))
    else:
        send(r, ReadIndexResponse(asker, r.node_id, r.term, context, index))
