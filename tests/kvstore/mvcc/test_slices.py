"""Long work pauses, whatever it is: counted by a clock that ticks once per look."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kvstore.mvcc.compaction import Compactor
from kvstore.mvcc.events import read_events
from kvstore.mvcc.hash import hash_kv
from kvstore.mvcc.range import range_
from kvstore.mvcc.slices import Budget, in_thread
from kvstore.mvcc.store import StoreOptions
from kvstore.pb import rpc_pb2 as pb
from tests.kvstore.state.support import State


async def test_every_long_operation_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**9))
    state = State(tmp_path / "s", options=StoreOptions(clock=lambda: next(ticks), slice_ns=1))
    for at in range(4):
        await state.apply(*[pb.PutRequest(key=b"k%05d" % (500 * at + n), value=b"v") for n in range(500)])
    pauses = 0
    real = Budget.pause

    async def pause(budget: Budget) -> None:
        nonlocal pauses
        pauses += 1
        await real(budget)

    monkeypatch.setattr(Budget, "pause", pause)
    view = state.store.view()
    everything = {"key": b"\0", "range_end": b"\0"}

    async def delete() -> None:
        await state.delete(b"k", b"l")

    async def compact() -> None:
        await state.apply(pb.CompactionRequest(revision=state.store.current_revision))
        await Compactor(state.store).run()

    compare = pb.TxnRequest(compare=[pb.Compare(key=b"\0", range_end=b"\0", target=pb.Compare.LEASE)])
    steps: dict[str, Callable[[], Awaitable[object]]] = {
        "range": lambda: range_(view, pb.RangeRequest(**everything)),  # type: ignore[arg-type]
        "count": lambda: range_(view, pb.RangeRequest(**everything, count_only=True)),  # type: ignore[arg-type]
        "limited": lambda: range_(view, pb.RangeRequest(**everything, limit=1)),  # type: ignore[arg-type]
        "sorted": lambda: range_(view, pb.RangeRequest(**everything, sort_target=pb.RangeRequest.MOD)),  # type: ignore[arg-type]
        "old": lambda: range_(view, pb.RangeRequest(**everything, revision=2000)),  # type: ignore[arg-type]
        "events": lambda: read_events(view, 0, 1 << 40),
        "hash": lambda: hash_kv(view, 0),
        "compare": lambda: state.apply(compare),
        "delete": delete,
        "compact": compact,
    }
    for name, step in steps.items():
        pauses = 0
        await step()
        assert pauses >= 2000 // 256, f"{name} paused {pauses} times"
    view.close()
    state.close()


async def test_who_is_cancelled_while_a_thread_works_for_him_waits_for_the_thread() -> None:
    """Else a member that stops during a flush closes the database under it."""
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait()

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    waited = not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert waited
