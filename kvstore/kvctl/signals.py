"""SIGINT and SIGTERM for verbs that have something to give back before they end."""

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias, TypeVar

STOPPING: Final = (signal.SIGINT, signal.SIGTERM)

Stopped: TypeAlias = "asyncio.Future[signal.Signals]"
T = TypeVar("T")


@contextmanager
def stopping() -> Iterator[Stopped]:
    """Meanwhile they end nothing: the first one is the future's result."""
    loop = asyncio.get_running_loop()
    stopped: Stopped = loop.create_future()
    for number in STOPPING:
        loop.add_signal_handler(number, _signalled, stopped, number)
    try:
        yield stopped
    finally:
        for number in STOPPING:
            loop.remove_signal_handler(number)


def _signalled(stopped: Stopped, number: signal.Signals) -> None:
    if not stopped.done():
        stopped.set_result(number)


async def unless(stopped: Stopped, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; cancelled, and CancelledError, when a signal comes first."""
    task = asyncio.create_task(work)
    try:
        await first(task, stopped)
    finally:
        task.cancel()  # nothing when it is done
    return await task


async def until(stopped: Stopped, lost: Coroutine[Any, Any, None]) -> bool:
    """True when a signal came; False when `lost` ended first."""
    task = asyncio.create_task(lost)
    try:
        await first(task, stopped)
    finally:
        task.cancel()
    return stopped.done()


async def first(*futures: "asyncio.Future[Any]") -> None:
    """Until one of them is done."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
