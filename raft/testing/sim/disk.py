"""SimDisk: the log of one node, and what a crash leaves of it.

Two kinds behind one face: MemoryDisk, fast, which follows the contract of LogStorage, and SegmentedDisk,
the real log over a SimFileSystem. Of a save under way a crash leaves a prefix of its parts (truncation,
term and vote, entries), nothing, or all. `durable` is the model of what every crash must leave; after
each crash of a SegmentedDisk what it loads is compared with it (recovery equivalence).
"""

import contextlib
import errno
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final, TypeAlias, final

from raft.errors import StorageError
from raft.storage.base import Loaded, LogStorage
from raft.storage.memory import MemoryStorage
from raft.storage.segmented import SegmentedStorage
from raft.testing.disk import Fate, PowerCut, SimFileSystem
from raft.testing.sim.machine import Registers
from raft.testing.sim.marks import Marks
from raft.testing.sim.options import Options
from raft.testing.sim.rng import SimRng
from raft.types import Configuration, Entry, HardState, Index

_PATH: Final = Path("log")
_Part: TypeAlias = Index | HardState | Entry  # truncate to, save, append


class SimDisk(ABC):
    """`storage` is what the node reads; `durable` what must be there after a crash."""

    def __init__(self, configuration: Configuration, rng: SimRng, marks: Marks) -> None:
        self.durable = MemoryStorage(configuration)
        self.flushed = Registers()  # of the state machine, what survives a crash
        self.slow_until = 0  # virtual time
        self.fail_next = False  # the next save ends in an error of the disk
        self._configuration = configuration
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
    def compact(self, index: Index, crash: bool) -> bool:
        """Forget the log up to `index`. With `crash`, maybe die on the way: False means that it did."""

    def load(self) -> Loaded:
        return self.durable.load()

    def _keep(self, parts: list[_Part]) -> None:
        """These parts of a save are on the disk."""
        for part in parts:
            if isinstance(part, Entry):
                self.durable.save(None, [part], True)
            elif isinstance(part, HardState):
                self.durable.save(part, [], True)
            else:
                _truncate(self.durable, part, self._configuration)
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


def _truncate(log: MemoryStorage, index: Index, configuration: Configuration) -> None:
    if index >= log.first_index:
        log.save(None, log.entries(index, index, 1), True)
    else:
        log.reset(index, log.term_at(index), configuration)


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

    def compact(self, index: Index, crash: bool) -> bool:
        self.durable.compact(index, self._configuration)
        return True


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

    def load(self) -> Loaded:
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
            files.crash_at = files.calls + self._rng.between(1, 3)
            # In the middle of it; or its fsync had failed before, and of that the node dies now.
            with contextlib.suppress(PowerCut, StorageError):
                self._log.save(hard_state, entries, True)
        self._restart(parts, power)

    def compact(self, index: Index, crash: bool) -> bool:
        first_index = self._log.first_index
        if crash:
            self._files.crash_at = self._files.calls + self._rng.between(1, 6)
        try:
            self._log.compact(index, self._configuration)
        except PowerCut:
            self._marks.hit("crash_in_compaction")
            self._restart([], power=True)
            return False
        self._files.crash_at = None
        if self._log.first_index > first_index:
            self._marks.hit("segments_removed")
        self._follow_compaction()
        return True

    def _restart(self, parts: list[_Part], power: bool) -> None:
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
        self._recovered(parts)

    def _stop(self, power: bool) -> None:
        if power:
            self._files.power_cut(self._rng.choice(list(Fate)))
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
        """The log keeps whole segments, so it may compact less than it was asked for."""
        if self._log.first_index > self.durable.first_index:
            self.durable.compact(self._log.first_index - 1, self._configuration)


def make_disk(options: Options, rng: SimRng, marks: Marks) -> SimDisk:
    if options.segmented:
        return SegmentedDisk(options.configuration, rng, marks, options)
    return MemoryDisk(options.configuration, rng, marks)
