"""A snapshot file on the disk: is it whole, and what does it hold?

Such a file is a database followed by its SHA-256, which shows in its size; that of a running etcd, DATA/member/snap/db,
has none.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvstore.bbolt.reader import BboltError, BboltReader
from kvstore.snapshot import schema
from kvstore.snapshot.crc32c import crc32c

HASH_BYTES: Final = 32
SECTOR_BYTES: Final = 512  # a database is a multiple of it
_PIECE_BYTES: Final = 1 << 20

Told = Callable[[int], None]  # how many bytes more are done


class SnapshotFileError(Exception):
    """The file cannot be used. The text is one line that says why, and what to do."""


@dataclass(frozen=True, slots=True)
class SnapshotStatus:
    """As `etcdutl snapshot status` tells it."""

    hash: int  # of all rows of all buckets
    revision: int  # of the newest row of the bucket `key`
    total_keys: int  # rows of all buckets
    total_size: int  # bytes, without the SHA-256


def has_hash(size: int) -> bool:
    return size % SECTOR_BYTES == HASH_BYTES


def database_bytes(path: Path) -> int:
    """Of the file, without the SHA-256 that follows. Raises OSError."""
    size = path.stat().st_size
    return size - HASH_BYTES if has_hash(size) else size


def verify(path: Path, told: Told) -> None:
    """Whether the file is what was sent. Raises SnapshotFileError, OSError."""
    size = path.stat().st_size
    if not has_hash(size):
        raise SnapshotFileError(
            f"{path} ends without a SHA-256: its end is missing, or it is a copy of a database; "
            "give --skip-hash-check for a copy"
        )
    digest = hashlib.sha256()
    left = size - HASH_BYTES
    with path.open("rb") as file:
        while left:
            piece = file.read(min(_PIECE_BYTES, left))
            if not piece:
                raise SnapshotFileError(f"{path} has become shorter; copy it again")
            digest.update(piece)
            left -= len(piece)
            told(len(piece))
        if file.read(HASH_BYTES) != digest.digest():
            raise SnapshotFileError(
                f"{path} is damaged: its SHA-256 is another one; copy it again, or take another file"
            )


def open_database(path: Path) -> BboltReader:
    """Raises SnapshotFileError, OSError."""
    try:
        return BboltReader(path, database_bytes(path))
    except BboltError as error:
        raise unusable(path, error) from error


def unusable(path: Path, error: BboltError) -> SnapshotFileError:
    return SnapshotFileError(f"{path} cannot be used: {error}; copy it again, or take another file")


def status(path: Path, told: Told) -> SnapshotStatus:
    """Reads all of it. Raises SnapshotFileError, OSError."""
    value = revision = total = 0
    with open_database(path) as reader:
        try:
            for bucket in reader.buckets:
                value = crc32c(bucket, value)
                for rows in reader.rows(bucket):
                    page = b"".join([part for row in rows for part in row])
                    value = crc32c(page, value)
                    total += len(rows)
                    told(len(page))
                    if bucket == schema.KEY:
                        revision = schema.split_revision(rows[-1][0])[0]
        except BboltError as error:
            raise unusable(path, error) from error
        return SnapshotStatus(value, revision, total, reader.size_bytes)
