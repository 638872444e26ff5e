"""Messages <-> bytes: one frame is one MessageBatch of raft.v1. The only importer of raft.pb.

A frame comes from a process that may be broken, of another version or not a member at all. Whatever
`decode_batch` returns is well formed: the core checks whether it is *true*, never whether it is possible.

Entries are the bulk of all traffic, and a generated class would copy their data twice on the way out.
Their wire form is put together by hand instead, around the data itself, which is copied once, into the
frame. This works since a serialized message is the concatenation of its fields, in any order.
"""

from collections.abc import Callable
from struct import Struct
from typing import Final

from google.protobuf.message import DecodeError

from raft.errors import MalformedMessage
from raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Forward,
    Heartbeat,
    HeartbeatResponse,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from raft.pb import peer_pb2 as pb
from raft.types import INDEX_MAX, NO_NODE, Entry, EntryKind, NodeId, Term

FORMAT: Final = 1  # of the peer protocol
FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
MESSAGES_MAX: Final = 65_536  # in one frame
ENTRIES_MAX: Final = 1_048_576  # in one AppendEntries
MESSAGE_OVERHEAD: Final = 128  # bytes that a message takes beside its data, at most
ENTRY_OVERHEAD: Final = 40

KINDS: Final = tuple(EntryKind)
ENDS: Final = Struct("<BQBQ")  # Message.to and .sender with their tags
VARINTS: Final = [bytes([value]) for value in range(0x80)]


def size_of(message: Message) -> int:
    """An upper bound of the bytes that `message` takes in a frame, close where it matters."""
    if isinstance(message, AppendEntries) and message.entries:
        return MESSAGE_OVERHEAD + sum([ENTRY_OVERHEAD + len(entry.data) for entry in message.entries])
    if isinstance(message, Forward):
        return MESSAGE_OVERHEAD + sum([ENTRY_OVERHEAD + len(data) for data in message.data])
    return MESSAGE_OVERHEAD


# Encoding


def encode_batch(messages: list[Message]) -> bytes:
    """One frame. Whoever calls keeps it below FRAME_BYTES_MAX (`size_of`)."""
    pieces: list[bytes] = []
    small = pb.MessageBatch()  # a run of messages without entries
    for message in messages:
        if isinstance(message, AppendEntries) and message.entries:
            pieces.append(small.SerializeToString())
            small.Clear()
            _append_pieces(pieces, message)
        else:
            out = small.messages.add(to=message.to, sender=message.sender, term=message.term)
            ENCODERS[type(message)](out, message)
    pieces.append(small.SerializeToString())
    return b"".join(pieces)


def _append_pieces(pieces: list[bytes], message: AppendEntries) -> None:
    """The fields of MessageBatch that hold `message`. The numbers are those of peer.proto."""
    entries: list[bytes] = []
    size = 0
    for entry in message.entries:
        data = entry.data
        head = b"\x08%b\x10%b%b\x22%b" % (
            _varint(entry.index),
            _varint(entry.term),
            b"\x18" + VARINTS[entry.kind] if entry.kind else b"",
            _varint(len(data)),
        )
        head = b"\x1a%b%b" % (_varint(len(head) + len(data)), head)
        size += len(head) + len(data)
        entries.append(head)
        entries.append(data)
    body = b"%b%b%b%b%b" % (
        _number(b"\x08", message.prev_index),
        _number(b"\x10", message.prev_term),
        _number(b"\x20", message.commit),
        _number(b"\x28", message.read_round),
        _number(b"\x30", message.replicated_index),
    )
    size += len(body)
    head = b"%b%b\x32%b" % (ENDS.pack(9, message.to, 17, message.sender), _number(b"\x18", message.term), _varint(size))
    pieces.append(b"\x0a%b%b%b" % (_varint(len(head) + size), head, body))
    pieces += entries


def _number(tag: bytes, value: int) -> bytes:
    """A field of a message; 0 is left out."""
    return tag + _varint(value) if value else b""


def _varint(value: int) -> bytes:
    if value < 0x80:
        return VARINTS[value]
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if value < 0x200000:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _encode_request_vote(out: pb.Message, message: RequestVote) -> None:
    body = out.request_vote
    body.SetInParent()
    body.pre_vote = message.pre_vote
    body.transfer = message.transfer
    body.last_index = message.last_index
    body.last_term = message.last_term


