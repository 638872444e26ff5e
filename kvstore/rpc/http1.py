"""HTTP/1.1: connections that turn out not to be HTTP/2, and ports of its own.

    accepted connection -- first bytes are no HTTP/2 preface, or ALPN said http/1.1 --> Http1Handover.take
    Http1Listener ---------------------------- each of its connections ---------------> Http1Handover.protocol

From there on uvicorn's protocol class parses and answers, on the same loop and with the same ASGI application. Only
that class is used: no server of uvicorn's, none of its signal handlers, no access log.

What it does not bound is bounded here. One look per second at every connection finds those that stand still: a
request that does not arrive whole, an answer that nobody reads, a close that the other side does not acknowledge.
"""

import asyncio
import logging
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from typing import Any, Final, final

import structlog
from h11 import IDLE, SEND_BODY, Request
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.wsproto_impl import WSProtocol
from uvicorn.server import ServerState

from kvstore.rpc.address import can_listen, host_port, is_secure, listen
from kvstore.rpc.admission import Admission
from kvstore.rpc.tls import RELOAD_SECONDS, LiveTls, ServerTls

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 1.0
BUSY: Final = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Http1Limits:
    connections_max: int = 1_000  # at once; one more is answered 503 and closed
    head_bytes_max: int = 64 * 1024  # request line and headers, as much as metadata may have in gRPC
    request_seconds: float = 10.0  # for a request to arrive whole ...
    unread_seconds: float = 10.0  # ... and for a reader to take anything of what waits for it
    idle_seconds: int = 75  # between two requests; longer than Prometheus waits between two scrapes
    websocket_bytes_max: int = 4 * 1024 * 1024  # of one message


@final
class Http1Handover:
    """Made on the loop. `app`: an ASGI 3 application without a lifespan."""

    def __init__(self, app: Any, limits: Http1Limits | None = None) -> None:
        self.app = app
        self.limits = limits or Http1Limits()
        self._config = Config(
            app,
            http=H11Protocol,
            ws=partial(_WebSocket, self),  # type: ignore[arg-type]  # it is called like a class
            ws_max_size=self.limits.websocket_bytes_max,
            ws_per_message_deflate=False,  # a few bytes could become many
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level=logging.ERROR,  # what a client does wrong is the client's to know
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=self.limits.idle_seconds,
            h11_max_incomplete_event_size=self.limits.head_bytes_max,
        )
        self._config.load()
        self._state = ServerState()
        self._loop = asyncio.get_running_loop()
        self._open: set[_Connection | _WebSocket] = set()
        self._look: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._stopping = False

    @property
    def connections(self) -> int:
        return len(self._open)

    def protocol(self, admission: Admission | None = None) -> asyncio.Protocol:
        """For a new connection of which nothing has been read. admission: who of those with a certificate may stay."""
        return _Connection(self, self._config, self._state, self._loop, admission)

    def take(self, transport: asyncio.Transport, first_bytes: bytes) -> None:
        """Go on with a connection of which `first_bytes` have been read; its protocol hears no more of it."""
        protocol = self.protocol()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if first_bytes and not transport.is_closing():
            protocol.data_received(first_bytes)

    async def stop(self, grace: float) -> None:
        """Take no new request, give those under way `grace` seconds, then cut."""
        self._stopping = True
        for connection in list(self._open):
            connection.shutdown()
        try:
            async with asyncio.timeout(grace):
                while self._open:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            for connection in list(self._open):
                connection.transport.abort()
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._look is not None:
            self._look.cancel()

    def opened(self, connection: "_Connection | _WebSocket") -> bool:
        """Whether it may stay."""
        if self._stopping or len(self._open) >= self.limits.connections_max:
            return False
        self._open.add(connection)
        if self._look is None:
            self._look_at_all()
        return True

    def closed(self, connection: "_Connection | _WebSocket") -> None:
        self._open.discard(connection)
        if not self._open:
            self._empty.set()

    def _look_at_all(self) -> None:
        now = self._loop.time()
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        for connection in list(self._open):
            connection.look(now)
        self._look = self._loop.call_later(LOOK_SECONDS, self._look_at_all) if self._open else None


