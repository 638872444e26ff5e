"""What an import has acknowledged, one JSON line each, so that an import that was killed goes on where it was.

The file lives while its import is unfinished; a finished import deletes it. A line that a kill tore in two is
ignored. An entry counts only for the cluster, the size and the time of the file that it was written for, and
the import checks with the cluster that the key still has that revision or a newer one: so neither a cluster that was
made anew under the same addresses nor a deleted key is taken for imported.
"""

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from kvstore.kvctl.failures import Failure

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Entry:
    size: int
    mtime_ns: int
    revision: int


def default_path(source: Path, prefix: bytes) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    digest = hashlib.sha256(os.fsencode(source.resolve()) + b"\0" + prefix).hexdigest()[:16]
    return Path(state, "kvctl", f"import-{digest}.jsonl")


class Journal:
    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = open(path, "a+b")  # noqa: SIM115 - closed by close()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Failure(f"{path}: another import of the same source runs; wait for it, or give --journal") from None

    def load(self, cluster_id: int, resume: bool) -> dict[str, Entry]:
        """Entries by name; none, and an empty file, when it is of another cluster or format, or not wanted."""
        self._file.seek(0)
        lines = [record for record in map(_record, self._file) if record is not None]
        if resume and lines and lines[0].get("format") == FORMAT and lines[0].get("cluster_id") == cluster_id:
            # What a kill tore in two has no newline: the next line must not be glued to it.
            self._file.write(b"\n")
            return {r["name"]: Entry(r["size"], r["mtime_ns"], r["revision"]) for r in lines[1:] if "revision" in r}
        self._file.truncate(0)
        self._write({"format": FORMAT, "cluster_id": cluster_id})
        return {}

    def add(self, name: str, entry: Entry) -> None:
        self._write({"name": name, "size": entry.size, "mtime_ns": entry.mtime_ns, "revision": entry.revision})

    def _write(self, record: dict[str, str | int]) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def close(self, finished: bool) -> None:
        if finished:
            self.path.unlink(missing_ok=True)
        self._file.close()


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
