"""grpc.aio's Server over libnghttp2: ports, methods, connections, and an orderly end.

One flusher for all connections: a tick of the loop that brought calls ends with their delivery, as one list per hot
method, and with one write per connection that has something to say.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, NoReturn

import grpc

from kvstore.errors import STOPPED
from kvstore.rpc.address import listen
from kvstore.rpc.base import Http1
from kvstore.rpc.nghttp2.calls import CallsMethod
from kvstore.rpc.nghttp2.deadlines import Deadlines
from kvstore.rpc.nghttp2.handlers import HandlerMethod
from kvstore.rpc.nghttp2.pages import PageMethod
from kvstore.rpc.nghttp2.serving import UNKNOWN, Acceptor, Method, ServerSession
from kvstore.rpc.nghttp2.session import Flusher
from kvstore.rpc.options import ServerOptions
from kvstore.rpc.tls import RELOAD_SECONDS, LiveTls, ServerTls

VERSIONS_MAX: Final = 100  # of clients, remembered when they have gone: what they say is theirs to choose
PATHS_MAX: Final = 1_000  # remembered; a client may ask for any number of methods that are none
BACKLOG: Final = 4096  # connections the kernel holds while the loop is busy


class _Details(grpc.HandlerCallDetails):
    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


class Server:
    def __init__(self, options: ServerOptions) -> None:
        """Call on the loop that will run it."""
        self.options = options
        self.loop = asyncio.get_running_loop()
        self.flusher = Flusher(self.loop)
        self.flusher.before = self._deliver
        self.deadlines = Deadlines(self.loop)
        self.http1: Http1 | None = None
        self.pages: PageMethod | None = None  # what is no gRPC, over TLS
        self.calls_open = 0
        self.sessions: dict[ServerSession, None] = {}
        self.acceptors: set[Acceptor] = set()
        self._methods: dict[bytes, Method] = {}  # by path, as registered
        self._resolved: dict[bytes, Method] = {}  # likewise, as the generic handlers know them
        self._generic: list[Any] = []
        self._due: list[CallsMethod] = []  # they have calls to deliver
        self._sockets: list[tuple[socket.socket, ServerTls | None]] = []
        self._listeners: list[asyncio.Server] = []
        self._tls: dict[ServerTls, LiveTls] = {}
        self._tls_timer: asyncio.TimerHandle | None = None
        self._stopped: asyncio.Future[None] = self.loop.create_future()
        self._idle: asyncio.Future[None] | None = None
        self._is_stopping = False
        self._versions: Counter[tuple[str, str]] = Counter()  # of sessions that have ended

    # grpc.aio.Server

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self._generic += handlers
        self._methods = {
            path: method for path, method in self._methods.items() if not isinstance(method, HandlerMethod)
        }

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        for name, handler in handlers.items():
            path = f"/{service}/{name}"
            self.add_method(path, HandlerMethod(handler, self.options.receive_bytes_max, path))

    def add_insecure_port(self, address: str) -> int:
        """Encrypted all the same when the server was made with TLS, for callers that name an address only.

        Binds at once. Returns the port; raises RuntimeError, as gRPC does.
        """
        return self.add_port(address, self.options.tls)

    def add_secure_port(self, address: str, credentials: ServerTls) -> int:
        return self.add_port(address, credentials)

    def add_port(self, address: str, tls: ServerTls | None) -> int:
        try:
            found = listen(address, BACKLOG)
        except OSError as error:
            raise RuntimeError(f"Failed to bind to address {address}: {error.strerror or error}") from error
        self._sockets += [(listening, tls) for listening in found]
        port: int = found[0].getsockname()[1]
        return port

    async def start(self) -> None:
        for listening, tls in self._sockets:
            live = self._live(tls) if tls is not None else None
            self._listeners.append(
                await self.loop.create_server(
                    partial(Acceptor, self, live.admission if live is not None else None),
                    sock=listening,
                    backlog=BACKLOG,
                    ssl=live.context if live is not None else None,
                    ssl_handshake_timeout=self.options.handshake_timeout_ms / 1000 if live is not None else None,
                )
            )
        self._sockets.clear()
        if self._tls:
            self._tls_timer = self.loop.call_later(RELOAD_SECONDS, self._reload)

    async def stop(self, grace: float | None) -> None:
        """No new connections and calls; calls under way have `grace` seconds, then they are cancelled."""
        self._is_stopping = True
        for listener in self._listeners:
            listener.close()
        for listening, _ in self._sockets:
            listening.close()
        self._sockets.clear()
        if self._tls_timer is not None:
            self._tls_timer.cancel()
        for acceptor in list(self.acceptors):
            acceptor.close()
        for session in list(self.sessions):
            session.drain()
        if grace and self._is_busy():
            self._idle = self.loop.create_future()
            await asyncio.wait([self._idle], timeout=grace)
        if self.http1 is not None:
            await self.http1.stop(grace or 0)
        for session in list(self.sessions):
            for stream in list(session.streams.values()):
                stream.stop(STOPPED)
            session.flush()
            session.close("the server has stopped")
        self.deadlines.close()
        if not self._stopped.done():
            self._stopped.set_result(None)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """True when the timeout came first."""
        done, _ = await asyncio.wait([self._stopped], timeout=timeout)
        return not done

    # For sessions and methods

    def add_method(self, path: str, method: Method) -> None:
        key = path.encode()
        assert key not in self._methods, f"{path} is served twice"
        self._methods[key] = method

    def method(self, path: bytes) -> Method:
        return self._methods.get(path) or self._resolved.get(path) or self._resolve(path)

    def deliver(self, method: CallsMethod) -> None:
        self._due.append(method)
        self.flusher.due()

    def admit(self, acceptor: Acceptor) -> bool:
        if self._is_stopping or len(self.sessions) + len(self.acceptors) >= self.options.connections_max:
            return False
        self.acceptors.add(acceptor)
        return True

    def versions(self) -> Counter[tuple[str, str]]:
        """Calls by type and by the version that clients tell of their API."""
        found = Counter(self._versions)
        for session in self.sessions:
            _add(found, session)
        return found

    def forget(self, session: ServerSession) -> None:
        if session in self.sessions:
            del self.sessions[session]
            _add(self._versions, session)
        self.idle()

    def idle(self) -> None:
        """A stream or a connection has ended while the server stops."""
        if self._idle is not None and not self._idle.done() and not self._is_busy():
            self._idle.set_result(None)

    # Inside

    def _is_busy(self) -> bool:
        return any(session.streams for session in self.sessions)

    def _deliver(self) -> None:
        due, self._due = self._due, []
        for method in due:
            method.run()

    def _resolve(self, path: bytes) -> Method:
        text = path.decode("latin-1")
        for generic in self._generic:
            handler = generic.service(_Details(text))
            if handler is not None:
                break
        else:
            handler = grpc.stream_stream_rpc_method_handler(_not_found)
        method = HandlerMethod(handler, self.options.receive_bytes_max, text)
        if len(self._resolved) < PATHS_MAX:
            self._resolved[path] = method
        return method

    def _live(self, tls: ServerTls) -> LiveTls:
        if tls not in self._tls:
            self._tls[tls] = LiveTls(tls)
        return self._tls[tls]

    def _reload(self) -> None:
        """New certificates are for new connections."""
        self._tls_timer = self.loop.call_later(RELOAD_SECONDS, self._reload)
        for live in self._tls.values():
            live.refresh()


async def _not_found(_: Any, context: Any) -> NoReturn:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    raise AssertionError("abort returned")


def _add(versions: Counter[tuple[str, str]], session: ServerSession) -> None:
    for (kind, version), calls in session.versions():
        known = (kind, version) in versions or len(versions) < VERSIONS_MAX
        versions[kind, version if known else UNKNOWN] += calls
