"""The ASGI application: etcd's paths, answered from the member's state.

    /health     is a request answered? With `serializable=true`: by this member alone, whether there is a leader or not
    /version    for clients that choose their API by it
    /metrics    for Prometheus (kvstore/gateway/metrics.py)

`exclude=NOSPACE` of /health names alarms that are not to count; none is raised by this version.

Bodies and content types are etcd's own, byte for byte: scripts compare them.
"""

import asyncio
import json
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from kvstore.errors import KvError
from kvstore.gateway.metrics import CONTENT_TYPE, Metrics
from kvstore.mvcc.range import range_
from kvstore.pb.rpc_pb2 import RangeRequest
from kvstore.version import CLUSTER_VERSION, ETCD_VERSION, STORAGE_VERSION

if TYPE_CHECKING:
    from kvstore.server.server import KvServer

NO_LEADER: Final = "RAFT NO LEADER"
VERSIONS: Final = json.dumps(
    {"etcdserver": ETCD_VERSION, "etcdcluster": CLUSTER_VERSION, "storage": STORAGE_VERSION}, separators=(",", ":")
)
NOT_FOUND: Final = "404 page not found"
EVERY_KEY: Final = RangeRequest(key=b"\0", range_end=b"\0", count_only=True)
NOSNIFF: Final = {"x-content-type-options": "nosniff"}


class Pages:
    def __init__(self, server: "KvServer") -> None:
        self._server = server
        self.metrics = Metrics(server)
        self._one_count = asyncio.Lock()

    async def health(self, request: Request) -> Response:
        reason = await self._unhealthy(request.query_params.get("serializable") == "true")
        healthy = not reason
        self.metrics.count_health(healthy)
        body = json.dumps({"health": "true" if healthy else "false", "reason": reason}, separators=(",", ":"))
        return PlainTextResponse(body) if healthy else failure(503, body)

    async def _unhealthy(self, serializable: bool) -> str:
        """Why; "" when nothing is wrong."""
        server = self._server
        if serializable:
            return ""  # that this is answered says all that there is to say
        if not server.has_leader:
            return NO_LEADER
        try:
            async with asyncio.timeout(server.config.request_timeout):
                await server.linearizable()
        except KvError as error:
            return f"RANGE ERROR:{error.message}"
        except TimeoutError:
            return "RANGE ERROR:context deadline exceeded"
        return ""

    async def version(self, request: Request) -> Response:
        return Response(VERSIONS, media_type="application/json")

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
    routes = [Route("/health", pages.health), Route("/metrics", pages.expose)]
    if not metrics_only:
        routes.append(Route("/version", pages.version))
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


def failure(status: int, text: str) -> Response:
    """As Go's http.Error writes it."""
    return PlainTextResponse(f"{text}\n", status, headers=NOSNIFF)