@final
class _Connection(H11Protocol):
    def __init__(
        self,
        handover: Http1Handover,
        config: Config,
        state: ServerState,
        loop: asyncio.AbstractEventLoop,
        admission: Admission | None,
    ) -> None:
        super().__init__(config, state, {}, loop)
        self._handover = handover
        self._admission = admission
        self._phase: tuple[str, object] = ("", None)  # as the last look found it, and which request it was of
        self._since = 0.0  # when a look first found it so
        self._checking: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if self._admission is not None and not self._admission.admits(transport):
            transport.abort()
        elif not self._handover.opened(self):
            transport.write(BUSY)
            transport.close()
        elif self._admission is not None and self._admission.of_its_address:
            transport.pause_reading()
            self._checking = self.loop.create_task(self._check_address(self._admission))

    async def _check_address(self, admission: Admission) -> None:
        if not await admission.admits_address(self.transport):
            self.transport.abort()
        elif not self.transport.is_closing():
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._checking is not None:
            self._checking.cancel()
        self._handover.closed(self)
        super().connection_lost(exc)
        # A connection that was lost by an error leaves its timer, and the timer this object.
        self._unset_keepalive_if_required()

    def handle_websocket_upgrade(self, event: Request) -> None:
        self._handover.closed(self)  # another object takes its place
        super().handle_websocket_upgrade(event)

    def look(self, now: float) -> None:
        """Cut it when it stands still where it may not."""
        limits = self._handover.limits
        if self.transport.is_closing():
            phase, seconds = "closing", limits.unread_seconds
        elif self.flow.write_paused:
            phase, seconds = "unread", limits.unread_seconds
        elif self.timeout_keep_alive_task is not None:
            phase, seconds = "idle", float("inf")  # uvicorn's timer ends it
        elif self.conn.their_state is IDLE or (
            self.conn.their_state is SEND_BODY and not self.cycle.response_started  # a stream may ask on
        ):
            phase, seconds = "asking", limits.request_seconds
        else:
            phase, seconds = "answering", float("inf")  # the application's time
        if (phase, self.cycle) != self._phase:
            self._phase, self._since = (phase, self.cycle), now
        elif now - self._since >= seconds:
            self.transport.abort()


@final
class _WebSocket(WSProtocol):
    def __init__(self, handover: Http1Handover, config: Config, server_state: ServerState, app_state: Any) -> None:
        super().__init__(config, server_state, app_state)
        self._handover = handover
        self._unread_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if not self._handover.opened(self):
            transport.write(BUSY)
            transport.close()

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._handover.closed(self)
        super().connection_lost(exc)

    def look(self, now: float) -> None:
        """Cut it when nobody reads what waits, or answers a close. Whether somebody is there, pings find out."""
        if self.writable.is_set() and not self.transport.is_closing():
            self._unread_since = None
        elif self._unread_since is None:
            self._unread_since = now
        elif now - self._unread_since >= self._handover.limits.unread_seconds:
            self.transport.abort()


@final
class Http1Listener:
    """Ports that speak HTTP/1.1 only. Several listeners may share a handover, which whoever made it stops."""

    def __init__(self, handover: Http1Handover, tls: ServerTls | None = None) -> None:
        self._handover = handover
        self._tls = tls
        self._servers: list[asyncio.Server] = []
        self._reloading: asyncio.Task[None] | None = None

    async def start(self, urls: list[str]) -> list[str]:
        """The URLs with their real ports. Raises OSError when one is taken, ssl.SSLError for unusable files."""
        live = self._live() if any(is_secure(url) for url in urls) else None
        bound = []
        for url in urls:
            address = host_port(url)
            await can_listen(address)
            found = listen(address)
            for listening in found:
                server = await asyncio.get_running_loop().create_server(
                    partial(self._handover.protocol, live.admission if live is not None and is_secure(url) else None),
                    sock=listening,
                    ssl=live.context if live is not None and is_secure(url) else None,
                    ssl_handshake_timeout=self._handover.limits.request_seconds if is_secure(url) else None,
                )
                self._servers.append(server)
            port = found[0].getsockname()[1]
            bound.append(f"{url.partition('://')[0]}://{address.rpartition(':')[0]}:{port}")
        if live is not None:
            self._reloading = asyncio.create_task(self._reload(live))
        return bound

    def close(self) -> None:
        """Accept no more; connections go on."""
        if self._reloading is not None:
            self._reloading.cancel()
        for server in self._servers:
            server.close()

    def _live(self) -> LiveTls:
        if self._tls is None:
            raise ValueError("https:// needs a certificate and its key")
        return LiveTls(self._tls, ("http/1.1",))  # whoever chose h2 would not be answered here

    async def _reload(self, live: LiveTls) -> None:
        """A renewed certificate is shown from the next handshake on; a broken one is not taken."""
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            live.refresh()
