"""SegmentedStorage: the log on disk. DESIGN.md beside this file has the whole picture.

    0000000000000007.log      0000000000000008.log                      (a directory of its own, and LOCK)
    |origin|records ........| |origin|records ....|zeros|
                                                  ^ end: the next save goes here

A save is one pwritev into the zeros and one fdatasync. Everything is a record behind the last one, also
a truncation: nothing is ever changed in place, so what a crash leaves is always a prefix of what was
written. `load` replays that prefix from the oldest segment on, and only then leaves out what was
compacted: an entry that was overwritten cannot come back as a ghost (RELIABILITY.md S-23).

One record order matters inside a save: TRUNCATE, STATE, entries. Were the commit index stored before
the truncation, a crash between the two would commit the entries that were about to be removed; were the
entries stored before the term, a log could be newer than its node's term.
"""

import threading
from itertools import pairwise
from pathlib import Path
from typing import Final, final
from zlib import crc32

from raft.errors import Compacted, Corrupt, StorageError, UnknownFormat
from raft.failpoints import fail
from raft.storage.base import Loaded, LogStorage, state_after_reset
from raft.storage.cache import EntryCache
from raft.storage.file_system import Buffer, File, FileSystem, OsFileSystem
from raft.storage.record import (
    ENTRY,
    FORMATS,
    HEAD,
    HEAD_SIZE,
    KINDS,
    PREFIX,
    VOTE,
    Malformed,
    Origin,
    OriginRead,
    RecordType,
    decode_configuration,
    decode_format,
    decode_origin,
    encode_head,
    encode_origin,
    find_later_batch,
    origin_size,
)
from raft.storage.segment import Segment, damaged
from raft.types import NO_NODE, Configuration, Entry, EntryKind, HardState, Index, Term

SEGMENT_BYTES: Final = 64 * 1024 * 1024
CACHE_BYTES: Final = 64 * 1024 * 1024

# Zeros are laid ahead of the records in these steps, within the pwritev of the batch that needs them:
# about one fsync in a thousand small ones also has to write a file size. Measured, that costs less than
# a thread which fills the next 64 MiB and fights this one for the disk (bench/wal_sync.py).
_FILL: Final = memoryview(bytes(256 * 1024))

_LOG = ".log"
_TEMPORARY = ".tmp"


