"""The seam that services are written against (kvstore/rpc/base.py), of each front, asked through a real socket."""

import asyncio
import logging
from typing import Any

import grpc
import grpc.aio
import pytest

from kvstore.errors import COMPACTED, STOPPED, Code, KvError
from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from tests.kvstore.rpc.ends import EOF, SECONDS, Ends, error_of, soon, until
from tests.kvstore.rpc.pairs import NGHTTP2
from tests.kvstore.rpc.services import LIMIT, Front


@pytest.fixture
async def front(ends: Ends) -> Front:
    front = Front(ends)
    await ends.start_rpc(front.server)
    front.channel = ends.rpc_channel()
    return front


@pytest.mark.also_tls
async def test_a_call_is_answered_once(front: Front) -> None:
    assert await front.ask(b"hello") == b"hello"
    assert await front.ask(b"") == b""
    assert front.batches == [[b"hello"], [b""]]


async def test_an_error_keeps_its_code_and_text(front: Front) -> None:
    for message, error in ((b"fail", COMPACTED), (b"odd", KvError(Code.UNAVAILABLE, "é \n 100%"))):
        status = await error_of(front.ask(message))
        assert (status.code.value[0], status.details) == (error.code, error.message)


@pytest.mark.also_tls
async def test_many_calls_at_once_are_all_answered(front: Front, ends: Ends) -> None:
    """Calls of one tick come as one list; grpc.aio itself takes few in one tick."""
    messages = [b"%d" % i for i in range(500)]
    assert await asyncio.gather(*[front.ask(message) for message in messages]) == messages
    assert sorted(message for batch in front.batches for message in batch) == sorted(messages)
    if ends.pair.server == NGHTTP2:
        assert len(front.batches) < 250, "what one read brought is one list"


async def test_a_call_tells_about_its_caller(front: Front) -> None:
    asked = front.ask(b"hold", metadata=[("hasleader", "true"), ("some-bin", b"\x00\xff")], timeout=50)
    await until(lambda: front.held)
    [call] = front.held
    assert call.metadata["hasleader"] == "true"
    assert call.metadata["some-bin"] == b"\x00\xff"
    assert call.time_remaining is not None
    assert 0 < call.time_remaining < 51
    assert call.peer.startswith("ipv4:127.0.0.1:")
    assert not call.cancelled
    call.reply(b"done")
    assert await asked == b"done"
    without = front.ask(b"hold")
    await until(lambda: len(front.held) == 2)
    assert front.held[1].time_remaining is None
    front.held[1].reply(b"")
    await without


async def test_a_cancelled_call_is_known_and_its_answer_goes_nowhere(front: Front) -> None:
    call = front.ask(b"hold")
    await until(lambda: front.held)
    call.cancel()
    await until(lambda: front.held[0].cancelled)
    front.held[0].reply(b"late")
    assert await front.ask(b"next") == b"next"


async def test_a_call_whose_deadline_passes_is_cancelled(front: Front) -> None:
    assert await front.ask(b"first") == b"first"  # connected: the call that is to be late arrives in time
    assert (await error_of(front.ask(b"hold", timeout=0.3))).code is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: front.held and front.held[0].cancelled)
    front.held[0].fail(COMPACTED)
    assert await front.ask(b"next") == b"next"


async def test_a_bug_in_a_handler_is_an_answer(front: Front, capfd: pytest.CaptureFixture[str]) -> None:
    status = await error_of(front.ask(b"boom"))
    assert status.code is grpc.StatusCode.INTERNAL
    assert "internal error" in (status.details or "")
    status = await error_of(rpc_pb2_grpc.ClusterStub(front.channel).MemberAdd(rpc_pb2.MemberAddRequest()))
    assert status.code is grpc.StatusCode.INTERNAL


@pytest.mark.also_tls
async def test_a_message_over_the_limit_is_refused_before_it_is_read(front: Front) -> None:
    assert len(await front.ask(b"x" * LIMIT)) == LIMIT
    status = await error_of(front.ask(b"x" * (LIMIT + 1)))
    assert status.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"({LIMIT + 1} vs. {LIMIT})" in (status.details or "")
    assert len(front.batches) == 1
    stream = front.chat()
    await stream.write(b"y" * LIMIT)
    assert len(await stream.read()) == LIMIT
    await stream.write(b"y" * (LIMIT + 1))
    assert (await error_of(stream.read())).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await soon(front.opened[0].is_closed.wait())


