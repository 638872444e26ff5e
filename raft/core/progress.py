"""Progress: what a leader knows of one member, and how fast it may send to it.

    PROBE      one append at a time: the leader looks for the point up to which the logs agree
    REPLICATE  the point is known: appends stream ahead of their answers, bounded in count and bytes
    SNAPSHOT   what the member lacks is compacted away: the driver sends a snapshot, we only heartbeats

           accepted                needed entries are gone               has what a snapshot holds
    PROBE ----------> REPLICATE    PROBE, REPLICATE ------> SNAPSHOT    ----------> REPLICATE
          <----------                                               ----------> PROBE, when it next answers
           rejected                                                   failed

One progress is the leader's own: its match_index is what the leader's own disk holds.
"""

from collections import deque
from enum import IntEnum
from typing import final

from raft.types import INDEX_MAX, Index, NodeId, Term


class ProgressState(IntEnum):
    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


@final
class Progress:
    __slots__ = (
        "_inflight",
        "commit_told",
        "echoed_round",
        "inflight_bytes",
        "lease_clock",
        "match_index",
        "next_index",
        "node_id",
        "overdue",
        "probe_due",
        "probe_sent",
        "recent_active",
        "round_sent",
        "snapshot_index",
        "snapshot_term",
        "state",
    )

    def __init__(self, node_id: NodeId, next_index: Index) -> None:
        self.node_id = node_id
        self.match_index = 0  # highest index known durable there and equal to ours; only grows in a term
        self.next_index = next_index  # first index not yet sent; always > match_index
        self.state = ProgressState.PROBE
        self.snapshot_index = 0  # SNAPSHOT: it lacks entries up to here at least; else 0
        self.snapshot_term = 0  # the term there
        self.probe_sent = False  # PROBE: the one append is under way
        self.probe_due = False  # REPLICATE: something may have been lost; ask with an append, even an empty one
        self.overdue = False  # a heartbeat interval began with an append unanswered, and none was answered since
        self.recent_active = False  # heard from since check-quorum last looked
        self.commit_told = 0  # highest commit index sent, as far as it could take effect there
        self.round_sent = 0  # newest read round sent
        self.echoed_round = 0  # newest read round echoed
        self.lease_clock = -INDEX_MAX  # lease reads: our clock when a round began that it has echoed
        self.inflight_bytes = 0
        self._inflight: deque[tuple[Index, int]] = deque()  # (last index, bytes) of appends not yet answered

    @property
    def unanswered(self) -> bool:
        return self.probe_sent or self.match_index < self.next_index - 1

    @property
    def inflight_count(self) -> int:
        return len(self._inflight)

    def add_inflight(self, last_index: Index, size: int) -> None:
        self._inflight.append((last_index, size))
        self.inflight_bytes += size

    def release_inflight(self, match_index: Index) -> None:
        """Answers cover all that was sent before them: one answer may release several appends."""
        inflight = self._inflight
        while inflight and inflight[0][0] <= match_index:
            self.inflight_bytes -= inflight.popleft()[1]

    def accept(self, match_index: Index) -> None:
        """The member's log equals ours up to `match_index`, on its disk. Late answers change nothing (S-14)."""
        self.match_index = max(self.match_index, match_index)
        if match_index >= self.next_index:
            self.next_index = match_index + 1
        if self.state is ProgressState.REPLICATE:
            self.release_inflight(match_index)
        elif match_index >= self.match_index and match_index >= self.snapshot_index:
            self.state = ProgressState.REPLICATE
            self.snapshot_index = 0
            self.probe_sent = False
            self.next_index = self.match_index + 1

    def become_probe(self, next_index: Index) -> None:
        self.state = ProgressState.PROBE
        self.snapshot_index = 0
        self.probe_sent = False
        self.probe_due = False
        self.next_index = max(next_index, self.match_index + 1)
        self.commit_told = min(self.commit_told, self.match_index)
        self._inflight.clear()
        self.inflight_bytes = 0

    def become_snapshot(self, snapshot_index: Index, snapshot_term: Term) -> None:
        """Entries up to `snapshot_index` are compacted here and were never stored there."""
        self.become_probe(self.match_index + 1)
        self.state = ProgressState.SNAPSHOT
        self.snapshot_index = snapshot_index
        self.snapshot_term = snapshot_term

    def snapshot_failed(self) -> None:
        """Look again what it lacks, once it has answered a heartbeat: whoever is down needs no snapshot now."""
        self.become_probe(self.match_index + 1)
        self.probe_sent = True
