"""What goes over the snapshot channel <-> bytes. Whatever a decoder returns is well formed, or it raises.

Every size is bounded before anything is made of it: how many files, how long their names, how large a piece.
A name is never a path.
"""

import re
from dataclasses import dataclass
from typing import Final, TypeVar
from zlib import crc32

from google.protobuf.message import DecodeError

from raft.codec import encode_hello
from raft.core.membership import decode_configuration, encode_configuration
from raft.errors import MalformedMessage
from raft.pb import peer_pb2 as pb
from raft.snapshot import PIECE_BYTES, SnapshotFile, SnapshotHeader
from raft.types import INDEX_MAX, NodeId, SnapshotMeta

FILES_MAX: Final = 16_384
HEADER_BYTES_MAX: Final = 4 * 1024 * 1024
CHUNK_BYTES_MAX: Final = PIECE_BYTES + 256  # a piece and what is around it
SNAPSHOT_BYTES_MAX: Final = 2**46
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_SHA256_BYTES: Final = 32
_REASON_MAX: Final = 1000

Body = TypeVar("Body", pb.SnapshotChunk, pb.SnapshotAck)


@dataclass(frozen=True, slots=True)
class Piece:
    file: int  # position in the header's list
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    hello: bytes  # in the first answer: who answers
    offsets: list[int]  # in the first answer
    taken: int
    installed: bool
    failed: str  # why it has failed; "" while it has not


def encode_header(header: SnapshotHeader) -> bytes:
    meta = header.meta
    files = [pb.SnapshotFile(name=f.name, size=f.size, sha256=bytes.fromhex(f.sha256)) for f in header.files]
    return pb.SnapshotChunk(
        header=pb.SnapshotHeader(
            term=header.term,
            index=meta.index,
            index_term=meta.term,
            configuration=encode_configuration(meta.configuration, meta.context),
            files=files,
        )
    ).SerializeToString()


def decode_header(data: bytes, sender: NodeId) -> SnapshotHeader:
    """Raises MalformedMessage."""
    if len(data) > HEADER_BYTES_MAX:
        raise MalformedMessage(f"a snapshot's header of {len(data)} bytes")
    chunk = _parse(pb.SnapshotChunk, data)
    if chunk.WhichOneof("body") != "header":
        raise MalformedMessage("a snapshot that does not start with its header")
    header = chunk.header
    if not (0 < header.index <= INDEX_MAX and 0 < header.index_term <= header.term <= INDEX_MAX):
        raise MalformedMessage(f"a snapshot at {header.index}@{header.index_term} in term {header.term}")
    if not 0 < len(header.files) <= FILES_MAX:
        raise MalformedMessage(f"a snapshot of {len(header.files)} files")
    files = [_file(file) for file in header.files]
    if len({file.name for file in files}) < len(files) or sum([file.size for file in files]) > SNAPSHOT_BYTES_MAX:
        raise MalformedMessage("a snapshot with a file twice, or too large")
    configuration, context = decode_configuration(header.configuration)
    meta = SnapshotMeta(header.index, header.index_term, configuration, context)
    return SnapshotHeader(meta, sender, header.term, files)


def _file(file: pb.SnapshotFile) -> SnapshotFile:
    if not _NAME.fullmatch(file.name) or len(file.sha256) != _SHA256_BYTES or file.size > SNAPSHOT_BYTES_MAX:
        raise MalformedMessage(f"a snapshot's file {file.name[:200]!r} of {file.size} bytes")
    return SnapshotFile(file.name, file.size, file.sha256.hex())


def encode_piece(piece: Piece) -> bytes:
    body = pb.SnapshotPiece(file=piece.file, offset=piece.offset, crc=crc32(piece.data), data=piece.data)
    return pb.SnapshotChunk(piece=body).SerializeToString()


def decode_piece(data: bytes) -> Piece:
    """Raises MalformedMessage, also for a wrong checksum."""
    if len(data) > CHUNK_BYTES_MAX:
        raise MalformedMessage(f"a snapshot's piece of {len(data)} bytes")
    chunk = _parse(pb.SnapshotChunk, data)
    piece = chunk.piece
    if chunk.WhichOneof("body") != "piece" or not piece.data:
        raise MalformedMessage("a snapshot's piece without data")
    if crc32(piece.data) != piece.crc:
        raise MalformedMessage("a snapshot's piece was damaged on the way")
    return Piece(piece.file, piece.offset, piece.data)


def encode_greeting(cluster_id: int, node_id: NodeId, instance: int, offsets: list[int]) -> bytes:
    hello = pb.Hello.FromString(encode_hello(cluster_id, node_id, instance))
    return pb.SnapshotAck(hello=hello, offsets=offsets).SerializeToString()


def encode_ack(taken: int, installed: bool = False) -> bytes:
    return pb.SnapshotAck(taken=taken, installed=installed).SerializeToString()


def encode_failure(reason: str) -> bytes:
    return pb.SnapshotAck(failed=reason[:_REASON_MAX] or "no reason given").SerializeToString()


def decode_ack(data: object) -> Ack:
    """Raises MalformedMessage, also at the end of the stream."""
    if not isinstance(data, bytes) or len(data) > HEADER_BYTES_MAX:
        raise MalformedMessage("the receiver ended the stream without an answer")
    ack = _parse(pb.SnapshotAck, data)
    return Ack(ack.hello.SerializeToString(), list(ack.offsets), ack.taken, ack.installed, ack.failed)


def _parse(kind: type[Body], data: bytes) -> Body:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise MalformedMessage(f"not of the snapshot channel: {error}") from error
