"""The folders that a member's state lives in, and the file that says which of them counts.

    DATA/CURRENT          "1 state-120": format, and the folder in use
    DATA/state-120/       the state that was installed as the snapshot of entry 120; state-0 began with the log
    DATA/state-560.part/  a snapshot that is arriving
    DATA/snapshot-3/      a checkpoint of the state, which is being sent: the third of this process

A state takes another's place by one rename of CURRENT: before it the old one counts, after it the new one,
and both are whole and on the disk at that moment. Whatever CURRENT does not name is nobody's, and is removed
at the next start.

    state-560.part/ made, filled, fsynced -> renamed to state-560/ -> CURRENT.new fsynced -> renamed to CURRENT

The name also tells a start what the log must look like. An installed state that nothing was applied to since
(its applied index is that of its name) may be ahead of the log, or in conflict with it: the process ended
before the log was reset to it. Any other state that is ahead of its log is one whose log was lost.

CURRENT is made before the first folder, so folders without it are damage. Directories of before have a
`state/` instead of both.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Final, final

import structlog

from kvstore.failpoints import fail

log = structlog.get_logger(__name__)

FORMAT: Final = 1
CURRENT_FILE: Final = "CURRENT"
OLD_STATE: Final = "state"  # of directories that have no CURRENT
FIRST_STATE: Final = "state-0"

_STATE: Final = re.compile(r"state-(0|[1-9][0-9]{0,18})")
# .tmp: RocksDB's, of a checkpoint; file: of kvstore/snapshot/save.py
_OURS: Final = re.compile(r"(state|snapshot)-[0-9]+(\.part|\.tmp)?|snapshot-file-\w+|CURRENT\.new")


class FolderError(Exception):
    """What is in the data directory cannot be what this version left there. The text says what to do."""


def sync_directory(path: Path) -> None:
    """What was created, renamed or removed in it is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@final
class StateFolders:
    """Of one data directory. Everything here blocks, and is short unless it removes a state."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.current = path / FIRST_STATE  # the folder in use, once `find` has looked

    @property
    def installed_index(self) -> int:
        """The entry whose snapshot the state in use began as; 0: it began with the log."""
        return int(self.current.name.partition("-")[2])

    def find(self) -> Path:
        """Which folder the state is in; it does not exist in a new directory. Raises FolderError, OSError."""
        name = self._read()
        if name is None:
            self._check_new()
            name = FIRST_STATE
            self._write(name)
        self.current = self.path / name
        old = self.path / OLD_STATE
        if old.exists() and not self.current.exists():
            old.rename(self.current)
            sync_directory(self.path)
        return self.current

    def _read(self) -> str | None:
        try:
            text = (self.path / CURRENT_FILE).read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return None
        number, _, name = text.strip().partition(" ")
        if number.isdecimal() and int(number) > FORMAT:
            raise FolderError(
                f"{self.path / CURRENT_FILE} has format {number}, this version knows {FORMAT}; "
                "run the version that wrote it, or a newer one"
            )
        if number != str(FORMAT) or not _STATE.fullmatch(name):
            raise FolderError(
                f"{self.path / CURRENT_FILE} is damaged ({text[:80]!r}); restore it from a copy, "
                "or move the directory away"
            )
        return name

    def _check_new(self) -> None:
        found = sorted(path.name for path in self.path.iterdir() if _STATE.fullmatch(path.name))
        if found:
            raise FolderError(
                f"{self.path} has {', '.join(found)} but no {CURRENT_FILE}; restore that file, "
                "or move the directory away"
            )

    def _write(self, name: str) -> None:
        """Durably, and whole or not at all."""
        new = self.path / (CURRENT_FILE + ".new")
        with new.open("w", encoding="ascii") as file:
            file.write(f"{FORMAT} {name}\n")
            file.flush()
            os.fsync(file.fileno())
        fail("snapshotBeforeCurrent")
        new.replace(self.path / CURRENT_FILE)
        sync_directory(self.path)
        fail("snapshotAfterCurrent")

    def swing(self, index: int) -> None:
        """state-`index`, which is whole and on the disk, counts from now on."""
        folder = self.state(index)
        assert folder.is_dir()
        self._write(folder.name)
        self.current = folder

    def state(self, index: int) -> Path:
        return self.path / f"state-{index}"

    def arriving(self, index: int) -> Path:
        return self.path / f"state-{index}.part"

    def checkpoint(self, number: int) -> Path:
        return self.path / f"snapshot-{number}"

    def orphans(self) -> list[Path]:
        """What an earlier process left behind. Only valid while nothing is taken, received or installed."""
        found = [path for path in self.path.iterdir() if _OURS.fullmatch(path.name)]
        return sorted(path for path in found if path != self.current)

    def remove_orphans(self) -> None:
        for path in self.orphans():
            log.info("removing what an interrupted snapshot left behind", name=path.name)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def free_bytes(self) -> int:
        """What the disk has left for us."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize
