"""Changes of membership by joint consensus (thesis 4.1, 4.3).

A configuration is an entry of the log, and the newest one in a log is in force there from the moment it is
appended, committed or not (4.1). A change of the voters takes two entries:

    C_old --append--> C_old,new --committed under both majorities--> C_new --committed--> done
            the leader whom it was                the leader of the day, which need
            asked of                              not be the same (S-30)

While C_old,new is in force, elections and commits need a majority of the old voters and one of the new
ones, so C_old and C_new can never decide apart, however many members come and go at once. A change of
learners only leaves all majorities as they are and takes one entry.

One change at a time: the next is refused until the last one's C_new is committed, and until the leader has
committed an entry of its own term (S-29). An entry that is cut off takes its configuration back with it.

New members are sent entries from the append on. Members that leave are still told, for an election timeout
at most, so that they learn that they were removed. A leader that is not in C_new leads until C_new is
committed, counts for nothing meanwhile, and then hands over (4.2.2).
"""

from typing import Final

from raft.core import describe, transfer
from raft.core.progress import Progress
from raft.core.state import Raft, append_entries, is_voter, trace
from raft.errors import ChangeRefused, MalformedMessage, NotLeader
from raft.types import NO_NODE, Configuration, ConfigurationChange, Entry, EntryKind, Index, NodeId, Role

FORMAT: Final = 1


# The data of a CONFIGURATION entry


def encode_configuration(configuration: Configuration, context: bytes) -> bytes:
    return bytes([FORMAT]) + configuration.pack() + context


def decode_configuration(data: bytes) -> tuple[Configuration, bytes]:
    """The configuration and its context. Raises MalformedMessage: a peer may have sent it."""
    if data[:1] != bytes([FORMAT]):
        raise MalformedMessage(f"a configuration of format {data[:1].hex() or 'none'}")
    try:
        configuration, context = Configuration.unpack(data[1:])
    except ValueError as error:
        raise MalformedMessage(str(error)) from error
    groups = (configuration.voters, configuration.learners, configuration.voters_outgoing)
    if not configuration.voters or any(NO_NODE in group or len(set(group)) < len(group) for group in groups):
        raise MalformedMessage(f"a configuration of {groups}")
    return configuration, context


def is_valid(entry: Entry) -> bool:
    """Whether the data of a CONFIGURATION entry is one."""
    try:
        decode_configuration(entry.data)
    except MalformedMessage:
        return False
    return True


# A change


def propose(r: Raft, change: ConfigurationChange) -> Index:
    """Begin a change; returns the index of its first entry. Raises NotLeader, ChangeRefused: nothing was appended."""
    if r.role is not Role.LEADER:
        raise NotLeader(f"n{r.node_id:x} does not lead; leader: n{r.leader_id:x}")
    if r.transfer_target != NO_NODE:
        raise NotLeader(f"n{r.node_id:x} hands leadership over to n{r.transfer_target:x}")
    # An older leader's change may be committed without our knowing, and ours would not overlap with it (S-29).
    if r.log.commit_index < r.noop_index:
        raise ChangeRefused(f"n{r.node_id:x} has not committed an entry of its term yet")
    if is_pending(r):
        raise ChangeRefused(f"the change at {r.configurations[-1][0]} is under way")
    return _append(r, changed(r.configuration, change), change.context)


def changed(old: Configuration, change: ConfigurationChange) -> Configuration:
    """What the first entry of `change` says: joint if the voters differ. Raises ChangeRefused."""
    named = (*change.voters, *change.learners, *change.removed)
    if not named or len(set(named)) < len(named) or not all(0 < node_id < 2**64 for node_id in named):
        raise ChangeRefused(f"{change}: names nobody, or somebody twice")
    members = old.members()
    for node_id in change.removed:
        if node_id not in members:
            raise ChangeRefused(f"n{node_id:x} is no member")
    for node_id in (*change.voters, *change.learners):
        if node_id in members and not (node_id in old.learners and node_id in change.voters):
            raise ChangeRefused(f"n{node_id:x} is a member already")
    gone = (*change.removed, *change.voters)
    voters = tuple([v for v in old.voters if v not in change.removed]) + change.voters
    learners = tuple([v for v in old.learners if v not in gone]) + change.learners
    if not voters:
        raise ChangeRefused("no voter would be left")
    new = Configuration(voters, learners)
    return new if new.voters == old.voters else Configuration(voters, learners, old.voters)


