"""Addresses that servers listen on, and what is particular to the grpcio front."""

import asyncio
import socket

import pytest

from kvstore.rpc import ServerOptions, make_server
from kvstore.rpc.base import Call, Gate
from kvstore.rpc.counts import MethodCounts
from kvstore.rpc.grpcio import CallCollector, server_arguments
from tests.kvstore.rpc.pairs import PAIRS


async def test_calls_of_one_tick_come_as_one_list() -> None:
    """grpc.aio itself takes few calls in one tick; what it does bring together stays together."""
    batches = []

    def echo(calls: list[Call]) -> None:
        batches.append(len(calls))
        for call in calls:
            call.reply(call.request)

    gate = Gate(make_server(front="grpcio"), "/t.T/M")
    collector = CallCollector(echo, gate, MethodCounts("/t.T/M"))
    messages = [b"%d" % i for i in range(200)]
    assert await asyncio.gather(*[collector.serve(m, None) for m in messages]) == messages
    assert batches == [200]


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


def test_both_fronts_are_here() -> None:
    """Elsewhere a front that cannot be imported skips its cases by name; an install without one must not look fine."""
    assert [pair.missing for pair in PAIRS] == [None] * 8
