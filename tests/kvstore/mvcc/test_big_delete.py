"""Half a million keys deleted at once: the loop keeps turning. Prints the longest time it did not."""

import asyncio
import time
from pathlib import Path

import pytest

from kvstore.mvcc.store import MvccStore
from kvstore.pb import rpc_pb2 as pb
from kvstore.state.applier import Applier
from tests.kvstore.state.support import Entry, Sinks, entry

KEYS = 500_000


@pytest.mark.slow
async def test_a_delete_of_500_000_keys_lets_others_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = MvccStore.open(tmp_path / "s")
    applier = Applier(store, 1, 1, Sinks())

    async def feed(one: Entry) -> None:
        await applier.apply([one])

    for at in range(0, KEYS, 500):
        await feed(
            entry(1 + at // 500, at + 1, [pb.PutRequest(key=b"k%08d" % (at + n), value=b"v") for n in range(500)])
        )
    deleting = asyncio.ensure_future(
        feed(entry(KEYS // 500 + 1, KEYS + 1, [pb.DeleteRangeRequest(key=b"k", range_end=b"l")]))
    )
    turns, worst = 0, 0.0
    last = began = time.perf_counter()
    while not deleting.done():
        await asyncio.sleep(0)
        now = time.perf_counter()
        turns, worst, last = turns + 1, max(worst, now - last), now
    await deleting
    with capsys.disabled():
        print(f"\ndelete of {KEYS} keys: {last - began:.2f} s, longest hold of the loop {worst * 1000:.1f} ms")
    assert turns > 100
    assert store.current_revision == KEYS + 2
    store.close()
