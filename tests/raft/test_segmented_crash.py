"""Crashes: before every call that changes the disk, and at random (S-46, S-47, S-50, S-51, 1c).

Whatever was acknowledged is there after the restart, and nothing that was never given.
repro of a failure: the seeds are in the test's id and in the assertion's text.
"""

import errno
from pathlib import Path

import pytest

from raft.errors import StorageError
from raft.testing.disk import Fate, PowerCut, SimFileSystem
from raft.types import Entry, HardState
from tests.raft.segmented_model import PATH, Driver, SeededRng

OPERATIONS = 14


def run(driver: Driver, operations: int) -> bool:
    """Whether all operations came to an end."""
    try:
        driver.start()
        for _ in range(operations):
            driver.step()
    except PowerCut:
        return False
    return True


@pytest.mark.parametrize("fate", list(Fate))
@pytest.mark.parametrize("seed", range(6))
def test_crash_before_every_call(seed: int, fate: Fate) -> None:
    whole = Driver(seed, 0)
    assert run(whole, OPERATIONS)
    assert whole.disk.calls > OPERATIONS
    for disk_seed in range(3 if fate is Fate.TORN else 1):
        for crash_at in range(1, whole.disk.calls + 1):
            driver = Driver(seed, disk_seed)
            driver.disk.crash_at = crash_at
            assert not run(driver, OPERATIONS)
            driver.restart(fate)
            for _ in range(3):
                driver.step()
            driver.restart(Fate.LOST)


@pytest.mark.parametrize("seed", range(4))
def test_crash_before_every_call_of_a_start(seed: int) -> None:
    for crash_at in range(1, 12):
        driver = Driver(seed, seed)
        driver.disk.crash_at = 40 + 7 * seed
        run(driver, 100)
        driver.disk.power_cut(Fate.TORN)
        driver.disk.crash_at = driver.disk.calls + crash_at
        run(driver, 0)
        driver.restart(Fate.TORN)
        driver.step()
        driver.restart(Fate.LOST)


@pytest.mark.parametrize("block", range(8))
def test_random_operations_crashes_and_failures(block: int) -> None:
    for seed in range(block * 25, block * 25 + 25):
        driver = Driver(seed, seed)
        driver.start()
        for _ in range(12):
            calls = driver.disk.calls + driver.random.randint(1, 25)
            fate = driver.random.choice([None, *Fate])
            if driver.random.random() < 0.5:
                driver.disk.crash_at = calls
            else:
                driver.disk.failures[calls] = OSError(errno.EIO, "injected")
            try:
                while driver.disk.calls < calls:
                    driver.step()
            except PowerCut:
                fate = fate or Fate.TORN
            except StorageError:
                with pytest.raises(StorageError):
                    driver.storage.save(HardState(99, 0, 0), [], True)
                assert driver.disk.calls == calls or calls in driver.disk.failures, "a call after a failure"
            driver.disk.failures.clear()
            driver.restart(fate)


def started() -> Driver:
    driver = Driver(1, 1)
    driver.segment_bytes = 6000
    driver.start()
    save(driver, 1, 1)
    return driver


def save(driver: Driver, first: int, count: int, size: int = 300) -> None:
    hard_state, entries = HardState(1, 2, 0), [Entry(first + i, 1, b"x" * size) for i in range(count)]
    driver.model.save(hard_state, entries)
    driver.storage.save(hard_state, entries, True)
    driver.model.synced()


@pytest.mark.parametrize("fate", [None, *Fate])
def test_a_failed_fsync_is_final_and_never_tried_again(fate: Fate | None) -> None:
    driver = started()
    driver.disk.failures[driver.disk.calls + 2] = OSError(errno.EIO, "injected")
    with pytest.raises(StorageError, match=r"save failed.*injected"):
        save(driver, 2, 3)
    calls = driver.disk.calls
    with pytest.raises(StorageError):
        driver.storage.save(None, [], True)
    with pytest.raises(StorageError):
        driver.storage.entries(1, 1, 10)
    with pytest.raises(StorageError):
        driver.storage.compact(1, driver.storage._configuration)
    with pytest.raises(StorageError):
        driver.storage.reset(5, 1, driver.storage._configuration)
    assert driver.disk.calls == calls
    driver.restart(fate)


