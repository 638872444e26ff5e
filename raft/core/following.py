"""Replication, the follower's side (thesis 3.5).

An append is taken if the entry before it is in our log; then everything before it agrees too (Log
Matching). Only a real conflict cuts our log: a late or repeated append must not take back what a
later one brought (S-16). The answer leaves after the save, so it speaks of our disk.
"""

from raft.core import membership
from raft.core.election import heard_leader
from raft.core.state import Raft, send, trace
from raft.messages import AppendEntries, AppendEntriesResponse, Heartbeat, HeartbeatResponse
from raft.types import EntryKind, Index

CONFIGURATION = EntryKind.CONFIGURATION


def handle_append_entries(r: Raft, m: AppendEntries) -> None:
    heard_leader(r, m.sender)
    log = r.log
    if r.snapshot is not None:
        trace(r, f"dropped AppendEntries from n{m.sender:x}: a snapshot is being installed")
        return
    if m.prev_index < log.commit_index:
        # Late. What is committed agrees with every leader (3.6.3), whatever this append says of it.
        _answer(r, m, log.commit_index)
        return
    if not log.matches(m.prev_index, m.prev_term):
        _reject(r, m)
        return
    verified_index = m.prev_index + len(m.entries)
    fresh = _first_new(r, m)
    if fresh < len(m.entries):
        index = m.prev_index + fresh  # the last position that agrees; at least prev_index, so nothing committed is cut
        if index < log.last_index:
            trace(r, f"truncates {index + 1}..{log.last_index}")
            log.truncate(index)
            membership.truncated(r, index)
        entries = m.entries[fresh:] if fresh else m.entries
        log.append(entries)
        for entry in entries:
            if entry.kind is CONFIGURATION:
                membership.appended(r, entry)
    # Only what this leader is known to hold (S-15), and never backwards (S-13).
    _commit(r, min(m.commit, verified_index))
    _learn_replicated(r, m.replicated_index)
    _answer(r, m, verified_index)


def handle_heartbeat(r: Raft, m: Heartbeat) -> None:
    heard_leader(r, m.sender)
    if r.snapshot is None:
        _commit(r, m.commit)
    _learn_replicated(r, m.replicated_index)
    if not m.quiet:
        send(r, HeartbeatResponse(m.sender, r.node_id, r.term, m.read_round))


def _first_new(r: Raft, m: AppendEntries) -> int:
    """The position in m.entries of the first one that our log does not hold."""
    log = r.log
    for position, entry in enumerate(m.entries):
        if entry.index > log.last_index or log.term_at(entry.index) != entry.term:
            return position
    return len(m.entries)


def _commit(r: Raft, index: Index) -> None:
    if index > r.log.commit_index:
        r.log.commit_to(index)


def _learn_replicated(r: Raft, index: Index) -> None:
    # It is durable here too, so a larger one than our stable index is another member's mistake.
    if r.replicated_index < index <= r.log.stable_index:
        r.replicated_index = index


def _answer(r: Raft, m: AppendEntries, match_index: Index) -> None:
    send(r, AppendEntriesResponse(m.sender, r.node_id, r.term, match_index, read_round=m.read_round))


def _reject(r: Raft, m: AppendEntries) -> None:
    # Committed entries agree with the leader's, so the answer never points below them.
    hint = r.log.conflict_hint(m.prev_index, m.prev_term, r.log.commit_index)
    send(
        r,
        AppendEntriesResponse(m.sender, r.node_id, r.term, hint, True, m.prev_index, r.log.term_at(hint), m.read_round),
    )
