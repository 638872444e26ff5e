"""A small exhaustive search: every run of three nodes that fits into narrow bounds.

Where the simulation draws a few of very many runs, this takes all of very few: terms, proposals, crashes
and deliveries are bounded, and within that every order is tried. The network is the set of all messages
ever sent: any of them may arrive at any time, again, or never. A node saves at once, or dies between
sending and saving. Bugs that need two terms and few messages cannot hide here.

    state    the local state of each node, the messages sent, what is left of the bounds
    move     one event at one node: it changes that node alone, and adds messages

What a node does depends on nothing but its own events, so each (local state, event) is carried out by
the core once and remembered: a move is two look-ups. Local states are told apart by all that the core
holds, and by what they have promised and committed in all their lives (their ghost).
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, final

from raft.config import Config
from raft.core import describe, invariants
from raft.core.ports import Rng
from raft.core.raw_node import RawNode
from raft.messages import Message, RequestVote, RequestVoteResponse
from raft.storage.memory import MemoryStorage
from raft.types import Configuration, Entry, Index, NodeId, Role, Term

NODES: Final = (1, 2, 3)
_MAJORITY: Final = 2
_ELECTION_TICKS: Final = 2

LocalId = int  # of a local state of any node
MessageId = int
Position = tuple[Index, Term, bytes]


class Bounds(NamedTuple):
    """What may still happen."""

    deliveries: int
    timeouts: int
    heartbeats: int
    proposals: int
    crashes: int


class Event(NamedTuple):
    kind: str  # timeout, heartbeat, propose, restart, deliver
    message: MessageId = -1
    dies: bool = False  # after sending, before saving


class Global(NamedTuple):
    locals: tuple[LocalId, ...]
    sent: int  # bit i: message i
    left: Bounds


_COSTS: Final = {
    "deliver": Bounds(1, 0, 0, 0, 0),
    "timeout": Bounds(0, 1, 0, 0, 0),
    "heartbeat": Bounds(0, 0, 1, 0, 0),
    "propose": Bounds(0, 0, 0, 1, 0),
    "restart": Bounds(0, 0, 0, 0, 1),
}


class Violation(AssertionError):
    """With the moves that lead to it."""


@dataclass(frozen=True)
class Local:
    """One local state, seen from outside: what the checks of the whole cluster need."""

    node_id: NodeId
    role: Role
    term: Term
    disk: tuple[Position, ...]
    log: tuple[Position, ...]
    committed: dict[Index, tuple[Position, Term]]  # ever, by this node: the entry, and the node's term then
    led: frozenset[Term]  # ever


@dataclass(frozen=True)
class Report:
    states: int
    moves: int
    local_states: int
    elections: int  # local states that lead
    commits: int  # the highest index committed anywhere


class _Zero(Rng):
    def below(self, bound: int) -> int:
        return 0


@dataclass
class _Node:
    """A node that is being led through its events."""

    node_id: NodeId
    config: Config
    disk: MemoryStorage = field(default_factory=lambda: MemoryStorage(Configuration(NODES)))
    votes: dict[Term, NodeId] = field(default_factory=dict)
    committed: dict[Index, tuple[Position, Term]] = field(default_factory=dict)
    led: set[Term] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.raw = RawNode(self.config, self.disk, self.disk.load(), 0, _Zero())
        self._work([], False)

    def happens(self, event: Event, messages: list[Message]) -> list[Message]:
        """Returns what it sends."""
        raw = self.raw
        sent: list[Message] = []
        if event.kind == "deliver":
            raw.step(messages[event.message])
        elif event.kind == "timeout":
            for _ in range(_ELECTION_TICKS):
                raw.tick()
        elif event.kind == "heartbeat":
            raw.tick()
        elif event.kind == "propose":
            raw.propose([b"n%d@%d" % (self.node_id, raw.term)])
        else:
            self.start()
        self._work(sent, event.dies)
        return sent

    def _work(self, sent: list[Message], dies: bool) -> None:
        raw = self.raw
        while raw.has_ready():
            ready = raw.ready()
            sent += ready.messages
            if dies:
                self.start()
                return
            self.disk.save(ready.hard_state, ready.entries, ready.must_sync)
            raw.saved(ready)
            sent += ready.messages_after_save
            if ready.committed:
                raw.applied(ready.committed[-1].index)
        self._observe(sent)

    def _observe(self, sent: list[Message]) -> None:
        r = self.raw.raft
        invariants.check(r)
        for message in sent:
            if isinstance(message, RequestVoteResponse) and message.granted and not message.pre_vote:
                self._vote(message.term, message.to)
            elif isinstance(message, RequestVote) and not message.pre_vote:
                self._vote(message.term, self.node_id)
        if r.role is Role.LEADER:
            self.led.add(r.term)
        for index in range(1, r.log.commit_index + 1):
            position = _position(r.log.entries(index, index, 1)[0])
            first, _ = self.committed.setdefault(index, (position, r.term))
            assert first == position, f"n{self.node_id} commits {position} after {first}"

    def _vote(self, term: Term, candidate: NodeId) -> None:
        first = self.votes.setdefault(term, candidate)
        assert first == candidate, f"n{self.node_id} voted for n{first} and n{candidate} in term {term}"

    def seen(self) -> Local:
        r = self.raw.raft
        disk = self.disk.entries(1, self.disk.last_index, 2**62) if self.disk.last_index else []
        log = r.log.entries(1, r.log.last_index, 2**62) if r.log.last_index else []
        return Local(
            self.node_id,
            r.role,
            r.term,
            tuple([_position(entry) for entry in disk]),
            tuple([_position(entry) for entry in log]),
            dict(self.committed),
            frozenset(self.led),
        )

    def key(self) -> object:
        return (_plain(self.raw.raft), _plain(self.disk), _plain(self.votes), _plain(self.committed), _plain(self.led))


def _position(entry: Entry) -> Position:
    return (entry.index, entry.term, entry.data)


_UNSEEN: Final = (Config, Rng)  # the same for ever


def _plain(value: Any) -> object:
    """A value that is equal for equal states, whatever they consist of."""
    if isinstance(value, (int, bytes, str)) or value is None:
        return value
    if isinstance(value, (set, frozenset)):
        return tuple(sorted([_plain(item) for item in value], key=repr))
    if isinstance(value, _UNSEEN):
        return type(value).__name__
    parts = value
    if isinstance(value, dict):
        parts = value.items()
    elif not isinstance(value, (list, tuple, deque)):
        names = vars(value) if hasattr(value, "__dict__") else type(value).__slots__
        parts = [getattr(value, name) for name in names]
    return tuple([_plain(part) for part in parts])


@final
class Search:
    """Breadth first, so that the first violation is one of the shortest."""

    def __init__(self, bounds: Bounds, *, pre_vote: bool, opening: tuple[tuple[NodeId, str], ...] = ()) -> None:
        self._configs = {
            node_id: Config(node_id=node_id, election_ticks=_ELECTION_TICKS, pre_vote=pre_vote, check_quorum=False)
            for node_id in NODES
        }
        self._messages: list[Message] = []
        self._message_ids: dict[object, MessageId] = {}
        self._to: dict[NodeId, int] = dict.fromkeys(NODES, 0)  # bits of the messages to each
        self._locals: list[Local] = []
        self._local_ids: dict[object, LocalId] = {}
        self._histories: list[tuple[Event, ...]] = []  # of each local state, one way to get there
        self._steps: dict[tuple[LocalId, Event], tuple[LocalId, int]] = {}
        self._checked: set[tuple[LocalId, ...]] = set()
        self._moves = 0
        first = tuple([self._intern(_Node(node_id, self._configs[node_id]), ()) for node_id in NODES])
        self._begin = self._play(Global(first, 0, bounds), opening)

    def run(self) -> Report:
        begin = self._begin
        parents: dict[Global, tuple[Global, NodeId, Event] | None] = {begin: None}
        queue = deque([begin])
        while queue:
            state = queue.popleft()
            for node_id, event in self._possible(state):
                try:
                    after = self._move(state, node_id, event)
                    if after in parents or (after.locals, after.sent) == (state.locals, state.sent):
                        continue
                    self._check(after)
                except AssertionError as error:
                    raise Violation(f"{error}\n{self._tell(parents, state, node_id, event)}") from error
                parents[after] = (state, node_id, event)
                queue.append(after)
        leading = [local for local in self._locals if local.role is Role.LEADER]
        commits = max([max(local.committed, default=0) for local in self._locals])
        return Report(len(parents), self._moves, len(self._locals), len(leading), commits)

    def _possible(self, state: Global) -> Iterator[tuple[NodeId, Event]]:
        left = state.left
        for node_id, local_id in zip(NODES, state.locals, strict=True):
            leads = self._locals[local_id].role is Role.LEADER
            if left.timeouts and not leads:
                yield node_id, Event("timeout")
            if left.heartbeats and leads:
                yield node_id, Event("heartbeat")
            if left.proposals and leads:
                yield node_id, Event("propose")
            if left.crashes:
                yield node_id, Event("restart")
            if left.deliveries:
                waiting = state.sent & self._to[node_id]
                while waiting:
                    message_id = (waiting & -waiting).bit_length() - 1
                    waiting &= waiting - 1
                    yield node_id, Event("deliver", message_id)
                    if left.crashes:
                        yield node_id, Event("deliver", message_id, True)

    def _move(self, state: Global, node_id: NodeId, event: Event) -> Global:
        self._moves += 1
        position = node_id - 1
        before = state.locals[position]
        step = self._steps.get((before, event))
        if step is None:
            step = self._steps[before, event] = self._carry_out(before, event)
        after, sent = step
        locals_ = state.locals
        if after != before:
            locals_ = (*locals_[:position], after, *locals_[position + 1 :])
        cost = _COSTS[event.kind]
        left = Bounds(*[have - used for have, used in zip(state.left, cost, strict=True)])
        if event.dies:
            left = left._replace(crashes=left.crashes - 1)
        return Global(locals_, state.sent | sent, left)

    def _carry_out(self, before: LocalId, event: Event) -> tuple[LocalId, int]:
        """By the core: the events that led to `before`, then this one."""
        history = self._histories[before]
        node_id = self._locals[before].node_id
        node = _Node(node_id, self._configs[node_id])
        for earlier in history:
            node.happens(earlier, self._messages)
        sent = 0
        for message in node.happens(event, self._messages):
            sent |= 1 << self._message_id(message)
        return self._intern(node, (*history, event)), sent

    def _intern(self, node: _Node, history: tuple[Event, ...]) -> LocalId:
        key = (node.node_id, node.key())
        found = self._local_ids.get(key)
        if found is None:
            found = self._local_ids[key] = len(self._locals)
            self._locals.append(node.seen())
            self._histories.append(history)
        return found

    def _message_id(self, message: Message) -> MessageId:
        key = (type(message).__name__, _plain(message))
        found = self._message_ids.get(key)
        if found is None:
            found = self._message_ids[key] = len(self._messages)
            self._messages.append(message)
            self._to[message.to] |= 1 << found
        return found

    def _play(self, state: Global, opening: tuple[tuple[NodeId, str], ...]) -> Global:
        """What happens before the search begins costs nothing: `kind` at a node, "deliver": all that waits for it."""
        for node_id, kind in opening:
            waiting = state.sent & self._to[node_id]
            events = [Event(kind)]
            if kind == "deliver":
                events = [Event(kind, i) for i in range(waiting.bit_length()) if waiting >> i & 1]
            for event in events:
                state = self._move(state, node_id, event)._replace(left=state.left)
        return state._replace(sent=0) if opening else state

    # Of the whole cluster

    def _check(self, state: Global) -> None:
        if state.locals in self._checked:
            return
        self._checked.add(state.locals)
        nodes = [self._locals[local_id] for local_id in state.locals]
        led: dict[Term, NodeId] = {}
        committed: dict[Index, tuple[Position, Term]] = {}
        for node in nodes:
            for term in node.led:
                first = led.setdefault(term, node.node_id)
                assert first == node.node_id, f"Election Safety: n{first} and n{node.node_id} lead term {term}"
            for index, (position, term) in node.committed.items():
                known, earliest = committed.setdefault(index, (position, term))
                assert known == position, f"State Machine Safety: {known} and {position} are committed"
                committed[index] = (position, min(earliest, term))
        _check_logs(nodes)
        for index, (position, term) in committed.items():
            holders = [node.node_id for node in nodes if len(node.disk) >= index and node.disk[index - 1] == position]
            assert len(holders) >= _MAJORITY, f"{position} is committed, only {holders} hold it"
            for node in nodes:
                if node.role is Role.LEADER and node.term > term:
                    has = len(node.log) >= index and node.log[index - 1] == position
                    assert has, f"Leader Completeness: n{node.node_id}@{node.term} lacks {position}"

    def _tell(
        self,
        parents: dict[Global, tuple[Global, NodeId, Event] | None],
        state: Global,
        node_id: NodeId,
        event: Event,
    ) -> str:
        lines = [self._line(node_id, event)]
        before = parents[state]
        while before is not None:
            state, node_id, event = before
            lines.append(self._line(node_id, event))
            before = parents[state]
        return "\n".join(reversed(lines))

    def _line(self, node_id: NodeId, event: Event) -> str:
        what = event.kind
        if event.kind == "deliver":
            message = self._messages[event.message]
            what = f"{describe.body(message)} from n{message.sender}"
        return f"    n{node_id} {what}" + (" and dies before it saves" if event.dies else "")


def _check_logs(nodes: list[Local]) -> None:
    for a in nodes:
        for b in nodes:
            if a.node_id < b.node_id:
                agree = False
                for mine, other in zip(reversed(a.log[: len(b.log)]), reversed(b.log[: len(a.log)]), strict=True):
                    agree = agree or mine[1] == other[1]
                    assert not agree or mine == other, f"Log Matching: {mine} and {other}, but later terms agree"


_LED: Final = ((1, "timeout"), (2, "deliver"), (1, "deliver"))  # n1 leads term 1, n2 voted
_COMMITTED: Final = (*_LED, (2, "deliver"), (1, "deliver"))  # ... and its no-op is committed with n2

SEARCHES: Final[dict[str, tuple[Bounds, bool, tuple[tuple[NodeId, str], ...]]]] = {
    "two elections": (Bounds(8, 2, 0, 0, 1), False, ()),
    "with pre-vote": (Bounds(9, 2, 0, 0, 0), True, ()),
    "a new leader": (Bounds(7, 1, 1, 1, 1), False, _LED),
    "a deposed leader": (Bounds(7, 1, 1, 1, 1), False, _COMMITTED),
}


def run_all() -> Iterator[str]:
    """A line for each search. Raises Violation."""
    for name, (bounds, pre_vote, opening) in SEARCHES.items():
        report = Search(bounds, pre_vote=pre_vote, opening=opening).run()
        yield (
            f"{name:<18} {report.states:>9,} states, {report.moves:>10,} moves, {report.local_states:>6,} local states,"
            f" {report.elections:,} of them lead, up to {report.commits} entries committed"
        )
