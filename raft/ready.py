"""Ready: all that the driver owes the core, as one batch. At most one is in flight.

The order of work (thesis 10.2.1): send `messages`, resolve `reads`, save, `RawNode.saved(ready)`, send
`messages_after_save`, hand `committed` to the state machine, later `RawNode.applied(index)`.

With a `snapshot`, instead of the save: wait until the state machine has applied what it was given, let it install
the snapshot (atomically), `storage.reset(index, term, configuration, context)`, then `storage.save(hard_state)`.
"""

from typing import final

from raft.messages import Message
from raft.types import Entry, HardState, NodeId, ReadState, SnapshotMeta


@final
class Ready:
    __slots__ = (
        "committed",
        "entries",
        "hard_state",
        "messages",
        "messages_after_save",
        "must_sync",
        "reads",
        "snapshot",
        "snapshots_to_send",
    )

    def __init__(
        self,
        hard_state: HardState | None,
        entries: list[Entry],
        messages: list[Message],
        messages_after_save: list[Message],
        committed: list[Entry],
        reads: list[ReadState],
        must_sync: bool,
        snapshot: SnapshotMeta | None,
        snapshots_to_send: list[NodeId],
    ) -> None:
        self.hard_state = hard_state  # None when unchanged
        self.entries = entries  # to append; whatever the log holds at or after the first of them goes first
        self.messages = messages  # may leave now, beside our own fsync
        self.messages_after_save = messages_after_save  # promises about what is on our disk: votes, acknowledgements
        self.committed = committed  # in order, not yet handed out; each is stored here or on a quorum of others
        self.reads = reads  # confirmed; need no fsync
        self.must_sync = must_sync  # term, vote or entries changed; a moved commit index alone needs no fsync
        self.snapshot = snapshot  # install it before all else; there are no entries and no committed ones beside it
        # Members that lack what is compacted: send each a snapshot. Nobody is named again before
        # `RawNode.snapshot_failed`, or before it has caught up and fallen behind once more.
        self.snapshots_to_send = snapshots_to_send
