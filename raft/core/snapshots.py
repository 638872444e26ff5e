"""Snapshots of the state machine, as far as they concern the log (thesis 5.1, 5.3).

The core never sees a snapshot's bytes. A leader whose log no longer holds what a member lacks names the
member in Ready.snapshots_to_send, and the driver streams a snapshot beside the messages. When all of it
has arrived and is verified, the driver of the member steps InstallSnapshot:

    index <= commit       we have it all: acknowledge, keep the log (S-26)
    the log holds it      everything up to it is committed: acknowledge, keep the log and what follows (5.3)
    otherwise             the log is shorter, or another one: Ready.snapshot, the whole log goes (S-22)

Between the step and `saved` the old log stands, takes no appends and starts no election. The
acknowledgement leaves after the save like any other.
"""

from raft.core.election import heard_leader
from raft.core.state import Raft, send, trace
from raft.messages import AppendEntriesResponse, InstallSnapshot
from raft.types import Index, NodeId, SnapshotMeta


def handle_install_snapshot(r: Raft, m: InstallSnapshot) -> None:
    heard_leader(r, m.sender)
    log = r.log
    if r.snapshot is not None:
        trace(r, f"dropped the snapshot of {m.index}: that of {r.snapshot.index} is being installed")
    elif m.index <= log.commit_index:
        trace(r, f"needs no snapshot of {m.index}: commit is {log.commit_index}")
        _answer(r, m, log.commit_index)
    elif log.matches(m.index, m.snapshot_term):
        trace(r, f"holds {m.index}@{m.snapshot_term} of the snapshot")
        log.commit_to(m.index)
        _answer(r, m, m.index)
    else:
        trace(r, f"installs the snapshot of {m.index}@{m.snapshot_term}")
        r.snapshot = SnapshotMeta(m.index, m.snapshot_term, m.configuration, m.context)
        _answer(r, m, m.index)


def installed(r: Raft, snapshot: SnapshotMeta) -> None:
    """State machine and storage hold `snapshot` and nothing else."""
    assert snapshot is r.snapshot, f"installed {snapshot}, not {r.snapshot}"
    assert snapshot.index > r.log.commit_index, f"{snapshot} takes back commit {r.log.commit_index}"
    r.snapshot = None
    r.log.restore(snapshot.index, snapshot.term)
    r.configurations = [(snapshot.index, snapshot.configuration, snapshot.context)]
    r.configuration = snapshot.configuration
    trace(r, f"log starts after {snapshot.index}@{snapshot.term}")


def failed(r: Raft, node_id: NodeId) -> None:
    """The transfer to `node_id` has ended, and it does not say that it has the snapshot."""
    peer = r.progress.get(node_id)
    if peer is not None and peer.snapshot_index:
        trace(r, f"n{node_id:x} has got no snapshot")
        peer.snapshot_failed()


def _answer(r: Raft, m: InstallSnapshot, match_index: Index) -> None:
    send(r, AppendEntriesResponse(m.sender, r.node_id, r.term, match_index))
