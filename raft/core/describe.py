"""One line of text for each value: traces, scripts and the command line all read alike.

Nodes are written n<id in hex>, positions index@term.
"""

from raft.core.progress import ProgressState
from raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Forward,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
)
from raft.types import Configuration, Entry, EntryKind, NodeId, Role

ROLES = {
    Role.FOLLOWER: "follower",
    Role.PRE_CANDIDATE: "pre-candidate",
    Role.CANDIDATE: "candidate",
    Role.LEADER: "leader",
}
STATES = {ProgressState.PROBE: "probe", ProgressState.REPLICATE: "replicate", ProgressState.SNAPSHOT: "snapshot"}


def node(node_id: NodeId) -> str:
    return f"n{node_id:x}" if node_id else "none"


def entry(value: Entry) -> str:
    position = f"{value.index}@{value.term}"
    if value.kind is EntryKind.COMMAND:
        return position
    return f"{position} {value.kind.name.lower()}"


def entries(values: list[Entry]) -> str:
    if len(values) > 4:
        return f"[{entry(values[0])} .. {entry(values[-1])}]"
    return "[" + ", ".join([entry(value) for value in values]) + "]"


def configuration(value: Configuration) -> str:
    text = f"voters={_nodes(value.voters)}"
    if value.learners:
        text += f" learners={_nodes(value.learners)}"
    if value.voters_outgoing:
        text += f" outgoing={_nodes(value.voters_outgoing)}"
    return text


def _nodes(values: tuple[NodeId, ...]) -> str:
    return ",".join([node(value) for value in values]) or "none"


def message(m: Message) -> str:
    return f"{node(m.sender)} -> {node(m.to)} {body(m)}"


def body(m: Message) -> str:
    """A message without its addresses. Fields at rest (0, false) are left out."""
    words = [type(m).__name__, f"term={m.term}"]
    if isinstance(m, (RequestVote, RequestVoteResponse)):
        if m.pre_vote:
            words[0] = type(m).__name__.replace("RequestVote", "RequestPreVote")
        words.append(_vote(m))
    elif isinstance(m, AppendEntries):
        words.append(f"prev={m.prev_index}@{m.prev_term} {entries(m.entries)} commit={m.commit}")
    elif isinstance(m, AppendEntriesResponse):
        words.append(
            f"rejected={m.rejected_index} hint={m.match_index}@{m.hint_term}"
            if m.rejected
            else f"match={m.match_index}"
        )
    elif isinstance(m, Heartbeat):
        words.append(f"commit={m.commit}" + (" quiet" if m.quiet else ""))
    else:
        words += _rare(m)
    if isinstance(m, (AppendEntries, AppendEntriesResponse, Heartbeat, HeartbeatResponse)) and m.read_round:
        words.append(f"round={m.read_round}")
    if isinstance(m, (AppendEntries, Heartbeat)) and m.replicated_index:
        words.append(f"replicated={m.replicated_index}")
    return " ".join(words)


def _rare(m: Message) -> list[str]:
    if isinstance(m, InstallSnapshot):
        return [f"snapshot={m.index}@{m.snapshot_term} {configuration(m.configuration)}"]
    if isinstance(m, ReadIndexResponse):
        return [f"index={m.index} context={m.context}"]
    if isinstance(m, ReadIndex):
        return [f"context={m.context}"]
    return [f"proposals={len(m.data)}"] if isinstance(m, Forward) else []


def _vote(m: RequestVote | RequestVoteResponse) -> str:
    if isinstance(m, RequestVoteResponse):
        return "granted" if m.granted else "refused"
    return f"last={m.last_index}@{m.last_term}" + (" transfer" if m.transfer else "")
