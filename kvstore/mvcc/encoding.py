"""The protobuf bytes of KeyValue and Event, written by hand where a message object would cost more than all else.

What is written here is what protobuf itself would write: fields in order, defaults left out. That is
what lets a stored KeyValue stand in a RangeResponse, a DeleteRangeResponse and an Event as it is, by
concatenation. Reading goes through the generated classes, except for an event's key, which catch-up
needs of every event it passes.
"""

from typing import Final

from kvstore.pb.kv_pb2 import KeyValue

# Lengths, versions and small revisions: a list is four times as fast as the loop.
_SHORT: Final = [bytes([n]) for n in range(128)] + [bytes([n & 127 | 128, n >> 7]) for n in range(128, 1 << 14)]
_SHORT_END: Final = len(_SHORT)
# The low 14 bits where more follow: with them a revision is two look-ups.
_LOW: Final = [bytes((n & 127 | 128, n >> 7 | 128)) for n in range(1 << 14)]
_UNSIGNED: Final = (1 << 64) - 1  # how a negative number goes as a varint

# Tags of length-delimited fields that a response repeats.
KVS_TAG: Final = b"\x12"  # RangeResponse.kvs, PutResponse.prev_kv
PREV_KVS_TAG: Final = b"\x1a"  # DeleteRangeResponse.prev_kvs
RESPONSES_TAG: Final = b"\x1a"  # TxnResponse.responses
DELETE_HEAD: Final = b"\x08\x01\x12"  # Event{type: DELETE, kv: ...
PUT_HEAD: Final = b"\x12"  # Event{kv: ...; type PUT is the default


def varint(n: int) -> bytes:
    """An unsigned varint; n >= 0."""
    if n < _SHORT_END:
        return _SHORT[n]
    if n < 1 << 28:
        return _LOW[n & 0x3FFF] + _SHORT[n >> 14]
    out = bytearray()
    while n >= 128:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def field(tag: bytes, content: bytes) -> bytes:
    """A length-delimited field."""
    return tag + varint(len(content)) + content


def key_value(key: bytes, create: bytes, mod: bytes, version: int, value: bytes, lease: int) -> bytes:
    """An encoded KeyValue. `create` and `mod` are revisions as varints: one request encodes its own once."""
    if value:
        try:  # nearly always; calls of varint would be half of what this costs
            key_size, count, size = _SHORT[len(key)], _SHORT[version], _SHORT[len(value)]
        except IndexError:
            key_size, count, size = varint(len(key)), varint(version), varint(len(value))
        kv = b"\x0a%b%b\x10%b\x18%b\x20%b\x2a%b%b" % (key_size, key, create, mod, count, size, value)
    else:
        kv = b"\x0a%b%b\x10%b\x18%b\x20%b" % (varint(len(key)), key, create, mod, varint(version))
    return b"%b\x30%b" % (kv, varint(lease & _UNSIGNED)) if lease else kv


def put_event(kv: bytes) -> bytes:
    return b"\x12%b%b" % (varint(len(kv)), kv)


def delete_event(key: bytes, mod: bytes) -> bytes:
    """Event{DELETE, kv{key, mod_revision}}; `mod` is a varint."""
    kv = b"\x0a%b%b\x18%b" % (varint(len(key)), key, mod)
    return b"\x08\x01\x12%b%b" % (varint(len(kv)), kv)


def is_delete(event: bytes) -> bool:
    return event[0] == 0x08


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def event_kv(event: bytes) -> bytes:
    """The encoded KeyValue inside an event that this module wrote."""
    _, at = _varint_at(event, 3 if event[0] == 0x08 else 1)
    return event[at:]


def event_key(event: bytes) -> bytes:
    """The key inside an event that this module wrote."""
    _, at = _varint_at(event, 3 if event[0] == 0x08 else 1)
    return key_of(event, at)


def key_of(kv: bytes, at: int = 0) -> bytes:
    """The key of an encoded KeyValue that begins at `at`. Keys are never empty, so field 1 always leads."""
    size = kv[at + 1]
    at += 2
    if size >= 128:
        size, at = _varint_at(kv, at - 1)
    return kv[at : at + size]


def without_value(kv: bytes) -> bytes:
    """What keys_only answers."""
    message = KeyValue.FromString(kv)
    message.ClearField("value")
    return message.SerializeToString()


def range_body(kvs: list[bytes], count: int, more: bool) -> bytes:
    """A RangeResponse without its header: kvs = 2, more = 3, count = 4."""
    parts: list[bytes] = []
    for kv in kvs:
        parts += (b"\x12", varint(len(kv)), kv)
    if more:
        parts.append(b"\x18\x01")
    if count:
        parts += (b"\x20", varint(count))
    return b"".join(parts)
