"""What answers HTTP/1.1: pages and gateway behind uvicorn's parser, for the clients' port and for the metrics' own.

Brings starlette, uvicorn and prometheus_client, 7 MB of memory: ports.py loads it when it is wanted.
"""

from typing import TYPE_CHECKING, final

from kvstore.gateway.access import Access
from kvstore.gateway.app import Pages, make_app
from kvstore.gateway.rpc import Gateway
from kvstore.rpc.http1 import Http1Handover
from kvstore.rpc.options import REQUEST_OVERHEAD_BYTES

if TYPE_CHECKING:
    from kvstore.config import ServerConfig
    from kvstore.rpc.local import LocalMethods
    from kvstore.server.server import KvServer


@final
class Handovers:
    def __init__(self, config: "ServerConfig", server: "KvServer", local: "LocalMethods") -> None:
        """Made on the loop. local: what the gRPC front serves, for the JSON gateway."""
        pages = Pages(server, local.counts)
        bytes_max = config.max_request_bytes + REQUEST_OVERHEAD_BYTES
        self.clients = Http1Handover(
            Access(
                make_app(pages),
                Gateway(local, bytes_max) if config.enable_grpc_gateway else None,
                hosts=config.host_whitelist,
                origins=config.cors,
            )
        )
        self.metrics = Http1Handover(make_app(pages, metrics_only=True))
