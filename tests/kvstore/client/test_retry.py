"""What may be sent twice, and what never is: counted at the other end of the wire."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from kvstore.client import Client, errors, txn
from kvstore.client.errors import ClientError
from tests.kvstore.client.fake import FakeMember, die, hang, refuse
from tests.ports import free_ports

UNAVAILABLE = refuse(grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out")

Call = Callable[[Client], Awaitable[Any]]
MUTATIONS: dict[str, Call] = {
    "put": lambda c: c.put("k", "v"),
    "delete": lambda c: c.delete("k"),
    "txn": lambda c: c.txn(then=[txn.get("k"), txn.txn(otherwise=[txn.put("k", "v")])]),
    "compact": lambda c: c.compact(5),
}
READS: dict[str, Call] = {
    "get": lambda c: c.get("k"),
    "serializable": lambda c: c.get("k", serializable=True),
    "txn": lambda c: c.txn([txn.version("k").equals(0)], [txn.get("k")], [txn.txn(then=[txn.get("j")])]),
}


@pytest.mark.parametrize("call", MUTATIONS.values(), ids=MUTATIONS)
@pytest.mark.parametrize("script", [die, UNAVAILABLE], ids=["connection lost", "unavailable"])
async def test_a_mutation_that_arrived_is_never_sent_again(call: Call, script: Any) -> None:
    async with FakeMember(script) as first, FakeMember() as second, Client([first.url, second.url]) as client:
        with pytest.raises(errors.Unavailable) as caught:
            await call(client)
        assert caught.value.outcome_unknown
        assert not isinstance(caught.value, errors.NotConnected)
        assert (len(first.arrived), len(second.arrived)) == (1, 0)
        # The next call does not go to the broken member again.
        await client.put("k", "v")
        assert (len(first.arrived), len(second.arrived)) == (1, 1)


@pytest.mark.parametrize("call", READS.values(), ids=READS)
@pytest.mark.parametrize("script", [die, UNAVAILABLE], ids=["connection lost", "unavailable"])
async def test_a_read_is_asked_again_elsewhere(call: Call, script: Any) -> None:
    async with FakeMember(script) as first, FakeMember() as second, Client([first.url, second.url]) as client:
        await call(client)
        assert (len(first.arrived), len(second.arrived)) == (1, 1)


async def test_a_read_leaves_a_member_that_does_not_answer() -> None:
    async with FakeMember(hang) as first, FakeMember() as second:
        async with Client([first.url, second.url], timeout=1.0) as client:
            await client.get("k")
        assert (len(first.arrived), len(second.arrived)) == (1, 1)


async def test_a_mutation_without_an_answer_ends_at_its_deadline() -> None:
    async with FakeMember(hang) as first, FakeMember() as second, Client([first.url, second.url]) as client:
        with pytest.raises(errors.DeadlineExceeded) as caught:
            await client.put("k", "v", timeout=0.3)
        assert caught.value.outcome_unknown
        assert (len(first.arrived), len(second.arrived)) == (1, 0)


@pytest.mark.parametrize("call", MUTATIONS.values(), ids=MUTATIONS)
async def test_a_mutation_goes_on_where_no_connection_was(call: Call) -> None:
    [port] = free_ports(1)
    async with FakeMember() as second, Client([f"127.0.0.1:{port}", second.url]) as client:
        await call(client)
        assert len(second.arrived) == 1


async def test_a_mutation_goes_on_from_a_port_that_hangs_up() -> None:
    """Accepts, and closes before HTTP/2 has begun: nothing can have been sent."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    url = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener, FakeMember() as second, Client([url, second.url]) as client:
        await client.put("k", "v")
        assert len(second.arrived) == 1


async def test_a_mutation_goes_on_from_a_port_that_never_accepts() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        async with FakeMember() as second, Client([url, second.url], dial_timeout=0.4) as client:
            await client.put("k", "v")
            assert len(second.arrived) == 1


async def test_without_any_member_nothing_was_sent() -> None:
    urls = [f"127.0.0.1:{port}" for port in free_ports(2)]
    async with Client(urls, dial_timeout=0.3) as client:
        for call in (client.put("k", "v"), client.get("k")):
            with pytest.raises(errors.NotConnected) as caught:
                await call
            assert not caught.value.outcome_unknown


async def test_a_member_that_comes_back_is_found() -> None:
    async with FakeMember() as second:
        [port] = free_ports(1)
        async with Client([f"127.0.0.1:{port}"], timeout=5.0, dial_timeout=5.0) as client:
            put = asyncio.create_task(client.put("k", "v"))
            await asyncio.sleep(0.1)
            late = FakeMember()
            late.server.add_insecure_port(f"127.0.0.1:{port}")
            async with late:
                await put
                assert (len(late.arrived), len(second.arrived)) == (1, 0)


@pytest.mark.parametrize(
    ("code", "text", "expected", "unknown"),
    [
        (11, "etcdserver: mvcc: required revision has been compacted", errors.Compacted, False),
        (11, "etcdserver: mvcc: required revision is a future revision", errors.FutureRevision, False),
        (3, "etcdserver: request is too large", errors.RequestTooLarge, False),
        (3, "etcdserver: key is not provided", errors.InvalidRequest, False),
        (3, "etcdserver: key not found", errors.KeyNotFound, False),
        (5, "etcdserver: requested lease not found", errors.NotFound, False),
        (8, "etcdserver: mvcc: database space exceeded", errors.NoSpace, False),
        (8, "etcdserver: too many requests", errors.Overloaded, False),
        # Also the status of an answer that is too big to receive, which was applied.
        (8, "Received message larger than max", ClientError, True),
        (12, "unknown method", errors.Unimplemented, False),
        (14, "etcdserver: leader changed", errors.Unavailable, True),
        (1, "cancelled", ClientError, True),
        (2, "", ClientError, True),
        (13, "", ClientError, True),
    ],
)
async def test_every_status_has_its_class(code: int, text: str, expected: type[ClientError], unknown: bool) -> None:
    status = next(status for status in grpc.StatusCode if status.value[0] == code)
    async with FakeMember(refuse(status, text)) as member, Client([member.url]) as client:
        with pytest.raises(ClientError) as caught:
            await client.put("k", "v")
        assert type(caught.value) is expected
        assert (caught.value.code, caught.value.message) == (code, text)
        assert caught.value.outcome_unknown is unknown
        assert len(member.arrived) == 1


async def test_an_empty_list_of_endpoints_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one endpoint"):
        Client([])
