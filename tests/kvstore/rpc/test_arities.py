"""All four arities, in both styles of grpc.aio: iterators, and reading and writing by hand."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.kvstore.rpc.ends import EOF, SECONDS, Ends, echo, error_of, method, own, soon, status_of, until

SIZES = [0, 1, 5, 16 * 1024 - 5, 16 * 1024, 64 * 1024, 64 * 1024 + 1]


async def numbers(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for number in range(int(request)):
        yield b"%d" % number


async def joined(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return b",".join([request async for request in requests])


async def each_twice(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request
        yield request


@pytest.mark.also_tls
async def test_unary_unary(ends: Ends) -> None:
    channel = await ends.connect(unary_unary=echo)
    call = method(channel, "unary_unary")(b"hello")
    assert await call == b"hello"
    assert await call.code() is grpc.StatusCode.OK
    assert await call.details() == ""
    assert own(await call.initial_metadata()) == own(await call.trailing_metadata()) == []
    assert call.done()
    assert not call.cancelled()
    assert not call.cancel(), "what has ended cannot be cancelled"
    assert await call == b"hello", "awaiting it again gives the same"


@pytest.mark.also_tls
async def test_unary_stream(ends: Ends) -> None:
    channel = await ends.connect(unary_stream=numbers)
    call = method(channel, "unary_stream")(b"500")
    assert [message async for message in call] == [b"%d" % number for number in range(500)]
    assert (await status_of(call)).code is grpc.StatusCode.OK
    assert [message async for message in method(channel, "unary_stream")(b"0")] == []


async def test_unary_stream_read(ends: Ends) -> None:
    channel = await ends.connect(unary_stream=numbers)
    call = method(channel, "unary_stream")(b"2")
    assert [await call.read(), await call.read()] == [b"0", b"1"]
    assert await call.read() is EOF
    assert await call.read() is EOF
    assert await call.code() is grpc.StatusCode.OK


@pytest.mark.also_tls
async def test_stream_unary(ends: Ends) -> None:
    channel = await ends.connect(stream_unary=joined)

    async def requests() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%d" % number

    assert await method(channel, "stream_unary")(requests()) == b",".join([b"%d" % number for number in range(100)])
    assert await method(channel, "stream_unary")(iter([b"a", b"b"])) == b"a,b", "a plain iterator serves too"
    assert await method(channel, "stream_unary")(iter([])) == b""


async def test_stream_unary_write(ends: Ends) -> None:
    channel = await ends.connect(stream_unary=joined)
    call = method(channel, "stream_unary")()
    await call.write(b"a")
    await call.write(b"b")
    await call.done_writing()
    await call.done_writing()
    assert await call == b"a,b"
    with pytest.raises(asyncio.InvalidStateError, match=r"RPC already finished\."):
        await call.write(b"c")


@pytest.mark.also_tls
async def test_stream_stream(ends: Ends) -> None:
    channel = await ends.connect(stream_stream=each_twice)
    messages = [b"%d" % number for number in range(300)]
    call = method(channel, "stream_stream")(iter(messages))
    assert [message async for message in call] == [message for message in messages for _ in range(2)]
    assert (await status_of(call)).code is grpc.StatusCode.OK


async def test_stream_stream_one_at_a_time(ends: Ends) -> None:
    """An answer does not wait for the next request, nor for the end."""
    channel = await ends.connect(stream_stream=each_twice)
    call = method(channel, "stream_stream")()
    for number in range(20):
        await call.write(b"%d" % number)
        assert [await call.read(), await call.read()] == [b"%d" % number] * 2
    await call.done_writing()
    with pytest.raises(asyncio.InvalidStateError, match=r'RPC is half closed after calling "done_writing"\.'):
        await call.write(b"late")
    assert await call.read() is EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_the_servers_reading_and_writing(ends: Ends) -> None:
    """context.read and context.write, in handlers that are plain coroutines."""

    async def sums(_: Any, context: Any) -> None:
        total = 0
        while (message := await context.read()) is not EOF:
            total += int(message)
            await context.write(b"%d" % total)
        await context.write(b"end")

    async def total(_: Any, context: Any) -> bytes:
        numbers = []
        while (message := await context.read()) is not EOF:
            numbers.append(int(message))
        return b"%d" % sum(numbers)

    async def countdown(request: bytes, context: Any) -> None:
        for number in range(int(request), 0, -1):
            await context.write(b"%d" % number)

    channel = await ends.connect(stream_stream=sums, stream_unary=total, unary_stream=countdown)
    messages = [b"1", b"2", b"3"]
    got = [message async for message in method(channel, "stream_stream")(iter(messages))]
    assert got == [b"1", b"3", b"6", b"end"]
    assert await method(channel, "stream_unary")(iter(messages)) == b"6"
    assert [message async for message in method(channel, "unary_stream")(b"3")] == [b"3", b"2", b"1"]


async def test_a_handler_may_end_before_its_requests_do(ends: Ends) -> None:
    """The status arrives although the client has not said its last word, with all that was sent before."""

    async def first(requests: AsyncIterator[bytes], context: Any) -> bytes:
        return await anext(requests)

    async def early(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await anext(requests)
        for _ in range(30):
            yield b"x" * 10_000
        context.set_trailing_metadata((("x-last", "1"),))

    channel = await ends.connect(stream_unary=first, stream_stream=early)
    call = method(channel, "stream_unary")()
    await call.write(b"one")
    assert await soon(call) == b"one"
    stream = method(channel, "stream_stream")()
    await stream.write(b"one")
    got = [message async for message in stream]
    assert [len(message) for message in got] == [10_000] * 30
    status = await status_of(stream)
    assert (status.code, own(status.trailing)) == (grpc.StatusCode.OK, [("x-last", "1")])


async def test_styles_are_not_mixed(ends: Ends) -> None:
    channel = await ends.connect(stream_stream=each_twice)
    text = "The iterator and read/write APIs may not be mixed on a single RPC."
    reading = method(channel, "stream_stream")()
    await reading.write(b"a")
    await reading.read()
    with pytest.raises(grpc.aio.UsageError, match=text):
        reading.__aiter__()
    reading.cancel()

    async def forever() -> AsyncIterator[bytes]:
        for number in itertools.count():
            yield b"%d" % number
            await asyncio.Event().wait()

    iterating = method(channel, "stream_stream")(forever())
    with pytest.raises(grpc.aio.UsageError, match=text):
        await iterating.write(b"b")
    with pytest.raises(grpc.aio.UsageError, match=text):
        await iterating.done_writing()
    iterating.cancel()


async def test_a_request_iterator_that_raises_cancels_the_call(ends: Ends) -> None:
    cancelled = asyncio.Event()

    async def wait(requests: AsyncIterator[bytes], context: Any) -> bytes:
        try:
            return b"".join([request async for request in requests])
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def bad() -> AsyncIterator[bytes]:
        yield b"a"
        raise RuntimeError("of the test")

    channel = await ends.connect(stream_unary=wait)
    call = method(channel, "stream_unary")(bad())
    with pytest.raises(asyncio.CancelledError):
        await call
    assert call.cancelled()
    assert await call.code() is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("size", SIZES)
async def test_messages_of_each_size(ends: Ends, size: int) -> None:
    channel = await ends.connect(unary_unary=echo, stream_stream=each_twice)
    message = bytes(itertools.islice(itertools.cycle(range(251)), size))
    assert await method(channel, "unary_unary")(message) == message
    assert [got async for got in method(channel, "stream_stream")(iter([message, b"", message]))] == [
        *(message, message, b"", b"", message, message)
    ]


@pytest.mark.also_tls
async def test_a_large_message(ends: Ends) -> None:
    """4 MiB, gRPC's own limit, both ways; one byte more is refused by either end, and the connection goes on."""
    limit = 4 * 1024 * 1024

    async def of_size(request: bytes, context: Any) -> bytes:
        return b"x" * int(request)

    await ends.serve(unary_unary=echo, unary_stream=numbers, stream_unary=of_size)
    server = ends.server(unary_unary=of_size)
    echoing = ends.channel()
    assert len(await method(echoing, "unary_unary")(b"x" * limit)) == limit
    await ends.start(server)
    sizing = ends.channel()
    assert len(await method(sizing, "unary_unary")(b"%d" % limit)) == limit
    refused = await error_of(method(echoing, "unary_unary")(b"x" * (limit + 1)))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.details is not None
    assert f"({limit + 1} vs. {limit})" in refused.details
    refused = await error_of(method(sizing, "unary_unary")(b"%d" % (limit + 1)))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.details is not None
    assert f"({limit + 1} vs. {limit})" in refused.details
    assert await method(echoing, "unary_unary")(b"next") == b"next"
    assert await method(sizing, "unary_unary")(b"1") == b"x"


