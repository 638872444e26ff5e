"""One node on a bench: put it into a state, hand it messages, look at what it sends."""

from typing import TypeVar

from raft.config import Config
from raft.core import election, invariants
from raft.core.raw_node import RawNode
from raft.messages import AppendEntriesResponse, HeartbeatResponse, Message, RequestVoteResponse
from raft.ready import Ready
from raft.storage.memory import MemoryStorage
from raft.testing.cluster import SplitMixRng
from raft.trace import ListTracer
from raft.types import Configuration, Entry, HardState, Index, NodeId, Role, Term

M = TypeVar("M")


def positions(text: str) -> list[Entry]:
    """Entries from "1@1 2@1 3@2"."""
    pairs = [word.split("@") for word in text.split()]
    return [Entry(int(index), int(term), b"%d" % int(index)) for index, term in pairs]


class Bench:
    """Node 1 of `voters`, alone; everything that it sends is kept in `sent`, in order."""

    def __init__(
        self,
        log: str = "",
        *,
        term: Term = 0,
        vote: NodeId = 0,
        commit: Index = 0,
        voters: tuple[NodeId, ...] = (1, 2, 3),
        learners: tuple[NodeId, ...] = (),
        **config: bool | int,
    ) -> None:
        self.tracer = ListTracer()
        self.storage = MemoryStorage(Configuration(voters, learners))
        entries = positions(log)
        self.storage.save(HardState(term, vote, commit), entries, True)
        settings = Config(node_id=1, **config)  # type: ignore[arg-type]
        self.raw = RawNode(settings, self.storage, self.storage.load(), 0, SplitMixRng(1), self.tracer)
        self.starts = 1
        self.sent: list[Message] = []
        self.committed: list[Entry] = []
        self.reads: dict[int, Index] = {}

    @property
    def r(self):  # type: ignore[no-untyped-def]
        return self.raw.raft

    def step(self, *messages: Message) -> None:
        for message in messages:
            self.raw.step(message)
            invariants.check(self.raw.raft)

    def begin(self) -> Ready:
        """The first half of a Ready."""
        ready = self.raw.ready()
        self.sent += ready.messages
        self.reads.update({read.context: read.index for read in ready.reads})
        return ready

    def save(self, ready: Ready) -> None:
        self.storage.save(ready.hard_state, ready.entries, ready.must_sync)
        self.raw.saved(ready)
        self.sent += ready.messages_after_save
        self.committed += ready.committed
        if ready.committed:
            self.raw.applied(ready.committed[-1].index)
        invariants.check(self.raw.raft)

    def work(self) -> list[Message]:
        """All Readys; returns what was sent since the last call."""
        while self.raw.has_ready():
            self.save(self.begin())
        sent, self.sent = self.sent, []
        return sent

    def sent_of(self, kind: type[M]) -> list[M]:
        return [message for message in self.work() if isinstance(message, kind)]

    def tick(self, ticks: int) -> None:
        for _ in range(ticks):
            self.raw.tick()
            invariants.check(self.raw.raft)

    def campaign(self) -> None:
        election.start(self.raw.raft)

    def restart(self) -> None:
        self.starts += 1  # a new process draws other random numbers
        rng = SplitMixRng(self.starts)
        self.raw = RawNode(self.r.config, self.storage, self.storage.load(), self.raw.applied_index, rng, self.tracer)


def vote(sender: NodeId, term: Term, granted: bool = True, pre_vote: bool = False) -> RequestVoteResponse:
    return RequestVoteResponse(1, sender, term, granted, pre_vote)


def ack(sender: NodeId, term: Term, match_index: Index, read_round: int = 0) -> AppendEntriesResponse:
    return AppendEntriesResponse(1, sender, term, match_index, read_round=read_round)


def beat(sender: NodeId, term: Term, read_round: int = 0) -> HeartbeatResponse:
    return HeartbeatResponse(1, sender, term, read_round)


def leader(log: str = "", *, term: Term = 1, voters: tuple[NodeId, ...] = (1, 2, 3), **more: int) -> Bench:
    """Node 1 as the leader of `term`; its no-op is appended and on its own disk, and nothing was answered."""
    bench = Bench(log, term=term - 1, voters=voters, pre_vote=False, **more)  # type: ignore[arg-type]
    bench.campaign()
    bench.work()
    for voter in voters:
        if voter != 1:
            bench.step(vote(voter, term))
    assert bench.raw.role is Role.LEADER
    bench.work()
    return bench
