"""Runs a scenario once per crash point, each in a forked process that dies by os._exit: no destructor, no flush.

    python -m tests.kvstore.state.crash_child SCENARIO FOLDER

The state of the run that died at point N is left in FOLDER/N. The last run reaches the end; its number is
printed. No database is open when a run is forked, so RocksDB's threads are each run's own.
"""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import Message
from rocksdict import WriteBatch

from kvstore.mvcc import compaction, transaction
from kvstore.mvcc.compaction import Compactor
from kvstore.mvcc.engine import Engine
from kvstore.pb import rpc_pb2 as pb
from tests.kvstore.state.support import Entry, State, entry

DIED = 9
COMPACTED = 89  # a delete of a key with many versions: the tombstone must go last


def delete_entries() -> list[Entry]:
    """Puts, then one entry with a put, a txn around a big delete, and a put into what was deleted."""
    fill: list[list[Message]] = [
        [pb.PutRequest(key=b"k%04d" % (50 * at + n), value=b"v" * n) for n in range(50)] for at in range(6)
    ]
    txn = pb.TxnRequest()
    txn.success.add().request_put.CopyFrom(pb.PutRequest(key=b"a", value=b"1"))
    txn.success.add().request_delete_range.CopyFrom(pb.DeleteRangeRequest(key=b"k", range_end=b"l"))
    txn.success.add().request_range.CopyFrom(pb.RangeRequest(key=b"\0", range_end=b"\0"))
    last: list[Message] = [pb.PutRequest(key=b"k0007", value=b"new"), txn, pb.PutRequest(key=b"k0009", value=b"again")]
    entries: list[Entry] = []
    sequence = 1
    end: list[Message] = [pb.PutRequest(key=b"z")]
    for requests in [*fill, last, end]:
        entries.append(entry(len(entries) + 1, sequence, requests))
        sequence += len(requests)
    return entries


def compaction_entries() -> list[Entry]:
    """Keys with many versions, some deleted, then compacted between."""
    entries: list[Entry] = []
    sequence = 1
    for at in range(12):
        requests: list[pb.PutRequest | pb.DeleteRangeRequest] = [
            pb.PutRequest(key=b"k%d" % (n % 7), value=b"%d" % at) for n in range(10)
        ]
        requests.append(pb.DeleteRangeRequest(key=b"k%d" % (at % 7)))
        entries.append(entry(len(entries) + 1, sequence, requests))
        sequence += len(requests)
    entries.append(entry(len(entries) + 1, sequence, [pb.CompactionRequest(revision=COMPACTED)]))
    return entries


def big_entries() -> list[Entry]:
    """About 6 MB: a flush of it takes a few milliseconds."""
    return [
        entry(
            1 + at, 1 + 50 * at, [pb.PutRequest(key=b"%d" % (50 * at + n), value=os.urandom(1000)) for n in range(50)]
        )
        for at in range(60)
    ]


def die_at_write(point: int) -> None:
    """Even points: right before a write; odd: right after it, with everything written so far on the disk."""
    real = Engine.write
    seen = 0

    def write(self: Engine, batch: WriteBatch) -> None:
        nonlocal seen
        if point == 2 * seen:
            self._db.flush()
            os._exit(DIED)
        real(self, batch)
        if point == 2 * seen + 1:
            self._db.flush()
            os._exit(DIED)
        seen += 1

    Engine.write = write  # type: ignore[method-assign]


async def delete(path: Path, point: int) -> None:
    transaction.BIG_DELETE = 100  # type: ignore[misc]
    transaction._CHUNK = 16  # type: ignore[misc]
    transaction.SPILL_BYTES = 2000  # type: ignore[misc]
    state = State(path)
    entries = delete_entries()
    await state.feed(entries[:6])
    await state.store.flush()
    die_at_write(point)
    await state.feed(entries[6:])


async def compact(path: Path, point: int) -> None:
    compaction._VERSIONS = 3  # type: ignore[misc]
    compaction._EVENTS = 10  # type: ignore[misc]
    compaction._BATCH_BYTES = 100  # type: ignore[misc]
    state = State(path)
    await state.feed(compaction_entries())
    await state.store.flush()
    die_at_write(point)
    await Compactor(state.store).run()


async def flush(path: Path, point: int) -> None:
    """Die some milliseconds into a flush, or right after it, while applying goes on."""
    state = State(path)
    entries = big_entries()
    await state.feed(entries[:40])
    state.store.engine._db.flush()
    await state.feed(entries[40:50])
    if point > 14:
        return

    def killer() -> None:
        time.sleep(point * point * 0.0003)
        os._exit(DIED)

    async def go_on() -> None:
        for one in entries[50:]:
            await state.feed([one])
            await asyncio.sleep(0)

    if point < 12:
        threading.Thread(target=killer, daemon=True).start()
    applying = asyncio.ensure_future(go_on())
    index = await state.store.flush()
    (path / "flushed").write_text(str(index))
    await applying
    os._exit(DIED)


SCENARIOS: dict[str, Callable[[Path, int], object]] = {"delete": delete, "compact": compact, "flush": flush}


def main(name: str, folder: Path) -> None:
    point = 0
    while True:
        pid = os.fork()
        if pid == 0:
            asyncio.run(SCENARIOS[name](folder / str(point), point))  # type: ignore[arg-type]
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            print(point)
            return
        assert code == DIED, f"{name} {point}: exit code {code}"
        point += 1


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
