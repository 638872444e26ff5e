"""The lag that the big delete's test relies on: it sees a loop that stands still."""

import asyncio
import time

import pytest
from structlog.testing import capture_logs

from kvstore.lag import VARIABLE, LoopLag, wants_lag


async def worst(lag: LoopLag) -> float:
    """What a report says; the task must have been woken once more since the stall."""
    await asyncio.sleep(0.02)
    with capture_logs() as logs:
        lag.report()
    return float(logs[0]["stall_ms"])


async def test_sees_a_blocked_loop_and_begins_anew() -> None:
    lag = LoopLag()
    try:
        await asyncio.sleep(0.01)
        time.sleep(0.15)  # on purpose: the loop is what must stand still
        assert await worst(lag) > 100
        assert await worst(lag) < 100
    finally:
        lag.close()


async def test_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not wants_lag()
