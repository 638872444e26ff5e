"""The four formats of -w, as etcdctl writes them: quoting, JSON, tables, sizes and durations.

Bytes go to stdout as bytes, so that `kvctl get KEY --print-value-only` gives back what was put.
"""

import base64
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

_ESCAPES: Final = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    '"': '\\"',
    "\\": "\\\\",
}
_BYTE_ESCAPED: Final = range(0xDC80, 0xDD00)  # how "surrogateescape" marks a byte that is no UTF-8


def write(*parts: bytes | str) -> None:
    """Each part and a newline behind all of them."""
    sys.stdout.buffer.write(b"".join(part.encode() if isinstance(part, str) else part for part in parts) + b"\n")


def flush() -> None:
    """For verbs that print as they go."""
    sys.stdout.buffer.flush()


def quote(data: bytes) -> str:
    """In double quotes, as Go prints strings (%q): printable text as it is, the rest as escapes."""
    return '"' + "".join(map(_quoted, data.decode(errors="surrogateescape"))) + '"'


def _quoted(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    code = ord(char)
    if code in _BYTE_ESCAPED:
        return f"\\x{code - 0xDC00:02x}"
    if char.isprintable():
        return char
    if code < 0x20:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def present(**fields: Any) -> dict[str, Any]:
    """What Go's `omitempty` leaves: without zeros, empty texts, empty lists and absent objects."""
    return {name.rstrip("_"): value for name, value in fields.items() if value not in (0, "", None, [], b"")}


def write_json(value: Any) -> None:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    # Go's encoder escapes these for HTML.
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    write(text)


def write_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    cells = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in [list(titles), *cells]) for i in range(len(titles))]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    write(rule)
    write("|" + "|".join(f" {_centred(t, w)} " for t, w in zip(titles, widths, strict=True)) + "|")
    write(rule)
    for row in cells:
        write("|" + "|".join(f" {cell:>{width}} " for cell, width in zip(row, widths, strict=True)) + "|")
    write(rule)


def _centred(text: str, width: int) -> str:
    left = (width - len(text)) // 2
    return " " * left + text + " " * (width - len(text) - left)


def size(count: int) -> str:
    """Bytes for people: 999 B, 20 kB, 1.2 MB."""
    if count < 10:
        return f"{count} B"
    value, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    value = int(value * 10 + 0.5) / 10
    return f"{value:.1f} {units[0]}" if value < 10 else f"{value:.0f} {units[0]}"


def duration(seconds: float) -> str:
    """As Go prints a duration below a minute: 2.312284ms, 1.5s."""
    nanoseconds = round(seconds * 1e9)
    for unit, scale in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if nanoseconds >= scale:
            return f"{nanoseconds / scale:.9f}".rstrip("0").rstrip(".") + unit
    return f"{nanoseconds}ns"
