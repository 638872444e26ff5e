"""Where a member speaks HTTP/1.1: beside gRPC on the clients' port, or on ports of its own.

--listen-client-urls        `shared`, for a front that tells HTTP/1.1 from HTTP/2; not with the next flag
--listen-client-http-urls   everything
--listen-metrics-urls       /metrics and /health, from before the first request is served: what is replayed shows
"""

import asyncio
from typing import TYPE_CHECKING, final

from kvstore.gateway.access import Access
from kvstore.gateway.app import Pages, make_app
from kvstore.gateway.rpc import Gateway
from kvstore.rpc.http1 import Http1Handover, Http1Listener
from kvstore.rpc.options import REQUEST_OVERHEAD_BYTES

if TYPE_CHECKING:
    from kvstore.config import ServerConfig
    from kvstore.rpc.local import LocalMethods
    from kvstore.rpc.tls import ServerTls
    from kvstore.server.server import KvServer


@final
class HttpPorts:
    def __init__(
        self, config: "ServerConfig", server: "KvServer", tls: "ServerTls | None", local: "LocalMethods"
    ) -> None:
        """local: what the gRPC front serves, for the JSON gateway."""
        pages = Pages(server, local.counts)
        bytes_max = config.max_request_bytes + REQUEST_OVERHEAD_BYTES
        clients = Access(
            make_app(pages),
            Gateway(local, bytes_max) if config.enable_grpc_gateway else None,
            hosts=config.host_whitelist,
            origins=config.cors,
        )
        self._client_urls = list(config.listen_client_http_urls)
        self._metrics_urls = list(config.listen_metrics_urls)
        self._clients = Http1Handover(clients)
        self._metrics = Http1Handover(make_app(pages, metrics_only=True))
        self._client_listener = Http1Listener(self._clients, tls)
        self._metrics_listener = Http1Listener(self._metrics, tls)

    @property
    def shared(self) -> Http1Handover | None:
        """For the port of gRPC; None when HTTP/1.1 has ports of its own."""
        return None if self._client_urls else self._clients

    async def start_metrics(self) -> list[str]:
        return await self._metrics_listener.start(self._metrics_urls)

    async def start_clients(self) -> list[str]:
        return await self._client_listener.start(self._client_urls)

    async def stop(self, grace: float) -> None:
        self._client_listener.close()
        self._metrics_listener.close()
        await asyncio.gather(self._clients.stop(grace), self._metrics.stop(grace))
