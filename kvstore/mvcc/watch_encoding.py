"""WatchResponse by hand: a header, the events' bytes as apply encoded them, and last the watch id.

Parsers take fields in any order, so all but the id is built once for a whole group of watchers
(proto/etcdserverpb/rpc.proto: header 1, watch_id 2, created 3, canceled 4, compact_revision 5,
cancel_reason 6, fragment 7, events 11; Event.prev_kv is 3).
"""

from collections.abc import Callable
from typing import Final

from kvstore.mvcc.encoding import field, varint
from kvstore.mvcc.events import AppliedEvent, RevisionEvents
from kvstore.mvcc.watch_index import FRAGMENT, NO_DELETE, NO_PUT, PREV_KV

CREATED: Final = b"\x18\x01"
CANCELED: Final = b"\x20\x01"
INVALID_ID: Final = b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"  # watch_id -1

_FRAGMENT: Final = b"\x38\x01"
_ENVELOPE_BYTES: Final = 96  # header, id and fragment mark, at most

Header = Callable[[int], bytes]  # revision -> the encoded field 1
Encoded = tuple[int, list[bytes]]  # a revision and its events, each as an encoded field


def id_field(watch_id: int) -> bytes:
    """0 is proto3's default and left out: then the shared bytes are the whole message."""
    if watch_id == 0:
        return b""
    return b"\x10" + varint(watch_id & 0xFFFF_FFFF_FFFF_FFFF)


def compact_revision_field(revision: int) -> bytes:
    return b"\x28" + varint(revision)


def cancel_reason_field(reason: str) -> bytes:
    return field(b"\x32", reason.encode())


def encode_events(events: list[AppliedEvent], variant: int) -> list[bytes]:
    """Those that the variant wants, each as an encoded field."""
    skipped_puts, skipped_deletes = variant & NO_PUT, variant & NO_DELETE
    return [
        field(b"\x5a", event.event + field(b"\x1a", event.prev))
        if variant & PREV_KV and event.prev is not None
        else field(b"\x5a", event.event)
        for event in events
        if not (skipped_deletes if event.is_delete else skipped_puts)
    ]


def encode_revisions(revisions: list[RevisionEvents], variant: int) -> list[Encoded]:
    return [(item.revision, encode_events(item.events, variant)) for item in revisions]


def event_responses(revisions: list[Encoded], variant: int, bytes_max: int, header: Header) -> list[bytes]:
    """Responses without a watch id. Revisions stay whole; several share a response up to `bytes_max`.

    The header's revision is the last one that the response wholly contains: whoever resumes behind it
    misses nothing. Only a watcher that asked for fragments gets a larger revision in pieces.
    """
    bytes_max -= _ENVELOPE_BYTES
    out: list[bytes] = []
    parts: list[bytes] = []
    size = last = 0
    for revision, events in revisions:
        if not events:
            continue  # filtered
        events_size = sum(map(len, events))
        if parts and size + events_size > bytes_max:
            out.append(header(last) + b"".join(parts))
            parts, size = [], 0
        if variant & FRAGMENT and events_size > bytes_max:
            out += _fragments(events, bytes_max, header(revision))
            continue
        parts += events
        size += events_size
        last = revision
    if parts:
        out.append(header(last) + b"".join(parts))
    return out


def _fragments(events: list[bytes], bytes_max: int, header: bytes) -> list[bytes]:
    """One revision in pieces; all but the last say that more follows. One event is never split."""
    pieces: list[list[bytes]] = [[]]
    size = 0
    for event in events:
        if pieces[-1] and size + len(event) > bytes_max:
            pieces.append([])
            size = 0
        pieces[-1].append(event)
        size += len(event)
    last = pieces.pop()
    return [header + b"".join(piece) + _FRAGMENT for piece in pieces] + [header + b"".join(last)]
