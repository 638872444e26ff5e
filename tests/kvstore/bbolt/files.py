"""Bbolt files for tests: written by our writer, read back as a whole."""

from pathlib import Path

from kvstore.bbolt.reader import BboltReader
from kvstore.bbolt.writer import HEAD_BYTES, BboltWriter

Buckets = dict[bytes, dict[bytes, bytes]]


def encode(buckets: Buckets, take_every: int = 1) -> bytes:
    writer = BboltWriter()
    parts: list[bytes] = []
    for name, rows in buckets.items():
        writer.begin(name)
        for number, (key, value) in enumerate(sorted(rows.items())):
            writer.add(key, value)
            if number % take_every == 0:
                parts.append(writer.take())
    head = writer.finish()
    parts.append(writer.take())
    assert len(head) == HEAD_BYTES
    return b"".join([head, *parts])


def decode(path: Path, size: int | None = None) -> Buckets:
    """Raises BboltError."""
    found: Buckets = {}
    with BboltReader(path, size) as reader:
        for name in reader.buckets:
            found[name] = {key: value for rows in reader.rows(name) for key, value in rows}
    return found
