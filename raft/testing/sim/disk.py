"""SimDisk: the log of one node, and what a crash leaves of it.

Two kinds behind one face: MemoryDisk, fast, which follows the contract of LogStorage, and SegmentedDisk,
the real log over a SimFileSystem. Of a save under way a crash leaves a prefix of its parts (truncation,
term and vote, entries), nothing, or all; of a reset nothing or all. `durable` is the model of what every
crash must leave; after each crash of a SegmentedDisk what it loads is compared with it (recovery equivalence).
"""

import contextlib
import errno
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, final

from raft.core.membership import decode_configuration
from raft.errors import StorageError
from raft.snapshot import repair_log
from raft.storage.base import Loaded, LogStorage
from raft.storage.memory import MemoryStorage
from raft.storage.segmented import SegmentedStorage
from raft.testing.disk import Fate, PowerCut, SimFileSystem
from raft.testing.sim.machine import Registers
from raft.testing.sim.marks import Marks
from raft.testing.sim.options import Options
from raft.testing.sim.rng import SimRng
from raft.types import Configuration, Entry, HardState, Index, SnapshotMeta

_PATH: Final = Path("log")
_Part: TypeAlias = Index | HardState | Entry  # truncate to, save, append


class SimDisk(ABC):
    """`storage` is what the node reads; `durable` what must be there after a crash."""

    def __init__(self, configuration: Configuration, rng: SimRng, marks: Marks) -> None:
        self.durable = MemoryStorage(configuration)
        self.flushed = Registers(configuration)  # of the state machine, what survives a crash
        self.incoming: Incoming | None = None  # what has arrived of a snapshot
        self.slow_until = 0  # virtual time
        self.fail_next = False  # the next save ends in an error of the disk
        self.cut_next = False  # the next power cut keeps whole records of the save that it hits
        self._rng = rng
        self._marks = marks

    @property
    @abstractmethod
    def storage(self) -> LogStorage: ...

    @abstractmethod
    def save(self, hard_state: HardState | None, entries: list[Entry]) -> None:
        """A save with its fsync has come to its end. Raises StorageError: then the node is dead."""

    @abstractmethod
    def crash(self, hard_state: HardState | None, entries: list[Entry], power: bool) -> None:
        """The process died during this save (None, [] without one); with `power`, the machine did."""

    @abstractmethod
    def compact(self, index: Index, configuration: Configuration, context: bytes, crash: bool) -> bool:
        """Forget the log up to `index`. With `crash`, maybe die on the way: False means that it did."""

    @abstractmethod
    def reset(self, snapshot: SnapshotMeta) -> None:
        """The log starts after the snapshot."""

    @abstractmethod
    def crash_in_reset(self, snapshot: SnapshotMeta, power: bool) -> None: ...

    def load(self) -> Loaded:
        """With a snapshot that was installed without its reset taken into account, as raft/node.py does."""
        loaded, installed = self._load(), self.flushed.installed
        if installed is None:
            return loaded
        repaired = repair_log(self.storage, loaded, installed)
        if repaired is not loaded:
            self._marks.hit("reset_at_start")
            if self.durable is not self.storage:
                _reset(self.durable, installed)
        return repaired

    def _load(self) -> Loaded:
        return self.durable.load()

    def _keep(self, parts: list[_Part]) -> None:
        """These parts of a save are on the disk."""
        for part in parts:
            if isinstance(part, Entry):
                self.durable.save(None, [part], True)
            elif isinstance(part, HardState):
                self.durable.save(part, [], True)
            else:
                _truncate(self.durable, part)
        state = self.durable.load().hard_state  # its commit index is at most the last index
        self.durable.save(state, [], True)

    def _parts(self, hard_state: HardState | None, entries: list[Entry]) -> list[_Part]:
        parts: list[_Part] = []
        if entries and entries[0].index <= self.durable.last_index:
            parts.append(entries[0].index - 1)
        if hard_state is not None:
            parts.append(hard_state)
        return parts + entries

    def _mark_crash(self, kept: int, parts: list[_Part]) -> None:
        if parts:
            self._marks.hit("crash_in_save")
        if 0 < kept < len(parts):
            self._marks.hit("crash_kept_part")


