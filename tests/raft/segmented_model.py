"""A model of the log on disk, and a driver that does random things to both and compares.

A save is written record by record, so a crash may keep any prefix of the records that were not synced:
`history` has the state after each of them, and `durable` says which of these are certain. What a start
finds must be one of history[durable:].
"""

import random
from pathlib import Path
from typing import NamedTuple

from raft.core.ports import Rng
from raft.storage.base import Loaded, LogStorage, state_after_reset
from raft.storage.segmented import SegmentedStorage
from raft.testing.disk import Fate, SimFileSystem
from raft.types import Configuration, Entry, EntryKind, HardState, Index, Term

PATH = Path("/log")


class SeededRng(Rng):
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def below(self, bound: int) -> int:
        return self._random.randrange(bound)


def configuration_at(index: Index) -> Configuration:
    """In these tests every index has a configuration of its own, so that a wrong one shows."""
    return Configuration((index + 1, index + 2), (index + 3,), (1,))


def context_at(index: Index) -> bytes:
    return b"%d" % index


class State(NamedTuple):
    term: Term
    vote: int
    commit: Index
    base: tuple[Index, Term]  # of the last reset
    entries: tuple[Entry, ...]  # all since then, also compacted ones

    @property
    def last_index(self) -> Index:
        return self.base[0] + len(self.entries)

    def clamped(self) -> "State":
        return self._replace(commit=min(self.commit, self.last_index))


class Model:
    def __init__(self) -> None:
        self.history = [State(0, 0, 0, (0, 0), ())]
        self.durable = 0
        self.compacted = 0  # the highest index that was asked for

    @property
    def now(self) -> State:
        return self.history[-1]

    def save(self, hard_state: HardState | None, entries: list[Entry]) -> None:
        if entries and entries[0].index <= self.now.last_index:
            self.history.append(self.now._replace(entries=self.now.entries[: entries[0].index - 1 - self.now.base[0]]))
        if hard_state is not None:
            self.history.append(self.now._replace(term=hard_state.term, vote=hard_state.vote, commit=hard_state.commit))
        for entry in entries:
            self.history.append(self.now._replace(entries=(*self.now.entries, entry)))

    def reset(self, index: Index, term: Term) -> None:
        state = state_after_reset(HardState(self.now.term, self.now.vote, 0), index, term)
        self.history.append(State(state.term, state.vote, index, (index, term), ()))

    def synced(self) -> None:
        self.durable = len(self.history) - 1

    def restarted(self, storage: LogStorage, loaded: Loaded) -> None:
        """What was found must be possible; from now on it is certain."""
        possible = [state.clamped() for state in self.history[self.durable :]]
        found = None
        for state in reversed(possible):
            if matches(storage, loaded.hard_state, state):
                found = state
                break
        assert found is not None, f"found {loaded.hard_state}, last {storage.last_index}; possible: {possible}"
        assert storage.first_index - 1 <= max(self.compacted, found.base[0])
        if loaded.configuration.voters:
            assert loaded.configuration == configuration_at(storage.first_index - 1)
            assert loaded.context == context_at(storage.first_index - 1)
            kept = [entry for entry in found.entries if entry.index >= storage.first_index]
            changes = [entry for entry in kept if entry.kind is EntryKind.CONFIGURATION]
            assert loaded.configuration_entries == changes
        self.history = [found]
        self.durable = 0


def matches(storage: LogStorage, hard_state: HardState, state: State) -> bool:
    base_index, base_term = state.base
    first, last = storage.first_index, storage.last_index
    if (hard_state.term, hard_state.vote, hard_state.commit) != (state.term, state.vote, state.commit):
        return False
    if last != state.last_index or first <= base_index:
        return False
    before = base_term if first - 1 == base_index else state.entries[first - 2 - base_index].term
    if storage.term_at(first - 1) != before:
        return False
    kept = list(state.entries[first - 1 - base_index :])
    found: list[Entry] = []
    while len(found) < len(kept):  # several calls: what is cut at bytes_max must go on without a gap
        found += storage.entries(first + len(found), last, 700)
    return found == kept and [storage.term_at(entry.index) for entry in kept] == [entry.term for entry in kept]


class Driver:
    """Random operations on a SegmentedStorage over a SimFileSystem, compared with the model."""

    def __init__(self, seed: int, disk_seed: int) -> None:
        self.random = random.Random(seed)
        self.disk = SimFileSystem(SeededRng(disk_seed))
        self.segment_bytes = self.random.choice([700, 2000, 6000])
        self.cache_bytes = self.random.choice([0, 1000, 100_000])
        self.model = Model()
        self.term = 1

    def start(self) -> None:
        self.storage = SegmentedStorage(
            PATH, segment_bytes=self.segment_bytes, cache_bytes=self.cache_bytes, file_system=self.disk
        )
        loaded = self.storage.load()
        self.model.restarted(self.storage, loaded)
        if not loaded.configuration.voters:
            self.model.reset(0, 0)
            self.storage.reset(0, 0, configuration_at(0), context_at(0))
            self.model.synced()

    def restart(self, fate: Fate | None) -> None:
        """After a power cut with `fate`, or after a kill of the process."""
        if fate is None:
            self.disk.kill()
        else:
            self.disk.power_cut(fate)
        self.start()

    def step(self) -> None:
        draw = self.random.random()
        now = self.model.now
        if draw < 0.06:
            self._reset(self.random.randint(now.commit, now.last_index + 5))
        elif draw < 0.20:
            self._compact(
                self.random.randint(self.storage.first_index - 1, max(now.commit, self.storage.first_index - 1))
            )
        else:
            self._save()
        assert matches(self.storage, HardState(*self.model.now[:3]), self.model.now), "differs before any crash"

    def _save(self) -> None:
        now = self.model.now
        draw = self.random.random
        hard_state: HardState | None = None
        entries: list[Entry] = []
        first = now.last_index + 1
        if draw() < 0.25:
            self.term = max(now.term, self.term) + 1
            if now.commit < now.last_index and draw() < 0.7:
                first = self.random.randint(now.commit + 1, now.last_index)
        if draw() < 0.8:
            for i in range(self.random.choice([1, 1, 2, 5])):
                data = self.random.randbytes(self.random.choice([0, 10, 200, 900]))
                entries.append(Entry(first + i, self.term, data, EntryKind(self.random.randrange(3))))
        if draw() < 0.7 or not entries:
            last = entries[-1].index if entries else now.last_index
            hard_state = HardState(self.term, self.random.randrange(4), self.random.randint(now.commit, last))
        commit_only = not entries and hard_state is not None and (hard_state.term, hard_state.vote) == now[:2]
        must_sync = not commit_only and draw() < 0.9  # the rest: more kinds of unsynced tails
        self.model.save(hard_state, entries)
        self.storage.save(hard_state, entries, must_sync)
        if must_sync:
            self.model.synced()

    def _reset(self, index: Index) -> None:
        self.model.reset(index, self.term)
        self.storage.reset(index, self.term, configuration_at(index), context_at(index))
        self.model.compacted = index
        self.model.synced()

    def _compact(self, index: Index) -> None:
        if index > self.model.now.last_index:
            return
        self.model.compacted = max(index, self.model.compacted)
        removed = self.storage.first_index
        self.storage.compact(index, configuration_at(index), context_at(index))
        assert self.storage.first_index in (removed, index + 1)
        if self.storage.first_index != removed:
            self.model.synced()
