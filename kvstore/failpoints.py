"""The failpoints of a member, beside those of raft: the mechanism is raft/failpoints.py, docs/failpoints.md lists all.

mvcc and state know no raft; what they need of it, which has nothing to do with a log, they get from here.
"""

from raft.failpoints import FailpointError, arm, arm_all, declare, disarm, fail, fail_async, listing

__all__ = ["FailpointError", "arm", "arm_all", "disarm", "fail", "fail_async", "listing"]

declare(
    {
        # Starting
        "startBeforeIdentity": "the data directory is locked; its new boot number is not written yet",
        "startBeforeReplay": "log and state are open; what is committed is about to be applied again",
        # Requests on their way into the log, and reads
        "batchBeforeTake": "waiting requests are about to become one entry",
        "batchBeforeReceive": "requests that a follower forwarded are about to be taken in",
        "readBeforeRound": "a read round is about to be asked for",
        "readAfterRound": "a round is confirmed and applied; its readers do not know yet",
        # Apply and the store
        "applyBeforeBatch": "an entry of requests is about to be applied",
        "applyBeforeCommit": "what entries change is gathered; nothing of it is visible",
        "applyAfterCommit": "it is visible; no watcher and no client has been told",
        "applyBeforeSpill": "rows of a large request are about to be written before their commit",
        "storeBeforeWrite": "a batch is about to be written to RocksDB",
        "storeAfterWrite": "it is written, in memory only",
        "flushBefore": "the state is about to be made durable",
        "flushAfter": "the state is durable; the log still has what is in it",
        # Snapshots of the state
        "snapshotBeforeCheckpoint": "a snapshot is about to be taken",
        "snapshotAfterCheckpoint": "the checkpoint is there; its files are not summed up yet",
        "snapshotBeforeCurrent": "CURRENT.new is durable; the old state counts",
        "snapshotAfterCurrent": "CURRENT names another state; the old one is still open",
        # Members and leases
        "memberBeforePropose": "a checked change of the members is about to enter the log",
        "memberBeforeApply": "a configuration is committed; the member table does not follow it yet",
        "leaseBeforeRenew": "keep-alives are about to be confirmed by a read round",
        "leaseBeforeRevoke": "leases were found expired; their revoke is about to be proposed",
        # Physical compaction
        "compactBeforeBatch": "a slice of removals is about to be written",
        "compactAfterBatch": "a slice of removals is written",
        "compactBeforeFinish": "all that was hidden is removed; that it is done is not written yet",
        # Watches
        "watchBeforeNotify": "events of an applied batch are about to be handed to the watchers",
        "watchBeforeSync": "watchers that are behind are about to be caught up by a slice",
    }
)
