"""Failpoints: what their language means, and that a name with a slip in it is never silently without effect."""

import asyncio
import errno
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from raft import failpoints
from raft.failpoints import FailpointError, InjectedError, arm, arm_all, disarm, fail, fail_async, listing

POINT, OTHER = "walBeforeSync", "raftBeforeSave"


@pytest.fixture(autouse=True)
def _all_off() -> Iterator[None]:
    yield
    for point in listing():
        disarm(point.name)


def outcomes(count: int, name: str = POINT) -> str:
    """E for each time that raised, - for each that did not."""
    found = ""
    for _ in range(count):
        try:
            fail(name)
            found += "-"
        except InjectedError:
            found += "E"
    return found


def state(name: str = POINT) -> failpoints.PointState:
    return next(point for point in listing() if point.name == name)


def test_off_does_nothing_and_counts_nothing() -> None:
    assert outcomes(3) == "---"
    assert (state().actions, state().hits) == ("", 0)


def test_error_is_an_error_of_the_disk() -> None:
    arm(POINT, "error")
    with pytest.raises(InjectedError, match=POINT) as raised:
        fail(POINT)
    assert raised.value.errno == errno.EIO
    fail(OTHER)  # the others stay off


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        ("error", "EEEE"),
        ("off", "----"),
        ("1*error", "E---"),
        ("2*error", "EE--"),
        ("2*off->1*error", "--E-"),
        ("1*error->1*off->error", "E-EE"),
        ("0%error", "----"),
        ("100%error", "EEEE"),
        ("1*0%error->error", "-EEE"),
    ],
)
def test_terms_are_used_up_from_left_to_right(actions: str, expected: str) -> None:
    arm(POINT, actions)
    assert outcomes(4) == expected
    assert (state().hits, state().fired) == (4, expected.count("E"))


def test_chance() -> None:
    arm(POINT, "50%error")
    assert 100 < outcomes(400).count("E") < 300


async def test_a_sleep_in_a_coroutine_holds_that_task_only() -> None:
    arm(POINT, "1*sleep(60000)")
    held = asyncio.ensure_future(fail_async(POINT))
    await asyncio.sleep(0.01)  # the loop goes on
    assert not held.done()
    held.cancel()


def test_any_other_sleep_holds_the_thread() -> None:
    arm(POINT, "1*sleep(30)")
    began = time.monotonic()
    fail(POINT)
    assert time.monotonic() - began >= 0.03


async def test_an_error_in_a_coroutine() -> None:
    arm(POINT, "error")
    with pytest.raises(InjectedError):
        await fail_async(POINT)


def test_panic_ends_the_process_past_every_handler() -> None:
    program = (
        "from raft.failpoints import arm_all, fail\n"
        f"arm_all('{POINT}=1*off->panic')\n"
        "try:\n"
        f"    fail('{POINT}'); print('passed', flush=True); fail('{POINT}')\n"
        "finally:\n"
        "    print('handler', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (failpoints.PANIC_EXIT, "passed\n")
    assert POINT in done.stderr


def test_several_at_once_and_off_again() -> None:
    arm_all(f" {POINT}=error ; {OTHER}=1*error; ")
    assert outcomes(1) + outcomes(2, OTHER) == "EE-"
    disarm(POINT)
    assert outcomes(1) == "-"
    disarm(OTHER)
    assert failpoints._armed is None  # nothing is looked up any more


def test_an_unknown_name_is_refused_with_near_ones() -> None:
    with pytest.raises(FailpointError, match=r"raftBeforeSav'.*near are raftBeforeSave"):
        arm("raftBeforeSav", "panic")
    with pytest.raises(FailpointError, match="no failpoint"):
        disarm("raftBeforeSav")
    assert failpoints._armed is None


@pytest.mark.parametrize(
    "text",
    [
        POINT,
        f"{POINT}=",
        f"{POINT}=crash",
        f"{POINT}=sleep",
        f"{POINT}=sleep()",
        f"{POINT}=sleep(-1)",
        f"{POINT}=sleep(9999999)",
        f"{POINT}=101%error",
        f"{POINT}=-1*error",
        f"{POINT}=error->",
        f"{OTHER}=error;{POINT}=crash",
        f"{OTHER}=error;nowhere=error",
    ],
)
def test_what_is_not_understood_arms_nothing(text: str) -> None:
    with pytest.raises(FailpointError):
        arm_all(text)
    assert failpoints._armed is None
