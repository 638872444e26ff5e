"""Defragmenting: what was deleted leaves the disk, and the loop goes on meanwhile."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.kvstore.state.support import State, state_hash


async def test_merged_files_hold_no_deleted_rows(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    engine = state.store.engine
    for _ in range(7):
        for at in range(500):
            await state.put(b"k%d" % at, os.urandom(2_000))
        await state.store.flush()
    # History stays for ever, so what can go are rows of `latest` that were overwritten.
    before, held = engine.size_bytes(), state_hash(state.store)
    assert before == pytest.approx(_on_disk(tmp_path / "s"), rel=0.02)
    async with engine.merging():
        await state.put(b"meanwhile")
        while engine.merges_left:
            await asyncio.sleep(0.01)
    assert engine.size_bytes() < before - 3_000_000
    assert _on_disk(tmp_path / "s") < before - 3_000_000
    await state.delete(b"meanwhile")
    assert state_hash(state.store) != held
    await state.store.flush()
    files = len(list((tmp_path / "s").glob("*.sst")))
    assert files > 1  # few files wait again for more of them
    state.close()


async def test_large_values_are_on_the_disk_once(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    engine, rounds = state.store.engine, 10
    for _ in range(rounds):
        for at in range(20):
            await state.put(b"k%d" % at, os.urandom(20_000))
        await state.store.flush()
    history = rounds * 20 * 20_000
    assert history < _on_disk(tmp_path / "s") < 1.02 * history
    assert engine.size_bytes() == pytest.approx(_on_disk(tmp_path / "s"), rel=0.02)
    state.close()


def _on_disk(path: Path) -> int:
    return sum([file.stat().st_size for file in path.iterdir() if file.suffix in (".sst", ".blob")])
