"""Between gRPC's metadata, timeouts and status messages and the headers of HTTP/2.

Names are lower case; a name that ends in -bin has bytes, in base64 on the wire; other values are printable ASCII.
A status message is UTF-8 with everything but printable ASCII, and %, written as %XX.
"""

import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias
from urllib.parse import unquote_to_bytes

from kvstore.errors import Code, KvError

Value: TypeAlias = str | bytes
Metadata: TypeAlias = tuple[tuple[str, Value], ...]

CONTENT_TYPE: Final = b"application/grpc"

# What belongs to the protocol and not to the caller.
_RESERVED: Final = frozenset(
    [
        b"content-type",
        b"te",
        b"grpc-timeout",
        b"grpc-encoding",
        b"grpc-accept-encoding",
        b"grpc-status",
        b"grpc-message",
    ]
)
_NAME: Final = re.compile(r"[0-9a-z_.\-]+")
_TEXT: Final = re.compile(r"[\x20-\x7e]*")
_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {0x25}
_TIMEOUT_DIGITS: Final = 8


def encode(metadata: "Iterable[tuple[str, Value]] | Mapping[str, Value] | None") -> list[tuple[bytes, bytes]]:
    """Raises ValueError for what cannot be sent."""
    if not metadata:
        return []
    pairs = metadata.items() if isinstance(metadata, Mapping) else metadata
    headers = []
    for name, value in pairs:
        if not _NAME.fullmatch(name) or name.startswith("grpc-"):
            raise ValueError(f"metadata was invalid: {name!r} is no name for metadata")
        if name.endswith("-bin"):
            raw = value.encode() if isinstance(value, str) else value
            headers.append((name.encode(), binascii.b2a_base64(raw, newline=False).rstrip(b"=")))
            continue
        text = value if isinstance(value, str) else value.decode("latin-1")
        if not _TEXT.fullmatch(text):
            raise ValueError(f"metadata was invalid: the value of {name!r} is not printable ASCII")
        headers.append((name.encode(), text.strip(" ").encode()))  # gRPC allows it, and HTTP/2 demands it
    return headers


def decode(headers: Iterable[tuple[bytes, bytes]]) -> Metadata:
    """What a caller or a server put in; the protocol's own headers are left out, and so is what is not valid."""
    found: list[tuple[str, Value]] = []
    for name, value in headers:
        if name[:1] == b":" or name in _RESERVED:
            continue
        key = name.decode("latin-1")
        if not key.endswith("-bin"):
            found.append((key, value.decode("latin-1")))
            continue
        for part in value.split(b","):  # an intermediary may have joined equal names
            try:
                found.append((key, binascii.a2b_base64(part.strip() + b"==")))
            except binascii.Error:
                continue
    return tuple(found)


def encode_message(text: str) -> bytes:
    raw = text.encode("utf-8", "replace")
    # HTTP/2 allows no space at either end of a value, and libnghttp2 insists.
    if _PLAIN.issuperset(raw) and raw == raw.strip(b" "):
        return raw
    last = len(raw) - 1
    return b"".join(
        [
            b"%c" % byte if byte in _PLAIN and not (byte == 0x20 and position in (0, last)) else b"%%%02X" % byte
            for position, byte in enumerate(raw)
        ]
    )


def decode_message(raw: bytes) -> str:
    return unquote_to_bytes(raw).decode("utf-8", "replace")


def encode_timeout(seconds: float) -> bytes:
    """Rounded up, so that the server never gives up first."""
    for unit in ("n", "u", "m", "S", "M"):
        amount = max(1, -int(-seconds // _UNITS[unit]))
        if amount < 10**_TIMEOUT_DIGITS:
            return f"{amount}{unit}".encode()
    return f"{min(-int(-seconds // 3600), 10**_TIMEOUT_DIGITS - 1)}H".encode()


def decode_timeout(raw: bytes) -> float:
    """Seconds. Raises KvError."""
    text = raw.decode("latin-1")
    if not (
        1 < len(text) <= _TIMEOUT_DIGITS + 1 and text[:-1].isascii() and text[:-1].isdigit() and text[-1] in _UNITS
    ):
        raise KvError(Code.INTERNAL, f"malformed grpc-timeout: {text[:40]!r}")
    return int(text[:-1]) * _UNITS[text[-1]]


def status_headers(error: KvError) -> list[tuple[bytes, bytes]]:
    headers = [(b"grpc-status", b"%d" % error.code)]
    if error.message:
        headers.append((b"grpc-message", encode_message(error.message)))
    return headers


def size_of(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """As SETTINGS_MAX_HEADER_LIST_SIZE counts (RFC 9113 section 6.5.2)."""
    return sum([len(name) + len(value) + 32 for name, value in headers])
