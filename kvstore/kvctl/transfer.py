"""What import and export share: JSON lines, and progress as a bar on a terminal, as plain lines elsewhere.

A line is the object that `kvctl get -w json` prints for a key, {"key": BASE64, "value": BASE64, ...}; import also
takes {"key_utf8": TEXT, "value_utf8": TEXT}, for files made by hand, and ignores other fields.
"""

import base64
import binascii
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

PLAIN_SECONDS: Final = 5.0  # between two lines of progress without a terminal


def decode_line(line: bytes) -> tuple[bytes, bytes]:
    """(key, value). Raises ValueError with a reason for the user."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError("want an object with key and value")
    if "key" not in record and "key_utf8" not in record:
        raise ValueError('neither "key" (base64) nor "key_utf8"')
    return _field(record, "key"), _field(record, "value")


def _field(record: dict[str, Any], name: str) -> bytes:
    text, plain = record.get(name), record.get(name + "_utf8")
    if isinstance(plain, str):
        return plain.encode()
    if text is None:
        return b""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise ValueError(f'"{name}" is no base64; use "{name}_utf8" for plain text') from None


def sync_folder(path: Path) -> None:
    """The names of its files are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class LeftOut:
    """What was not transferred, and why: each is told when it happens, on stderr."""

    reasons: dict[str, str] = field(default_factory=dict)
    quiet: bool = False

    def add(self, name: str, reason: str) -> None:
        self.reasons[name] = reason
        if not self.quiet:
            print(f"left out: {name}: {reason}", file=sys.stderr)


class Progress:
    """On stderr, so that stdout stays for results."""

    def __init__(self, verb: str, total: int | None, *, in_bytes: bool = False) -> None:
        self._verb = verb
        self._in_bytes = in_bytes
        self._total = total
        self._done = 0
        self._told_at = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            count = DownloadColumn() if self._in_bytes else MofNCompleteColumn()
            columns = (TextColumn(self._verb), BarColumn(), count, TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(self._verb, total=self._total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, total: int) -> None:
        """The total, where it is known only now."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def advance(self, count: int = 1) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.advance(self._task, count)
        elif time.monotonic() - self._told_at >= PLAIN_SECONDS:
            self._told_at = time.monotonic()
            print(f"{self._verb}: {self._done} of {self._total or '?'}", file=sys.stderr)
