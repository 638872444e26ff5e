"""What the engine does around RocksDB: holding compactions back, and writing past the page cache."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from kvstore.mvcc import engine as engines
from kvstore.mvcc.engine import Engine


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Engine, list[bool]]:
    monkeypatch.setattr(engines, "_HOLD_SECONDS", 0.02)
    engine = Engine(tmp_path / "db")
    told: list[bool] = []
    real = engine._set_holding

    def tell(hold: bool) -> None:
        told.append(hold)
        if told == [True, False]:
            raise OSError("the first release fails")
        real(hold)

    monkeypatch.setattr(engine, "_set_holding", tell)
    return engine, told


async def until_told(told: list[bool], wanted: list[bool]) -> None:
    async with asyncio.timeout(20):
        while told != wanted:
            await asyncio.sleep(0.005)


async def test_a_hold_ends_by_itself_and_a_failed_release_is_tried_again(settings: tuple[Engine, list[bool]]) -> None:
    engine, told = settings
    await engine.hold_compactions()
    await engine.hold_compactions()
    assert told == [True], "a second call only prolongs it"
    await until_told(told, [True, False, False])
    await asyncio.sleep(0)  # what the release's end sets off
    async with asyncio.timeout(20):
        while len(told) == 3:
            await engine.hold_compactions()
            await asyncio.sleep(0.005)
    assert told[3] is True, "it can be held again"
    await until_told(told, [True, False, False, True, False])
    engine.close()


async def test_a_hold_may_outlive_the_database(settings: tuple[Engine, list[bool]]) -> None:
    engine, told = settings
    await engine.hold_compactions()
    engine.close()
    await until_told(told, [True, False, False])


async def test_nothing_is_held_while_too_many_files_wait(
    settings: tuple[Engine, list[bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, told = settings
    monkeypatch.setattr(engines, "_LEVEL0_HELD_MAX", 0)
    await engine.hold_compactions()
    assert told == []
    engine.close()


@pytest.mark.parametrize("refuses", ["", "open", "write"])
async def test_a_file_system_without_direct_io_is_written_through_the_page_cache(
    tmp_path: Path, refuses: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(errno.EINVAL, "no O_DIRECT here")

    if not refuses:
        try:
            os.close(os.open(tmp_path / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
        except OSError:
            pytest.skip(f"the file system of {tmp_path} has no direct I/O")
    with monkeypatch.context() as patch:
        if refuses:
            patch.setattr(os, refuses, refuse)
        engine = Engine(tmp_path / "db")
    assert not (tmp_path / "db" / ".direct").exists()
    options = next((tmp_path / "db").glob("OPTIONS-*")).read_text()
    assert ("use_direct_io_for_flush_and_compaction=true" in options) is not bool(refuses)
    batch = engine.batch()
    batch.put(b"k", b"v")
    engine.write(batch)
    await engine.flush()
    engine.close()
    again = Engine(tmp_path / "db")
    assert again.get(b"k") == b"v"
    again.close()
