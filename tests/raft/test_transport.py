"""One suite over every transport, then what only gRPC has: identity, damage on the wire, ports."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio
import pytest

from raft.codec import FORMAT, decode_hello, encode_batch
from raft.errors import ConfigError, PeerRefused
from raft.messages import Forward, Heartbeat, Message
from raft.runtime import Runtime, SeededRng
from raft.transport.grpc import METADATA_KEYS, METHOD, Arguments, GrpcTransport, PeerIdentity, address_of
from raft.types import NodeId
from tests.certificates import Certificates
from tests.raft.transports import CLUSTER, GrpcWorld, MemoryWorld, World, beat, until


@pytest.fixture(params=[MemoryWorld, GrpcWorld], ids=["memory", "grpc"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made: World = request.param()
    yield made
    for node_id in list(made.transports):
        await made.stop(node_id)
    await until(lambda: len(asyncio.all_tasks()) == 1)  # gRPC's own end with their calls, a little later


# Every transport


async def test_messages_arrive_in_order(world: World) -> None:
    await world.connect(1, 2)
    for number in range(0, 1000, 2):
        world.transports[1].send([beat(2, 1, number), beat(2, 1, number + 1)])
        if number % 100 == 0:
            await asyncio.sleep(0)
    await until(lambda: len(world.received[2]) == 1000)
    assert world.commits(2) == list(range(1000))


async def test_one_send_reaches_each_peer_named(world: World) -> None:
    await world.connect(1, 2, 3)
    world.transports[1].send([beat(2, 1, 20), beat(3, 1, 30), beat(2, 1, 21)])
    await until(lambda: len(world.received[2]) == 2 and len(world.received[3]) == 1)
    assert world.commits(2) == [20, 21]
    assert world.commits(3) == [30]
    assert world.received[1] == []


async def test_nobody_receives_during_send(world: World) -> None:
    """A receiver that ran inside `send` could re-enter the node that sends."""
    await world.connect(1, 2)
    world.transports[1].send([beat(2, 1, 1)])
    assert world.received[2] == []
    await until(lambda: len(world.received[2]) == 1)


async def test_a_restarted_peer_is_found_again(world: World) -> None:
    await world.connect(1, 2)
    await world.stop(2)
    await until(lambda: world.transports[1].connected() == frozenset())
    world.transports[1].send([beat(2, 1, 1)])  # lost, and that is all
    if isinstance(world.transports[1], GrpcTransport):
        assert world.transports[1].unsent[2] == 1
    world.received[2].clear()
    await world.start(2)
    world.introduce()
    await world.joined()
    world.transports[1].send([beat(2, 1, 2)])
    world.transports[2].send([beat(1, 2, 3)])
    await until(lambda: bool(world.received[2]) and bool(world.received[1]))
    assert world.commits(2) == [2]
    assert world.commits(1) == [3]


async def test_a_dead_peer_delays_nobody(world: World) -> None:
    await world.connect(1, 2, 3)
    await world.stop(3)
    for number in range(200):
        world.transports[1].send([beat(3, 1, number), beat(2, 1, number)])
    await until(lambda: len(world.received[2]) == 200)
    assert world.commits(2) == list(range(200))


async def test_unknown_peers_and_removed_peers_get_nothing(world: World) -> None:
    await world.connect(1, 2)
    world.transports[1].send([beat(9, 1, 1)])
    world.transports[1].set_peers({})
    assert world.transports[1].connected() == frozenset()
    world.transports[1].send([beat(2, 1, 2)])
    world.introduce()
    await world.joined()
    world.transports[1].send([beat(2, 1, 3)])
    await until(lambda: bool(world.received[2]))
    assert world.commits(2) == [3]


async def test_a_large_message_passes_between_small_ones(world: World) -> None:
    await world.connect(1, 2)
    data = bytes(range(256)) * 2000  # 512 KB, half of the queue
    world.transports[1].send([beat(2, 1, 1), Forward(2, 1, 1, [data]), beat(2, 1, 2)])
    await until(lambda: len(world.received[2]) == 3)
    assert world.commits(2) == [1, 2]
    forward = world.received[2][1]
    assert isinstance(forward, Forward)
    assert forward.data == [data]


# Memory: its faults


async def test_memory_cut_hold_and_delay() -> None:
    world = MemoryWorld()
    await world.connect(1, 2)
    network = world.network
    network.cut(1, 2, one_way=True)
    assert world.transports[1].connected() == frozenset()
    assert world.transports[2].connected() == {1}
    world.transports[1].send([beat(2, 1, 1)])
    world.transports[2].send([beat(1, 2, 2)])
    await until(lambda: bool(world.received[1]))
    assert world.received[2] == []

    network.heal()
    network.hold(1, 2)
    world.transports[1].send([beat(2, 1, 3)])
    world.transports[1].send([Forward(2, 1, 1, [bytes(1 << 20)])])  # does not fit beside the first
    network.heal()
    await until(lambda: bool(world.received[2]))
    assert world.commits(2) == [3]
    assert len(world.received[2]) == 1

    network.delay = lambda message: None if isinstance(message, Forward) else 0.0
    world.transports[1].send([Forward(2, 1, 1, [b"lost"]), beat(2, 1, 4)])
    await until(lambda: len(world.received[2]) == 2)
    assert world.commits(2) == [3, 4]


# gRPC


def identity(node_id: NodeId, cluster_id: int = CLUSTER, instance: int = 1) -> PeerIdentity:
    return PeerIdentity(cluster_id, node_id, instance)


class Pair:
    """A transport that listens as node 1, and one that dials it as node 2; the first never dials."""

    def __init__(
        self,
        caller: PeerIdentity,
        *,
        expected: NodeId = 1,
        check_caller: Callable[[PeerIdentity], str | None] = lambda peer: None,
        check_listener: Callable[[PeerIdentity], str | None] = lambda peer: None,
    ) -> None:
        self.received: list[Message] = []
        self.refusals: list[PeerRefused] = []
        self.expected = expected
        url = ["http://127.0.0.1:0"]
        self.listener = GrpcTransport(identity(1), url, check_peer=check_caller)
        self.caller = GrpcTransport(caller, url, check_peer=check_listener, on_refused=self.refusals.append)

    async def __aenter__(self) -> "Pair":
        await self.listener.start(self.received.extend)
        await self.caller.start(lambda messages: None)
        self.caller.set_peers({self.expected: self.listener.listening})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.caller.stop()
        await self.listener.stop()


@pytest.mark.parametrize(
    ("caller", "expected", "reason"),
    [
        pytest.param(identity(2, cluster_id=0xBAD), 1, "belongs to cluster c1, not to bad", id="cluster"),
        pytest.param(identity(2), 7, "this node is 1, not 7", id="not me"),
        pytest.param(identity(2, instance=8), 1, "lost its disk", id="instance"),
    ],
)
async def test_grpc_who_does_not_belong_is_refused_with_the_reason(
    caller: PeerIdentity, expected: NodeId, reason: str
) -> None:
    def check(peer: PeerIdentity) -> str | None:
        return None if peer.instance == 1 else f"{peer.node_id:x} lost its disk"

    async with Pair(caller, expected=expected, check_caller=check) as pair:
        await until(lambda: bool(pair.refusals))
        assert reason in str(pair.refusals[0])
        pair.caller.send([beat(expected, caller.node_id, 1)])
        assert pair.caller.connected() == frozenset()
    assert len(pair.refusals) == 1, "each reason is reported once"
    assert pair.received == []


async def test_grpc_the_caller_checks_whom_it_found() -> None:
    asked: list[PeerIdentity] = []

    def check(peer: PeerIdentity) -> str | None:
        asked.append(peer)
        return "its disk is new"

    async with Pair(identity(2), check_listener=check) as pair:
        await until(lambda: len(asked) >= 2)  # it tries again
        assert pair.caller.connected() == frozenset()
    assert asked[0] == identity(1)
    assert pair.refusals == [], "nobody refused us"


async def dial(pair: Pair, metadata: dict[str, str], frames: list[bytes]) -> grpc.aio.AioRpcError:
    """Speak the protocol by hand; returns the error that ends the stream."""
    async with grpc.aio.insecure_channel(pair.listener.listening[0].removeprefix("http://")) as channel:
        call = channel.stream_stream(METHOD, None, None)(metadata=tuple(metadata.items()))
        if frames:
            assert decode_hello(await call.read()) == (FORMAT, CLUSTER, 1, 1)
        for frame in frames:
            await call.write(frame)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        return caught.value


def metadata_of(**changes: str) -> dict[str, str]:
    values = dict(zip(METADATA_KEYS, [f"{FORMAT:x}", f"{CLUSTER:x}", "3", "1", "1"], strict=True))
    return values | {f"raft-{key}": value for key, value in changes.items()}


@pytest.mark.parametrize(
    "metadata",
    [
        metadata_of(format="63"),
        metadata_of(instance="x"),
        metadata_of(**{"from": "0"}),
        metadata_of(**{"from": "1"}),
        {},
    ],
    ids=["format", "not a number", "from nobody", "from ourselves", "no identity"],
)
async def test_grpc_a_wrong_greeting_is_refused(metadata: dict[str, str]) -> None:
    async with Pair(identity(2)) as pair:
        error = await dial(pair, metadata, [])
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    "frame",
    [b"\xff\xff", encode_batch([beat(1, 4, 1)]), encode_batch([beat(5, 3, 1)])],
    ids=["garbage", "in another's name", "for another"],
)
async def test_grpc_a_malformed_frame_cuts_the_stream(frame: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with Pair(identity(2)) as pair:
        error = await dial(pair, metadata_of(), [encode_batch([beat(1, 3, 7)]), frame])
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        await until(lambda: pair.caller.connected() == {1})  # others are not concerned
    assert [m.commit for m in pair.received if isinstance(m, Heartbeat)] == [7]
    assert len([record for record in caplog.records if "cuts the stream" in record.message]) == 1


async def test_grpc_a_newer_stream_of_a_peer_replaces_the_older() -> None:
    async with Pair(identity(2)) as pair:
        target = pair.listener.listening[0].removeprefix("http://")
        async with grpc.aio.insecure_channel(target) as one, grpc.aio.insecure_channel(target) as other:
            calls = []
            for channel in (one, other):
                call = channel.stream_stream(METHOD, None, None)(metadata=tuple(metadata_of().items()))
                await call.read()
                calls.append(call)
            await calls[0].write(encode_batch([beat(1, 3, 1)]))
            assert await calls[0].read() == grpc.aio.EOF  # type: ignore[attr-defined]
            await calls[1].write(encode_batch([beat(1, 3, 2)]))
            await until(lambda: bool(pair.received))
    assert [m.commit for m in pair.received if isinstance(m, Heartbeat)] == [2]


async def test_grpc_a_peer_that_does_not_read_fills_a_bounded_queue() -> None:
    """Whoever is slow loses messages; the sender's memory is not the buffer."""
    release = asyncio.Event()

    async def serve(frames: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
        from raft.codec import encode_hello

        yield encode_hello(CLUSTER, 1, 1)
        await release.wait()

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(serve, None, None)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("raft.v1.Peer", {"Stream": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    bound, fullest = 1 << 20, 0
    transport = GrpcTransport(identity(2), ["http://127.0.0.1:0"], queue_bytes_max=bound)
    try:
        await transport.start(lambda messages: None)
        transport.set_peers({1: [f"http://127.0.0.1:{port}"]})
        await until(lambda: transport.connected() == {1})
        link = transport._links[1]
        for _ in range(400):
            transport.send([Forward(1, 2, 1, [bytes(100_000)])])
            await asyncio.sleep(0)
            fullest = max(fullest, link._queue_bytes)
        assert bound // 2 < fullest <= bound
    finally:
        await transport.stop()
        release.set()
        await server.stop(None)


async def test_grpc_reconnects_at_once_to_a_peer_that_reached_us() -> None:
    """The back-off is for peers that are away; one that dials us is there."""

    class Slow(SeededRng):
        def below(self, bound: int) -> int:
            return bound - 1

    with socket.socket() as reserved:  # a port where nobody listens yet
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    one = GrpcTransport(identity(1), ["http://127.0.0.1:0"], runtime=Runtime(rng=Slow()))
    await one.start(lambda messages: None)
    one.set_peers({2: [f"http://127.0.0.1:{port}"]})
    waits: list[object] = []
    link = one._links[2]
    wait = link._retry.wait

    async def counted() -> bool:
        waits.append(None)
        return bool(await wait())

    link._retry.wait = counted  # type: ignore[method-assign, assignment]
    await until(lambda: len(waits) >= 2)
    two = GrpcTransport(identity(2), [f"http://127.0.0.1:{port}"])
    await two.start(lambda messages: None)
    two.set_peers({1: one.listening})
    await until(lambda: one.connected() == {2} and two.connected() == {1})
    await two.stop()
    await one.stop()


async def test_grpc_a_taken_port_is_an_oserror_with_the_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        transport = GrpcTransport(identity(1), [f"http://{address}"])
        with pytest.raises(OSError, match=address):
            await transport.start(lambda messages: None)


async def test_grpc_two_nodes_cannot_share_a_port() -> None:
    one = GrpcTransport(identity(1), ["http://127.0.0.1:0"])
    await one.start(lambda messages: None)
    with pytest.raises(OSError, match="cannot listen"):
        await GrpcTransport(identity(2), one.listening).start(lambda messages: None)
    await one.stop()


@pytest.mark.parametrize("url", ["127.0.0.1:1", "ftp://a:1", "http://a", "http://a:x", "http://a:1/path", ""])
def test_grpc_a_wrong_url_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError):
        GrpcTransport(identity(1), []).set_peers({2: [url]})


@pytest.mark.parametrize("urls", [["https://127.0.0.1:0"], ["http://127.0.0.1:0", "https://127.0.0.1:0"]])
def test_grpc_a_port_that_would_not_speak_what_its_url_says_is_a_config_error(urls: list[str]) -> None:
    with pytest.raises(ConfigError):
        GrpcTransport(identity(1), urls)


async def test_grpc_over_tls_streams_stand_and_a_plain_caller_hears_nothing(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    key, cert, ca = (path.read_bytes() for path in (certificates.server.key, certificates.server.cert, certificates.ca))

    class TlsServer:
        """As a front that knows a certificate: what is added to it speaks TLS."""

        def __init__(self, arguments: Arguments) -> None:
            self.server = grpc.aio.server(options=arguments)

        def add_insecure_port(self, address: str) -> int:
            credentials = grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
            return self.server.add_secure_port(address, credentials)

        def __getattr__(self, name: str) -> object:
            return getattr(self.server, name)

    def tls_channel(url: str, arguments: Arguments) -> grpc.aio.Channel:
        assert url.startswith("https://")
        return grpc.aio.secure_channel(address_of(url), grpc.ssl_channel_credentials(ca, key, cert), options=arguments)

    received: list[Message] = []
    one, two = (
        GrpcTransport(identity(node), ["https://127.0.0.1:0"], server_factory=TlsServer, channel_factory=tls_channel)
        for node in (1, 2)
    )
    plain = GrpcTransport(identity(3), ["http://127.0.0.1:0"])
    try:
        await one.start(received.extend)
        for other in (two, plain):
            await other.start(lambda messages: None)
        assert one.listening[0].startswith("https://")
        plain.set_peers({1: [one.listening[0].replace("https://", "http://")]})
        two.set_peers({1: one.listening})
        await until(lambda: two.connected() == {1})
        two.send([beat(1, 2, 7)])
        await until(lambda: bool(received))
        await until(lambda: "3 has no stream to 1" in caplog.text)
        assert plain.connected() == frozenset()
    finally:
        for transport in (two, plain, one):
            await transport.stop()
