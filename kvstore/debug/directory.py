"""Where things lie in a data directory, and whether a member is using them now."""

import fcntl
import os
from pathlib import Path
from typing import Final

LOG: Final = "log"
CURRENT: Final = "CURRENT"  # names the directory of the state; a directory of an older layout has none
STATE: Final = "state"
LOCK: Final = "LOCK"


class NotThere(Exception):
    """What the user named is not what the command can print. The text says what is needed."""


def log_directory(path: Path) -> Path:
    """`path` itself, or its log/ when it is a data directory. Raises NotThere."""
    for candidate in (path / LOG, path):
        if candidate.is_dir() and any(candidate.glob("*.log")):
            return candidate
    raise NotThere(f"{path} holds no Raft log; give a member's data directory, or its {LOG}/")


def state_directory(path: Path) -> Path:
    """`path` itself, or the state that a data directory is using. Raises NotThere."""
    current = path / CURRENT
    if (path / LOG).is_dir() and current.is_file():
        return path / current.read_text().split()[-1]
    for candidate in (path / STATE, path):
        if candidate.is_dir() and any(candidate.glob("MANIFEST-*")):
            return candidate
    raise NotThere(f"{path} holds no state; give a member's data directory, or its {STATE} directory")


def is_in_use(path: Path) -> bool:
    """Whether a process holds the lock of this directory, or of the data directory around it."""
    return any(_is_locked(directory / LOCK) for directory in (path, path.parent))


def _is_locked(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)  # and with it our own lock
    return False
