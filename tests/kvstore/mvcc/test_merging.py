"""Defragmenting: what was deleted leaves the disk, and the loop goes on meanwhile."""

import asyncio
import os
from pathlib import Path

from tests.kvstore.state.support import State, state_hash


async def test_merged_files_hold_no_deleted_rows(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    engine = state.store.engine
    for _ in range(7):
        for at in range(50):
            await state.put(b"k%d" % at, os.urandom(20_000))
        await state.store.flush()
    # History stays for ever, so what can go are rows of `latest` that were overwritten.
    before, held = engine.size_bytes(), state_hash(state.store)
    async with engine.merging():
        await state.put(b"meanwhile")
        while engine.merges_left:
            await asyncio.sleep(0.01)
    assert engine.size_bytes() < before - 3_000_000
    await state.delete(b"meanwhile")
    assert state_hash(state.store) != held
    await state.store.flush()
    files = len(list((tmp_path / "s").glob("*.sst")))
    assert files > 1  # few files wait again for more of them
    state.close()
