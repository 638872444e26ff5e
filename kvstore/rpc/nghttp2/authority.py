"""Clients whose :authority is none.

libnghttp2 resets a stream whose :authority is empty or has a character that RFC 3986 allows in none, and its binding
has no switch for that. etcd's clients send such ones: 3.4 "http://host:port" for calls that go to one endpoint, 3.5.0
"#initially=[...]". Go's servers take both, and nothing here looks at the value.

So the first header block of a connection is looked at, before libnghttp2 gets it. Nearly always it is fine, and the
filter is done. Else all header blocks of the connection are written anew, with another authority, not compressed.
"""

import re
from typing import Final, final

from hpack import Decoder, HPACKError

from kvstore.rpc.nghttp2.engine import PREFACE

HEADERS, CONTINUATION = 1, 9
END_STREAM, END_HEADERS, PADDED, PRIORITY = 0x1, 0x4, 0x8, 0x20
HEAD_BYTES: Final = 9
FRAME_BYTES_MAX: Final = 16 * 1024  # what a peer may send as long as it is told nothing else
HELD_BYTES_MAX: Final = 256 * 1024  # of a header block in parts
KNOWN_MAX: Final = 1_000  # first blocks that are remembered as fine
STAND_IN: Final = b"localhost"

_AUTHORITY: Final = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+,;=:@\[\]%]+")
_known: set[bytes] = set()  # a client's connections all begin with the same block


@final
class AuthorityFilter:
    """One connection's bytes on their way to libnghttp2."""

    def __init__(self) -> None:
        self.is_needed = True  # False: what comes need not be shown to it any more
        self._decoder: Decoder | None = None  # of a connection whose blocks are written anew
        self._held = b""  # the beginning of a frame, or of a header block
        self._has_preface = False

    def feed(self, data: bytes) -> bytes:
        """What libnghttp2 gets of it, at once or together with what comes later."""
        data = self._held + data if self._held else data
        place = 0
        if not self._has_preface:
            self._has_preface = True
            place = len(PREFACE)
        out = [data[:place]]
        while len(data) - place >= HEAD_BYTES:
            end = self._block_end(data, place)
            if end > len(data) or end < 0:
                break
            whole = data[place:end]
            out.append(self._block(whole) if whole[3] == HEADERS else whole)
            place = end
            if not self.is_needed:
                break
        self._held = data[place:]
        if not self.is_needed or len(self._held) > HELD_BYTES_MAX:
            # What breaks the rules of HTTP/2 is libnghttp2's to answer.
            self.is_needed = False
            out.append(self._held)
            self._held = b""
        return b"".join(out)

    def _block_end(self, data: bytes, place: int) -> int:
        """Where the frame ends, a HEADERS frame with its continuations. Beyond the data, or -1: not all is here."""
        is_block = data[place + 3] == HEADERS
        while True:
            size = int.from_bytes(data[place : place + 3], "big")
            if size > FRAME_BYTES_MAX:
                self.is_needed = False
                return -1
            end = place + HEAD_BYTES + size
            if not is_block or data[place + 4] & END_HEADERS or end > len(data):
                return end
            if len(data) - end < HEAD_BYTES:
                return -1
            if data[end + 3] != CONTINUATION:
                self.is_needed = False
                return -1
            place = end

    def _block(self, frames: bytes) -> bytes:
        """A whole header block, as it came or written anew."""
        block = _fragments(frames)
        if self._decoder is None:
            if block in _known:
                self.is_needed = False
                return frames
            self._decoder = Decoder()
            self._decoder.max_header_list_size = HELD_BYTES_MAX
            is_first = True
        else:
            is_first = False
        try:
            headers = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except (HPACKError, IndexError, ValueError):
            self.is_needed = False
            return frames
        if is_first and all(_AUTHORITY.fullmatch(value) for name, value in headers if name == b":authority"):
            if len(_known) < KNOWN_MAX:
                _known.add(block)
            self.is_needed = False
            return frames
        anew = b"".join([_literal(name, STAND_IN if name == b":authority" else value) for name, value in headers])
        return _frames(frames, anew)


def _fragments(frames: bytes) -> bytes:
    """The header block in a HEADERS frame and its continuations."""
    parts = []
    place = 0
    while place < len(frames):
        size = int.from_bytes(frames[place : place + 3], "big")
        kind, flags = frames[place + 3], frames[place + 4]
        low, high = place + HEAD_BYTES, place + HEAD_BYTES + size
        place = high
        if kind == HEADERS:
            if flags & PADDED and size:
                high -= frames[low]
                low += 1
            if flags & PRIORITY:
                low += 5
        parts.append(frames[low:high])
    return b"".join(parts)


def _literal(name: bytes, value: bytes) -> bytes:
    """A field that is never indexed, neither part of it compressed (RFC 7541 section 6.2.3)."""
    return b"\x10" + _length(len(name)) + name + _length(len(value)) + value


def _length(size: int) -> bytes:
    """An integer with a prefix of seven bits (RFC 7541 section 5.1)."""
    if size < 0x7F:
        return bytes([size])
    size -= 0x7F
    parts = [0x7F]
    while size >= 0x80:
        parts.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*parts, size])


def _frames(old: bytes, block: bytes) -> bytes:
    """The block in frames of the stream that the old ones were of."""
    stream, ends = old[5:9], old[4] & END_STREAM
    parts = [block[at : at + FRAME_BYTES_MAX] for at in range(0, len(block), FRAME_BYTES_MAX)]
    out = []
    for number, part in enumerate(parts):
        kind, flags = (HEADERS, ends) if number == 0 else (CONTINUATION, 0)
        if number == len(parts) - 1:
            flags |= END_HEADERS
        out.append(len(part).to_bytes(3, "big") + bytes([kind, flags]) + stream + part)
    return b"".join(out)
