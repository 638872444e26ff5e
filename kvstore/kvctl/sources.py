"""What can be imported: the files below a folder, or the lines of a JSON lines file."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kvstore.kvctl.transfer import LeftOut, decode_line


@dataclass(frozen=True, slots=True)
class Item:
    name: str  # for people and for the journal: relative path, or "line N"
    key: bytes
    size: int  # bytes of the value
    mtime_ns: int
    load: Callable[[], bytes]  # the value; raises OSError


def scan_folder(root: Path, prefix: bytes, left_out: LeftOut) -> Iterator[Item]:
    """Regular files in the order of their paths. Symbolic links and what cannot be read are left out."""

    def refuse(error: OSError) -> None:
        left_out.add(os.path.relpath(error.filename or root, root), error.strerror or str(error))

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders.sort()
        for name in sorted([*files, *(f for f in folders if os.path.islink(os.path.join(folder, f)))]):
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, root)
            try:
                status = os.lstat(path)
            except OSError as error:
                left_out.add(relative, error.strerror or str(error))
                continue
            if stat.S_ISREG(status.st_mode):
                key = prefix + os.fsencode(relative)
                yield Item(relative, key, status.st_size, status.st_mtime_ns, Path(path).read_bytes)
            else:
                left_out.add(relative, "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a regular file")


def scan_lines(file: Path, prefix: bytes, left_out: LeftOut) -> Iterator[Item]:
    """Keys are `prefix` + the line's key."""
    mtime_ns = file.stat().st_mtime_ns
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                key, value = decode_line(line)
            except ValueError as error:
                left_out.add(f"line {number}", str(error))
                continue
            yield Item(f"line {number}", prefix + key, len(value), mtime_ns, lambda value=value: value)  # type: ignore[misc]
