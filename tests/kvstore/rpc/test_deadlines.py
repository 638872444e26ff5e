"""Deadlines and cancellations: who notices, what is told, what is left behind."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.kvstore.rpc.ends import Ends, Status, echo, error_of, method, soon, until

Code = grpc.StatusCode
SHORT = 0.15  # seconds; long enough for a call to arrive


def is_deadline(status: Status) -> bool:
    """grpc-core says it with more or fewer words around, as the stream was in the making or not; a server's own words
    may come first."""
    return status.code is Code.DEADLINE_EXCEEDED and "deadline exceeded" in (status.details or "").lower()


class Witness:
    """Handlers of each arity that wait for ever, and what they saw of their end."""

    def __init__(self) -> None:
        self.began = 0
        self.cancelled = 0
        self.contexts: list[Any] = []
        self.remaining: list[float | None] = []
        self.callbacks: list[Any] = []

    async def unary(self, _: Any, context: Any) -> bytes:
        await self._wait(context)
        return b""

    async def stream(self, _: Any, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        await self._wait(context)

    async def reading(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        self.began += 1
        try:
            async for _ in requests:
                pass
        finally:
            self.cancelled += 1  # in grpc.aio the requests may simply end
        return b""

    async def _wait(self, context: Any) -> None:
        self.began += 1
        self.contexts.append(context)
        self.remaining.append(context.time_remaining())
        context.add_done_callback(self.callbacks.append)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def behaviours(self) -> dict[str, Any]:
        return {
            "unary_unary": self.unary,
            "unary_stream": self.stream,
            "stream_unary": self.reading,
            "stream_stream": self.stream,
        }


@pytest.mark.also_tls
async def test_a_deadline_passes(ends: Ends) -> None:
    """Both ends stop; the client hears DEADLINE_EXCEEDED, the handler is cancelled."""
    witness = Witness()
    channel = await ends.connect(**witness.behaviours())
    status = await error_of(method(channel, "unary_unary")(b"", timeout=SHORT))
    assert is_deadline(status)
    await until(lambda: witness.cancelled == 1)
    assert witness.remaining[0] is not None
    assert 0 <= witness.remaining[0] <= SHORT + 0.05
    await until(lambda: witness.callbacks == witness.contexts)
    call = method(channel, "unary_stream")(b"", timeout=SHORT)
    assert await call.read() == b"first"
    status = await error_of(call.read())
    assert is_deadline(status)
    await until(lambda: witness.cancelled == 2)
    writing = method(channel, "stream_unary")(timeout=SHORT)
    await writing.write(b"a")
    assert (await error_of(writing)).code is Code.DEADLINE_EXCEEDED
    await until(lambda: witness.cancelled == 3)


async def test_a_deadline_in_the_past(ends: Ends) -> None:
    witness = Witness()
    channel = await ends.connect(**witness.behaviours())
    for timeout in (0, -1):
        status = await error_of(method(channel, "unary_unary")(b"", timeout=timeout))
        assert is_deadline(status)


async def test_the_server_sees_the_deadline(ends: Ends) -> None:
    seen: list[float | None] = []

    async def look(request: bytes, context: Any) -> bytes:
        seen.append(context.time_remaining())
        return request

    channel = await ends.connect(unary_unary=look)
    timeouts = [0.5, 9.25, 100, 1e4, 1e6, None]
    for timeout in timeouts:
        call = method(channel, "unary_unary")(b"", timeout=timeout)
        remaining = call.time_remaining()
        assert (remaining is None) == (timeout is None)
        await call
    for timeout, remaining in zip(timeouts, seen, strict=True):
        if timeout is None:
            assert remaining is None
        else:
            # Rounded up on the wire: to 8 digits, by grpc-core to 3.
            assert remaining is not None
            assert timeout - 5 < remaining <= timeout * 1.02 + 0.1


async def test_a_handler_that_ends_in_time_is_not_disturbed(ends: Ends) -> None:
    channel = await ends.connect(unary_unary=echo)
    calls = [method(channel, "unary_unary")(b"%d" % number, timeout=30 + number) for number in range(50)]
    assert await asyncio.gather(*calls) == [b"%d" % number for number in range(50)]


@pytest.mark.also_tls
async def test_a_client_cancels(ends: Ends) -> None:
    witness = Witness()
    channel = await ends.connect(**witness.behaviours())
    call = method(channel, "unary_unary")(b"")
    await until(lambda: witness.began == 1)
    assert not witness.contexts[0].cancelled()
    assert not witness.contexts[0].done()
    assert call.cancel()
    assert call.cancelled()
    assert call.done()
    assert not call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await call.code(), await call.details()) == (Code.CANCELLED, "Locally cancelled by application!")
    await until(lambda: witness.cancelled == 1)
    await until(lambda: witness.callbacks == [witness.contexts[0]])


async def test_each_arity_is_cancelled(ends: Ends) -> None:
    witness = Witness()
    channel = await ends.connect(**witness.behaviours())
    for count, (arity, arguments) in enumerate(
        [("unary_unary", (b"",)), ("unary_stream", (b"",)), ("stream_unary", ()), ("stream_stream", ())], 1
    ):
        call = method(channel, arity)(*arguments)
        if arity == "stream_unary":
            await call.write(b"a")
        await until(lambda count=count: witness.began == count)
        if arity.endswith("stream"):
            assert await call.read() == b"first"
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call.read()
        else:
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        assert await call.code() is Code.CANCELLED
        await until(lambda count=count: witness.cancelled == count)


async def test_cancelling_who_waits_cancels_the_call(ends: Ends) -> None:
    """asyncio.wait_for and TaskGroups cancel the awaiting task: the server hears of it."""
    witness = Witness()
    channel = await ends.connect(**witness.behaviours())
    waiting = asyncio.ensure_future(_awaited(method(channel, "unary_unary")(b"")))
    await until(lambda: witness.began == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: witness.cancelled == 1)
    call = method(channel, "unary_stream")(b"")
    await call.read()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call.read(), SHORT)
    assert call.cancelled()
    await until(lambda: witness.cancelled == 2)


async def _awaited(call: Any) -> Any:
    return await call


async def test_cancelled_at_once(ends: Ends) -> None:
    """Before a byte of it was sent."""
    channel = await ends.connect(unary_unary=echo)
    for _ in range(20):
        call = method(channel, "unary_unary")(b"a")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert await method(channel, "unary_unary")(b"next") == b"next"


async def test_a_handler_may_clean_up(ends: Ends) -> None:
    """A cancelled handler runs its finally, with awaits in it."""
    cleaned = asyncio.Event()
    began = asyncio.Event()

    async def careful(request: bytes, context: Any) -> bytes:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.set()
        return b""

    channel = await ends.connect(unary_unary=careful)
    call = method(channel, "unary_unary")(b"")
    await soon(began.wait())
    call.cancel()
    await soon(cleaned.wait())


async def test_a_generator_is_closed_when_its_client_goes(ends: Ends) -> None:
    closed = asyncio.Event()

    async def endless(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 1000
        finally:
            closed.set()

    channel = await ends.connect(unary_stream=endless)
    call = method(channel, "unary_stream")(b"")
    for _ in range(10):
        await call.read()
    call.cancel()
    await soon(closed.wait())


async def test_a_deadline_while_writing(ends: Ends) -> None:
    """A client that does not read is left alone at its deadline, too."""
    cancelled = asyncio.Event()

    async def flood(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 100_000
        finally:
            cancelled.set()

    channel = await ends.connect(unary_stream=flood, unary_unary=echo)
    call = method(channel, "unary_stream")(b"", timeout=SHORT)
    await call.read()
    await soon(cancelled.wait())
    assert await call.code() is Code.DEADLINE_EXCEEDED
    assert await method(channel, "unary_unary")(b"next") == b"next"


async def test_no_task_is_left(ends: Ends) -> None:
    """After cancellations, deadlines and errors, the loop has as many tasks as before."""
    witness = Witness()
    channel = await ends.connect(**witness.behaviours())
    await error_of(method(channel, "unary_unary")(b"", timeout=SHORT))
    await until(lambda: witness.cancelled == 1)
    before = len(asyncio.all_tasks())
    calls = [method(channel, "unary_stream")(b"") for _ in range(30)]
    for call in calls:
        await call.read()
        call.cancel()
    await until(lambda: witness.cancelled == 31)
    del calls, call
    await until(lambda: len(asyncio.all_tasks()) <= before)
