"""Replication, the leader's side (thesis 3.5, 3.6.2, 10.2).

Whatever happens between two Readys only marks that somebody may have to be told something; `flush`
then builds one message at most for each member: an AppendEntries with all that the member lacks, or a
Heartbeat when a moved commit index or a new read round is the only news. So a batch of any size costs
one message per follower.

    propose, acknowledgements, ticks, reads  -->  send_due  -->  flush (in RawNode.ready)
"""

from collections.abc import Sequence

from raft.core import quorum
from raft.core.progress import Progress, ProgressState
from raft.core.state import Raft, append_entries, send, trace
from raft.errors import Compacted, NotLeader, TooManyProposals
from raft.messages import AppendEntries, AppendEntriesResponse, Heartbeat, HeartbeatResponse
from raft.types import NO_NODE, Entry, Index, Role


def propose(r: Raft, data: Sequence[bytes]) -> None:
    """Append one COMMAND entry for each item. Raises NotLeader, TooManyProposals: then nothing was appended."""
    if r.role is not Role.LEADER:
        raise NotLeader(f"n{r.node_id:x} does not lead; leader: n{r.leader_id:x}")
    if r.transfer_target != NO_NODE:
        # The target can only catch up with a log that stands still (3.10).
        raise NotLeader(f"n{r.node_id:x} hands leadership over to n{r.transfer_target:x}")
    if not data:
        return
    size = 0
    for item in data:
        size += len(item)
    # One proposal always fits when nothing waits, or an entry over the bound could never be stored.
    if r.uncommitted and r.uncommitted_bytes + size > r.config.uncommitted_bytes_max:
        raise TooManyProposals(f"{r.uncommitted_bytes} bytes wait for a quorum")
    index = r.log.last_index
    term = r.term
    entries = []
    for item in data:
        index += 1
        entries.append(Entry(index, term, item))
    append_entries(r, entries)
    r.uncommitted.append((index, size))
    r.uncommitted_bytes += size


def flush(r: Raft) -> None:
    """Tell every member what it has not been told, in id order."""
    assert r.role is Role.LEADER, "only a leader replicates"
    r.send_due = False
    for peer in r.progress.values():
        if peer.node_id == r.node_id:
            continue
        if r.heartbeat_due:
            peer.overdue = peer.unanswered
            if peer.snapshot_index:
                _probe_snapshot(r, peer)
        if _maybe_send_append(r, peer):
            continue
        if r.heartbeat_due or peer.round_sent < r.read_round:
            _send_heartbeat(r, peer, quiet=False)
        elif peer.commit_told < min(r.log.commit_index, peer.match_index):
            _send_heartbeat(r, peer, quiet=True)
    r.heartbeat_due = False


def handle_append_entries_response(r: Raft, m: AppendEntriesResponse) -> bool:
    """Learn how far a member is. Returns whether the commit index moved."""
    peer = r.progress[m.sender]
    peer.recent_active = True
    peer.overdue = False
    if m.rejected:
        _handle_rejection(r, peer, m)
        return False
    peer.accept(m.match_index)
    # A quorum of others may have committed before this answer: then it is this answer that lets the member be told.
    if peer.next_index <= r.log.last_index or peer.commit_told < min(r.log.commit_index, peer.match_index):
        r.send_due = True
    return _advance(r, m.match_index)


def handle_heartbeat_response(r: Raft, m: HeartbeatResponse) -> None:
    """The member is there: an append that it leaves unanswered may be lost, so ask again, with one append."""
    peer = r.progress[m.sender]
    peer.recent_active = True
    if peer.overdue:
        peer.overdue = False
        peer.probe_sent = False
        peer.probe_due = peer.state is ProgressState.REPLICATE
        r.send_due = True


def handle_saved(r: Raft) -> bool:
    """Our own disk counts like any other (10.2.1). Returns whether the commit index moved."""
    r.progress[r.node_id].accept(r.log.stable_index)
    return _advance(r, r.log.stable_index)