@pytest.mark.also_tls
async def test_generated_services(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    """A KvError is a status, malformed bytes and absent methods are answers: none leaves a traceback."""
    stub = rpc_pb2_grpc.ClusterStub(front.channel)

    async def said(call: Any) -> tuple[int, str | None]:
        status = await error_of(call)
        return status.code.value[0], status.details

    def unary(path: str, message: bytes) -> Any:
        return front.channel.unary_unary(path)(message)

    with caplog.at_level(logging.DEBUG):
        assert (await stub.MemberList(rpc_pb2.MemberListRequest())).members[0].ID == 7
        linearizable = rpc_pb2.MemberListRequest(linearizable=True)
        assert await said(stub.MemberList(linearizable)) == (COMPACTED.code, COMPACTED.message)
        assert await said(unary("/etcdserverpb.Cluster/MemberList", b"\xff\xff")) == (
            *(Code.INTERNAL, "grpc: error unmarshalling request: malformed message"),
        )
        assert await said(stub.MemberPromote(rpc_pb2.MemberPromoteRequest())) == (
            *(Code.UNIMPLEMENTED, "/etcdserverpb.Cluster/MemberPromote is not served by this version"),
        )
        assert await said(unary("/etcdserverpb.Cluster/Nope", b"")) == (
            *(Code.UNIMPLEMENTED, "unknown method Nope for service etcdserverpb.Cluster"),
        )
        assert await said(unary("/t.T/Nope", b"")) == (Code.UNIMPLEMENTED, "unknown method Nope for service t.T")
        assert await said(unary("/x.Y/Nope", b"")) == (Code.UNIMPLEMENTED, "unknown service x.Y")
        status = await error_of(stub.MemberRemove(rpc_pb2.MemberRemoveRequest(ID=5)))
        assert (status.code, status.details) == (grpc.StatusCode.NOT_FOUND, "no such member")
        assert ("x-id", "5") in status.trailing
    assert "Traceback" not in caplog.text


async def test_generated_streams(front: Front) -> None:
    snapshot = rpc_pb2_grpc.MaintenanceStub(front.channel).Snapshot(rpc_pb2.SnapshotRequest())
    assert [(await snapshot.read()).remaining_bytes for _ in range(5)] == list(range(5))
    status = await error_of(snapshot.read())
    assert (status.code.value[0], status.details) == (COMPACTED.code, COMPACTED.message)
    requests = [rpc_pb2.LeaseKeepAliveRequest(ID=number) for number in range(10)]
    kept = rpc_pb2_grpc.LeaseStub(front.channel).LeaseKeepAlive(iter(requests))
    assert [answer.TTL async for answer in kept] == list(range(1, 11))


@pytest.mark.also_tls
async def test_a_stream_echoes_in_order_and_ends(front: Front) -> None:
    call = front.chat()
    messages = [b"%d" % i for i in range(200)]
    for message in messages:
        await call.write(message)
    await call.done_writing()
    assert [message async for message in call] == [*messages, b"goodbye"]
    assert await call.code() is grpc.StatusCode.OK
    [handler] = front.opened
    await soon(handler.is_closed.wait())
    assert (handler.got, handler.half_closed_count) == (messages, 1)


async def test_a_stream_tells_about_its_client(front: Front) -> None:
    call = front.channel.stream_stream("/t.T/Chat")(metadata=[("hasleader", "true")])
    await call.write(b"a")
    await call.read()
    [handler] = front.opened
    assert handler.stream.metadata["hasleader"] == "true"
    assert handler.stream.peer.startswith("ipv4:127.0.0.1:")
    call.cancel()
    await soon(handler.is_closed.wait())


async def test_a_stream_ends_with_an_error_after_what_is_queued(front: Front) -> None:
    call = front.chat()
    await call.write(b"error")
    assert [await call.read() for _ in range(50)] == [b"last"] * 50
    status = await error_of(call.read())
    assert (status.code, status.details) == (grpc.StatusCode.OUT_OF_RANGE, COMPACTED.message)
    await soon(front.opened[0].is_closed.wait())


async def test_a_stream_ends_with_an_error_before_any_message(front: Front) -> None:
    call = front.chat()
    await call.write(b"refuse")
    status = await error_of(call.read())
    assert (status.code, status.details) == (grpc.StatusCode.OUT_OF_RANGE, COMPACTED.message)
    await soon(front.opened[0].is_closed.wait())


async def test_a_bug_in_a_stream_handler_ends_the_stream(front: Front) -> None:
    call = front.chat()
    await call.write(b"boom")
    assert (await error_of(call.read())).code is grpc.StatusCode.INTERNAL
    await soon(front.opened[0].is_closed.wait())


@pytest.mark.also_tls
async def test_queued_bytes_measure_a_slow_reader(front: Front) -> None:
    call = front.chat()
    await call.write(b"one")
    assert await call.read() == b"one"
    [handler] = front.opened
    await call.write(b"flood")
    # A reader that does not read takes no more than its window; grpcio's grows to 4 MiB and more by itself.
    await until(lambda: handler.stream.queued_bytes > 1_000_000)
    before = handler.drained_count
    for _ in range(100):
        assert len(await call.read()) == 65536
    await until(lambda: not handler.stream.queued_bytes)
    await until(lambda: handler.drained_count > before)
    await call.write(b"two")
    assert await call.read() == b"two"


async def test_drained_comes_once_for_each_time(front: Front) -> None:
    call = front.chat()
    for number in range(1, 6):
        await call.write(b"x")
        assert await call.read() == b"x"
        await until(lambda number=number: front.opened[0].drained_count == number)


async def test_a_client_that_goes_closes_its_stream(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    calls = [front.chat() for _ in range(20)]
    for call in calls:
        await call.write(b"x")
        await call.read()
        call.cancel()
    for handler in front.opened:
        await soon(handler.is_closed.wait())
        handler.stream.send([b"to nobody"])
        handler.stream.close()
        assert handler.stream.queued_bytes == 0
    assert len(front.opened) == 20
    assert "Traceback" not in caplog.text


async def test_stop_answers_calls_that_wait_longer_than_its_grace(front: Front, ends: Ends) -> None:
    call = front.ask(b"hold")
    await until(lambda: bool(front.held))
    await asyncio.wait_for(front.server.stop(0.05), SECONDS)
    status = await error_of(call)
    assert status.code is grpc.StatusCode.UNAVAILABLE
    if ends.pair.server == NGHTTP2:
        assert status.details == STOPPED.message


async def test_stop_ends_streams_and_does_not_wait_for_them(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    call = front.chat()
    await call.write(b"x")
    await call.read()
    await asyncio.wait_for(front.server.stop(1000), SECONDS)
    await soon(front.opened[0].is_closed.wait())
    status = await error_of(call.read())
    assert (status.code, status.details) == (grpc.StatusCode.UNAVAILABLE, STOPPED.message)
    assert "Traceback" not in caplog.text


@pytest.mark.also_tls
async def test_stop_lets_calls_under_way_end(front: Front) -> None:
    asked = front.ask(b"hold")
    await until(lambda: front.held)
    stopping = asyncio.ensure_future(front.server.stop(1000))
    await asyncio.sleep(0)
    front.held[0].reply(b"done")
    assert await soon(asked) == b"done"
    await soon(stopping)
    assert (await error_of(front.ask(b"late"))).code is grpc.StatusCode.UNAVAILABLE


async def test_what_is_refused_for_now(front: Front) -> None:
    """`refusal` is asked for each list of calls, each stream and each call of generated code."""
    asked: list[str] = []

    def refusal(method: str) -> KvError | None:
        asked.append(method)
        return KvError(Code.UNAVAILABLE, f"not now: {method}")

    assert await front.ask(b"before") == b"before"
    front.server.refusal = refusal
    stub = rpc_pb2_grpc.ClusterStub(front.channel)
    calls = {
        "/t.T/Echo": front.ask(b"x"),
        "/t.T/Chat": front.chat().read(),
        "/etcdserverpb.Cluster/MemberList": stub.MemberList(rpc_pb2.MemberListRequest()),
    }
    for path, call in calls.items():
        status = await error_of(call)
        assert (status.code, status.details) == (grpc.StatusCode.UNAVAILABLE, f"not now: {path}")
    assert set(asked) == set(calls)
    assert front.batches == [[b"before"]]
    assert not front.opened
    front.server.refusal = lambda method: None
    assert await front.ask(b"after") == b"after"


async def test_one_servers_streams_and_calls_share_a_connection(front: Front) -> None:
    """A flooded reader does not hold up calls, on either front."""
    stuck = front.chat()
    await stuck.write(b"flood")
    assert len(await stuck.read()) == 65536
    for number in range(50):
        assert await front.ask(b"%d" % number, timeout=SECONDS) == b"%d" % number
    other = front.chat()
    await other.write(b"hello")
    assert await other.read() == b"hello"
    await other.done_writing()
    assert [await other.read(), await other.read()] == [b"goodbye", EOF]
