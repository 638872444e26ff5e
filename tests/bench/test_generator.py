"""Both kinds of connection against a grpcio server: statuses, streams, flow control, lost connections; the loops."""

import asyncio
import itertools
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from bench import channel, h2
from bench.certificates import Certificates
from bench.load import FAILURES_MAX, Connection, Load, Operation, connect, disconnect
from tests.bench.fakes import FakeMember, serving

MIB = 1 << 20
PUT = "/etcdserverpb.KV/Put"
Dial = Callable[[str, ssl.SSLContext | None], Coroutine[Any, Any, Connection]]


@pytest.fixture
async def member() -> FakeMember:
    return FakeMember()


@pytest.fixture
async def url(member: FakeMember) -> AsyncIterator[str]:
    async with serving(member) as found:
        yield found


async def ask(connection: Connection, path: str, message: bytes) -> tuple[int, bytes]:
    answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
    connection.call(path, message, lambda status, response: answer.set_result((status, response)))
    return await answer


@pytest.mark.parametrize("dial", [h2.dial, channel.dial], ids=["h2", "nghttp2"])
class TestUnary:
    async def test_answers_belong_to_their_calls(self, url: str, dial: Dial) -> None:
        connection = await dial(url, None)
        found = await asyncio.gather(*[ask(connection, "/test/Echo", b"%d" % number) for number in range(200)])
        assert found == [(0, b"%d" % number) for number in range(200)]
        await connection.close()

    @pytest.mark.parametrize("details", ["etcdserver: leader changed", "", "long " * 800 + ".", "é\n%"])
    async def test_a_status_is_seen_whatever_its_text(
        self, url: str, dial: Dial, member: FakeMember, details: str
    ) -> None:
        member.fail_each, member.details = 1, details
        connection = await dial(url, None)
        assert (await ask(connection, PUT, b""))[0] == grpc.StatusCode.UNAVAILABLE.value[0]
        assert (await ask(connection, "/test/Nothing", b""))[0] == grpc.StatusCode.UNIMPLEMENTED.value[0]
        assert await ask(connection, "/test/Echo", b"still there") == (0, b"still there")
        await connection.close()

    async def test_a_malformed_header_is_an_error(self, url: str, dial: Dial, member: FakeMember) -> None:
        """HTTP/2 knows no space at the end of a value, and gRPC does not encode it."""
        member.fail_each, member.details = 1, "the end "
        connection = await dial(url, None)
        assert (await ask(connection, PUT, b""))[0] == h2.STATUS_UNKNOWN
        await connection.close()

    async def test_a_large_answer_comes_whole(self, url: str, dial: Dial) -> None:
        connection = await dial(url, None)
        assert await ask(connection, "/test/Large", b"3000000") == (0, b"x" * 3_000_000)
        await connection.close()

    async def test_calls_end_when_the_connection_is_lost(self, dial: Dial) -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        connection = await dial(f"http://127.0.0.1:{port}", None)
        assert (await ask(connection, "/test/Echo", b""))[0] == h2.STATUS_UNAVAILABLE
        assert (await ask(connection, "/test/Echo", b""))[0] == h2.STATUS_UNAVAILABLE, "one that begins afterwards too"
        await connection.close()
        server.close()

    async def test_tls(self, dial: Dial, tmp_path: Path) -> None:
        certificates = Certificates(tmp_path)
        files = [(tmp_path / name).read_bytes() for name in ("member.key", "member.pem", "ca.pem")]
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([FakeMember()])
        credentials = grpc.ssl_server_credentials([(files[0], files[1])], files[2], require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        connection = await dial(f"https://127.0.0.1:{port}", certificates.context)
        assert await ask(connection, "/test/Echo", b"secret") == (0, b"secret")
        await connection.close()
        await server.stop(None)


async def test_an_mebibyte_each_way_passes_the_windows(url: str) -> None:
    opened = await channel.dial(url)
    sizes = [MIB + number for number in range(10)]
    found = await asyncio.gather(*[ask(opened, "/test/Size", b"x" * size) for size in sizes])
    assert found == [(0, b"%d" % size) for size in sizes]
    back = await asyncio.gather(*[ask(opened, "/test/Echo", bytes([size % 251]) * size) for size in sizes])
    assert back == [(0, bytes([size % 251]) * size) for size in sizes]
    await opened.close()


async def test_a_small_connection_refuses_to_overrun_frame_and_window(url: str) -> None:
    connection = await h2.dial(url)
    with pytest.raises(AssertionError, match="one frame"):
        connection.call("/test/Size", b"x" * h2.FRAME_MAX, lambda status, response: None)
    for _ in range(4):
        connection.call("/test/Size", b"x" * 15_000, lambda status, response: None)
    with pytest.raises(AssertionError, match="window"):
        connection.call("/test/Size", b"x" * 15_000, lambda status, response: None)
    await connection.close()


async def test_a_stream_of_more_than_any_window(url: str) -> None:
    opened = await channel.dial(url)
    count, got, ended = 40, Counter[bytes](), asyncio.get_running_loop().create_future()
    stream = opened.stream("/test/Flood", lambda message: got.update([message[:4] + message[-4:]]), ended.set_result)
    stream.send(str(count).encode(), last=True)
    assert await ended == 0
    assert got == {number.to_bytes(4, "big") * 2: 1 for number in range(count)}
    await opened.close()


async def test_streams_both_ways_in_order_and_cancelled(url: str) -> None:
    opened = await channel.dial(url)
    got: list[bytes] = []
    arrived, ended = asyncio.Event(), asyncio.get_running_loop().create_future()

    def received(message: bytes) -> None:
        got.append(message)
        if len(got) == 1000:
            arrived.set()

    stream = opened.stream("/test/Stream", received, ended.set_result)
    sent = [b"%d" % number * (number % 50) for number in range(1000)]
    for message in sent:
        stream.send(message)
    await arrived.wait()
    assert got == sent
    other = opened.stream("/test/Stream", received, ended.set_result)
    other.cancel()
    other.send(b"into the void")
    stream.send(b"", last=True)
    assert await ended == 0
    await opened.close()


@pytest.mark.parametrize("cuts", [[], [1], [4], [5], [6], [3, 9, 15], list(range(30))])
def test_messages_are_cut_out_wherever_the_frames_end(cuts: list[int]) -> None:
    messages = [b"one", b"", b"three" * 3]
    whole = b"".join(channel.framed(message) for message in messages)
    edges = [0, *cuts, len(whole)]
    cutter = channel.Messages()
    found = [
        message for start, end in itertools.pairwise(edges) if end > start for message in cutter.feed(whole[start:end])
    ]
    assert found == messages


def put() -> Operation:
    return Operation(PUT, lambda: b"", writes=1)


async def test_a_counted_loop_makes_exactly_so_many_calls(url: str, member: FakeMember) -> None:
    opened = await connect([url], 3)
    measured = await Load(opened, put, []).counted(in_flight=10, count=95)
    assert (measured.done, measured.writes, member.puts, measured.failed) == (95, 95, 95, {})
    await disconnect(opened)


async def test_a_closed_loop_counts_all_writes_and_times_those_of_the_window(url: str, member: FakeMember) -> None:
    opened = await connect([url], 3)
    measured = await Load(opened, put, []).closed(in_flight=6, seconds=0.2)
    assert 0 < measured.done < measured.writes
    assert measured.writes == member.puts == member.revision - 1
    assert measured.histogram.percentile(50) > 0
    await disconnect(opened)


async def test_an_open_loop_begins_calls_when_they_are_due_and_times_them_from_then(url: str) -> None:
    opened = await connect([url], 2)
    measured = await Load(opened, put, []).paced(rate=500, seconds=0.4)
    assert (measured.done, measured.writes, measured.failed) == (200, 200, {})
    await disconnect(opened)


async def test_an_open_loop_shows_a_server_that_stands_still() -> None:
    """Calls that were due meanwhile waited too, although the generator could not have sent them later."""
    loop = asyncio.get_running_loop()

    class Stuck:
        """Answers everything at one moment."""

        def __init__(self) -> None:
            self.waiting: list[h2.Done] = []

        def call(self, path: str, message: bytes, done: h2.Done) -> None:
            self.waiting.append(done)
            if len(self.waiting) == 100:
                for one in self.waiting:
                    loop.call_soon(one, 0, b"answer")

        async def close(self) -> None:
            return

    measured = await Load([Stuck()], put, []).paced(rate=1000, seconds=0.1)
    assert measured.done == 100
    assert measured.histogram.percentile(1) < measured.histogram.percentile(50) < measured.histogram.percentile(100)
    assert measured.histogram.percentile(100) > 0.09, "the first was due 0.1 s before the answers"


async def test_failures_are_counted_by_their_reason_and_end_the_loop(url: str, member: FakeMember) -> None:
    member.fail_each = 1
    opened = await connect([url], 1)
    measured = await Load(opened, put, []).counted(in_flight=4, count=10_000)
    assert FAILURES_MAX <= measured.failed["gRPC status 14"] < FAILURES_MAX + 4
    assert measured.writes == 0
    wrong = Operation("/test/Echo", lambda: b"x", right=lambda response: response == b"y")
    assert (await Load(opened, lambda: wrong, []).counted(1, 1)).failed == {"a wrong answer": 1}
    await disconnect(opened)