def _truncate(log: MemoryStorage, index: Index) -> None:
    if index >= log.first_index:
        log.save(None, log.entries(index, index, 1), True)
    else:
        loaded = log.load()
        log.reset(index, log.term_at(index), loaded.configuration, loaded.context)
        log.save(loaded.hard_state, [], True)


def _reset(log: LogStorage, snapshot: SnapshotMeta) -> None:
    log.reset(snapshot.index, snapshot.term, snapshot.configuration, snapshot.context)


@dataclass(slots=True)
class Incoming:
    """A snapshot that arrives in chunks; a crash of the process leaves them, a power cut some of them."""

    snapshot: SnapshotMeta
    chunks: int


@final
class MemoryDisk(SimDisk):
    @property
    def storage(self) -> LogStorage:
        return self.durable

    def save(self, hard_state: HardState | None, entries: list[Entry]) -> None:
        if self.fail_next:
            self.fail_next = False
            raise StorageError("injected")
        self.durable.save(hard_state, entries, True)

    def crash(self, hard_state: HardState | None, entries: list[Entry], power: bool) -> None:
        parts = self._parts(hard_state, entries)
        kept = len(parts) if self._rng.chance(0.5) else self._rng.below(len(parts) + 1) if power else 0
        self._mark_crash(kept, parts)
        self._keep(parts[:kept])

    def compact(self, index: Index, configuration: Configuration, context: bytes, crash: bool) -> bool:
        self.durable.compact(index, configuration, context)
        return True

    def reset(self, snapshot: SnapshotMeta) -> None:
        _reset(self.durable, snapshot)

    def crash_in_reset(self, snapshot: SnapshotMeta, power: bool) -> None:
        if self._rng.chance(0.5):
            _reset(self.durable, snapshot)


