"""What travels beside the messages: metadata in both directions, who calls, how large it may be."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.kvstore.rpc.ends import Ends, echo, error_of, method, own, soon, status_of, until

# A key twice keeps both values in their order; bytes of any kind travel under a name that ends so.
ALL_KINDS: list[tuple[str, str | bytes]] = [
    ("x-one", "1"),
    ("x-twice", "first"),
    ("x-empty", ""),
    ("x-twice", "second"),
    ("x-raw-bin", b"\x00\xff,;=\n"),
    ("x-none-bin", b""),
    ("x-spaced", "a b  c"),
    ("x-printable", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"),
]
FORMS = [list, tuple, lambda pairs: grpc.aio.Metadata(*pairs)]


@pytest.mark.also_tls
async def test_invocation_metadata(ends: Ends) -> None:
    seen: list[Any] = []

    async def look(request: bytes, context: Any) -> bytes:
        seen.append(context.invocation_metadata())
        return request

    channel = await ends.connect(unary_unary=look)
    for form in FORMS:
        await method(channel, "unary_unary")(b"", metadata=form(ALL_KINDS))
        # The server of another implementation may group the values of a key; the order of one key's values stays.
        assert sorted(own(seen[-1]), key=lambda pair: pair[0]) == sorted(ALL_KINDS, key=lambda pair: pair[0])
        assert all(isinstance(value, bytes) == key.endswith("-bin") for key, value in own(seen[-1]))
    names = {key for key, _ in seen[-1]}
    assert "user-agent" in names
    hidden = {"te", "content-type", "grpc-timeout", "grpc-encoding", ":path", ":method", ":authority", ":scheme"}
    assert not names & hidden, "what belongs to the protocol is no metadata"


@pytest.mark.parametrize("wrong", [("X-Upper", "1"), ("x-text", "a\nb"), ("x space", "1"), ("", "1")], ids=repr)
async def test_wrong_metadata_is_refused_where_it_is_given(ends: Ends, wrong: tuple[str, str]) -> None:
    """Not sent, and no status of a call: it is the caller's mistake."""
    channel = await ends.connect(unary_unary=echo)
    with pytest.raises((ValueError, grpc.aio.InternalError)):
        await method(channel, "unary_unary")(b"", metadata=[wrong])
    assert await method(channel, "unary_unary")(b"next") == b"next"


@pytest.mark.also_tls
async def test_a_servers_metadata(ends: Ends) -> None:
    """Initial metadata arrives before the first message, trailing with the status."""
    go = asyncio.Event()

    async def tell(request: bytes, context: Any) -> AsyncIterator[bytes]:
        await context.send_initial_metadata(tuple(ALL_KINDS))
        await go.wait()
        yield request
        context.set_trailing_metadata(tuple(reversed(ALL_KINDS)))

    async def answer(request: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("x-initial", "1"),))
        context.set_trailing_metadata((("x-trailing", "2"),))
        return request

    channel = await ends.connect(unary_stream=tell, unary_unary=answer)
    stream = method(channel, "unary_stream")(b"a")

    def by_key(pairs: Any) -> list[tuple[str, str | bytes]]:
        return sorted(own(pairs), key=lambda pair: pair[0])

    assert by_key(await soon(stream.initial_metadata())) == by_key(ALL_KINDS)
    go.set()
    assert [message async for message in stream] == [b"a"]
    assert by_key(await stream.trailing_metadata()) == by_key(list(reversed(ALL_KINDS)))
    call = method(channel, "unary_unary")(b"a")
    status = await status_of(call)
    assert (own(status.initial), own(status.trailing)) == ([("x-initial", "1")], [("x-trailing", "2")])
    metadata = await call.trailing_metadata()
    assert isinstance(metadata, grpc.aio.Metadata)
    assert metadata["x-trailing"] == "2"


@pytest.mark.parametrize("value", [" a", "a ", "  ", " a b "], ids=repr)
async def test_spaces_around_a_value_may_be_lost(ends: Ends, value: str) -> None:
    """gRPC allows to strip them, HTTP/2 forbids them; the call must live."""
    if ends.pair.server != ends.pair.client:
        pytest.xfail("grpcio sends spaces at the ends of a header's value, and libnghttp2 refuses them as HTTP/2 says")
    seen: list[Any] = []

    async def look(request: bytes, context: Any) -> bytes:
        seen.extend(own(context.invocation_metadata()))
        context.set_trailing_metadata((("x-spaced", value),))
        return request

    channel = await ends.connect(unary_unary=look)
    call = method(channel, "unary_unary")(b"a", metadata=[("x-spaced", value)])
    assert await call == b"a"
    for pairs in (seen, own(await call.trailing_metadata())):
        assert pairs in ([("x-spaced", value)], [("x-spaced", value.strip())], [])


