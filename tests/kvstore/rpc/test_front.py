"""What every front must do, asked through a real socket by grpcio's client."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from typing import ClassVar

import grpc
import grpc.aio
import pytest

from kvstore.errors import COMPACTED, STOPPED, Code, KvError
from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from kvstore.rpc import ServerOptions, make_channel, make_server
from kvstore.rpc.base import Call, RpcServer, Stream
from kvstore.rpc.grpcio import CallCollector, server_arguments


class EchoStream:
    """Answers each message with itself; "error" ends the stream with one, "bye" without."""

    opened: ClassVar[list["EchoStream"]] = []

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.got: list[bytes] = []
        self.drained_count = 0
        self.is_closed = asyncio.Event()
        self.opened.append(self)

    def received(self, messages: list[bytes]) -> None:
        self.got.extend(messages)
        for message in messages:
            if message == b"boom":
                raise RuntimeError("bug")
            if message == b"flood":
                self.stream.send([b"x" * 65536] * 100)
            elif message == b"error":
                self.stream.send([b"last"])
                self.stream.close(COMPACTED)
                self.stream.send([b"after the end"])
            else:
                self.stream.send([message])

    def drained(self) -> None:
        self.drained_count += 1

    def half_closed(self) -> None:
        self.stream.close()

    def closed(self) -> None:
        assert not self.is_closed.is_set()
        self.is_closed.set()


class Cluster(rpc_pb2_grpc.ClusterServicer):
    async def MemberList(self, request: rpc_pb2.MemberListRequest, context: object) -> rpc_pb2.MemberListResponse:
        if request.linearizable:
            raise COMPACTED
        return rpc_pb2.MemberListResponse(members=[rpc_pb2.Member(ID=7)])

    async def MemberAdd(self, request: rpc_pb2.MemberAddRequest, context: object) -> rpc_pb2.MemberAddResponse:
        raise RuntimeError("bug")


class Front:
    def __init__(self) -> None:
        self.batches: list[list[Call]] = []
        self.held: list[Call] = []

    def echo(self, calls: list[Call]) -> None:
        self.batches.append(calls)
        for call in calls:
            match call.request:
                case b"fail":
                    call.fail(COMPACTED)
                case b"odd":
                    call.fail(KvError(Code.UNAVAILABLE, "é \n 100%"))
                case b"hold":
                    self.held.append(call)
                case b"boom":
                    raise RuntimeError("bug")
                case _:
                    call.reply(call.request)
                    call.reply(b"only the first answer counts")
                    call.fail(COMPACTED)


@pytest.fixture
async def front() -> AsyncIterator[tuple[Front, grpc.aio.Channel, str]]:
    EchoStream.opened = []
    front = Front()
    server: RpcServer = make_server(ServerOptions(max_request_bytes=100_000))
    server.add_calls("/t.T/Echo", front.echo)
    server.add_stream("/t.T/Chat", EchoStream)
    server.add_servicer(rpc_pb2_grpc.add_ClusterServicer_to_server, Cluster())
    [url] = await server.start(["http://127.0.0.1:0"])
    async with make_channel(url) as channel:
        yield front, channel, url
    await server.stop(0)


def echo(channel: grpc.aio.Channel, message: bytes, **kwargs: object) -> grpc.aio.UnaryUnaryCall:
    return channel.unary_unary("/t.T/Echo")(message, **kwargs)


async def error_of(call: grpc.aio.Call) -> tuple[int, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().value[0], caught.value.details()


async def test_a_call_is_answered_once(front: tuple[Front, grpc.aio.Channel, str]) -> None:
    assert await echo(front[1], b"hello") == b"hello"


async def test_an_error_keeps_its_code_and_text(front: tuple[Front, grpc.aio.Channel, str]) -> None:
    assert await error_of(echo(front[1], b"fail")) == (COMPACTED.code, COMPACTED.message)
    assert await error_of(echo(front[1], b"odd")) == (Code.UNAVAILABLE, "é \n 100%")


async def test_calls_of_one_tick_come_as_one_list() -> None:
    """grpc.aio itself takes few calls in one tick; what it does bring together stays together."""
    front = Front()
    collector = CallCollector(front.echo, lambda: None)
    messages = [b"%d" % i for i in range(200)]
    assert await asyncio.gather(*[collector.serve(m, None) for m in messages]) == messages
    assert [len(batch) for batch in front.batches] == [200]


async def test_many_calls_at_once_are_all_answered(front: tuple[Front, grpc.aio.Channel, str]) -> None:
    messages = [b"%d" % i for i in range(2000)]
    assert await asyncio.gather(*[echo(front[1], m) for m in messages]) == messages


async def test_a_call_tells_about_its_caller(front: tuple[Front, grpc.aio.Channel, str]) -> None:
    asked = echo(front[1], b"hold", metadata=[("hasleader", "true"), ("some-bin", b"\x00\xff")], timeout=50)
    while not front[0].held:
        await asyncio.sleep(0)
    [call] = front[0].held
    assert call.metadata["hasleader"] == "true"
    assert call.metadata["some-bin"] == b"\x00\xff"
    assert call.time_remaining is not None
    assert 0 < call.time_remaining < 51
    assert call.peer.startswith("ipv4:127.0.0.1:")
    call.reply(b"done")
    assert await asked == b"done"
    assert (call.peer, call.metadata, call.time_remaining) == ("", {}, 0.0), "its memory is gone"


async def test_a_cancelled_call_is_known_and_its_answer_goes_nowhere(
    front: tuple[Front, grpc.aio.Channel, str],
) -> None:
    call = echo(front[1], b"hold")
    while not front[0].held:
        await asyncio.sleep(0)
    call.cancel()
    while not front[0].held[0].cancelled:
        await asyncio.sleep(0)
    front[0].held[0].reply(b"late")
    assert await echo(front[1], b"next") == b"next"


async def test_a_bug_in_a_handler_is_an_answer(
    front: tuple[Front, grpc.aio.Channel, str], capfd: pytest.CaptureFixture[str]
) -> None:
    code, text = await error_of(echo(front[1], b"boom"))
    assert code == Code.INTERNAL
    assert "internal error" in text
    stub = rpc_pb2_grpc.ClusterStub(front[1])
    assert (await error_of(stub.MemberAdd(rpc_pb2.MemberAddRequest())))[0] == Code.INTERNAL


async def test_a_message_over_the_limit_is_refused_before_it_is_read(
    front: tuple[Front, grpc.aio.Channel, str],
) -> None:
    limit = 100_000 + 512 * 1024
    assert len(await echo(front[1], b"x" * limit)) == limit
    assert (await error_of(echo(front[1], b"x" * (limit + 1))))[0] == Code.RESOURCE_EXHAUSTED
    assert len(front[0].batches) == 1


async def test_generated_services(front: tuple[Front, grpc.aio.Channel, str], caplog: pytest.LogCaptureFixture) -> None:
    """A KvError is a status, malformed bytes and absent methods are answers: none leaves a traceback."""
    stub = rpc_pb2_grpc.ClusterStub(front[1])
    with caplog.at_level(logging.DEBUG):
        assert (await stub.MemberList(rpc_pb2.MemberListRequest())).members[0].ID == 7
        got = await error_of(stub.MemberList(rpc_pb2.MemberListRequest(linearizable=True)))
        assert got == (COMPACTED.code, COMPACTED.message)
        got = await error_of(front[1].unary_unary("/etcdserverpb.Cluster/MemberList")(b"\xff\xff"))
        assert got == (Code.INTERNAL, "grpc: error unmarshalling request: malformed message")
        got = await error_of(stub.MemberPromote(rpc_pb2.MemberPromoteRequest()))
        assert got == (Code.UNIMPLEMENTED, "/etcdserverpb.Cluster/MemberPromote is not served by this version")
        got = await error_of(front[1].unary_unary("/etcdserverpb.Cluster/Nope")(b""))
        assert got == (Code.UNIMPLEMENTED, "unknown method Nope for service etcdserverpb.Cluster")
        got = await error_of(front[1].unary_unary("/x.Y/Nope")(b""))
        assert got == (Code.UNIMPLEMENTED, "unknown service x.Y")
    assert "Traceback" not in caplog.text


async def test_a_stream_echoes_in_order_and_ends(front: tuple[Front, grpc.aio.Channel, str]) -> None:
    call = front[1].stream_stream("/t.T/Chat")()
    for i in range(50):
        await call.write(b"%d" % i)
    await call.done_writing()
    assert [m async for m in call] == [b"%d" % i for i in range(50)]
    assert await call.code() is grpc.StatusCode.OK
    await EchoStream.opened[0].is_closed.wait()


async def test_a_stream_ends_with_an_error_after_what_is_queued(front: tuple[Front, grpc.aio.Channel, str]) -> None:
    call = front[1].stream_stream("/t.T/Chat")()
    await call.write(b"error")
    assert await call.read() == b"last"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.OUT_OF_RANGE, COMPACTED.message)


async def test_a_bug_in_a_stream_handler_ends_the_stream(front: tuple[Front, grpc.aio.Channel, str]) -> None:
    call = front[1].stream_stream("/t.T/Chat")()
    await call.write(b"boom")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    await EchoStream.opened[0].is_closed.wait()


async def test_queued_bytes_measure_a_slow_reader(front: tuple[Front, grpc.aio.Channel, str]) -> None:
    call = front[1].stream_stream("/t.T/Chat")()
    await call.write(b"one")
    assert await call.read() == b"one"
    handler = EchoStream.opened[0]
    await call.write(b"flood")
    while not handler.stream.queued_bytes:
        await asyncio.sleep(0)
    assert handler.stream.queued_bytes > 5_000_000, "a reader that does not read takes no more than its window"
    before = handler.drained_count
    for _ in range(100):
        assert len(await call.read()) == 65536
    while handler.stream.queued_bytes:
        await asyncio.sleep(0)
    while handler.drained_count == before:
        await asyncio.sleep(0)


async def test_a_client_that_goes_closes_its_stream(
    front: tuple[Front, grpc.aio.Channel, str], caplog: pytest.LogCaptureFixture
) -> None:
    calls = [front[1].stream_stream("/t.T/Chat")() for _ in range(20)]
    for call in calls:
        await call.write(b"x")
        await call.read()
        call.cancel()
    for handler in EchoStream.opened:
        await handler.is_closed.wait()
        handler.stream.send([b"to nobody"])
    assert len(EchoStream.opened) == 20
    assert "Traceback" not in caplog.text


async def test_stop_ends_streams_and_does_not_wait_for_them(caplog: pytest.LogCaptureFixture) -> None:
    EchoStream.opened = []
    server = make_server()
    server.add_stream("/t.T/Chat", EchoStream)
    [url] = await server.start(["http://127.0.0.1:0"])
    async with make_channel(url) as channel:
        call = channel.stream_stream("/t.T/Chat")()
        await call.write(b"x")
        await call.read()
        await asyncio.wait_for(server.stop(1000), 20)
        await EchoStream.opened[0].is_closed.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, STOPPED.message)
    assert "Traceback" not in caplog.text


async def test_a_taken_port_is_an_error_with_its_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            await make_server().start([f"http://127.0.0.1:{port}"])


async def test_two_servers_do_not_share_a_port() -> None:
    first, second = make_server(), make_server()
    [url] = await first.start(["http://127.0.0.1:0"])
    with pytest.raises(OSError, match="already in use"):
        await second.start([url])
    await first.stop(0)


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1:1", "http://127.0.0.1", "http://:2379", "unix:///x", "http://h:1/p"]
)
async def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="http://"):
        await make_server().start([url])


def test_pings_without_calls_are_allowed_each_five_seconds() -> None:
    """gRPC's own default answers such pings with GOAWAY too_many_pings; aetcd sends one each 6 s."""
    arguments = dict(server_arguments(ServerOptions()))
    assert arguments["grpc.http2.min_ping_interval_without_data_ms"] == 5000
    assert arguments["grpc.keepalive_permit_without_calls"] == 1