@final
class SegmentedDisk(SimDisk):
    def __init__(self, configuration: Configuration, rng: SimRng, marks: Marks, options: Options) -> None:
        super().__init__(configuration, rng, marks)
        self._options = options
        self._files = SimFileSystem(rng)
        self._log = self._open()
        self._loaded = self._log.load()
        self._log.reset(0, 0, configuration)
        self._loaded = Loaded(HardState(0, 0, 0), configuration)

    @property
    def storage(self) -> LogStorage:
        return self._log

    def _load(self) -> Loaded:
        return self._loaded

    def _open(self) -> SegmentedStorage:
        options = self._options
        return SegmentedStorage(
            _PATH,
            segment_bytes=options.segment_bytes,
            cache_bytes=options.cache_bytes,
            file_system=self._files,
        )

    def save(self, hard_state: HardState | None, entries: list[Entry]) -> None:
        if self.fail_next:
            self.fail_next = False
            self._files.failures[self._files.calls + self._rng.between(1, 2)] = OSError(errno.EIO, "injected")
        try:
            self._log.save(hard_state, entries, True)
        finally:
            self._files.failures.clear()
        self.durable.save(hard_state, entries, True)

    def crash(self, hard_state: HardState | None, entries: list[Entry], power: bool) -> None:
        files = self._files
        parts = self._parts(hard_state, entries)
        if parts:
            files.crash_at = files.calls + (2 if self.cut_next else self._rng.between(1, 3))  # 2: before its fsync
            # In the middle of it; or its fsync had failed before, and of that the node dies now.
            with contextlib.suppress(PowerCut, StorageError):
                self._log.save(hard_state, entries, True)
        self._restart(parts, power)

    def reset(self, snapshot: SnapshotMeta) -> None:
        _reset(self._log, snapshot)
        _reset(self.durable, snapshot)

    def crash_in_reset(self, snapshot: SnapshotMeta, power: bool) -> None:
        self._files.crash_at = self._files.calls + self._rng.between(1, 8)
        with contextlib.suppress(PowerCut):
            _reset(self._log, snapshot)
        self._open_again(power)
        if self._log.first_index == snapshot.index + 1:
            _reset(self.durable, snapshot)
        self._recovered([])

    def compact(self, index: Index, configuration: Configuration, context: bytes, crash: bool) -> bool:
        first_index = self._log.first_index
        if crash:
            self._files.crash_at = self._files.calls + self._rng.between(1, 6)
        try:
            self._log.compact(index, configuration, context)
        except PowerCut:
            self._marks.hit("crash_in_compaction")
            self._restart([], power=True)
            return False
        self._files.crash_at = None
        if self._log.first_index > first_index:
            self._marks.hit("segments_removed")
            self.durable.compact(self._log.first_index - 1, configuration, context)
        return True

    def _restart(self, parts: list[_Part], power: bool) -> None:
        self._open_again(power)
        self._recovered(parts)

    def _open_again(self, power: bool) -> None:
        self._stop(power)
        for attempt in range(3):
            if attempt < 2 and self._rng.chance(0.1):
                self._files.crash_at = self._files.calls + self._rng.between(1, 4)
            self._log = self._open()
            try:
                self._loaded = self._log.load()
                break
            except PowerCut:
                self._marks.hit("crash_in_recovery")
                self._stop(power=True)
        self._files.crash_at = None

    def _stop(self, power: bool) -> None:
        if power:
            self._files.power_cut(Fate.CUT if self.cut_next else self._rng.choice([Fate.LOST, Fate.KEPT, Fate.TORN]))
            self.cut_next = False
        else:
            self._files.kill()

    def _recovered(self, parts: list[_Part]) -> None:
        """What the log loaded must be what was durable, and a prefix of the save under way."""
        self._follow_compaction()
        kept = len(parts)
        while kept and not self._agrees(parts[:kept]):
            kept -= 1
        self._mark_crash(kept, parts)
        self._keep(parts[:kept])
        last_index = self._log.last_index
        assert self._agrees([]), (
            f"recovery: the log has ..{last_index} {self._loaded.hard_state}, "
            f"durable was ..{self.durable.last_index} {self.durable.load().hard_state}"
        )
        for index in range(self._log.first_index, last_index + 1):
            found = self._log.term_at(index)
            assert found == self.durable.term_at(index), f"recovery: {index}@{found} was not what was saved there"
        changes = self.durable.load().configuration_entries
        assert self._loaded.configuration_entries == changes, f"recovery: {changes} were saved"

    def _agrees(self, parts: list[_Part]) -> bool:
        """Whether the log is what was durable and these parts of a save."""
        last_index = self.durable.last_index
        last_term = self.durable.term_at(last_index)
        state = self.durable.load().hard_state
        for part in parts:
            if isinstance(part, Entry):
                last_index, last_term = part.index, part.term
            elif isinstance(part, HardState):
                state = part
            else:
                last_index, last_term = part, self.durable.term_at(part)
        found = self._loaded.hard_state
        return (
            (self._log.last_index, self._log.term_at(self._log.last_index)) == (last_index, last_term)
            and (found.term, found.vote) == (state.term, state.vote)
            and found.commit == min(state.commit, last_index)
        )

    def _follow_compaction(self) -> None:
        """A crash may leave a compaction done or not. The configuration at its index is kept with it."""
        index = self._log.first_index - 1
        if index >= self.durable.first_index:
            configuration, context = _configuration_at(self.durable.load(), index)
            self.durable.compact(index, configuration, context)
        loaded, durable = self._loaded, self.durable.load()
        found = (loaded.configuration, loaded.context)
        assert found == (durable.configuration, durable.context), f"recovery: {found} at {index}, {durable} was there"


def _configuration_at(loaded: Loaded, index: Index) -> tuple[Configuration, bytes]:
    found = (loaded.configuration, loaded.context)
    for entry in loaded.configuration_entries:
        if entry.index <= index:
            found = decode_configuration(entry.data)
    return found


def make_disk(options: Options, configuration: Configuration, rng: SimRng, marks: Marks) -> SimDisk:
    """`configuration`: of a new cluster; without voters, of a member that joins one."""
    if options.segmented:
        return SegmentedDisk(configuration, rng, marks, options)
    return MemoryDisk(configuration, rng, marks)
