"""An HTTP/2 connection on asyncio, whichever end of it.

    socket --data_received--> Connection --events--> handlers of the role --sends--> Connection
                                                                                         |
    socket <----one write---- flush  <---- at the end of the tick, once  <---- touch ----+

Sends only queue. Whoever sends touches the session, and the flusher that all sessions of a server or a channel share
writes each of them once when the tick ends: a thousand answers on one connection are one system call.

While the socket takes no more, nothing is taken out of the Connection either, so what a slow peer has not read is
counted there, by stream. Reading goes on all the while: window updates come that way.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, cast

import structlog

from kvstore.rpc.nghttp2 import engine
from kvstore.rpc.nghttp2.engine import Connection, Event

log = structlog.get_logger(__name__)

WRITE_BUFFER_BYTES: Final = 256 * 1024  # in the transport; above it the rest stays in the Connection
WRITE_BYTES: Final = 256 * 1024  # taken out of the Connection at once
KEEPALIVE: Final = b"kvstore\0"  # what our pings carry
TIMER_SECONDS: Final = 0.002  # by how much a timer may seem to be early


class Flusher:
    """Ends the ticks of the loop in which something was sent."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.before: Callable[[], None] | None = None  # called first; what it sends is flushed with the rest
        self._loop = loop
        self._touched: list[Session] = []
        self._is_due = False
        self.received_bytes = 0  # of all sessions
        self.sent_bytes = 0

    def touch(self, session: "Session") -> None:
        if not session.is_touched:
            session.is_touched = True
            self._touched.append(session)
            if not self._is_due:
                self.due()

    def due(self) -> None:
        """End this tick with a call of `before`."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        self._is_due = False
        if self.before is not None:
            self.before()
        touched, self._touched = self._touched, []
        for session in touched:
            try:
                session.flush()
            except Exception:  # a bug in what one connection brought about must not keep the others waiting
                log.exception("a connection is cut")
                session.abort("internal error")


class Session(asyncio.Protocol):
    """One connection. Subclasses fill `handlers` and say what a lost connection means."""

    def __init__(self, flusher: Flusher, connection: Connection, keepalive_seconds: float, timeout_seconds: float):
        """keepalive_seconds: silence after which the peer is pinged; timeout_seconds: then it has so long to answer."""
        self.connection = connection
        self.flusher = flusher
        self.handlers: dict[type[Event], Callable[[Event], None]] = {}
        self.is_touched = False
        self.is_closed = False  # nothing is sent or received any more
        self.has_sent_frames = False  # headers or data, since somebody last set it to False
        self._keepalive_seconds = keepalive_seconds
        self._timeout_seconds = timeout_seconds
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.is_paused = False
        self._heard = 0.0  # the loop's time when something came
        self._keepalive: asyncio.TimerHandle | None = None
        self._waits_for_pong = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without being a subclass
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._heard = self._loop.time()
        self._keepalive = self._loop.call_later(self._keepalive_seconds, self._check_alive)
        self.touch()

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        self.flusher.received_bytes += len(data)
        connection = self.connection
        try:
            connection.receive_data(data)
        except engine.NGH2Error as error:
            self.fail(str(error))
            return
        self._dispatch()
        self.touch()

    def connection_lost(self, error: Exception | None) -> None:
        self._end(str(error) if error else "connection closed by the peer")

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self.touch()

    # For the role

    def touch(self) -> None:
        if not self.is_touched:
            self.flusher.touch(self)

    def flush(self) -> None:
        """Hand to the socket what flow control and the socket allow."""
        self.is_touched = False
        transport = self._transport
        if self.is_closed or transport is None:
            return
        connection = self.connection
        try:
            # A write that fails closes uvloop's transport at once, and connection_lost comes later.
            while not self.is_paused and not transport.is_closing():
                data = connection.data_to_send(WRITE_BYTES)
                if not data:
                    break
                transport.write(data)
                self.flusher.sent_bytes += len(data)
                if len(data) < WRITE_BYTES:
                    break
        except engine.NGH2Error as error:
            self.fail(str(error))
            return
        if not connection.want_read and not connection.want_write:
            transport.close()  # a GOAWAY was the last word
        self._dispatch()  # a stream whose last frame has left is closed, and nothing else may come to tell it
        if not self.is_closed:
            self.flushed()

    def flushed(self) -> None:
        """After each flush."""

    def is_in_use(self) -> bool:
        """Whether it matters that the peer may be gone."""
        return True

    def lost(self, reason: str) -> None:
        """The connection is gone; called once."""
        raise NotImplementedError

    def fail(self, reason: str) -> None:
        """The peer broke the protocol. What is queued, a GOAWAY perhaps, is tried once more."""
        transport = self._transport
        if self.is_closed or transport is None:
            return
        with suppress(engine.NGH2Error):  # it may have no session any more
            transport.write(self.connection.data_to_send())
        self.close(reason)

    def close(self, reason: str) -> None:
        """Let the socket write what it has, then close it."""
        if self._transport is not None:
            self._transport.close()
        self._end(reason)

    def abort(self, reason: str) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()
        self._end(reason)

    def pong(self, opaque_data: bytes) -> None:
        if opaque_data == KEEPALIVE:
            self._waits_for_pong = False

    @property
    def transport(self) -> asyncio.Transport | None:
        return self._transport

    @property
    def peer(self) -> str:
        """As gRPC writes it: "ipv4:127.0.0.1:5000"."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        if not isinstance(name, tuple):
            return "unknown"
        host, port = name[0], name[1]
        return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"

    # Inside

    def _dispatch(self) -> None:
        """Hand out what has happened. Sending brings events too."""
        handlers = self.handlers
        for event in self.connection.events():
            if self.is_closed:
                return
            handler = handlers.get(type(event))
            if handler is not None:
                handler(event)

    def _end(self, reason: str) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        if self._keepalive is not None:
            self._keepalive.cancel()
        self.lost(reason)

    def _check_alive(self) -> None:
        """One timer for a connection's life: what came meanwhile only moves it on."""
        silent = self._loop.time() - self._heard
        if self._waits_for_pong and silent >= self._timeout_seconds - TIMER_SECONDS:
            self.abort("keepalive ping failed to receive an answer in time")
            return
        if silent < self._keepalive_seconds - TIMER_SECONDS:
            self._waits_for_pong = False
            delay = self._keepalive_seconds - silent
        elif not self.is_in_use():
            self._waits_for_pong = False
            delay = self._keepalive_seconds
        else:
            self._waits_for_pong = True
            delay = self._timeout_seconds
            try:
                self.connection.ping(KEEPALIVE)
            except engine.NGH2Error:
                return  # it is on its way out
            self._heard = self._loop.time()
            self.touch()
        self._keepalive = self._loop.call_later(delay, self._check_alive)