async def test_initial_metadata_is_sent_once(ends: Ends) -> None:
    errors: list[BaseException] = []

    async def twice(request: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("x-a", "1"),))
        try:
            await context.send_initial_metadata((("x-a", "2"),))
        except grpc.aio.UsageError as error:
            errors.append(error)
        return request

    channel = await ends.connect(unary_unary=twice)
    call = method(channel, "unary_unary")(b"")
    await call
    assert own(await call.initial_metadata()) == [("x-a", "1")]
    assert [str(error) for error in errors] == ["Send initial metadata failed: already sent"]


async def test_metadata_with_an_error(ends: Ends) -> None:
    async def fail(request: bytes, context: Any) -> bytes:
        if request == b"headers first":
            await context.send_initial_metadata((("x-initial", "1"),))
        await context.abort(grpc.StatusCode.NOT_FOUND, "gone", (("x-trailing", "2"), ("x-raw-bin", b"\x01")))
        raise AssertionError

    channel = await ends.connect(unary_unary=fail)
    for request, initial in ((b"", []), (b"headers first", [("x-initial", "1")])):
        status = await error_of(method(channel, "unary_unary")(request))
        assert (status.code, status.details) == (grpc.StatusCode.NOT_FOUND, "gone")
        assert own(status.initial) == initial
        assert sorted(own(status.trailing)) == [("x-raw-bin", b"\x01"), ("x-trailing", "2")]


@pytest.mark.also_tls
async def test_who_calls(ends: Ends) -> None:
    peers: list[str] = []
    authentic: list[Any] = []

    async def look(request: bytes, context: Any) -> bytes:
        peers.append(context.peer())
        authentic.append((context.auth_context(), context.peer_identities(), context.peer_identity_key()))
        return request

    channel = await ends.connect(unary_unary=look)
    await method(channel, "unary_unary")(b"")
    await method(channel, "unary_unary")(b"")
    assert re.fullmatch(r"ipv4:127\.0\.0\.1:\d+", peers[0])
    assert peers[0] == peers[1], "one channel is one connection"
    auth, identities, key = authentic[0]
    assert (identities, key) == (None, None)
    if ends.pair.tls:
        assert auth["transport_security_type"] == [b"ssl"]
    else:
        assert auth in ({}, {"transport_security_type": [b"insecure"], "security_level": [b"TSI_SECURITY_NONE"]})


async def test_metadata_over_the_limit_ends_that_call_only(ends: Ends) -> None:
    """Finding 6: a header list that is too large must not end the connection, nor what else runs on it."""
    release = asyncio.Event()

    async def wait(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        await release.wait()
        yield b"last"

    server = ends.rpc_server(metadata_bytes_max=16 * 1024)
    handlers = {
        "unary_unary": grpc.unary_unary_rpc_method_handler(echo),
        "unary_stream": grpc.unary_stream_rpc_method_handler(wait),
    }
    server.add_servicer(lambda _, registry: registry.add_registered_method_handlers("t.T", with_bytes(handlers)), None)
    await ends.start_rpc(server)
    channel = ends.rpc_channel()
    other = method(channel, "unary_stream")(b"")
    assert await other.read() == b"first"
    assert await method(channel, "unary_unary")(b"fits", metadata=[("x-large", "y" * 8_000)]) == b"fits"
    for size in (40_000, 60_000):
        status = await error_of(method(channel, "unary_unary")(b"", metadata=[("x-large", "y" * size)]))
        assert status.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    release.set()
    assert await other.read() == b"last"
    assert await method(channel, "unary_unary")(b"next") == b"next"


def with_bytes(handlers: dict[str, Any]) -> dict[str, Any]:
    """The registry of an RpcServer calls the serialisers that generated code always has."""
    return {
        name: handler._replace(request_deserializer=bytes, response_serializer=bytes)
        for name, handler in handlers.items()
    }


async def test_a_servers_metadata_over_the_clients_limit(ends: Ends) -> None:
    async def tell(request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata([(f"x-{number}", "y" * 4000) for number in range(int(request))])
        return b"answer"

    channel = await ends.connect(unary_unary=tell)
    call = method(channel, "unary_unary")(b"1")
    assert await call == b"answer"
    assert [len(value) for _, value in own(await call.trailing_metadata())] == [4000]
    status = await error_of(method(channel, "unary_unary")(b"50"))
    assert status.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await method(channel, "unary_unary")(b"1") == b"answer"


async def test_a_context_tells_what_was_set(ends: Ends) -> None:
    seen: list[Any] = []

    async def look(request: bytes, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.DATA_LOSS)
        context.set_details("some")
        context.set_trailing_metadata((("x-a", "1"),))
        seen.append((context.code(), context.details(), context.trailing_metadata()))
        return b""

    channel = await ends.connect(unary_unary=look)
    await error_of(method(channel, "unary_unary")(b""))
    await until(lambda: seen)
    code, details, trailing = seen[0]
    assert code in (grpc.StatusCode.DATA_LOSS, grpc.StatusCode.DATA_LOSS.value[0])
    assert details == "some"
    assert own(trailing) == [("x-a", "1")]
