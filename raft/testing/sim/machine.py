"""Registers: the state machine of the simulation, small enough to be judged by a model.

A command writes a register, or writes it if it holds a certain value (compare-and-set). It carries the
number of its client operation: a command that is in the log twice, because the network repeated a
forwarded proposal, takes effect once. `state_hash` covers every command, result and change of members in
order, so equal hashes at an index mean equal histories.
"""

from struct import Struct
from typing import Final, final
from zlib import crc32

from raft.core.membership import decode_configuration
from raft.types import Configuration, Entry, EntryKind, Index, SnapshotMeta, Term

_COMMAND: Final = Struct("<IIIi")  # operation, register, value, expected
_ANY: Final = -1  # expected: write whatever it holds


def encode_command(operation: int, register: int, value: int, expected: int | None, size: int) -> bytes:
    """Padded with zeros to `size` bytes."""
    return _COMMAND.pack(operation, register, value, _ANY if expected is None else expected).ljust(size, b"\0")


def operation_of(data: bytes) -> int:
    return int(_COMMAND.unpack_from(data)[0])


@final
class Registers:
    """`applied_index` and all the rest move together, also on the disk."""

    __slots__ = (
        "applied_index",
        "applied_term",
        "configuration",
        "context",
        "duplicates",
        "installed",
        "results",
        "state_hash",
        "values",
    )

    def __init__(self, configuration: Configuration) -> None:
        self.applied_index: Index = 0
        self.applied_term: Term = 0
        self.configuration = configuration  # the newest that is applied
        self.context = b""  # of its entry
        self.installed: SnapshotMeta | None = None  # the snapshot that it once began with
        self.state_hash = 0
        self.values: dict[int, int] = {}  # register -> value; 0 where nothing was written
        self.results: dict[int, int] = {}  # operation -> what the register held before it
        self.duplicates = 0

    def copy(self) -> "Registers":
        """What a flush puts on the disk."""
        other = Registers(self.configuration)
        other.applied_index = self.applied_index
        other.applied_term = self.applied_term
        other.context = self.context
        other.installed = self.installed
        other.state_hash = self.state_hash
        other.values = dict(self.values)
        other.results = dict(self.results)
        return other

    def snapshot(self) -> SnapshotMeta:
        """What it stands for if it is sent as it is."""
        return SnapshotMeta(self.applied_index, self.applied_term, self.configuration, self.context)

    def apply(self, entry: Entry) -> None:
        assert entry.index == self.applied_index + 1, f"applies {entry} after {self.applied_index}"
        self.applied_index = entry.index
        self.applied_term = entry.term
        if entry.kind is EntryKind.CONFIGURATION:
            self.configuration, self.context = decode_configuration(entry.data)
            self.state_hash = crc32(entry.data, self.state_hash)
        if entry.kind is not EntryKind.COMMAND:
            return
        operation, register, value, expected = _COMMAND.unpack_from(entry.data)
        if operation in self.results:
            self.duplicates += 1
            return
        before = self.values.get(register, 0)
        self.results[operation] = before
        if expected in (_ANY, before):
            self.values[register] = value
        self.state_hash = crc32(entry.data, self.state_hash ^ before)
