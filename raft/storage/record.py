"""The bytes of the log: records, and what a segment starts with (all numbers little-endian).

    segment = prefix (magic, format, crc) | record SEGMENT or RESET | records ... | zeros

    record  = crc 4 | previous 4 | tag 8 | batch 4 | length 4 | type 1 | kind 1 | zero 2 | index 8 | term 8 | body
              crc       of all that follows, the body included
              previous  crc of the record before it, across segments too: a record in the wrong place breaks the chain
              tag       the segment's own random number: a record of another segment, or bytes that a
                        client wrote to look like a record, do not have it
              batch     where in this segment the records begin that went to the disk with the same fsync

    type      index@term                      body
    SEGMENT   last entry before the segment   segment id, hard state, compacted index@term, configuration, context
    RESET     the log starts after this       the same; whatever older segments hold is forgotten
    ENTRY     of the entry                    its data
    STATE     commit@term                     vote
    TRUNCATE  last entry that stays           -
    COMPACT   last entry not needed           configuration at index, its context

`batch` decides what damage means. Records of one fsync may reach the disk in any order and in part, so
a bad record with good ones of its own batch behind it is what a power cut leaves. A good record whose
batch begins behind the bad one was written after the fsync of the bad one had returned: then that one
was on the disk and has been damaged since.
"""

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final
from zlib import crc32

from raft.types import Configuration, EntryKind, HardState, Index, Term

FORMAT: Final = 2
FORMATS: Final = (1, FORMAT)  # that can be read; format 1 had no contexts: an empty one takes no byte
MAGIC: Final = b"raft-log"
PREFIX: Final = Struct("<8sII")
HEAD: Final = Struct("<IIQIIBBHQQ")
HEAD_CRC: Final = Struct("<I")
HEAD_REST: Final = Struct("<IQIIBBHQQ")  # what the crc covers of the head
VOTE: Final = Struct("<Q")
_ORIGIN: Final = Struct("<QQQQQQ")

HEAD_SIZE: Final = HEAD.size
_TAG_OFFSET: Final = 8
_ORIGIN_BYTES_MAX: Final = 1024 * 1024  # 100,000 members, or much of a context: anything larger is damage


class RecordType(IntEnum):
    SEGMENT = 1
    RESET = 2
    ENTRY = 3
    STATE = 4
    TRUNCATE = 5
    COMPACT = 6


ENTRY: Final = int(RecordType.ENTRY)  # plain int: compared once per record
KINDS: Final = frozenset(int(kind) for kind in EntryKind)


class Malformed(Exception):
    """The bytes are not what their place promises. The reader of the segment says what follows from it."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a segment starts from: with it, all older segments may be deleted."""

    segment_id: int
    tag: int
    is_reset: bool
    base_index: Index  # position before the first entry of the segment
    base_term: Term
    hard_state: HardState
    compacted_index: Index
    compacted_term: Term
    configuration: Configuration  # in force at compacted_index
    context: bytes


def encode_head(
    previous: int, tag: int, batch: int, type_: int, index: Index, term: Term, body: bytes = b"", kind: int = 0
) -> tuple[int, bytes]:
    """The crc and the whole head of a record; the body follows it on the disk as it is."""
    rest = HEAD_REST.pack(previous, tag, batch, len(body), type_, kind, 0, index, term)
    crc = crc32(body, crc32(rest))
    return crc, HEAD_CRC.pack(crc) + rest


def decode_configuration(body: bytes) -> tuple[Configuration, bytes]:
    """The configuration, and the context that follows it."""
    try:
        return Configuration.unpack(body)
    except ValueError as error:
        raise Malformed(str(error)) from error


def encode_origin(origin: Origin, previous: int) -> tuple[int, bytes]:
    """The first bytes of a segment, and the crc that its next record continues."""
    state = origin.hard_state
    body = (
        _ORIGIN.pack(
            origin.segment_id, state.term, state.vote, state.commit, origin.compacted_index, origin.compacted_term
        )
        + origin.configuration.pack()
        + origin.context
    )
    type_ = RecordType.RESET if origin.is_reset else RecordType.SEGMENT
    crc, head = encode_head(previous, origin.tag, 0, type_, origin.base_index, origin.base_term, body)
    prefix = MAGIC + HEAD_CRC.pack(FORMAT)
    return crc, prefix + HEAD_CRC.pack(crc32(prefix)) + head + body


def decode_format(data: bytes) -> int:
    """The format number that a segment declares; its place never changes."""
    if len(data) < PREFIX.size:
        raise Malformed("the file is too short")
    magic, format_, crc = PREFIX.unpack_from(data)
    if magic != MAGIC or crc != crc32(data[: PREFIX.size - 4]):
        raise Malformed("the file does not start like a log")
    return int(format_)


@dataclass(frozen=True, slots=True)
class OriginRead:
    origin: Origin
    previous: int  # must be the last crc of the segment before
    crc: int  # the first record continues from it
    end: int  # where that record starts


def origin_size(data: bytes) -> int:
    """How many bytes of a segment its origin takes, read from the first PREFIX.size + HEAD_SIZE of them."""
    if len(data) < PREFIX.size + HEAD_SIZE:
        raise Malformed("the file is too short")
    length = HEAD.unpack_from(data, PREFIX.size)[4]
    if length > _ORIGIN_BYTES_MAX:
        raise Malformed(f"first record of {length} bytes")
    return PREFIX.size + HEAD_SIZE + int(length)


def decode_origin(data: bytes) -> OriginRead:
    end = origin_size(data)
    if len(data) < end:
        raise Malformed("the file is too short")
    crc, previous, tag, _, length, type_, _, _, index, term = HEAD.unpack_from(data, PREFIX.size)
    if crc32(data[PREFIX.size + 4 : end]) != crc:
        raise Malformed("checksum of the first record")
    if type_ not in (RecordType.SEGMENT, RecordType.RESET) or length < _ORIGIN.size:
        raise Malformed("wrong first record")
    body = data[end - length : end]
    segment_id, state_term, vote, commit, compacted_index, compacted_term = _ORIGIN.unpack_from(body)
    configuration, context = decode_configuration(body[_ORIGIN.size :])
    origin = Origin(
        segment_id=segment_id,
        tag=tag,
        is_reset=type_ == RecordType.RESET,
        base_index=index,
        base_term=term,
        hard_state=HardState(state_term, vote, commit),
        compacted_index=compacted_index,
        compacted_term=compacted_term,
        configuration=configuration,
        context=context,
    )
    return OriginRead(origin, previous, crc, end)


def find_later_batch(data: bytes, offset: int, tag: int) -> int | None:
    """Where behind `offset` a good record stands whose batch begins behind `offset`, if there is one."""
    needle = tag.to_bytes(8, "little")
    view = memoryview(data)
    found = data.find(needle, offset + _TAG_OFFSET)
    while found >= 0:
        start = found - _TAG_OFFSET
        stop = start + HEAD_SIZE
        if stop <= len(data):
            crc, _, _, batch, length, _, _, _, _, _ = HEAD.unpack_from(data, start)
            stop += length
            if offset < batch <= start and stop <= len(data) and crc32(view[start + 4 : stop]) == crc:
                return start
        found = data.find(needle, found + 1)
    return None
