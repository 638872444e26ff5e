"""Transport over gRPC: one long stream per direction and pair of nodes (raft.v1.Peer/Stream).

    sender                                   receiver
      | -- call; metadata: who, to whom -->    |   checks: format, cluster, "is it me?", check_peer
      | <-------------- Hello or a refusal --- |
      |   checks the Hello likewise            |
      | -- frame, frame, frame ... -->         |   one MessageBatch each, in order

Both ends know whom they talk to before the first frame: a data directory from another cluster, an
address that now belongs to someone else and a member that came back without its disk are refused with
a reason (`check_peer` knows each member's replicated instance). The refused side hears it by
`on_refused` and may give up; until then it tries again.

Each peer has a task, a channel and a queue of its own, so a dead peer delays nobody. What is sent while
there is no stream, or while the queue is full, is lost: raft sends it again when it still matters. All
that waits when a write begins leaves as one frame. Each attempt to connect is a new channel, so that no
hidden back-off of gRPC outlives a partition.
"""

import asyncio
import errno
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import grpc
import grpc.aio

from raft.codec import FRAME_BYTES_MAX, decode_batch, encode_batch, encode_hello, size_of
from raft.errors import ConfigError, MalformedMessage, PeerRefused
from raft.failpoints import fail_async, is_armed
from raft.messages import Message
from raft.runtime import Runtime
from raft.snapshot import SnapshotFailed, SnapshotHeader, SnapshotReader, SnapshotReceiver
from raft.transport import grpc_snapshots
from raft.transport.base import Pace, Receive, Transport, by_peer
from raft.transport.identity import METADATA_KEYS, CheckPeer, PeerIdentity, check_hello, identify, metadata_of
from raft.types import NodeId

__all__ = ["METADATA_KEYS", "CheckPeer", "GrpcTransport", "PeerIdentity", "address_of"]

logger = logging.getLogger("raft.transport")

SERVICE: Final = "raft.v1.Peer"
METHOD: Final = "/raft.v1.Peer/Stream"
QUEUE_BYTES_MAX: Final = 64 * 1024 * 1024  # per peer; twice of what the core keeps in flight
FRAME_BYTES_WANTED: Final = 4 * 1024 * 1024  # cut frames here: a heartbeat should not wait behind all that is queued
HELLO_SECONDS: Final = 2.0  # from the attempt to connect to the answer
BACKOFF_SECONDS_MIN: Final = 0.05  # the first retry: a restarted process is back soon
BACKOFF_SECONDS_MAX: Final = 1.0  # after a partition heals, nobody waits longer
BACKOFF_GRAIN: Final = 1024  # steps of the jitter
SCHEMES: Final = ("http", "https")

Arguments: TypeAlias = list[tuple[str, Any]]  # of gRPC, by its names

CHANNEL_OPTIONS: Final[Arguments] = [
    ("grpc.use_local_subchannel_pool", 1),  # else channels to one target share a connection, and its queues
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),  # how long one attempt to connect may take; 20 s by default
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 2_000),  # a peer that vanished without a word is noticed in time + timeout
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_send_message_length", FRAME_BYTES_MAX),
    ("grpc.max_receive_message_length", FRAME_BYTES_MAX),
    ("grpc.enable_http_proxy", 0),
]
SERVER_OPTIONS: Final[Arguments] = [
    ("grpc.so_reuseport", 0),  # else an old process and its successor share the port in silence
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_send_message_length", FRAME_BYTES_MAX),
    ("grpc.max_receive_message_length", FRAME_BYTES_MAX),
]


# They give something with the surface of grpc.aio's Server, not started, or Channel (to a peer's URL). What an
# https:// URL needs beside it, certificates and whom to believe, is theirs to know: a server that they give speaks TLS
# on every port that is added to it, or on none.
ServerFactory: TypeAlias = Callable[[Arguments], Any]
ChannelFactory: TypeAlias = Callable[[str, Arguments], Any]
Traffic: TypeAlias = Callable[[NodeId, list[Message], int], None]  # with whom, what, and its bytes


def default_server(arguments: Arguments) -> grpc.aio.Server:
    return grpc.aio.server(options=arguments)


def default_channel(url: str, arguments: Arguments) -> grpc.aio.Channel:
    if url.startswith("https://"):
        return grpc.aio.secure_channel(address_of(url), grpc.ssl_channel_credentials(), options=arguments)
    return grpc.aio.insecure_channel(address_of(url), options=arguments)


