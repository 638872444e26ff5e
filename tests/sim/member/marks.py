"""Coverage marks: rare situations that a campaign of seeds must have met, above Raft."""

from typing import TYPE_CHECKING, Final

from kvstore.errors import COMPACTED, FUTURE_REVISION, LEADER_CHANGED, TIMEOUT
from tests.e2e.history import Outcome

if TYPE_CHECKING:
    from tests.sim.member.checks import Truth
    from tests.sim.member.clients import Asked
    from tests.sim.member.world import World

MARKS: Final = {
    "leader_killed": "the leader was killed",
    "leader_paused": "the leader was paused",
    "power_cut_all": "every member lost its power at once",
    "died_of_its_disk": "an fsync failed and the member ended itself",
    "power_cut_in_save": "the power went in the middle of a save",
    "stopped": "a member was told to stop and did",
    "transferred": "leadership was handed over",
    "replayed": "a member that started applied entries again",
    "log_compacted": "the log forgot what the store has durably",
    "unknown_done": "a request of unknown outcome took effect",
    "unknown_not_done": "... or did not",
    "repeated": "a request stood in the log twice and took effect once",
    "leader_changed": "a request was answered: leader changed",
    "timed_out": "... or: timed out",
    "refused_in_apply": "a request that passed the front was refused by apply",
    "batched": "an entry held several requests",
    "forwarded": "a member that did not lead answered a change",
    "read_by_follower": "a member that did not lead answered a linearizable read",
    "read_compacted": "a read was refused: compacted",
    "read_future": "... or: future revision",
    "compacted": "a compaction was acknowledged",
    "watch_compacted": "a watch was ended by a compaction",
    "watch_resumed": "a watch went on at another member",
    "watch_progress": "progress was told",
    "watch_fragment": "a revision was told in fragments",
    "watch_cut": "a slow watch fell behind: its events were not delivered",
    "watch_no_leader": "a watch that needs a leader was ended without one",
    "snapshot_installed": "a member that had fallen behind got a snapshot",
    "member_list": "the members were listed",
    "member_add": "a member was added",
    "member_promote": "a learner was promoted",
    "member_remove": "a member was removed",
    "member_gone": "... and ended by itself",
    "lease_expired": "a lease expired",
    "lease_revoked": "a lease was revoked by its holder",
    "keep_alive_forwarded": "a member that does not lead passed a keep-alive on",
    "keep_alive_too_late": "a keep-alive came after the end",
    "stale_revoke": "a lessor that did not lead any more wanted to revoke",
    "renewed_while_revoking": "a keep-alive came while the leader's revoke of the lease was under way",
    "auth_changed": "a user or a role was changed",
    "txn_failed": "a comparison failed",
}


def mark_history(world: "World", operations: "list[Asked]", truth: "Truth") -> None:
    """What the end shows to have happened."""
    errors = {
        LEADER_CHANGED: "leader_changed",
        TIMEOUT: "timed_out",
        COMPACTED: "read_compacted",
        FUTURE_REVISION: "read_future",
    }
    for asked in operations:
        if asked.error in errors:
            world.mark(errors[asked.error])  # type: ignore[index]
        if asked.outcome is Outcome.UNKNOWN and asked.wrote:
            world.mark("unknown_done" if truth.done.get(asked.request_id) else "unknown_not_done")
        if asked.outcome is Outcome.FAILED and truth.done.get(asked.request_id):
            world.mark("refused_in_apply")
    world.marks["repeated"] += truth.repeated
    world.marks["stale_revoke"] += truth.stale_revokes
    world.marks["lease_expired"] += sum([1 for ends in truth.lease_ends.values() if ends[0][1]])
    commands = sum([1 for entry in world.log.values() if entry.kind == 0])
    if truth.requests > commands:
        world.mark("batched")
    if any(member.server is not None and member.server.node._storage.first_index > 1 for member in world.members):
        world.mark("log_compacted")
    members: set[str] = set()
    for log in world.watches:
        members.add(log.member)
        for response in log.responses:
            if response.compact_revision:
                world.mark("watch_compacted")
            elif response.fragment:
                world.mark("watch_fragment")
            elif not response.events and not response.created and not response.canceled:
                world.mark("watch_progress")
    if len(members) > 1:
        world.mark("watch_resumed")
