"""Who may ask over HTTP: what stands before everything that a client's port serves.

    a Host that is not in --host-whitelist, without TLS  ->  421: a page that rebinds its name (CVE-2018-5702)
    an Origin that --cors does not name                  ->  no CORS headers, so that a browser shows the page nothing;
                                                             and nothing under /v3/ is done for it: 403 (CVE-2018-1098)
    OPTIONS                                              ->  200
    /v3beta/...                                          ->  /v3/..., as etcd since 3.4

A page of the same host and port may ask; programs send no Origin.
"""

from typing import Any, Final, final

from kvstore.gateway.rpc import PLAIN

V3: Final = "/v3/"
OLD_V3: Final = "/v3beta/"
EVERY: Final = "*"
CORS_HEADERS: Final = (
    (b"access-control-allow-headers", b"accept, content-type, authorization"),
    (b"access-control-allow-methods", b"POST, GET, OPTIONS, PUT, DELETE"),
)


@final
class Access:
    """An ASGI application around two: `gateway` for /v3/, `pages` for the rest."""

    def __init__(
        self,
        pages: Any,
        gateway: Any,
        *,
        hosts: frozenset[str] = frozenset((EVERY,)),
        origins: frozenset[str] = frozenset(),
    ) -> None:
        """gateway: None where /v3/ is not served. hosts, origins: those that may ask; "*" is every one."""
        self._pages = pages
        self._gateway = gateway
        self._hosts = hosts
        self._origins = origins

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].startswith(OLD_V3):
            scope = {**scope, "path": V3 + scope["path"].removeprefix(OLD_V3)}
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if scope["scheme"] in ("http", "ws") and not self._is_known(hostname(host)):
            await _refuse(scope, send, 421, f"the host {hostname(host)[:100]!r} is not in --host-whitelist")
            return
        allowed = EVERY if EVERY in self._origins else origin if origin in self._origins else ""
        if allowed:
            send = _with_headers(send, (*CORS_HEADERS, (b"access-control-allow-origin", allowed.encode("latin-1"))))
        is_v3 = self._gateway is not None and scope["path"].startswith(V3)
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        elif is_v3 and origin and not allowed and origin.partition("://")[2] != host:
            await _refuse(scope, send, 403, f"the origin {origin[:100]!r} is not in --cors")
        elif is_v3:
            await self._gateway(scope, receive, send)
        elif scope["type"] == "websocket":
            await _refuse(scope, send, 404, "404 page not found")
        else:
            await self._pages(scope, receive, send)

    def _is_known(self, host: str) -> bool:
        return not self._hosts or EVERY in self._hosts or host in self._hosts


def hostname(host: str) -> str:
    """Of a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


def _with_headers(send: Any, headers: tuple[tuple[bytes, bytes], ...]) -> Any:
    async def sent(message: Any) -> None:
        if message["type"].endswith(("http.response.start", "websocket.accept")):
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return sent


async def _refuse(scope: Any, send: Any, status: int, text: str) -> None:
    prefix = "websocket." if scope["type"] == "websocket" else ""
    body = f"{text}\n".encode("latin-1", "replace")
    headers = [*PLAIN, (b"content-length", str(len(body)).encode())]
    await send({"type": f"{prefix}http.response.start", "status": status, "headers": headers})
    await send({"type": f"{prefix}http.response.body", "body": body})