async def test_serialisers_are_used(ends: Ends) -> None:
    async def double(request: int, context: Any) -> int:
        return 2 * request

    handler = grpc.unary_unary_rpc_method_handler(
        double, request_deserializer=int, response_serializer=lambda answer: b"%d" % answer
    )
    server = ends.server()
    server.add_registered_method_handlers("t.Registered", {"Double": handler})
    await ends.start(server)
    ask = ends.channel().unary_unary("/t.Registered/Double", lambda request: b"%d" % request, int)
    assert await ask(21) == 42


async def test_many_calls_at_once(ends: Ends) -> None:
    channel = await ends.connect(unary_unary=echo, stream_stream=each_twice)
    messages = [b"%d" % number for number in range(300)]
    assert await asyncio.gather(*[method(channel, "unary_unary")(message) for message in messages]) == messages


async def test_calls_of_one_connection_do_not_wait_for_each_other(ends: Ends) -> None:
    """A reader that does not read holds up its own stream only."""

    async def flood(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(640):
            yield b"x" * 100_000

    channel = await ends.connect(unary_unary=echo, unary_stream=flood)
    stuck = method(channel, "unary_stream")(b"")
    await stuck.read()
    for number in range(20):
        assert await method(channel, "unary_unary")(b"%d" % number, timeout=SECONDS) == b"%d" % number
    stuck.cancel()


async def test_wait_for_connection(ends: Ends) -> None:
    channel = await ends.connect(unary_unary=echo, stream_stream=each_twice)
    call = method(channel, "stream_stream")()
    await soon(call.wait_for_connection())
    call.cancel()
    unary = method(channel, "unary_unary")(b"a")
    await soon(unary.wait_for_connection())
    assert await unary == b"a"


async def test_done_callbacks(ends: Ends) -> None:
    channel = await ends.connect(unary_unary=echo)
    done: list[Any] = []
    call = method(channel, "unary_unary")(b"a")
    call.add_done_callback(done.append)
    await call
    await until(lambda: done == [call])
    call.add_done_callback(done.append)
    await until(lambda: done == [call, call])