def _encode_request_vote_response(out: pb.Message, message: RequestVoteResponse) -> None:
    body = out.request_vote_response
    body.SetInParent()
    body.pre_vote = message.pre_vote
    body.granted = message.granted


def _encode_append_entries(out: pb.Message, message: AppendEntries) -> None:
    assert not message.entries, "_append_pieces writes those"
    body = out.append_entries
    body.SetInParent()
    body.prev_index = message.prev_index
    body.prev_term = message.prev_term
    body.commit = message.commit
    body.read_round = message.read_round
    body.replicated_index = message.replicated_index


def _encode_append_entries_response(out: pb.Message, message: AppendEntriesResponse) -> None:
    body = out.append_entries_response
    body.SetInParent()
    body.rejected = message.rejected
    body.match_index = message.match_index
    body.hint_term = message.hint_term
    body.rejected_index = message.rejected_index
    body.read_round = message.read_round


def _encode_heartbeat(out: pb.Message, message: Heartbeat) -> None:
    body = out.heartbeat
    body.SetInParent()
    body.commit = message.commit
    body.read_round = message.read_round
    body.replicated_index = message.replicated_index
    body.quiet = message.quiet


def _encode_heartbeat_response(out: pb.Message, message: HeartbeatResponse) -> None:
    body = out.heartbeat_response
    body.SetInParent()
    body.read_round = message.read_round


def _encode_read_index(out: pb.Message, message: ReadIndex) -> None:
    body = out.read_index
    body.SetInParent()
    body.context = message.context


def _encode_read_index_response(out: pb.Message, message: ReadIndexResponse) -> None:
    body = out.read_index_response
    body.SetInParent()
    body.context = message.context
    body.index = message.index


def _encode_timeout_now(out: pb.Message, message: TimeoutNow) -> None:
    out.timeout_now.SetInParent()


def _encode_forward(out: pb.Message, message: Forward) -> None:
    body = out.forward
    body.SetInParent()
    body.data.extend(message.data)


ENCODERS: Final[dict[type, Callable[..., None]]] = {
    RequestVote: _encode_request_vote,
    RequestVoteResponse: _encode_request_vote_response,
    AppendEntries: _encode_append_entries,
    AppendEntriesResponse: _encode_append_entries_response,
    Heartbeat: _encode_heartbeat,
    HeartbeatResponse: _encode_heartbeat_response,
    ReadIndex: _encode_read_index,
    ReadIndexResponse: _encode_read_index_response,
    TimeoutNow: _encode_timeout_now,
    Forward: _encode_forward,
}


# Decoding


def decode_batch(frame: bytes) -> list[Message]:
    """Raises MalformedMessage for anything that encode_batch of a correct peer does not write."""
    if len(frame) > FRAME_BYTES_MAX:
        raise MalformedMessage(f"a frame of {len(frame)} bytes")
    try:
        batch = pb.MessageBatch.FromString(frame)
    except DecodeError as error:
        raise MalformedMessage(f"not a MessageBatch: {error}") from error
    if len(batch.messages) > MESSAGES_MAX:
        raise MalformedMessage(f"{len(batch.messages)} messages in one frame")
    return [_decode(message) for message in batch.messages]


def _decode(message: pb.Message) -> Message:
    to, sender, term = message.to, message.sender, message.term
    body = message.WhichOneof("body")
    if body is None:
        raise MalformedMessage("a message without a body, or of an unknown type")
    if NO_NODE in {to, sender}:
        raise MalformedMessage(f"node ids {sender} -> {to}")
    if term > INDEX_MAX:
        raise MalformedMessage(f"term {term}")
    return DECODERS[body](to, sender, term, getattr(message, body))


def _decode_request_vote(to: NodeId, sender: NodeId, term: Term, body: pb.RequestVote) -> Message:
    _check(body.last_index, body.last_term)
    return RequestVote(to, sender, term, body.last_index, body.last_term, body.pre_vote, body.transfer)


