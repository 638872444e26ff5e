"""One connection at a time to one server: made when it is wanted, and made again, as gRPC's channels do it.

    IDLE ----call----> CONNECTING --settings have come--> READY --lost, GOAWAY, drained--> IDLE
                           |                                ^
                        failure                             | success
                           v                                |
                   TRANSIENT_FAILURE  -- attempts go on, with back-off

While an attempt is the first one, calls wait for it. In TRANSIENT_FAILURE they fail at once with the reason of the
last attempt, unless they wait for readiness. A connection that takes no more calls goes on until its last one ends.
"""

import asyncio
import os
import random
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast, final

import grpc

from kvstore.rpc.address import host_port, split
from kvstore.rpc.nghttp2.client_session import ClientSession
from kvstore.rpc.nghttp2.client_stream import Stream
from kvstore.rpc.nghttp2.deadlines import Deadlines
from kvstore.rpc.nghttp2.engine import ErrorCode, GoAwayReceived, Headers
from kvstore.rpc.nghttp2.framing import ACCEPTED
from kvstore.rpc.nghttp2.metadata import CONTENT_TYPE
from kvstore.rpc.nghttp2.session import Flusher
from kvstore.rpc.tls import tls_for

if TYPE_CHECKING:
    from kvstore.rpc.options import ChannelOptions

BACKOFF_FACTOR: Final = 1.6  # gRPC's connection back-off
BACKOFF_JITTER: Final = 0.2
TLS_END_SECONDS: Final = 1.0  # gRPC's servers answer no close_notify, and HTTP/2 has said goodbye before it
USER_AGENT: Final = b"grpc-python-kvstore/1"

State = grpc.ChannelConnectivity


