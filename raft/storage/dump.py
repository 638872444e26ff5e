"""A log directory as it lies on the disk, for people: nothing is repaired, locked or written.

`load` of SegmentedStorage goes through the same records, but it cuts off a torn tail and refuses damage, as
a member must. Whoever looks into a broken log wants to see up to where it is good, and what follows; so
trouble is a line of `problems` here. The index takes one small tuple per entry; data is read when asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from zlib import crc32

from raft.storage.record import (
    FORMATS,
    HEAD,
    HEAD_SIZE,
    KINDS,
    PREFIX,
    VOTE,
    Malformed,
    OriginRead,
    RecordType,
    decode_configuration,
    decode_format,
    decode_origin,
    find_later_batch,
)
from raft.types import Configuration, Entry, EntryKind, HardState, Index, Term

_TYPES: Final = frozenset(RecordType)


@dataclass(frozen=True, slots=True)
class Record:
    """One record where it stands. The first of a segment is its origin: SEGMENT or RESET."""

    path: Path
    offset: int
    type: RecordType
    index: Index
    term: Term
    kind: EntryKind  # of an ENTRY
    body: bytes


@dataclass(slots=True)
class LogImage:
    """What `read_log` found; the fields say what a member that starts here would begin with."""

    path: Path
    segments: list[Path] = field(default_factory=list)  # in use, oldest first
    problems: list[str] = field(default_factory=list)
    hard_state: HardState = field(default_factory=lambda: HardState(0, 0, 0))
    compacted_index: Index = 0
    compacted_term: Term = 0
    configuration: Configuration = field(default_factory=lambda: Configuration(()))  # in force at compacted_index
    context: bytes = b""
    last_index: Index = 0
    last_term: Term = 0
    _places: dict[Index, tuple[Path, int, int, Term, int]] = field(default_factory=dict)

    @property
    def first_index(self) -> Index:
        return self.compacted_index + 1

    def entries(self, low: Index, high: Index) -> Iterator[Entry]:
        """Live entries low..high, as far as there are any. Raises OSError."""
        low, high = max(low, self.first_index), min(high, self.last_index)
        for index in range(low, high + 1):
            if index not in self._places:
                continue  # in a segment that is missing
            path, offset, length, term, kind = self._places[index]
            with path.open("rb") as file:
                file.seek(offset)
                yield Entry(index, term, file.read(length), EntryKind(kind))

    def records(self) -> Iterator[Record]:
        """Every good record in the order of writing: also entries that were overwritten later."""
        for path in self.segments:
            data = path.read_bytes()
            read = decode_origin(data)
            yield from [_origin_record(path, data, read), *_records(path, data, read)]

    def _take(self, record: Record) -> None:
        """As load() replays: the state after this record."""
        if record.type is RecordType.ENTRY:
            place = (record.path, record.offset + HEAD_SIZE, len(record.body), record.term, int(record.kind))
            self._places[record.index] = place
            self.last_index, self.last_term = record.index, record.term
        elif record.type is RecordType.STATE:
            self.hard_state = HardState(record.term, VOTE.unpack(record.body)[0], record.index)
        elif record.type is RecordType.TRUNCATE:
            for index in range(record.index + 1, self.last_index + 1):
                self._places.pop(index, None)
            self.last_index, self.last_term = record.index, record.term
        elif record.type is RecordType.COMPACT:
            self.compacted_index, self.compacted_term = record.index, record.term
            self.configuration, self.context = decode_configuration(record.body)

    def _begin(self, read: OriginRead) -> None:
        origin = read.origin
        self.hard_state = origin.hard_state
        self.compacted_index, self.compacted_term = origin.compacted_index, origin.compacted_term
        self.configuration, self.context = origin.configuration, origin.context
        self.last_index, self.last_term = origin.base_index, origin.base_term


def read_log(path: Path) -> LogImage:
    """Raises OSError. Whatever is wrong inside is in `problems`."""
    image = LogImage(path)
    origins = _origins(image, sorted(path.glob("*.log")))
    chain: int | None = None
    for file, read in origins:
        if chain is not None and read.previous != chain:
            image.problems.append(f"{file.name}: does not continue the segment before it")
        data = file.read_bytes()
        image.segments.append(file)
        image._begin(read)
        chain, end = read.crc, read.end
        for record in _records(file, data, read):
            image._take(record)
            end = record.offset + HEAD_SIZE + len(record.body)
            chain = int(HEAD.unpack_from(data, record.offset)[0])
        _look_behind(image, file, data, end, read, is_last=file == origins[-1][0])
    if image.first_index <= image.last_index and image.first_index not in image._places:
        image.problems.append(f"entries from {image.first_index} on are missing")
    return image


def _origins(image: LogImage, files: list[Path]) -> list[tuple[Path, OriginRead]]:
    """Of the segments in use: from the last RESET on, without a gap."""
    found: list[tuple[Path, OriginRead]] = []
    for file in reversed(files):
        try:
            with file.open("rb") as opened:
                data = opened.read(PREFIX.size + HEAD_SIZE + 1024 * 1024)
            number = decode_format(data)
            if number not in FORMATS:
                image.problems.append(f"{file.name}: format {number}; this version knows {FORMATS}")
                break
            read = decode_origin(data)
        except Malformed as error:
            image.problems.append(f"{file.name}: {error}")
            break
        if found and read.origin.segment_id != found[-1][1].origin.segment_id - 1:
            image.problems.append(f"{file.name}: left over from before a gap")
            break
        found.append((file, read))
        if read.origin.is_reset:
            break
    found.reverse()
    return found


def _origin_record(path: Path, data: bytes, read: OriginRead) -> Record:
    origin = read.origin
    type_ = RecordType.RESET if origin.is_reset else RecordType.SEGMENT
    body = data[PREFIX.size + HEAD_SIZE : read.end]
    return Record(path, PREFIX.size, type_, origin.base_index, origin.base_term, EntryKind.NOOP, body)


def _records(path: Path, data: bytes, read: OriginRead) -> Iterator[Record]:
    """Up to the first that is not whole, or not known."""
    offset, chain, tag = read.end, read.crc, read.origin.tag
    while offset + HEAD_SIZE <= len(data):
        crc, previous, found_tag, _, length, type_, kind, _, index, term = HEAD.unpack_from(data, offset)
        stop = offset + HEAD_SIZE + length
        whole = previous == chain and found_tag == tag and stop <= len(data)
        if not whole or crc32(memoryview(data)[offset + 4 : stop]) != crc or type_ not in _TYPES or kind not in KINDS:
            return
        yield Record(path, offset, RecordType(type_), index, term, EntryKind(kind), data[offset + HEAD_SIZE : stop])
        chain, offset = crc, stop


def _look_behind(image: LogImage, file: Path, data: bytes, end: int, read: OriginRead, *, is_last: bool) -> None:
    """What stands behind the last good record: zeros, what a crash left, or damage."""
    if not data[end:].strip(b"\0"):
        return
    later = find_later_batch(data, end, read.origin.tag)
    if later is not None or not is_last:
        image.problems.append(f"{file.name}: damaged at byte {end}: records of later writes follow")
    else:
        image.problems.append(f"{file.name}: torn at byte {end}: a write that was never acknowledged")