def _decode_request_vote_response(to: NodeId, sender: NodeId, term: Term, body: pb.RequestVoteResponse) -> Message:
    return RequestVoteResponse(to, sender, term, body.granted, body.pre_vote)


def _decode_append_entries(to: NodeId, sender: NodeId, term: Term, body: pb.AppendEntries) -> Message:
    prev_index, prev_term = body.prev_index, body.prev_term
    _check(prev_index, prev_term, body.commit, body.read_round, body.replicated_index)
    if len(body.entries) > ENTRIES_MAX:
        raise MalformedMessage(f"{len(body.entries)} entries in one message")
    entries: list[Entry] = []
    index, entry_term = prev_index, prev_term
    for entry in body.entries:
        index += 1
        if entry.index != index or not entry_term <= entry.term <= term or entry.term == 0:
            raise MalformedMessage(f"entry {entry.index}@{entry.term} after {index - 1}@{entry_term} in term {term}")
        entry_term = entry.term
        kind = entry.kind
        if not 0 <= kind < len(KINDS):
            raise MalformedMessage(f"entry {index} is of the unknown kind {kind}")
        entries.append(Entry(index, entry_term, entry.data, KINDS[kind]))
    _check(index)
    return AppendEntries(
        to, sender, term, prev_index, prev_term, entries, body.commit, body.read_round, body.replicated_index
    )


def _decode_append_entries_response(to: NodeId, sender: NodeId, term: Term, body: pb.AppendEntriesResponse) -> Message:
    _check(body.match_index, body.hint_term, body.rejected_index, body.read_round)
    return AppendEntriesResponse(
        to, sender, term, body.match_index, body.rejected, body.rejected_index, body.hint_term, body.read_round
    )


def _decode_heartbeat(to: NodeId, sender: NodeId, term: Term, body: pb.Heartbeat) -> Message:
    _check(body.commit, body.read_round, body.replicated_index)
    return Heartbeat(to, sender, term, body.commit, body.read_round, body.replicated_index, body.quiet)


def _decode_heartbeat_response(to: NodeId, sender: NodeId, term: Term, body: pb.HeartbeatResponse) -> Message:
    _check(body.read_round)
    return HeartbeatResponse(to, sender, term, body.read_round)


def _decode_read_index(to: NodeId, sender: NodeId, term: Term, body: pb.ReadIndex) -> Message:
    _check(body.context)
    return ReadIndex(to, sender, term, body.context)


def _decode_read_index_response(to: NodeId, sender: NodeId, term: Term, body: pb.ReadIndexResponse) -> Message:
    _check(body.context, body.index)
    return ReadIndexResponse(to, sender, term, body.context, body.index)


def _decode_timeout_now(to: NodeId, sender: NodeId, term: Term, body: pb.TimeoutNow) -> Message:
    return TimeoutNow(to, sender, term)


def _decode_forward(to: NodeId, sender: NodeId, term: Term, body: pb.Forward) -> Message:
    return Forward(to, sender, term, list(body.data))


def _check(*values: int) -> None:
    for value in values:
        if value > INDEX_MAX:
            raise MalformedMessage(f"{value} is no index, term or round")


DECODERS: Final[dict[str, Callable[..., Message]]] = {
    "request_vote": _decode_request_vote,
    "request_vote_response": _decode_request_vote_response,
    "append_entries": _decode_append_entries,
    "append_entries_response": _decode_append_entries_response,
    "heartbeat": _decode_heartbeat,
    "heartbeat_response": _decode_heartbeat_response,
    "read_index": _decode_read_index,
    "read_index_response": _decode_read_index_response,
    "timeout_now": _decode_timeout_now,
    "forward": _decode_forward,
}


# Greeting


def encode_hello(cluster_id: int, node_id: NodeId, instance: int) -> bytes:
    return pb.Hello(format=FORMAT, cluster_id=cluster_id, node_id=node_id, instance=instance).SerializeToString()


def decode_hello(data: bytes) -> tuple[int, int, NodeId, int]:
    """format, cluster_id, node_id, instance. Raises MalformedMessage."""
    try:
        hello = pb.Hello.FromString(data)
    except DecodeError as error:
        raise MalformedMessage(f"not a Hello: {error}") from error
    return hello.format, hello.cluster_id, hello.node_id, hello.instance
