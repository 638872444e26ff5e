"""A whole member that dies at a chosen step of its disk work, by SIGKILL, and what it was asked to do until then.

    python -m tests.e2e.crash_points_child      one job per line of stdin, one answer per line of stdout

A job is a new folder, maybe another one that it starts as a copy of, and a point. A process is forked, which
starts the member on the folder and lives until that point (none: until it has done all). The answer is how it
ended: a signal's number below zero, 0 for the end. The forking process opens no database and no gRPC itself.

Steps are what changes the log's files (SegmentedStorage over a counting FileSystem), the store (RocksDB
writes, flushes, the opening) and member.json. Each has a name, "compact: unlink segment", and is counted by name:
what runs beside it, such as a flush in its thread, does not move it. A point is (name, how often, side):

    before, after   the process is gone before or after the call
    torn            a part of a pwritev is in the file: what the kernel does with one that it kills half way
    0.0007          so many seconds into the call, by a timer of the kernel: RocksDB's own steps are out of our sight

A run leaves FOLDER/steps, the names in the order in which they began, and appends to FOLDER/told: "sent NUMBER"
before a request, "done NUMBER REVISION TERM" when it was acknowledged.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from google.protobuf.message import Message
from rocksdict import WriteBatch

from kvstore.config import ServerConfig
from kvstore.mvcc.engine import Engine
from kvstore.mvcc.store import MvccStore
from kvstore.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest
from kvstore.server import bootstrap
from kvstore.server.bootstrap import OpenMember, open_member
from kvstore.server.server import KvServer
from kvstore.state.command import Op
from raft.storage.base import Loaded
from raft.storage.file_system import Buffer, File, FileSystem, OsFileSystem
from raft.storage.segmented import SegmentedStorage
from raft.transport.grpc import GrpcTransport, PeerIdentity
from raft.types import Configuration, Entry, HardState, Index, Term

SEGMENT_BYTES = 1400  # about six requests
SNAPSHOT_COUNT = 20
REQUESTS = 72
KEYS = 9
KILLED = -signal.SIGKILL
TIMED = -signal.SIGALRM

Point: TypeAlias = tuple[str, int, str | float]
Change: TypeAlias = tuple[bytes, bytes | None]  # key, value; None: deleted


@dataclass(frozen=True, slots=True)
class Request:
    """One request, and what must hold once it is applied."""

    op: Op
    message: Message
    revision: int
    compact_revision: int
    changes: list[Change]  # of `revision`, in order


def workload() -> list[Request]:
    """Puts, deletes of one key or several, compactions. Each moves a revision, so that a state tells how far it is."""
    requests: list[Request] = []
    live: set[bytes] = set()
    revision, compacted = 1, 0
    for number in range(REQUESTS):
        key = b"k%d" % (number * 5 % KEYS)
        value = b"value %d " % number * 5
        changes: list[Change] = []
        message: Message
        if number % 14 == 13:
            compacted = revision - 4
            op, message = Op.COMPACTION, CompactionRequest(revision=compacted)
        elif number % 10 == 9:
            changes = [(one, None) for one in sorted(live) if b"k3" <= one < b"k6"]
            op, message = Op.DELETE_RANGE, DeleteRangeRequest(key=b"k3", range_end=b"k6")
        elif number % 4 == 3 and key in live:
            changes = [(key, None)]
            op, message = Op.DELETE_RANGE, DeleteRangeRequest(key=key)
        else:
            changes = [(key, value)]
            op, message = Op.PUT, PutRequest(key=key, value=value)
        assert changes or op is Op.COMPACTION
        revision += bool(changes)
        if op is Op.PUT:
            live.add(key)
        live.difference_update([gone for gone, kept in changes if kept is None])
        requests.append(Request(op, message, revision, compacted, changes))
    return requests


def applied_requests(requests: list[Request], store: MvccStore) -> int:
    """How many of them the store's state shows."""
    position = (store.current_revision, store.compact_revision)
    states = [(1, 0), *[(request.revision, request.compact_revision) for request in requests]]
    assert position in states, f"revision and compact revision are {position}: no request leads there"
    return states.index(position)