def address_of(url: str) -> str:
    """ "http[s]://host:port" -> "host:port". Raises ConfigError."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{url}: {error}") from error
    if parts.scheme not in SCHEMES or not parts.hostname or port is None or parts.path not in {"", "/"}:
        raise ConfigError(f"{url}: a peer's address is http://host:port or https://host:port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{port}"


def _check_schemes(listen_urls: list[str], server_factory: ServerFactory) -> None:
    """A port that speaks something else than its URL says would be open to more than its owner knows."""
    schemes = {urlsplit(url).scheme for url in listen_urls}
    if len(schemes) > 1:
        raise ConfigError("the peers' port speaks TLS on all of its addresses or on none")
    if "https" in schemes and server_factory is default_server:
        raise ConfigError("https:// needs a server_factory that knows a certificate")


class GrpcTransport(Transport):
    def __init__(
        self,
        identity: PeerIdentity,
        listen_urls: list[str],
        *,
        server_factory: ServerFactory = default_server,
        channel_factory: ChannelFactory = default_channel,
        check_peer: CheckPeer = lambda peer: None,
        on_refused: Callable[[PeerRefused], None] = lambda refused: None,
        runtime: Runtime | None = None,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
        services: list[Callable[[Any], None]] | None = None,
    ) -> None:
        """The factories decide which gRPC front carries the streams.

        services: each gets the server before it starts, to register more on the same port.

        Raises ConfigError for listen_urls that mix http:// and https://, or want https:// of the default server.

        check_peer is asked about whoever connects to us and about whoever we connect to; cluster and node id
        fit already. on_refused is called on the loop, once for each new reason.
        """
        _check_schemes(listen_urls, server_factory)
        self.identity = identity
        self.listening: list[str] = []  # URLs with their real ports, once started
        self.channel_factory = channel_factory
        self.check_peer = check_peer
        self.on_sent: Traffic | None = None  # told of each frame to a peer, and of each one from a peer
        self.on_received: Traffic | None = None
        self.on_refused = on_refused
        self.runtime = Runtime() if runtime is None else runtime
        self.queue_bytes_max = queue_bytes_max
        self.services = list(services or [])
        self._listen_urls = listen_urls
        self._server_factory = server_factory
        self._server: Any = None
        self._receive: Receive | None = None
        self._receive_snapshot: SnapshotReceiver | None = None
        self._peers: dict[NodeId, list[str]] = {}
        self._links: dict[NodeId, _Link] = {}
        self._inbound: dict[NodeId, object] = {}  # the newest stream from each peer; older ones are not heard
        self._connected: frozenset[NodeId] = frozenset()
        self.unsent: Counter[NodeId] = Counter()  # messages that found no stream, or a full queue

    async def start(self, receive: Receive, receive_snapshot: SnapshotReceiver | None = None) -> None:
        """Raises OSError when an address cannot be had."""
        self._receive = receive
        self._receive_snapshot = receive_snapshot
        server = self._server_factory(SERVER_OPTIONS)
        handlers = {
            "Stream": grpc.stream_stream_rpc_method_handler(self._serve, None, None),
            "Snapshot": grpc.stream_stream_rpc_method_handler(self._serve_snapshot, None, None),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        for register in self.services:
            register(server)
        for url in self._listen_urls:
            address = address_of(url)
            try:
                port = server.add_insecure_port(address)
            except RuntimeError as error:
                raise OSError(errno.EADDRINUSE, f"cannot listen on {address}: {error}") from error
            if not port:
                raise OSError(errno.EADDRINUSE, f"cannot listen on {address}")
            self.listening.append(f"{url.partition('://')[0]}://{address.rpartition(':')[0]}:{port}")
        await server.start()
        self._server = server
        self._connect()

    def send(self, messages: list[Message]) -> None:
        for to, frame in by_peer(messages).items():
            link = self._links.get(to)
            if link is not None:
                link.send(frame)

    async def send_snapshot(self, to: NodeId, header: SnapshotHeader, reader: SnapshotReader) -> None:
        link = self._links.get(to)
        if link is None:
            raise SnapshotFailed(f"{to:x} is no peer")
        channel = self.channel_factory(link.url, CHANNEL_OPTIONS)
        try:
            sender = grpc_snapshots.Sender(self.identity, self.check_peer, self.runtime, header, reader)
            await sender.send(channel, to, Pace(self.snapshot_bytes_per_second))
        finally:
            await channel.close()

    def set_peers(self, peers: dict[NodeId, list[str]]) -> None:
        """Raises ConfigError for an URL that is none."""
        for urls in peers.values():
            for url in urls:
                address_of(url)
        self._peers = {
            node_id: list(urls) for node_id, urls in peers.items() if node_id != self.identity.node_id and urls
        }
        if self._server is not None:
            self._connect()

    def connected(self) -> frozenset[NodeId]:
        return self._connected

    async def stop(self) -> None:
        self._receive = None
        links, self._links = list(self._links.values()), {}
        for link in links:
            link.close()
        await asyncio.gather(*[link.task for link in links], return_exceptions=True)
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)
        self.runtime.close()

    def _connect(self) -> None:
        """One link for each peer; a link whose URLs changed begins anew."""
        for node_id, link in list(self._links.items()):
            if self._peers.get(node_id) != link.urls:
                link.close()
                del self._links[node_id]
        # Who is no peer any more has to call again, and then hears why it is not listened to.
        self._inbound = {node_id: stream for node_id, stream in self._inbound.items() if node_id in self._peers}
        for node_id, urls in self._peers.items():
            if node_id not in self._links:
                self._links[node_id] = _Link(self, node_id, urls)
                self.unsent.setdefault(node_id, 0)
        self.note_connected()

    def note_connected(self) -> None:
        """A link went up or down."""
        self._connected = frozenset([node_id for node_id, link in self._links.items() if link.up])

    # What others send

    async def _serve(self, frames: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """One stream of a peer. A generator: what it yields is sent."""
        peer = await self._identify(context)
        own = self.identity
        yield encode_hello(own.cluster_id, own.node_id, own.instance)
        stream = object()
        self._inbound[peer.node_id] = stream
        link = self._links.get(peer.node_id)
        if link is not None:
            link.retry()  # who reaches us can be reached
        try:
            async for frame in frames:
                await fail_async("peerAfterRead")
                receive = self._receive
                if receive is None or self._inbound.get(peer.node_id) is not stream:
                    return
                messages = self._decode(frame, peer.node_id)
                if self.on_received is not None:
                    self.on_received(peer.node_id, messages, len(frame))
                receive(messages)
        except MalformedMessage as error:
            logger.error("%x cuts the stream of %x: %s", own.node_id, peer.node_id, error)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            if self._inbound.get(peer.node_id) is stream:
                del self._inbound[peer.node_id]

    async def _serve_snapshot(self, chunks: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        peer = await self._identify(context)
        receiver = self._receive_snapshot
        if receiver is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this node takes no snapshots")
            return
        async for answer in grpc_snapshots.serve(self.identity, peer, receiver, chunks, context):
            yield answer

    async def _identify(self, context: Any) -> PeerIdentity:
        """Who calls. Ends the call when it may not."""
        peer, reason = identify(dict(context.invocation_metadata() or ()), self.identity, self.check_peer)
        if peer is None:
            logger.warning("%x refuses a peer at %s: %s", self.identity.node_id, context.peer(), reason)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason)
            raise PeerRefused(reason)
        return peer

    def _decode(self, frame: bytes, peer: NodeId) -> list[Message]:
        messages = decode_batch(frame)
        for message in messages:
            if message.sender != peer or message.to != self.identity.node_id:
                raise MalformedMessage(f"a message {message.sender:x} -> {message.to:x} on the stream of {peer:x}")
        return messages


class _Link:
    """Our way to one peer: a task that connects, greets and writes what is queued, again and again."""

    def __init__(self, transport: GrpcTransport, node_id: NodeId, urls: list[str]) -> None:
        self.urls = urls
        self.url = urls[0]  # where it was found last, or is looked for
        self.up = False  # the peer has greeted us and the stream stands
        self._transport = transport
        self._node_id = node_id
        self._queue: deque[Message] = deque()
        self._queue_bytes = 0
        self._wakeup = asyncio.Event()  # something is queued, or the stream ended
        self._retry = asyncio.Event()  # do not wait any longer before the next attempt
        self._trouble = ""  # what was reported last; each reason is reported once
        self._call: Any = None  # where the front's calls can write at once, that of the stream that is up
        self._closed = False
        self._lost = False  # a stream stood and has ended, and nobody knows yet what that means
        self.task = asyncio.get_running_loop().create_task(self._run())

    def send(self, messages: list[Message]) -> None:
        if not self.up:
            self._transport.unsent[self._node_id] += len(messages)
            return
        was_empty = not self._queue
        for message in messages:
            size = size_of(message)
            if self._queue_bytes + size <= self._transport.queue_bytes_max and size < FRAME_BYTES_MAX:
                self._queue.append(message)
                self._queue_bytes += size
            else:
                self._transport.unsent[self._node_id] += 1
        if was_empty and self._call is not None and not is_armed("peerBeforeWrite"):
            # To wake the task for it would cost two turns of the loop, one of them behind the node's own fsync.
            while self._queue and self._call.is_writable:
                self._call.write_nowait(self._next_frame())
        if self._queue:
            self._wakeup.set()

    def retry(self) -> None:
        self._retry.set()

    def close(self) -> None:
        self.up = False
        self._closed = True
        self.task.cancel()

    async def _run(self) -> None:
        runtime = self._transport.runtime
        failures = 0
        while True:
            url = self.url = self.urls[failures % len(self.urls)]
            began = runtime.clock()
            refused = False
            try:
                await self._converse(url)
                trouble = "the peer ended the stream"
            except grpc.aio.AioRpcError as error:
                refused = error.code() is grpc.StatusCode.FAILED_PRECONDITION
                trouble = f"{error.code().name}: {error.details()}"
            except TimeoutError:
                trouble = "no answer"
            except (MalformedMessage, OSError, asyncio.InvalidStateError) as error:
                trouble = str(error)
            if self._closed:
                return  # gRPC may answer a cancellation with an error of the call
            self._report(url, trouble, refused)
            await self._look_for_process(url)
            if runtime.clock() - began > BACKOFF_SECONDS_MAX * 1e9:
                failures = 0  # it stood for a while
            backoff = min(BACKOFF_SECONDS_MIN * 2**failures, BACKOFF_SECONDS_MAX)
            jitter = (BACKOFF_GRAIN + runtime.rng.below(BACKOFF_GRAIN)) / (2 * BACKOFF_GRAIN)
            failures = min(failures + 1, 30)
            self._retry.clear()
            try:
                async with asyncio.timeout(backoff * jitter):
                    await self._retry.wait()
            except TimeoutError:
                continue

    async def _look_for_process(self, url: str) -> None:
        """After a stream has ended: a host that refuses the connection is there, and the process is not.

        Asked of the kernel, since gRPC does not tell a refused connection from one that nobody answered.
        """
        on_unreachable = self._transport.on_unreachable
        if not self._lost or on_unreachable is None:
            return
        host, _, port = address_of(url).rpartition(":")
        try:
            async with asyncio.timeout(BACKOFF_SECONDS_MIN):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.close()
        except ConnectionRefusedError:
            on_unreachable(self._node_id)
        except OSError:
            return  # a timeout among others: ask again with the next attempt
        self._lost = False

    async def _converse(self, url: str) -> None:
        """One stream, from the attempt to connect to its end. Raises what ended it."""
        own = self._transport.identity
        metadata = metadata_of(own, self._node_id)
        channel = self._transport.channel_factory(url, CHANNEL_OPTIONS)
        ended: asyncio.Task[object] | None = None
        try:
            call = channel.stream_stream(METHOD, None, None)(metadata=metadata)
            async with asyncio.timeout(HELLO_SECONDS):
                hello = await call.read()
            check_hello(hello, own, self._node_id, self._transport.check_peer)
            ended = asyncio.get_running_loop().create_task(call.read())
            ended.add_done_callback(self._on_ended)
            self._call = call if hasattr(call, "write_nowait") else None
            self._set_up(True)
            await self._write_frames(call, ended)
            async with asyncio.timeout(HELLO_SECONDS):
                await ended
        finally:
            self._call = None
            self._set_up(False)
            if ended is not None:
                ended.cancel()
            await channel.close()

    async def _write_frames(self, call: Any, ended: "asyncio.Task[object]") -> None:
        """Until the stream ends. Why it ended is what reading tells, not what a failed write does."""
        while not ended.done():
            if not self._queue:
                self._wakeup.clear()
                await self._wakeup.wait()
                continue
            frame = self._next_frame()
            await fail_async("peerBeforeWrite")
            try:
                await call.write(frame)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return

    def _on_ended(self, ended: asyncio.Task[object]) -> None:
        if not ended.cancelled():
            ended.exception()  # seen; _converse raises it unless a write failed first
        self._wakeup.set()

    def _next_frame(self) -> bytes:
        messages = self._take_frame()
        frame = encode_batch(messages)
        if self._transport.on_sent is not None:
            self._transport.on_sent(self._node_id, messages, len(frame))
        return frame

    def _take_frame(self) -> list[Message]:
        """What one frame carries: at least one message, and not many more than FRAME_BYTES_WANTED bytes."""
        frame: list[Message] = []
        size = 0
        while self._queue:
            next_size = size_of(self._queue[0])
            if frame and size + next_size > FRAME_BYTES_WANTED:
                break
            size += next_size
            frame.append(self._queue.popleft())
        self._queue_bytes -= size
        return frame

    def _set_up(self, up: bool) -> None:
        if up != self.up:
            self.up = up
            self._lost = not up
            self._transport.note_connected()
            if up:
                logger.info("%x has a stream to %x", self._transport.identity.node_id, self._node_id)
                self._trouble = ""
        if not up:
            self._transport.unsent[self._node_id] += len(self._queue)
            self._queue.clear()
            self._queue_bytes = 0

    def _report(self, url: str, trouble: str, refused: bool) -> None:
        """Each reason once, not each attempt."""
        if trouble == self._trouble:
            return
        self._trouble = trouble
        own = self._transport.identity.node_id
        logger.warning("%x has no stream to %x at %s: %s", own, self._node_id, url, trouble)
        if refused:
            self._transport.on_refused(PeerRefused(f"{self._node_id:x} at {url} refused this node: {trouble}"))