def _advance(r: Raft, match_index: Index) -> bool:
    """Move the commit index and the replicated index after a member reached `match_index`."""
    match_indexes = {peer.node_id: peer.match_index for peer in r.progress.values()}
    replicated_index = min(match_indexes.values())
    r.replicated_index = max(r.replicated_index, replicated_index)
    if match_index <= r.log.commit_index:
        return False
    index = quorum.reached(r.configuration, match_indexes)
    # Count only entries of our own term: an older entry on a majority can still be overwritten by a
    # leader that never saw it (3.6.2, Figure 3.7). Ours begin with the no-op.
    if index <= r.log.commit_index or index < r.noop_index:
        return False
    r.log.commit_to(index)
    r.send_due = True
    uncommitted = r.uncommitted
    while uncommitted and uncommitted[0][0] <= index:
        r.uncommitted_bytes -= uncommitted.popleft()[1]
    return True


def _handle_rejection(r: Raft, peer: Progress, m: AppendEntriesResponse) -> None:
    if m.rejected_index <= peer.match_index or peer.state is ProgressState.SNAPSHOT:
        return  # late: the logs are known to agree there, or a snapshot is on its way
    if peer.state is ProgressState.REPLICATE:
        # Something between was lost or overtaken; the agreed point is known.
        trace(r, f"probes n{peer.node_id:x} from {peer.match_index + 1}: it refused {m.rejected_index}")
        peer.become_probe(peer.match_index + 1)
    elif m.rejected_index != peer.next_index - 1:
        return  # late: answers an earlier probe
    else:
        hint = min(m.match_index, m.rejected_index - 1)
        floor = max(peer.match_index, r.log.first_index - 1)
        peer.become_probe(r.log.conflict_hint(hint, m.hint_term, floor) + 1)
    r.send_due = True


def _maybe_send_append(r: Raft, peer: Progress) -> bool:
    """Send what the member lacks, unless it must answer first. More may be left: then flush is due again."""
    last_index = r.log.last_index
    wanted = peer.next_index <= last_index
    if peer.state is ProgressState.REPLICATE:
        if peer.inflight_count >= r.config.inflight_appends_max or peer.inflight_bytes >= r.config.inflight_bytes_max:
            wanted = False
        if not wanted and not peer.probe_due:
            return False
    elif peer.state is ProgressState.SNAPSHOT or peer.probe_sent:
        return False
    try:
        prev_term = r.log.term_at(peer.next_index - 1)
        entries = r.log.entries(peer.next_index, last_index, r.config.append_bytes_max) if wanted else []
    except Compacted:
        trace(r, f"n{peer.node_id:x} needs a snapshot: {peer.next_index} is compacted")
        base_index = r.log.first_index - 1
        peer.become_snapshot(base_index, r.log.term_at(base_index))
        r.snapshots_to_send.append(peer.node_id)
        return False
    commit = r.log.commit_index
    prev_index = peer.next_index - 1
    send(
        r,
        AppendEntries(
            peer.node_id, r.node_id, r.term, prev_index, prev_term, entries, commit, r.read_round, r.replicated_index
        ),
    )
    peer.round_sent = r.read_round
    peer.probe_due = False
    if peer.state is ProgressState.PROBE:
        peer.probe_sent = True
        return True
    end = prev_index + len(entries)
    peer.commit_told = max(peer.commit_told, min(commit, end))
    if entries:
        size = 0
        for entry in entries:
            size += len(entry.data)
        peer.add_inflight(end, size)
        peer.next_index = end + 1
        if end < last_index:
            r.send_due = True
    return True


def _probe_snapshot(r: Raft, peer: Progress) -> None:
    """Ask whether the member has what a snapshot holds: its acknowledgement may be lost. A refusal says nothing new."""
    prev_index, prev_term = peer.snapshot_index, peer.snapshot_term
    send(r, AppendEntries(peer.node_id, r.node_id, r.term, prev_index, prev_term, [], r.log.commit_index))


def _send_heartbeat(r: Raft, peer: Progress, quiet: bool) -> None:
    # A heartbeat proves nothing about the member's log, so it may only commit what is known to agree.
    commit = min(r.log.commit_index, peer.match_index)
    send(r, Heartbeat(peer.node_id, r.node_id, r.term, commit, r.read_round, r.replicated_index, quiet))
    peer.round_sent = r.read_round
    peer.commit_told = max(peer.commit_told, commit)