@final
class Connector:
    def __init__(self, target: str, options: "ChannelOptions") -> None:
        self.options = options
        self.loop = asyncio.get_running_loop()
        self.flusher = Flusher(self.loop)
        self.deadlines = Deadlines(self.loop)
        self.keepalive_seconds = options.keepalive_time_ms / 1000
        self.state = State.IDLE
        self.waiting: dict[Stream, None] = {}  # calls without a connection, in the order of their arrival
        self._address = host_port(target)
        self._tls = tls_for(target, options.tls)
        self._session: ClientSession | None = None  # the one that takes calls
        self._sessions: set[ClientSession] = set()  # with those that drain
        self._watchers: list[asyncio.Future[None]] = []  # of the state
        self._dialing: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._failures = 0  # attempts in a row
        self._reason = ""  # of the last one

    # For calls

    def request_head(self, path: str) -> Headers:
        tls = self._tls
        authority = tls.server_name if tls is not None and tls.server_name is not None else self._address
        return [
            (b":method", b"POST"),
            (b":scheme", b"http" if tls is None else b"https"),
            (b":path", path.encode()),
            (b":authority", authority.encode()),
            (b"te", b"trailers"),
            (b"content-type", CONTENT_TYPE),
            (b"user-agent", USER_AGENT),
            (b"grpc-accept-encoding", ACCEPTED),
        ]

    def start(self, stream: Stream) -> None:
        session = self._session
        if session is not None:
            if session.open(stream):
                return
            self.retire(session)
            session.drain()
        if self.state is State.TRANSIENT_FAILURE and stream.is_refused_while_failing:
            stream.end(grpc.StatusCode.UNAVAILABLE, self._reason)
            return
        if self.state is State.SHUTDOWN:
            stream.end(grpc.StatusCode.CANCELLED, "Channel closed!")
            return
        stream.has_waited = True
        self.waiting[stream] = None
        self.connect()

    def streams(self) -> list[Stream]:
        """All that have not ended."""
        return [*self.waiting, *[stream for session in self._sessions for stream in session.streams.values()]]

    # For the channel

    def connect(self) -> None:
        """If nothing is under way."""
        if self.state is State.IDLE:
            self._set(State.CONNECTING)
            self._dial()

    async def changed(self) -> None:
        """Returns after the next change of state."""
        watcher = self.loop.create_future()
        self._watchers.append(watcher)
        await watcher

    async def close(self, grace: float | None) -> None:
        self._set(State.SHUTDOWN)
        if grace:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    for stream in self.streams():
                        while stream.code is None:
                            await stream.waiter()
        for stream in self.streams():
            stream.cancel()
        self._session = None
        if self._retry is not None:
            self._retry.cancel()
        if self._dialing is not None:
            self._dialing.cancel()
        for session in list(self._sessions):
            session.flush()  # resets of what was cancelled
            session.close("Channel closed!")
        self.deadlines.close()

    # For sessions

    def retire(self, session: ClientSession) -> None:
        """It takes no more calls."""
        if session is self._session:
            self._session = None
            self._set(State.IDLE)
            if self.waiting:
                self.connect()

    def replace(self, session: ClientSession) -> None:
        """It is worn out: make another one, so that the next call need not wait for it."""
        self.retire(session)
        self.connect()

    def said_goodbye(self, session: ClientSession, event: GoAwayReceived) -> None:
        if event.error_code == ErrorCode.ENHANCE_YOUR_CALM and event.debug_data == b"too_many_pings":
            self.keepalive_seconds *= 2  # as gRPC asks of its clients
        self.retire(session)

    def lost(self, session: ClientSession) -> None:
        self._sessions.discard(session)
        self.retire(session)

    # Inside

    def _set(self, state: grpc.ChannelConnectivity) -> None:
        if state is self.state or self.state is State.SHUTDOWN:
            return
        self.state = state
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)

    def _dial(self) -> None:
        self._retry = None
        self._dialing = self.loop.create_task(self._attempt())

    async def _attempt(self) -> None:
        began = self.loop.time()
        session: ClientSession | None = None
        try:
            async with asyncio.timeout(self.options.connect_timeout_ms / 1000):
                session = await self._connected()
                await session.ready
        except Exception as error:  # whatever it is, calls wait for an end of the attempt
            self._failed(began, error, session)
            return
        except asyncio.CancelledError:
            if session is not None:
                session.abort("Channel closed!")
            raise
        finally:
            self._dialing = None
        self._succeeded(session)

    async def _connected(self) -> ClientSession:
        host, port = split(self._address)
        tls = self._tls
        context = None if tls is None else tls.context()
        name = None if tls is None else tls.server_name or host
        made: list[ClientSession] = []

        def make() -> ClientSession:
            made.append(ClientSession(self))
            return made[-1]

        try:
            _, session = await self.loop.create_connection(
                make,
                host,
                port,
                ssl=context,
                server_hostname=name,
                ssl_shutdown_timeout=None if tls is None else TLS_END_SECONDS,
            )
        except BaseException:
            # uvloop closes the transport of an attempt that is given up, and never tells the protocol.
            for session in made:
                session.abort("the attempt to connect is over")
            raise
        if tls is not None:
            assert session.transport is not None
            secure = cast(ssl.SSLObject, session.transport.get_extra_info("ssl_object"))
            if secure.selected_alpn_protocol() != "h2":
                session.abort("no HTTP/2")
                raise ConnectionError("the server did not agree to speak HTTP/2 (ALPN h2)")
            refusal = tls.allowed.refusal(secure.getpeercert())
            if refusal:
                session.abort(refusal)
                raise ConnectionError(f"the server is not let in: {refusal}")
        return session

    def _succeeded(self, session: ClientSession) -> None:
        if session.is_closed or session.is_draining:
            self._failed(self.loop.time(), ConnectionError("the server went away at once"), session)
            return
        self._failures = 0
        self._sessions.add(session)
        self._session = session
        self._set(State.READY)
        waiting, self.waiting = self.waiting, {}
        for stream in waiting:
            self.start(stream)
            stream.wake()  # its writers

    def _failed(self, began: float, error: Exception, session: ClientSession | None) -> None:
        if session is not None:
            session.abort(str(error))
        self._reason = f"failed to connect to all addresses; last error: UNKNOWN: {self._address}: {_text(error)}"
        options = self.options
        backoff = min(
            options.reconnect_backoff_ms_min / 1000 * BACKOFF_FACTOR**self._failures,
            options.reconnect_backoff_ms_max / 1000,
        )
        self._failures = min(self._failures + 1, 100)
        backoff *= random.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)
        self._retry = self.loop.call_at(began + backoff, self._dial)
        self._set(State.TRANSIENT_FAILURE)
        for stream in [stream for stream in self.waiting if stream.is_refused_while_failing]:
            self.waiting.pop(stream, None)
            stream.end(grpc.StatusCode.UNAVAILABLE, self._reason)


def _text(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "Failed to connect to remote host: timed out"
    if isinstance(error, socket.gaierror):
        return f"DNS resolution failed: {error.strerror}"
    if isinstance(error, ssl.SSLError):
        return f"Ssl handshake failed: {error}"
    if isinstance(error, OSError) and error.errno:
        return f"Failed to connect to remote host: {os.strerror(error.errno)} ({error.errno})"
    return f"Failed to connect to remote host: {error}"