def is_pending(r: Raft) -> bool:
    """Whether the newest configuration of our log is on its way: joint, or not known to be committed."""
    index, configuration, _ = r.configurations[-1]
    return bool(configuration.voters_outgoing) or index > r.log.commit_index


def committed(r: Raft) -> None:
    """A leader's commit index moved: go on with the change that it may have committed."""
    index, configuration, context = r.configurations[-1]
    if index > r.log.commit_index:
        return
    if configuration.voters_outgoing:
        _append(r, Configuration(configuration.voters, configuration.learners), context)
    elif r.node_id not in configuration.voters and r.transfer_target == NO_NODE:
        trace(r, "is no voter any more")
        transfer.transfer_leadership(r, NO_NODE)  # or stops leading, if nobody takes over


def tick(r: Raft) -> None:
    """A leader forgets those who left, once they were told, or could not be told for an election timeout."""
    index = r.configurations[-1][0]
    for node_id, deadline in list(r.leaving.items()):
        if r.clock >= deadline or r.progress[node_id].commit_told >= index:
            del r.leaving[node_id]
            del r.progress[node_id]


# What the log says


def appended(r: Raft, entry: Entry) -> None:
    """A CONFIGURATION entry of a leader joined our log: it is in force (4.1)."""
    configuration, context = decode_configuration(entry.data)  # `is_valid` was asked before
    _enter(r, entry.index, configuration, context)


def truncated(r: Raft, index: Index) -> None:
    """Our log was cut after `index`; the configurations that stood there never were."""
    configurations = r.configurations
    if configurations[-1][0] <= index:
        return
    while configurations[-1][0] > index:
        configurations.pop()
    r.configuration = configurations[-1][1]
    trace(r, f"is back at the configuration of {configurations[-1][0]}")


def compacted(r: Raft) -> None:
    """Forget configurations that were in force only before the log begins."""
    configurations = r.configurations
    base_index = r.log.first_index - 1
    while len(configurations) > 1 and configurations[1][0] <= base_index:
        del configurations[0]
    index, configuration, context = configurations[0]
    if index < base_index:
        configurations[0] = (base_index, configuration, context)


def in_force_at(r: Raft, index: Index) -> tuple[Configuration, bytes]:
    assert r.log.first_index - 1 <= index <= r.log.last_index, f"configuration at {index}: not in the log"
    for entry_index, configuration, context in reversed(r.configurations):
        if entry_index <= index:
            return configuration, context
    raise AssertionError(f"no configuration at {index}: {r.configurations}")


def _append(r: Raft, configuration: Configuration, context: bytes) -> Index:
    index = r.log.last_index + 1
    data = encode_configuration(configuration, context)
    append_entries(r, [Entry(index, r.term, data, EntryKind.CONFIGURATION)])
    _enter(r, index, configuration, context)
    return index


def _enter(r: Raft, index: Index, configuration: Configuration, context: bytes) -> None:
    before = r.configuration
    compacted(r)
    r.configurations.append((index, configuration, context))
    r.configuration = configuration
    if r.tracer is not None:
        trace(r, f"enters {describe.configuration(configuration)} at {index}")
    if r.role is Role.LEADER:
        _change_progress(r, before)


def _change_progress(r: Raft, before: Configuration) -> None:
    """Who came gets a progress, who left keeps it until it was told, we ourselves keep it for as long as we lead."""
    members = r.configuration.members()
    known = before.members()
    for node_id in known:
        if node_id not in members and node_id != r.node_id:
            r.leaving[node_id] = r.clock + r.config.election_ticks
    progress: dict[NodeId, Progress] = {}
    for node_id in sorted({*members, *r.leaving, r.node_id}):
        if node_id in r.progress and (node_id in known or node_id not in members):
            progress[node_id] = r.progress[node_id]
        else:  # also one that left and comes back: nobody knows what it still has
            r.leaving.pop(node_id, None)
            progress[node_id] = Progress(node_id, r.log.last_index)
            progress[node_id].recent_active = True  # check-quorum gives it the time to answer
    r.progress = progress
    if r.transfer_target != NO_NODE and not is_voter(r, r.transfer_target):
        trace(r, f"gives up the transfer to n{r.transfer_target:x}: it leaves")
        r.transfer_target = NO_NODE