@final
class SegmentedStorage(LogStorage):
    """Raises StorageError, for good, after the first error of the disk: an fsync is never tried again.

    Reads may run beside one save, reset or compact; those three wait for each other.
    """

    def __init__(
        self,
        path: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        cache_bytes: int = CACHE_BYTES,
        file_system: FileSystem | None = None,
    ) -> None:
        assert 0 < segment_bytes <= 2**31, f"segment_bytes {segment_bytes}: offsets have 32 bits"
        self._path = path
        self._segment_bytes = segment_bytes  # a single larger save still goes, into a segment of its own
        self._file_system = file_system if file_system is not None else OsFileSystem()
        self._lock_file: File | None = None
        self._writing = threading.Lock()
        self._broken: StorageError | None = None
        self._segments: list[Segment] = []  # oldest first; empty until the first reset
        self._hard_state = HardState(0, NO_NODE, 0)
        self._compacted: tuple[Index, Term] = (0, 0)  # the log starts after it
        self._configuration = Configuration(())  # in force at _compacted
        self._context = b""
        self._changes: list[Entry] = []  # CONFIGURATION entries that `load` came across
        self._last_index = 0
        self._chain = 0  # crc of the last record
        self._batch = 0  # end of what is durable in the last segment: there the batch of the next fsync begins
        self._cache = EntryCache(cache_bytes)

    # Reading

    @property
    def first_index(self) -> Index:
        return self._compacted[0] + 1

    @property
    def last_index(self) -> Index:
        return self._last_index

    def term_at(self, index: Index) -> Term:
        compacted_index, compacted_term = self._compacted
        if index == compacted_index:
            return compacted_term
        if index < compacted_index:
            raise Compacted(f"term at {index}: the log starts at {compacted_index + 1}")
        assert index <= self._last_index, f"term at {index}: the log ends at {self._last_index}"
        segment = self._segment_of(index)
        return segment.terms[index - segment.start]

    def entries(self, low: Index, high: Index, bytes_max: int) -> list[Entry]:
        self._check()
        if low < self.first_index:
            raise Compacted(f"entries from {low}: the log starts at {self.first_index}")
        assert high <= self._last_index, f"entries to {high}: the log ends at {self._last_index}"
        found: list[Entry] = []
        size = 0
        index = low
        while index <= high:
            room = bytes_max - size
            run = self._cache.run(index, high, room) or self._read(index, high, room)
            for entry in run:
                size += len(entry.data)
                if found and size > bytes_max:
                    return found
                found.append(entry)
            index += len(run)
        return found

    def _read(self, low: Index, high: Index, bytes_max: int) -> list[Entry]:
        segment = self._segment_of(low)
        try:
            return segment.read(low, min(high, segment.last_index), bytes_max)
        except OSError as error:
            raise self._fail(f"read of {segment.path}", error) from error
        except Corrupt as error:
            self._broken = error
            raise

    def _segment_of(self, index: Index) -> Segment:
        for segment in reversed(self._segments):
            if segment.start <= index:
                return segment
        raise Compacted(f"entry {index} has just been compacted")

    def bytes_stored(self) -> int:
        return sum([segment.filled for segment in self._segments])

    def bytes_after(self, index: Index) -> int:
        return sum([segment.bytes_after(index) for segment in self._segments])

    # Writing

    def save(self, hard_state: HardState | None, entries: list[Entry], must_sync: bool) -> None:
        with self._writing:
            self._check()
            assert self._segments, "reset() starts a log"
            try:
                self._save(hard_state, entries, must_sync)
            except OSError as error:
                raise self._fail("save", error) from error

    def _save(self, hard_state: HardState | None, entries: list[Entry], must_sync: bool) -> None:
        self._make_room(3 * HEAD_SIZE + sum([HEAD_SIZE + len(entry.data) for entry in entries]))
        segment = self._segments[-1]
        buffers: list[Buffer] = []
        if entries:
            kept = entries[0].index - 1
            assert self._compacted[0] <= kept <= self._last_index, f"{entries[0]} after {self._last_index}"
            if kept < self._last_index:
                self._append(buffers, RecordType.TRUNCATE, kept, self.term_at(kept))
        if hard_state is not None:
            self._append(buffers, RecordType.STATE, hard_state.commit, hard_state.term, VOTE.pack(hard_state.vote))
        offset = segment.end + sum([len(buffer) for buffer in buffers])
        offsets = self._append_entries(buffers, entries, offset)
        self._write(buffers, must_sync)
        if hard_state is not None:
            self._hard_state = hard_state
        if entries:
            self._publish(segment, entries, offsets)

    def _append(self, buffers: list[Buffer], type_: RecordType, index: Index, term: Term, body: bytes = b"") -> None:
        self._chain, head = encode_head(self._chain, self._segments[-1].tag, self._batch, type_, index, term, body)
        buffers.append(head)
        buffers.append(body)

    def _append_entries(self, buffers: list[Buffer], entries: list[Entry], offset: int) -> list[int]:
        """The entries' data goes to the disk from where it is: only the heads are made here."""
        chain, tag, batch = self._chain, self._segments[-1].tag, self._batch
        index = entries[0].index if entries else 0
        offsets: list[int] = []
        for entry in entries:
            data = entry.data
            assert entry.index == index, f"gap in a save: {entry}, not {index}"
            chain, head = encode_head(chain, tag, batch, ENTRY, index, entry.term, data, entry.kind)
            buffers.append(head)
            buffers.append(data)
            offsets.append(offset)
            offset += HEAD_SIZE + len(data)
            index += 1
        self._chain = chain
        return offsets

    def _write(self, buffers: list[Buffer], must_sync: bool) -> None:
        segment = self._segments[-1]
        end = segment.end + sum([len(buffer) for buffer in buffers])
        if end > segment.filled:
            zeros = _FILL[: max(self._segment_bytes - end, 0)]
            buffers.append(zeros)
            segment.filled = end + len(zeros)
        fail("walBeforeWrite")
        if buffers:
            segment.file.pwritev(buffers, segment.end)
            self.written_bytes += end - segment.end
            segment.end = end
        if must_sync and self._batch < end:
            fail("walBeforeSync")
            segment.file.fdatasync()
            self._batch = end
            fail("walAfterSync")

    def _publish(self, segment: Segment, entries: list[Entry], offsets: list[int]) -> None:
        first = entries[0].index
        if first <= self._last_index:
            self._cut(first - 1)
            self._cache.cut(first - 1)
        segment.terms.extend([entry.term for entry in entries])
        segment.offsets.extend(offsets)
        segment.lengths.extend([len(entry.data) for entry in entries])
        self._cache.add(entries)
        self._last_index = entries[-1].index

    def _cut(self, index: Index) -> None:
        for segment in reversed(self._segments):
            segment.cut(index)
            if segment.start <= index:
                break

    def _make_room(self, size: int) -> None:
        """Start the next segment when the last one has no place for `size` bytes, unless it is still empty."""
        segment = self._segments[-1]
        if segment.end + size <= self._segment_bytes or segment.end == segment.begin:
            return
        if self._batch < segment.end:
            # A batch never spans two segments: so the next one's origin proves that this one was durable.
            segment.file.fdatasync()
        base = (self._last_index, self.term_at(self._last_index))
        self._segments.append(self._start_segment(is_reset=False, base=base))

    def _start_segment(self, *, is_reset: bool, base: tuple[Index, Term]) -> Segment:
        """A name ending in .log appears only when the origin behind it is durable: a bad origin is never a torn one."""
        segment_id = self._segments[-1].segment_id + 1 if self._segments else 1
        tag = self._file_system.random_tag()
        origin = Origin(
            segment_id=segment_id,
            tag=tag,
            is_reset=is_reset,
            base_index=base[0],
            base_term=base[1],
            hard_state=self._hard_state,
            compacted_index=self._compacted[0],
            compacted_term=self._compacted[1],
            configuration=self._configuration,
            context=self._context,
        )
        chain, data = encode_origin(origin, self._chain)
        path = self._path / _file_name(segment_id)
        temporary = path.with_suffix(_TEMPORARY)
        file = self._file_system.create(temporary)
        zeros = _FILL[: max(self._segment_bytes - len(data), 0)]
        file.pwritev([data, zeros], 0)
        file.fdatasync()
        fail("walBeforeSegment")
        self._file_system.rename(temporary, path)
        self._file_system.sync_directory(self._path)
        fail("walAfterSegment")
        self._chain = chain
        self._batch = len(data)
        return Segment(segment_id, tag, path, file, base[0] + 1, len(data), len(data) + len(zeros))

    def reset(self, index: Index, term: Term, configuration: Configuration, context: bytes = b"") -> None:
        with self._writing:
            self._check()
            self._hard_state = state_after_reset(self._hard_state, index, term)
            self._compacted = (index, term)
            self._configuration = configuration
            self._context = context
            try:
                segment = self._start_segment(is_reset=True, base=(index, term))
                fail("walAfterReset")
                old, self._segments = self._segments, [segment]
                self._cache.cut(0)
                self._last_index = index
                self._remove([segment.path for segment in old])
            except OSError as error:
                raise self._fail("reset", error) from error

    def compact(self, index: Index, configuration: Configuration, context: bytes = b"") -> None:
        """Deletes the segments whose entries all lie at or before `index`; a no-op when there is none."""
        try:
            with self._writing:
                self._check()
                # Each segment but the last, and the first index that is neither in it nor before it.
                pairs = pairwise(self._segments)
                old = [segment.path for segment, following in pairs if following.start <= index + 1]
                if not old or index < self.first_index:
                    return
                assert index <= self._last_index, f"compact to {index}: the log ends at {self._last_index}"
                buffers: list[Buffer] = []
                term = self.term_at(index)
                self._append(buffers, RecordType.COMPACT, index, term, configuration.pack() + context)
                self._write(buffers, must_sync=True)
                self._configuration = configuration
                self._context = context
                self._compacted = (index, term)
                self._segments = self._segments[len(old) :]
                self._cache.compact(index)
            fail("walBeforeRemove")
            self._remove(old)  # a large file takes its time; nobody needs to wait for it
        except OSError as error:
            raise self._fail("compact", error) from error

    def _remove(self, paths: list[Path]) -> None:
        for path in paths:
            self._file_system.unlink(path)
        if paths:
            self._file_system.sync_directory(self._path)

    def close(self) -> None:
        if self._broken is None:
            self._broken = StorageError(f"{self._path} is closed")
        for segment in self._segments:
            segment.file.close()
        if self._lock_file is not None:
            self._lock_file.close()

    def _check(self) -> None:
        if self._broken is not None:
            raise type(self._broken)(*self._broken.args)

    def _fail(self, what: str, error: OSError) -> StorageError:
        """After a failed write or fsync nobody knows what the disk holds: only a new start finds out."""
        self._broken = StorageError(f"{self._path}: {what} failed: {error}")
        return self._broken

    # Starting

    def load(self) -> Loaded:
        assert self._lock_file is None, "load() is called once"
        try:
            self._load()
        except OSError as error:
            self.close()
            raise self._fail("load", error) from error
        except StorageError as error:
            self._broken = error
            self.close()
            raise
        changes = [entry for entry in self._changes if entry.index >= self.first_index]
        return Loaded(self._hard_state, self._configuration, changes, self._context)

    def _load(self) -> None:
        self._file_system.make_directory(self._path)
        self._lock_file = self._file_system.lock(self._path / "LOCK")
        names = self._file_system.names(self._path)
        unfinished = [name for name in names if name.endswith(_TEMPORARY)]
        logs = [name for name in names if name.endswith(_LOG)]
        data = b""
        for segment, read in self._open_needed(logs):
            data = self._replay(segment, read)
        if self._segments:
            oldest = self._segments[0]
            if self._compacted[0] < oldest.start - 1:
                raise damaged(oldest.path, 0, f"the segments with the entries before {oldest.start} are missing")
            self._repair(self._segments[-1], data)
            self._clamp_commit()
        # What is older than a gap or a RESET was left over by a compact or reset that was cut short.
        kept = {segment.path.name for segment in self._segments}
        self._remove([self._path / name for name in [*unfinished, *logs] if name not in kept])

    def _open_needed(self, logs: list[str]) -> list[tuple[Segment, OriginRead]]:
        """The newest segments without a gap, back to the last RESET; oldest first."""
        needed: list[tuple[Segment, OriginRead]] = []
        for name in reversed(logs):
            if needed and name != _file_name(needed[-1][0].segment_id - 1):
                break
            segment, read = self._open_segment(self._path / name)
            needed.append((segment, read))
            if read.origin.is_reset:
                break
        needed.reverse()
        return needed

    def _open_segment(self, path: Path) -> tuple[Segment, OriginRead]:
        file = self._file_system.open(path)
        try:
            start = file.pread(PREFIX.size + HEAD_SIZE, 0)
            format_ = decode_format(start)
            if format_ not in FORMATS:
                raise UnknownFormat(f"{path} has format {format_}; this version knows {FORMATS}")
            read = decode_origin(file.pread(origin_size(start), 0))
        except Malformed as error:
            raise damaged(path, 0, str(error)) from error
        origin = read.origin
        if path.name != _file_name(origin.segment_id):
            raise damaged(path, 0, f"this is segment {origin.segment_id}")
        return Segment(origin.segment_id, origin.tag, path, file, origin.base_index + 1, read.end, file.size()), read

    def _replay(self, segment: Segment, read: OriginRead) -> bytes:
        """Take in what the segment says; returns its bytes."""
        origin = read.origin
        if self._segments and read.previous != self._chain:
            before = self._segments[-1]
            raise damaged(before.path, before.end, f"a bad record (segment {origin.segment_id} follows)")
        self._segments.append(segment)
        self._hard_state = origin.hard_state
        self._compacted = (origin.compacted_index, origin.compacted_term)
        self._configuration, self._context = origin.configuration, origin.context
        self._last_index = origin.base_index
        self._chain = read.crc
        data = segment.file.pread(segment.filled, 0)
        self._scan(segment, data)
        return data

    def _scan(self, segment: Segment, data: bytes) -> None:
        """Replay records up to the first that is not whole. Sets segment.end to there, _batch to the last batch."""
        offset = batch = segment.begin
        tag, chain = segment.tag, self._chain
        view, size, unpack = memoryview(data), len(data), HEAD.unpack_from
        terms, offsets, lengths = segment.terms, segment.offsets, segment.lengths
        while offset + HEAD_SIZE <= size:
            crc, previous, found_tag, found_batch, length, type_, kind, _, index, term = unpack(data, offset)
            stop = offset + HEAD_SIZE + length
            if previous != chain or found_tag != tag or stop > size or crc32(view[offset + 4 : stop]) != crc:
                break
            if type_ != ENTRY:
                self._replay_other(segment.path, offset, type_, index, term, data[offset + HEAD_SIZE : stop])
            elif kind in KINDS:
                if index != self._last_index + 1:
                    raise damaged(segment.path, offset, f"entry {index} behind entry {self._last_index}")
                self._last_index = index
                terms.append(term)
                offsets.append(offset)
                lengths.append(length)
                if kind == EntryKind.CONFIGURATION:
                    self._changes.append(Entry(index, term, data[offset + HEAD_SIZE : stop], EntryKind.CONFIGURATION))
            else:
                raise UnknownFormat(
                    f"{segment.path}: entry of kind {kind} at byte {offset}: written by a later version"
                )
            chain, batch, offset = crc, found_batch, stop
        self._chain, self._batch, segment.end = chain, batch, offset

    def _replay_other(self, path: Path, offset: int, type_: int, index: Index, term: Term, body: bytes) -> None:
        if type_ == RecordType.STATE and len(body) == VOTE.size:
            self._hard_state = HardState(term, VOTE.unpack(body)[0], index)
        elif type_ == RecordType.TRUNCATE and index < self._last_index:
            self._cut(index)
            self._last_index = index
            self._changes = [entry for entry in self._changes if entry.index <= index]
        elif type_ == RecordType.COMPACT and index <= self._last_index:
            self._compacted = (index, term)
            try:
                self._configuration, self._context = decode_configuration(body)
            except Malformed as error:
                raise damaged(path, offset, str(error)) from error
        else:
            raise UnknownFormat(f"{path}: record of type {type_} at byte {offset}: written by a later version")

    def _repair(self, segment: Segment, data: bytes) -> None:
        """Cut off what a crash left behind the last good record, unless it was no crash; make the rest durable."""
        later = find_later_batch(data, segment.end, segment.tag)
        if later is not None:
            raise damaged(segment.path, segment.end, f"a bad record (byte {later} was written by a later fsync)")
        segment.file.truncate(segment.end)
        segment.filled = segment.end
        # If the last fsync failed, the system may hold these bytes as clean, though the disk never got
        # them (RELIABILITY.md 1c). Written again, the next fsync is honest about them.
        segment.file.pwritev([memoryview(data)[self._batch : segment.end]], self._batch)
        segment.file.fdatasync()
        self._file_system.sync_directory(self._path)
        self._batch = segment.end

    def _clamp_commit(self) -> None:
        """A crash may keep the commit index of a save and lose its last entries (S-49).

        The record must go too: else, once other entries stand there, the next start would commit those.
        """
        state = self._hard_state
        if state.commit > self._last_index:
            self._save(HardState(state.term, state.vote, self._last_index), [], must_sync=True)


def _file_name(segment_id: int) -> str:
    return f"{segment_id:016d}{_LOG}"
