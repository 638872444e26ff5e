"""What the tests of membership share: entries, changes, and a node on a bench that leads or follows."""

from raft.core.membership import encode_configuration
from raft.messages import AppendEntries, Heartbeat
from raft.types import Configuration, ConfigurationChange, Entry, EntryKind, Index, NodeId, Term
from tests.raft.paper.bench import Bench, ack, leader


def entry(index: Index, term: Term, configuration: Configuration, context: bytes = b"") -> Entry:
    return Entry(index, term, encode_configuration(configuration, context), EntryKind.CONFIGURATION)


def change(
    *, voters: tuple[int, ...] = (), learners: tuple[int, ...] = (), removed: tuple[int, ...] = (), context: bytes = b""
) -> ConfigurationChange:
    return ConfigurationChange(voters, learners, removed, context)


def ready_leader(voters: tuple[NodeId, ...] = (1, 2, 3), **more: int) -> Bench:
    """A leader of term 1 whose no-op is committed."""
    bench = leader(voters=voters, **more)
    bench.step(*[ack(voter, 1, 1) for voter in voters if voter != 1])
    bench.work()
    return bench


def follower(log: str = "1@1", **more: object) -> Bench:
    """A follower of node 2 in term 1."""
    bench = Bench(log, term=1, **more)  # type: ignore[arg-type]
    bench.step(Heartbeat(1, 2, 1, 0))
    bench.work()
    return bench


def append(prev: Index, *entries: Entry, commit: Index = 0, sender: NodeId = 2, term: Term = 1) -> AppendEntries:
    return AppendEntries(1, sender, term, prev, 1 if prev else 0, list(entries), commit)
