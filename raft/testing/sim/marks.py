"""Coverage marks: rare situations that a campaign of seeds must have met ("sometimes" assertions).

A simulation that never truncates a log proves nothing about truncation. Each mark counts how often its
situation came about; the report names those that never did. Most marks are facts that the core traces
anyway, the others are set where the simulator sees the situation.
"""

from collections import Counter
from typing import Final, final

MARKS: Final = {
    # of elections
    "pre_vote": "a follower asked whether it could win",
    "pre_vote_refused": "a pre-candidate was refused by a quorum, or heard a leader",
    "election_lost": "a candidate was refused by a quorum, or heard the winner",
    "became_leader": "a candidate won",
    "deposed": "a leader met a newer term",
    "lost_quorum": "a leader gave up because no quorum answered",
    "stall_deposed": "a leader that was away for an election timeout gave up before it read anything",
    "two_leaders": "an old leader did not know yet that a newer term had one",
    "vote_protected": "a request for a vote was ignored because a leader had been heard",
    "vote_lost_in_crash": "a node crashed before the save of a vote that it had decided on",
    "term_jump": "a node learned of a term that was newer by two or more",
    # of replication
    "truncated": "a follower cut entries that another leader's log does not have",
    "truncated_stable": "... that were on its disk",
    "truncated_in_save": "... that were on their way to the disk",
    "probed": "a leader fell back to probing",
    "late_append": "an append arrived that begins below the commit index",
    "older_terms_committed": "a no-op committed entries of older terms",
    "committed_before_own_disk": "a leader committed what its own disk did not have yet",
    "inflight_full": "a leader waited for answers because of its inflight bounds",
    "append_cut": "an append was cut at append_bytes_max",
    "refused_too_many": "a proposal was refused because too much was uncommitted",
    "refused_forward": "a forwarded proposal came to a node that did not lead",
    "duplicate_command": "a command was in the log twice and took effect once",
    "apply_backlog": "the state machine was so far behind that nothing more was handed out",
    "dropped_untrue": "a message that cannot be true was dropped",
    # of reads
    "read_waited_for_noop": "a new leader had to commit before it could answer a read",
    "read_shared": "several reads shared a round",
    "read_by_follower": "a follower answered a read",
    "read_asked_again": "a lost read round was asked again",
    "read_answered_late": "an answer came for a context that nobody waited for",
    "read_of_replaced_leader": "a leader was asked for a read when another one had been elected",
    "read_answered_in_next_life": "a reader restarted and asked again before its first answer came",
    "lease_read": "a leader answered a read without a round",
    # of members
    "changed_learners": "a configuration with other learners was entered",
    "joint": "a joint configuration was entered",
    "joint_of_several": "... that adds or removes more than one voter",
    "joint_completed": "a leader left a joint configuration",
    "joint_completed_by_another": "... that another leader had entered",
    "configuration_taken_back": "a configuration was cut off again",
    "change_refused_pending": "a change was refused: another one is under way",
    "change_refused_no_commit": "a change was refused: the leader has not committed in its term",
    "joined_empty": "a process without a log became a member",
    "promoted": "a learner became a voter",
    "removed_told": "a member learned that it was removed",
    "leader_removed": "a leader learned that it is no voter any more",
    "removed_campaigns": "a process that is no member of the newest configuration asked for votes",
    "unknown_leader": "an append came from a node that is not in the receiver's configuration",
    "vote_of_unknown": "a vote was asked for by a node that is not in the voter's configuration",
    # of snapshots
    "snapshot_needed": "a member lacked what a leader had compacted",
    "snapshot_taken": "a snapshot was taken for a transfer",
    "snapshot_installed": "a state machine took a snapshot over",
    "snapshot_discards_log": "... in place of a log that went further",
    "snapshot_not_needed": "a snapshot was offered to a member that had all of it",
    "snapshot_held": "a snapshot was not installed, since the log held its last entry",
    "snapshot_resumed": "a transfer went on where an earlier one had broken off",
    "snapshot_failed": "a transfer came to nothing, and the leader probed again",
    "snapshot_outdated": "a snapshot became useless while it was kept: the log went on without it",
    "crash_in_install": "a node crashed while it installed a snapshot",
    "reset_at_start": "a start finished an installation that a crash had cut off",
    # of disk and process
    "crash_in_save": "a node crashed during a save",
    "crash_kept_part": "... of which a part, but not all, was kept",
    "cut_in_truncation": "the power went during a save that replaced entries",
    "power_cut_all": "every node lost its power at once",
    "disk_failed": "an fsync failed and the node died of it",
    "crash_in_recovery": "a node crashed again while it read its log",
    "segments_removed": "a compaction removed segments of the log",
    "crash_in_compaction": "a node crashed during a compaction",
    "applied_again": "a restarted node applied entries that it had applied before",
    "paused_leader": "a leader was paused",
    "leader_unreachable": "a node noticed the death of its leader at once",
    # of leadership transfer
    "transfer": "a leader began to hand over",
    "transfer_done": "... and the target led the next term",
    "transfer_given_up": "... and gave up",
    "timeout_now_dropped": "a request to campaign at once was ignored",
}

# How the core's facts begin -> the mark.
_FACTS: Final = {
    "became pre-candidate": "pre_vote",
    "became leader": "became_leader",
    "lost its": "lost_quorum",
    "ignored RequestVote": "vote_protected",
    "transfers leadership": "transfer",
    "gives up": "transfer_given_up",
    "dropped TimeoutNow": "timeout_now_dropped",
    "is back": "configuration_taken_back",
    "is no": "leader_removed",
}
_VERBS: Final = {
    "truncates": "truncated",
    "probes": "probed",
    "dropped": "dropped_untrue",
    "holds": "snapshot_held",
}


@final
class Marks:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def hit(self, name: str) -> None:
        assert name in MARKS, f"no such mark: {name}"
        self.counts[name] += 1

    def fact(self, fact: str) -> None:
        """A fact that the core traced."""
        words = fact.split(" ", 2)
        mark = _FACTS.get(" ".join(words[:2]))
        if mark is not None:
            self.counts[mark] += 1
        elif words[0] in _VERBS:
            self.counts[_VERBS[words[0]]] += 1
        elif fact.endswith("has got no snapshot"):
            self.counts["snapshot_failed"] += 1
        elif " needs a snapshot: " in fact:
            self.counts["snapshot_needed"] += 1
