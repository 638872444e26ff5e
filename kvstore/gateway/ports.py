"""Where a member speaks HTTP/1.1: beside gRPC on the clients' port, or on ports of its own.

--listen-client-urls        `shared`, for a front that tells HTTP/1.1 from HTTP/2; not with the next flag
--listen-client-http-urls   everything
--listen-metrics-urls       /metrics and /health, from before the first request is served: what is replayed shows

Ports of its own are loaded for at the start. Beside gRPC the first request is what loads (handovers.py): a member that
is never asked over HTTP has no need of it.
"""

import asyncio
import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, final

import structlog

if TYPE_CHECKING:
    from kvstore.config import ServerConfig
    from kvstore.gateway.handovers import Handovers
    from kvstore.rpc.http1 import Http1Handover, Http1Listener
    from kvstore.rpc.local import LocalMethods
    from kvstore.rpc.tls import ServerTls
    from kvstore.server.server import KvServer

log = structlog.get_logger(__name__)

WAITING_MAX: Final = 100  # connections, while it is being loaded; one more is cut


@final
class HttpPorts:
    def __init__(
        self, config: "ServerConfig", server: "KvServer", tls: "ServerTls | None", local: "LocalMethods"
    ) -> None:
        """local: what the gRPC front serves, for the JSON gateway."""
        self._config = config
        self._server = server
        self._tls = tls
        self._local = local
        self._loading: asyncio.Task[Handovers] | None = None
        self._made: Handovers | None = None
        self._listeners: list[Http1Listener] = []
        # For the port of gRPC; None when HTTP/1.1 has ports of its own.
        self.shared = None if config.listen_client_http_urls else Shared(self)

    async def start_metrics(self) -> list[str]:
        urls, tls = list(self._config.listen_metrics_urls), self._tls
        if tls is not None and tls.client_auth:
            tls = replace(tls, of_its_address=True)  # as etcd: here, and not at the clients' port
        return await self._listen(urls, (await self.handovers()).metrics, tls) if urls else []

    async def start_clients(self) -> list[str]:
        urls = list(self._config.listen_client_http_urls)
        return await self._listen(urls, (await self.handovers()).clients, self._tls) if urls else []

    async def _listen(self, urls: list[str], handover: "Http1Handover", tls: "ServerTls | None") -> list[str]:
        from kvstore.rpc.http1 import Http1Listener

        listener = Http1Listener(handover, tls)
        self._listeners.append(listener)
        return await listener.start(urls)

    async def handovers(self) -> "Handovers":
        if self._loading is None:
            self._loading = asyncio.create_task(self._load())
        return await asyncio.shield(self._loading)  # others may wait for it too

    async def _load(self) -> "Handovers":
        """The imports take 80 ms and more: in a thread, so that the loop turns meanwhile."""
        loaded = await asyncio.to_thread(importlib.import_module, "kvstore.gateway.handovers")
        self._made = loaded.Handovers(self._config, self._server, self._local)
        return self._made

    async def stop(self, grace: float) -> None:
        for listener in self._listeners:
            listener.close()
        if self._loading is not None:
            await asyncio.wait([self._loading])
        if self._made is not None:
            await asyncio.gather(self._made.clients.stop(grace), self._made.metrics.stop(grace))


@final
class Shared:
    """The `Http1` of the clients' port: an `Http1Handover` from the first request on."""

    def __init__(self, ports: HttpPorts) -> None:
        self._ports = ports
        self._handover: Http1Handover | None = None
        self._waiting: list[tuple[asyncio.Transport, bytes]] = []
        self._loading: asyncio.Task[None] | None = None

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application, for what comes over HTTP/2."""
        await (await self._ports.handovers()).clients.app(scope, receive, send)

    def take(self, transport: asyncio.Transport, received: bytes) -> None:
        if self._handover is not None:
            self._handover.take(transport, received)
        elif len(self._waiting) >= WAITING_MAX or (self._loading is not None and self._loading.done()):
            transport.abort()  # too many, or what answers could not be loaded: nobody would come back to it
        else:
            transport.pause_reading()
            self._waiting.append((transport, received))
            self._loading = self._loading or asyncio.create_task(self._load())

    async def _load(self) -> None:
        try:
            self._handover = (await self._ports.handovers()).clients
        except Exception:  # an installation that was changed under us: gRPC goes on
            log.exception("HTTP/1.1 cannot be served")
        waiting, self._waiting = self._waiting, []
        for transport, received in waiting:
            if transport.is_closing():
                continue
            if self._handover is None:
                transport.abort()
            else:
                transport.resume_reading()
                self._handover.take(transport, received)

    async def stop(self, grace: float) -> None:
        """Take no new request."""
        if self._loading is not None:
            await self._loading
        if self._handover is not None:
            await self._handover.stop(grace)
