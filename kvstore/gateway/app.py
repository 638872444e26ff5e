"""The ASGI application: etcd's paths, answered from the member's state.

    /health /livez /readyz      kvstore/gateway/health.py
    /version                    for clients that choose their API by it
    /metrics                    for Prometheus (kvstore/gateway/metrics.py)
    /debug/vars                 for people (kvstore/gateway/variables.py)

Bodies and content types are etcd's own, byte for byte: scripts compare them.
"""

import asyncio
import json
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvstore.gateway.health import Health, failure
from kvstore.gateway.metrics import CONTENT_TYPE, Metrics
from kvstore.gateway.variables import CONTENT_TYPE as VARIABLES_TYPE
from kvstore.gateway.variables import variables
from kvstore.mvcc.range import range_
from kvstore.pb.rpc_pb2 import RangeRequest
from kvstore.rpc.counts import Counts
from kvstore.version import ETCD_VERSION

if TYPE_CHECKING:
    from kvstore.server.server import KvServer

NOT_FOUND: Final = "404 page not found"
EVERY_KEY: Final = RangeRequest(key=b"\0", range_end=b"\0", count_only=True)


class Pages:
    def __init__(self, server: "KvServer", counts: Counts | None = None) -> None:
        """counts: of the front that clients are served by."""
        self._server = server
        self.health = Health(server)
        self.metrics = Metrics(server, self.health, counts)
        self._one_count = asyncio.Lock()

    async def version(self, request: Request) -> Response:
        cluster = self._server.versions.cluster
        body = {"etcdserver": ETCD_VERSION, "etcdcluster": cluster, "storage": cluster}
        return Response(json.dumps(body, separators=(",", ":")), media_type="application/json")

    async def variables(self, request: Request) -> Response:
        return Response(variables(self._server), media_type=VARIABLES_TYPE)

    async def expose(self, request: Request) -> Response:
        async with self._one_count:  # the next one finds what this one counted
            keys = await self._count_keys()
        return Response(self.metrics.exposition(keys), headers={"content-type": CONTENT_TYPE})

    async def _count_keys(self) -> int:
        """In slices, so that nobody waits for a walk over many keys; the store keeps what such a walk has found."""
        with self._server.store.view() as view:
            return (await range_(view, EVERY_KEY)).count


def make_app(pages: Pages, *, metrics_only: bool = False) -> Starlette:
    """metrics_only: what --listen-metrics-urls serves."""
    routes = [*pages.health.routes(), Route("/metrics", pages.expose)]
    if not metrics_only:
        routes += [Route("/version", pages.version), Route("/debug/vars", pages.variables)]
    for route in routes:
        if route.path != "/metrics":
            assert route.methods is not None
            route.methods.discard("HEAD")  # as etcd: these are for GET and nothing else
    app = Starlette(routes=routes, exception_handlers={404: _not_found, 405: _not_allowed})
    app.router.redirect_slashes = False
    return app


async def _not_found(request: Request, error: Exception) -> Response:
    return failure(404, NOT_FOUND)


async def _not_allowed(request: Request, error: Exception) -> Response:
    response = failure(405, "Method Not Allowed")
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)
    return response
