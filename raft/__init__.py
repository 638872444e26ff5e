"""Raft, as a library: replicates bytes over several machines, knows nothing of what they mean.

Quick start. One member; the others run the same with their own ids:

    from pathlib import Path
    from raft import Config, Configuration, Entry, HardState, Index, Loaded, Node, NodeConfig, StateMachine
    from raft.storage.segmented import SegmentedStorage

    class Counter(StateMachine):
        value = 0
        _applied = 0

        @property
        def applied_index(self) -> Index:
            return self._applied

        async def apply(self, entries: list[Entry]) -> None:
            self.value += len([entry for entry in entries if entry.data])
            self._applied = entries[-1].index

    storage = SegmentedStorage(Path("log"))
    loaded = storage.load()
    if not loaded.configuration.voters:                 # the first start: found the cluster
        storage.reset(0, 0, Configuration((1, 2, 3)))
        loaded = Loaded(HardState(0, 0, 0), Configuration((1, 2, 3)))
    node = Node(NodeConfig(core=Config(node_id=1)), storage, Counter(), transport, loaded=loaded)
    transport.set_peers({2: ["http://b:2380"], 3: ["http://c:2380"]})
    await node.start()
    node.propose(b"one more")                           # applied everywhere once a majority has stored it
    await node.wait_applied(await node.read_index())    # from here on, a local read is linearizable

`transport` carries messages: raft.transport.grpc between machines, raft.transport.memory in a test.

With a loop, a disk or a network of your own, use the core alone. RawNode has no clock and does no IO; it
says what has to be done, in this order:

    raw.tick(); raw.step(message); raw.propose([b"x"])
    while raw.has_ready():
        ready = raw.ready()
        send(ready.messages)                 # beside our own fsync
        answer_reads(ready.reads)
        save(ready.hard_state, ready.entries, ready.must_sync)
        raw.saved(ready)
        send(ready.messages_after_save)      # promises about what is on our disk
        apply(ready.committed); raw.applied(ready.committed[-1].index)

raft/DESIGN.md explains how it works; raft.testing.cluster runs a whole cluster in one thread of a test.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from raft.config import Config
from raft.errors import (
    ChangeRefused,
    Compacted,
    ConfigError,
    Corrupt,
    InUse,
    NotLeader,
    PeerRefused,
    ProposalDropped,
    RaftError,
    Stopped,
    StorageError,
    TooManyProposals,
    UnknownFormat,
)
from raft.types import (
    INDEX_MAX,
    NO_NODE,
    Configuration,
    ConfigurationChange,
    Entry,
    EntryKind,
    HardState,
    Index,
    NodeId,
    ReadState,
    Role,
    SnapshotMeta,
    Term,
)

if TYPE_CHECKING:
    from raft.apply import StateMachine
    from raft.core.ports import LogReader, Rng, Tracer
    from raft.core.progress import ProgressState
    from raft.core.raw_node import ProgressStatus, RawNode, Status
    from raft.node import Node
    from raft.node_config import NodeConfig
    from raft.proposals import ProposalQueue, ProposalSource
    from raft.ready import Ready
    from raft.runtime import Runtime
    from raft.small_state import SmallStateMachine
    from raft.snapshot import (
        MemorySnapshot,
        MemoryWriter,
        ReceivedSnapshot,
        SnapshotFailed,
        SnapshotFile,
        SnapshotReader,
        SnapshotWriter,
    )
    from raft.storage.base import Loaded, LogStorage
    from raft.transport.base import Transport

# Imported when first used: the core needs neither asyncio nor protobuf, and a tool that only wants the
# types should not wait for them.
_LAZY = {
    "LogReader": "raft.core.ports",
    "Rng": "raft.core.ports",
    "Tracer": "raft.core.ports",
    "ProgressState": "raft.core.progress",
    "ProgressStatus": "raft.core.raw_node",
    "RawNode": "raft.core.raw_node",
    "Status": "raft.core.raw_node",
    "Ready": "raft.ready",
    "StateMachine": "raft.apply",
    "Node": "raft.node",
    "NodeConfig": "raft.node_config",
    "ProposalQueue": "raft.proposals",
    "ProposalSource": "raft.proposals",
    "Runtime": "raft.runtime",
    "SmallStateMachine": "raft.small_state",
    "MemorySnapshot": "raft.snapshot",
    "MemoryWriter": "raft.snapshot",
    "ReceivedSnapshot": "raft.snapshot",
    "SnapshotFailed": "raft.snapshot",
    "SnapshotFile": "raft.snapshot",
    "SnapshotReader": "raft.snapshot",
    "SnapshotWriter": "raft.snapshot",
    "Loaded": "raft.storage.base",
    "LogStorage": "raft.storage.base",
    "Transport": "raft.transport.base",
}

__all__ = [
    "ChangeRefused",
    "Compacted",
    "Config",
    "ConfigError",
    "Configuration",
    "ConfigurationChange",
    "Corrupt",
    "Entry",
    "EntryKind",
    "HardState",
    "INDEX_MAX",
    "InUse",
    "Index",
    "Loaded",
    "MemorySnapshot",
    "MemoryWriter",
    "LogReader",
    "LogStorage",
    "NO_NODE",
    "Node",
    "NodeConfig",
    "NodeId",
    "NotLeader",
    "PeerRefused",
    "ProgressState",
    "ProgressStatus",
    "ProposalDropped",
    "ProposalQueue",
    "ProposalSource",
    "RaftError",
    "RawNode",
    "ReadState",
    "ReceivedSnapshot",
    "Ready",
    "Rng",
    "Role",
    "Runtime",
    "SmallStateMachine",
    "SnapshotFailed",
    "SnapshotFile",
    "SnapshotMeta",
    "SnapshotReader",
    "SnapshotWriter",
    "StateMachine",
    "Status",
    "Stopped",
    "StorageError",
    "Term",
    "TooManyProposals",
    "Tracer",
    "Transport",
    "UnknownFormat",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'raft' has no attribute {name!r}")