class Steps:
    """Names and counts the steps of this process, and ends it at one of them."""

    def __init__(self, record: Path, point: Point | None) -> None:
        self.phase = ""
        self._seen: Counter[str] = Counter()
        self._point = point
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        outer, self.phase = self.phase, phase
        yield
        self.phase = outer

    @contextmanager
    def step(self, name: str) -> Iterator[bool]:
        """Around one call. True: make a part of it and then call `die`."""
        side = self._side(name)
        if side == "before":
            die()
        if isinstance(side, float):
            signal.setitimer(signal.ITIMER_REAL, max(side, 1e-6))  # ends the process: nobody handles SIGALRM
        yield side == "torn"
        if side is not None:
            die()  # "after"; or the call was faster than the timer

    def disk(self, call: str, what: str) -> Any:
        return self.step(f"{self.phase}: {call} {what}")

    def _side(self, name: str) -> str | float | None:
        os.write(self._record, name.encode() + b"\n")
        self._seen[name] += 1
        if self._point is not None and self._point[:2] == (name, self._seen[name]):
            return self._point[2]
        return None


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class CrashFile(File):
    def __init__(self, file: File, what: str, steps: Steps) -> None:
        self._file = file
        self.what = what
        self._steps = steps

    def pwritev(self, buffers: list[Buffer], offset: int) -> None:
        with self._steps.disk("pwritev", self.what) as torn:
            if torn:
                written = b"".join(buffers).rstrip(b"\0")
                self._file.pwritev([written[: len(written) * 3 // 5]], offset)
                die()
            self._file.pwritev(buffers, offset)

    def pread(self, length: int, offset: int) -> bytes:
        return self._file.pread(length, offset)

    def fdatasync(self) -> None:
        with self._steps.disk("fdatasync", self.what):
            self._file.fdatasync()

    def truncate(self, size: int) -> None:
        with self._steps.disk("truncate", self.what):
            self._file.truncate(size)

    def size(self) -> int:
        return self._file.size()

    def close(self) -> None:
        self._file.close()


class CrashFileSystem(FileSystem):
    def __init__(self, steps: Steps) -> None:
        self._real = OsFileSystem()
        self._steps = steps

    def make_directory(self, path: Path) -> None:
        with self._steps.disk("make", "directory"):
            self._real.make_directory(path)

    def names(self, path: Path) -> list[str]:
        return self._real.names(path)

    def create(self, path: Path) -> File:
        with self._steps.disk("create", "new segment"):
            return CrashFile(self._real.create(path), "new segment", self._steps)

    def open(self, path: Path) -> File:
        return CrashFile(self._real.open(path), "segment", self._steps)

    def rename(self, old: Path, new: Path) -> None:
        with self._steps.disk("rename", "new segment"):
            self._real.rename(old, new)

    def unlink(self, path: Path) -> None:
        with self._steps.disk("unlink", "segment"):
            self._real.unlink(path)

    def sync_directory(self, path: Path) -> None:
        with self._steps.disk("sync", "directory"):
            self._real.sync_directory(path)

    def lock(self, path: Path) -> File:
        with self._steps.disk("lock", "directory"):
            return self._real.lock(path)

    def random_tag(self) -> int:
        return self._real.random_tag()


class CrashStorage(SegmentedStorage):  # type: ignore[misc]
    """The log, whose steps are named after what it is doing."""

    def __init__(self, path: Path, steps: Steps) -> None:
        super().__init__(path, segment_bytes=SEGMENT_BYTES, file_system=CrashFileSystem(steps))
        self._steps = steps

    def load(self) -> Loaded:
        with self._steps.during("load"):
            return super().load()

    def save(self, hard_state: HardState | None, entries: list[Entry], must_sync: bool) -> None:
        with self._steps.during("save"):
            super().save(hard_state, entries, must_sync)

    def reset(self, index: Index, term: Term, configuration: Configuration, context: bytes = b"") -> None:
        with self._steps.during("reset"):
            super().reset(index, term, configuration, context)

    def _start_segment(self, *, is_reset: bool, base: tuple[Index, Term]) -> Any:
        with self._steps.during("reset" if is_reset else "segment change"):
            segment = super()._start_segment(is_reset=is_reset, base=base)
        assert isinstance(segment.file, CrashFile)
        segment.file.what = "segment"
        return segment

    def compact(self, index: Index, configuration: Configuration, context: bytes = b"") -> None:
        with self._steps.step("compact: all of it"), self._steps.during("compact"):
            super().compact(index, configuration, context)


def crash_in_the_store(steps: Steps) -> None:
    """RocksDB has no seam: what this process calls it through is replaced."""
    open_engine, write, flush, write_identity = Engine.__init__, Engine.write, Engine.flush, bootstrap.write_identity

    def crash_open(self: Engine, path: Path) -> None:
        with steps.step("store: open"):
            open_engine(self, path)

    def crash_write(self: Engine, batch: WriteBatch) -> None:
        with steps.step("store: write"):
            write(self, batch)

    async def crash_flush(self: Engine) -> None:
        with steps.step("store: flush"):
            await flush(self)

    def crash_identity(path: Path, identity: bootstrap.Identity) -> None:
        with steps.step("member.json: write"):
            write_identity(path, identity)

    Engine.__init__ = crash_open  # type: ignore[method-assign]
    Engine.write = crash_write  # type: ignore[method-assign]
    Engine.flush = crash_flush  # type: ignore[method-assign]
    bootstrap.write_identity = crash_identity


def settings(folder: Path) -> ServerConfig:
    return ServerConfig(
        data_dir=folder / "data", snapshot_count=SNAPSHOT_COUNT, heartbeat_interval=10, election_timeout=100
    )


def make_server(folder: Path, member: OpenMember) -> KvServer:
    """As kvstore.app does; without clients' port, and with a port for peers that nobody needs to know."""
    identity = member.identity
    peer = PeerIdentity(identity.cluster_id, identity.member_id, identity.instance)
    return KvServer(settings(folder), member, GrpcTransport(peer, ["http://127.0.0.1:0"]))


async def stop_server(server: KvServer, member: OpenMember) -> None:
    await server.stop()
    member.store.close()
    member.release()


async def live(folder: Path, steps: Steps) -> None:
    told = os.open(folder / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    requests = workload()
    member = await open_member(settings(folder), partial(CrashStorage, steps=steps))
    server = make_server(folder, member)
    await server.start()
    await server.published.wait()
    for number in range(applied_requests(requests, member.store), len(requests)):
        request = requests[number]
        os.write(told, b"sent %d\n" % number)
        result = await server.propose_one(request.op, request.message.SerializeToString())
        os.write(told, b"done %d %d %d\n" % (number, result.revision, server.raft_term))
    await stop_server(server, member)


def fork(folder: Path, point: Point | None) -> int:
    """How the member's process ended."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            steps = Steps(folder / "steps", point)
            crash_in_the_store(steps)
            asyncio.run(live(folder, steps))
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
        folder, start, point = json.loads(line)
        if start is None:
            Path(folder).mkdir(parents=True)
        else:
            shutil.copytree(start, folder)
        print(fork(Path(folder), None if point is None else tuple(point)), flush=True)


if __name__ == "__main__":
    main()
