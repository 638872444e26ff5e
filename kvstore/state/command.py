"""What a log entry carries: a RequestBatch, and in it the requests' bytes as the clients sent them.

A request is wrapped where it arrives (`encode_request`), forwarded and batched as bytes, and parsed
once more by apply on each member. `raw` is never taken apart and put together again on the way.
"""

from enum import IntEnum
from struct import Struct
from typing import Final

from google.protobuf.message import DecodeError

from kvstore.mvcc.encoding import field, varint
from kvstore.pb.command_pb2 import RequestBatch

FORMAT: Final = 1

_FORMAT_HEAD: Final = b"\x08" + varint(FORMAT)
_FIXED64: Final = Struct("<Q")
_SFIXED64: Final = Struct("<q")


class Op(IntEnum):
    """The field numbers of Request.op."""

    PUT = 16
    DELETE_RANGE = 17
    TXN = 18
    COMPACTION = 19
    MEMBER_PUBLISH = 20
    LEASE_GRANT = 21
    LEASE_REVOKE = 22
    LEASE_CHECKPOINT = 23
    MEMBER_UPDATE = 24
    ALARM = 25
    DOWNGRADE = 26
    CLUSTER_VERSION = 27
    AUTH_ENABLE = 32
    AUTH_DISABLE = 33
    AUTH_USER_ADD = 34
    AUTH_USER_DELETE = 35
    AUTH_USER_CHANGE_PASSWORD = 36
    AUTH_USER_GRANT_ROLE = 37
    AUTH_USER_REVOKE_ROLE = 38
    AUTH_ROLE_ADD = 39
    AUTH_ROLE_DELETE = 40
    AUTH_ROLE_GRANT_PERMISSION = 41
    AUTH_ROLE_REVOKE_PERMISSION = 42
    AUTHENTICATE = 43


_OP_TAGS: Final = {op: varint(op << 3 | 2) for op in Op}


class CommandError(Exception):
    """Bytes that are no entry of ours.

    CommandError
     +- UnknownFormat    written by a newer version: upgrade this member
     +- UnknownRequest   likewise
     +- MalformedBatch   not a RequestBatch at all
    """


class UnknownFormat(CommandError):
    pass


class UnknownRequest(CommandError):
    pass


class MalformedBatch(CommandError):
    pass


def encode_head(member: int, boot: int) -> bytes:
    """How all requests of one boot of a member begin."""
    return b"\x09%b\x10%b\x18" % (_FIXED64.pack(member), varint(boot))


def encode_request(
    op: Op,
    raw: bytes,
    member: int,
    boot: int,
    sequence: int,
    user: str = "",
    auth_revision: int = 0,
    request_id: str = "",
) -> bytes:
    """One encoded Request. `raw` is the encoded message of `op`, passed through untouched."""
    return encode_tail(encode_head(member, boot), op, raw, sequence, user, auth_revision, request_id)


def encode_tail(
    head: bytes, op: Op, raw: bytes, sequence: int, user: str, auth_revision: int, request_id: str
) -> bytes:
    """The same behind an `encode_head` that is kept."""
    if not (user or auth_revision or request_id):
        return b"%b%b%b%b%b" % (head, varint(sequence), _OP_TAGS[op], varint(len(raw)), raw)
    parts = [head, varint(sequence)]
    if user:
        parts.append(field(b"\x22", user.encode()))
    if auth_revision:
        parts += (b"\x28", varint(auth_revision))
    if request_id:
        parts.append(field(b"\x32", request_id.encode()))
    parts += (_OP_TAGS[op], varint(len(raw)), raw)
    return b"".join(parts)


def encode_batch(time_ns: int, requests: list[bytes]) -> bytes:
    """An entry's data. Forwarded batches have no time yet: 0."""
    parts = [_FORMAT_HEAD]
    if time_ns:
        parts += (b"\x11", _SFIXED64.pack(time_ns))
    for request in requests:
        parts += (b"\x1a", varint(len(request)), request)
    return b"".join(parts)


def decode_batch(data: bytes) -> RequestBatch:
    """Raises UnknownFormat, UnknownRequest or MalformedBatch."""
    batch = parse_batch(data)
    for request in batch.requests:
        if request.WhichOneof("op") is None:
            raise UnknownRequest("a request of a type that this member does not know: upgrade this member")
    return batch


def parse_batch(data: bytes) -> RequestBatch:
    """The same for apply, which meets each request's type anyway: some may be of a type that is not known."""
    try:
        batch = RequestBatch.FromString(data)
    except DecodeError as error:
        if data[:1] == b"\x08" and not data.startswith(_FORMAT_HEAD):
            raise UnknownFormat("an entry of a newer format: upgrade this member") from error
        raise MalformedBatch(f"not a request batch: {len(data)} bytes") from error
    if batch.format != FORMAT:
        raise UnknownFormat(f"an entry of format {batch.format}, this member knows {FORMAT}: upgrade this member")
    return batch
