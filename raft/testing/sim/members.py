"""Members: the operator who adds, promotes and removes members, whatever else goes on.

He asks whoever leads as far as he knows, and does not wait: a change may be refused, lost with its leader,
taken back by the next one, or go on without him. A new member starts with an empty log and no
configuration, at once or some time after it was added. One that was removed stops when it learns of it, or
in some seeds goes on as if nothing were, which must not harm anybody.
"""

from typing import TYPE_CHECKING, final

from raft.core.state import Raft, is_member
from raft.errors import ProposalDropped
from raft.messages import AppendEntries, Message, RequestVote
from raft.testing.sim.rng import SimRng
from raft.types import NO_NODE, Configuration, ConfigurationChange, NodeId, Role

if TYPE_CHECKING:
    from raft.testing.sim.process import Process
    from raft.testing.sim.world import World

_VOTERS_MAX = 5


@final
class Members:
    def __init__(self, world: "World") -> None:
        self._world = world
        self._left = world.options.joiners  # who may still join
        self._next: NodeId = max(world.options.nodes) + 1
        self._joint_of: NodeId = NO_NODE  # who led when the newest joint configuration began

    def change(self, rng: SimRng, span: int, number: int) -> "Process | None":
        """Returns who was asked."""
        world = self._world
        leaders = [p for p in world.processes.values() if p.raw is not None and p.raw.role is Role.LEADER]
        running = [p for p in world.processes.values() if p.raw is not None]
        if not running:
            return None
        asked = rng.choice(leaders) if leaders and rng.chance(0.9) else rng.choice(running)
        assert asked.raw is not None
        configuration = asked.raw.configuration
        kind = rng.choice(["learner", "voter", "promote", "promote", "remove", "remove", "remove_leader", "several"])
        change = getattr(self, f"_{kind}")(rng, span, configuration, asked)
        if change is None:
            return None
        change.context = b"change %d" % number
        world.note(asked, "member", f"fault {number}: {kind} {change}")
        asked.change(change)
        return asked

    def _learner(
        self, rng: SimRng, span: int, configuration: Configuration, asked: "Process"
    ) -> ConfigurationChange | None:
        new = self._join(rng, span, 1)
        return ConfigurationChange(learners=new) if new else None

    def _voter(
        self, rng: SimRng, span: int, configuration: Configuration, asked: "Process"
    ) -> ConfigurationChange | None:
        new = self._join(rng, span, 1) if len(configuration.voters) < _VOTERS_MAX else ()
        return ConfigurationChange(voters=new) if new else None

    def _promote(
        self, rng: SimRng, span: int, configuration: Configuration, asked: "Process"
    ) -> ConfigurationChange | None:
        if not configuration.learners or len(configuration.voters) >= _VOTERS_MAX:
            return None
        return ConfigurationChange(voters=(rng.choice(configuration.learners),))

    def _remove(
        self, rng: SimRng, span: int, configuration: Configuration, asked: "Process"
    ) -> ConfigurationChange | None:
        members = configuration.members()
        return ConfigurationChange(removed=(rng.choice(members),)) if members else None

    def _remove_leader(
        self, rng: SimRng, span: int, configuration: Configuration, asked: "Process"
    ) -> ConfigurationChange | None:
        return ConfigurationChange(removed=(asked.node_id,))

    def _several(
        self, rng: SimRng, span: int, configuration: Configuration, asked: "Process"
    ) -> ConfigurationChange | None:
        """New voters for old ones, at once: the two majorities may share nobody but by the joint rule."""
        voters = configuration.voters
        room = max(_VOTERS_MAX - len(voters), 1)
        new = self._join(rng, span, rng.between(1, min(room, 2)))
        promoted = rng.sample(configuration.learners, rng.between(0, len(configuration.learners)))
        removed = rng.sample(voters, rng.between(0, len(voters) - 1 if voters else 0))
        if not (new or promoted or removed):
            return None
        return ConfigurationChange(voters=(*new, *promoted), removed=tuple(removed))

    def _join(self, rng: SimRng, span: int, count: int) -> tuple[NodeId, ...]:
        """Processes for new members."""
        new: list[NodeId] = []
        while self._left and len(new) < count:
            self._left -= 1
            process = self._world.join(self._next)
            self._world.clock.after(0 if rng.chance(0.7) else span, self._world.restart, process)
            new.append(self._next)
            self._next += 1
        return tuple(new)

    # Marks

    def refused(self, process: "Process", error: ProposalDropped) -> None:
        self._world.note(process, "refused", str(error))
        if "is under way" in str(error):
            self._world.marks.hit("change_refused_pending")
        elif "not committed" in str(error):
            self._world.marks.hit("change_refused_no_commit")

    def entered(self, process: "Process") -> None:
        """It has entered the newest configuration of its log."""
        if process.raw is None:
            return
        r = process.raw.raft
        if len(r.configurations) < 2:
            return
        before, after = r.configurations[-2][1], r.configuration
        marks = self._world.marks
        if before.learners != after.learners and not after.voters_outgoing:
            marks.hit("changed_learners")
        if set(before.learners) & set(after.voters):
            marks.hit("promoted")
        if not before.voters:
            marks.hit("joined_empty")
        if after.voters_outgoing:
            marks.hit("joint")
            if len(set(after.voters) ^ set(after.voters_outgoing)) > 1:
                marks.hit("joint_of_several")
        if r.role is Role.LEADER:
            if after.voters_outgoing:
                self._joint_of = process.node_id
            elif before.voters_outgoing:
                marks.hit("joint_completed")
                if self._joint_of != process.node_id:
                    marks.hit("joint_completed_by_another")

    def heard(self, r: Raft, message: Message) -> None:
        """Who leads or campaigns need not be a member as far as the receiver knows (thesis 4.2.1)."""
        if isinstance(message, RequestVote):
            if not is_member(r, message.sender):
                self._world.marks.hit("vote_of_unknown")
            if message.sender not in self._world.checker.configuration[1].members():
                self._world.marks.hit("removed_campaigns")
        elif isinstance(message, AppendEntries) and not is_member(r, message.sender):
            self._world.marks.hit("unknown_leader")