def test_after_a_failed_fsync_a_new_start_writes_again_what_it_found() -> None:
    """The system holds the bytes as clean though the disk does not have them: reading them proves nothing."""
    driver = started()
    driver.disk.failures[driver.disk.calls + 2] = OSError(errno.EIO, "injected")
    with pytest.raises(StorageError):
        save(driver, 2, 3)
    driver.restart(None)
    assert driver.storage.last_index == 4
    save(driver, 5, 1)
    driver.restart(Fate.LOST)
    assert driver.storage.last_index == 5


@pytest.mark.parametrize("fate", [None, *Fate])
@pytest.mark.parametrize("room", [0, 1, 43, 44, 45, 400, 1500])
def test_disk_full_in_the_middle_of_a_batch(room: int, fate: Fate | None) -> None:
    driver = started()
    driver.disk.capacity = (
        sum([len(driver.disk.content(PATH / name)) for name in driver.disk.names(PATH)]) - 4000 + room
    )  # the zeros are there already: take them away
    path = PATH / driver.disk.names(PATH)[0]
    driver.disk.cut(path, driver.disk.capacity - room)
    driver.storage._segments[-1].filled = driver.disk.capacity - room
    with pytest.raises(StorageError, match="no space"):
        save(driver, 2, 12)
    driver.disk.capacity = None
    driver.restart(fate)
    save(driver, driver.storage.last_index + 1, 2)
    driver.restart(Fate.LOST)


def test_disk_full_when_a_segment_begins() -> None:
    driver = started()
    driver.disk.capacity = 6500
    for first in range(2, 15):
        save(driver, first, 1)
    with pytest.raises(StorageError, match="no space"):
        save(driver, 15, 15)
    assert any(name.endswith(".tmp") for name in driver.disk.names(PATH))
    driver.disk.capacity = None
    driver.restart(None)
    assert not any(name.endswith(".tmp") for name in driver.disk.names(PATH))
    save(driver, driver.storage.last_index + 1, 30)
    driver.restart(Fate.LOST)


def test_the_simulated_disk_loses_what_was_not_synced() -> None:
    """The injector itself: each promise that a program might forget to ask for is broken."""
    disk = SimFileSystem(SeededRng(0))
    disk.make_directory(Path("/d"))
    a, b = disk.create(Path("/d/a")), disk.create(Path("/d/b"))
    a.pwritev([b"synced"], 0)
    a.fdatasync()
    a.pwritev([b"lost"], 100)
    disk.sync_directory(Path("/d"))
    disk.rename(Path("/d/b"), Path("/d/c"))
    disk.create(Path("/d/e")).fdatasync()
    b.pwritev([b"lost too"], 0)
    assert disk.names(Path("/d")) == ["a", "c", "e"]
    disk.power_cut(Fate.LOST)
    assert disk.names(Path("/d")) == ["a", "b"]
    assert disk.content(Path("/d/a")) == b"synced"
    assert disk.content(Path("/d/b")) == b""


def test_the_simulated_disk_tears_and_reorders() -> None:
    seen = set()
    for seed in range(60):
        disk = SimFileSystem(SeededRng(seed))
        disk.make_directory(Path("/d"))
        file = disk.create(Path("/d/a"))
        file.pwritev([bytes(1024)], 0)
        file.fdatasync()
        disk.sync_directory(Path("/d"))
        file.pwritev([b"x" * 1024], 0)
        disk.power_cut(Fate.TORN)
        content = disk.content(Path("/d/a"))
        seen.add((content[0], content[511], content[512], content[1023]))
    assert {(0, 0, 120, 120), (120, 120, 0, 0), (120, 0, 120, 0), (120, 120, 120, 120), (0, 0, 0, 0)} <= seen
