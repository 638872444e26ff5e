"""A member that takes, receives or starts beside a snapshot, and dies by SIGKILL at a chosen step of it.

    python -m tests.e2e.snapshot_crash_child    one job per line of stdin, one answer per line of stdout

A job is [what, folder, start, step]: `folder` becomes a copy of `start`, and a forked process does `what` there
until it dies before that step: [name, how often it has come] (null: it lives to the end). The answer is how it
ended. What runs in a thread beside, such as the removal of the old state, does not move a step that way.

    take     a snapshot of the state is taken, read and closed
    receive  the snapshot in SNAPSHOT (below) arrives, is installed, the log is reset: what the node does, in its order
    start    the data directory is opened and closed

Steps are all calls of `os` that change a file system, of snapshots, log and identity alike, and what is asked of
RocksDB. The run leaves their names in folder/steps.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

from kvstore.config import ServerConfig
from kvstore.mvcc.engine import Engine
from kvstore.server.bootstrap import OpenMember, open_member
from kvstore.server.snapshots import FolderReader, Snapshots, configuration_of
from raft.snapshot import ReceivedSnapshot
from raft.storage.segmented import SegmentedStorage
from raft.types import HardState, SnapshotMeta

Step: TypeAlias = tuple[str, int]

PIECE = 4096
SEGMENT_BYTES = 4096
SNAPSHOT = "snapshot"  # beside DATA: the folder of a checkpoint
META = "meta.json"  # its index and term

OS_CALLS = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "fdatasync", "ftruncate", "pwrite", "pwritev")
ENGINE_CALLS = ("__init__", "checkpoint", "close", "flush")


class Steps:
    """Counts the steps of this process, and ends it at one of them."""

    def __init__(self, record: Path, last: Step | None) -> None:
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._last = last
        self._seen: Counter[str] = Counter()

    def step(self, name: str) -> None:
        os.write(self._record, name.encode() + b"\n")
        self._seen[name] += 1
        if self._last == (name, self._seen[name]):
            os.kill(os.getpid(), signal.SIGKILL)


def name_of(argument: object) -> str:
    """Of a path or of an open file, from DATA on."""
    path = os.readlink(f"/proc/self/fd/{argument}") if isinstance(argument, int) else str(argument)
    return "data" + path.rpartition("/data")[2] if "/data" in path else path


def crash_in_os(steps: Steps) -> None:
    def wrapped(call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def crash(*arguments: Any, **options: Any) -> Any:
            steps.step(f"{call} {name_of(arguments[0])}")
            return real(*arguments, **options)

        return crash

    for call in OS_CALLS:
        setattr(os, call, wrapped(call, getattr(os, call)))


def crash_in_rocksdb(steps: Steps) -> None:
    def wrapped(call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def crash(self: Engine, *arguments: Any, **options: Any) -> Any:
            steps.step(f"rocksdb {call}")
            return real(self, *arguments, **options)

        return crash

    for call in ENGINE_CALLS:
        setattr(Engine, call, wrapped(call, getattr(Engine, call)))


def settings(folder: Path) -> ServerConfig:
    return ServerConfig(data_dir=folder / "data")


async def opened(folder: Path) -> OpenMember:
    return await open_member(settings(folder), lambda path: SegmentedStorage(path, segment_bytes=SEGMENT_BYTES))


async def close(member: OpenMember, snapshots: Snapshots | None = None) -> None:
    if snapshots is not None:
        await snapshots.stop()
    member.storage.close()
    member.store.close()
    member.release()


def snapshots_of(member: OpenMember) -> Snapshots:
    return Snapshots(member.store, member.folders, member.identity.cluster_id)


async def take(folder: Path) -> None:
    member = await opened(folder)
    snapshots = snapshots_of(member)
    reader = await snapshots.take()
    for file in reader.files:
        reader.read(file.name, 0, file.size)
    reader.close()
    await close(member, snapshots)


async def receive(folder: Path) -> None:
    member = await opened(folder)
    snapshots = snapshots_of(member)
    index, term = json.loads((folder / META).read_text())
    reader = FolderReader(folder / SNAPSHOT, index, term)
    reader.list_files()
    configuration, context = configuration_of(member.store)
    meta = SnapshotMeta(index, term, configuration, context)
    writer = snapshots.incoming()
    writer.begin(meta, reader.files)
    for file in reader.files:
        for offset in range(0, file.size, PIECE):
            size = min(PIECE, file.size - offset)
            writer.write(file.name, offset, reader.read(file.name, offset, size))
    writer.finish()
    await snapshots.install(ReceivedSnapshot(meta, writer))
    member.storage.reset(index, term, configuration, context)
    member.storage.save(HardState(term, 0, index), [], True)
    await close(member, snapshots)


async def start(folder: Path) -> None:
    await close(await opened(folder))


WORK: dict[str, Callable[[Path], Awaitable[None]]] = {"take": take, "receive": receive, "start": start}


async def live(what: str, folder: Path) -> None:
    await WORK[what](folder)


def fork(what: str, folder: Path, last: Step | None) -> int:
    """How the process ended."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            steps = Steps(folder / "steps", last)
            crash_in_os(steps)
            crash_in_rocksdb(steps)
            asyncio.run(live(what, folder))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    for line in sys.stdin:
        what, folder, origin, last = json.loads(line)
        shutil.copytree(origin, folder)
        print(fork(what, Path(folder), last and (last[0], last[1])), flush=True)


if __name__ == "__main__":
    main()
