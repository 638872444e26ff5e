"""What is no gRPC on a TLS connection that agreed to speak HTTP/2: the same ASGI application as over HTTP/1.1.

curl and Go's clients offer HTTP/2 wherever there is TLS, and get it, so /health and /v3/ have to be there too, as at
etcd. Without TLS HTTP/2 means gRPC, as at etcd as well.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, final
from urllib.parse import unquote

import structlog

from kvstore.errors import KvError
from kvstore.rpc.nghttp2 import engine
from kvstore.rpc.nghttp2.serving import Method, Request, ServerStream

if TYPE_CHECKING:
    from kvstore.rpc.nghttp2.serving import ServerSession

log = structlog.get_logger(__name__)

UNREAD_BYTES_MAX: Final = 8 * 1024 * 1024  # of a body that the application does not take
WRITE_AHEAD_BYTES: Final = 64 * 1024
REQUEST_SECONDS: Final = 10.0  # for a body to arrive whole, or an answer to begin


@final
class PageMethod(Method):
    def __init__(self, app: Any) -> None:
        self.app = app

    def open(self, session: "ServerSession", stream_id: int, request: Request) -> ServerStream:
        return PageStream(self.app, session, stream_id, request)


@final
class PageStream(ServerStream):
    """One request."""

    def __init__(self, app: Any, session: "ServerSession", stream_id: int, head: Request) -> None:
        self._session: ServerSession | None = session  # None: gone
        self._stream_id = stream_id
        self._is_head = head.found.get(b":method") == b"HEAD"
        self._body: deque[tuple[bytes, bool]] = deque()
        self._body_bytes = 0
        self._changed = asyncio.Event()
        self._drained = asyncio.Event()
        self._start: tuple[tuple[bytes, bytes], ...] | None = None  # what waits for the first of the body
        self._has_begun = False
        self._is_ended = False  # by us
        server = session.server
        server.calls_open += 1
        self._grain = server.deadlines.add(self, server.loop.time() + REQUEST_SECONDS)
        self._task = server.loop.create_task(self._run(app, _scope(session, head)))

    # ServerStream

    def data(self, data: bytes, is_last: bool) -> None:
        if self._is_ended:
            return
        self._body.append((data, not is_last))
        self._body_bytes += len(data)
        self._changed.set()
        if is_last:
            self._on_time()
        if self._body_bytes > UNREAD_BYTES_MAX:
            self._reset(engine.ErrorCode.ENHANCE_YOUR_CALM)

    def drained(self) -> None:
        self._drained.set()

    def closed(self) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        self._on_time(session)
        session.server.calls_open -= 1
        self._changed.set()
        self._drained.set()

    def stop(self, error: KvError) -> None:
        self._task.cancel()
        self._reset(engine.ErrorCode.CANCEL)

    def expire(self) -> None:
        self._grain = 0
        self._reset(engine.ErrorCode.CANCEL)

    def _on_time(self, session: "ServerSession | None" = None) -> None:
        session = session or self._session
        if self._grain and session is not None:
            session.server.deadlines.remove(self, self._grain)
            self._grain = 0

    def _reset(self, code: int) -> None:
        self._is_ended = True
        session = self._session
        if session is not None:
            engine.reset(session.connection, self._stream_id, code)
            session.touch()

    # The application

    async def _run(self, app: Any, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Exception:  # top of a task
            log.exception("the application failed")
        if not self._is_ended:
            self._reset(engine.ErrorCode.INTERNAL_ERROR)

    async def _receive(self) -> dict[str, Any]:
        while not self._body:
            if self._session is None or self._is_ended:
                return {"type": "http.disconnect"}
            self._changed.clear()
            await self._changed.wait()
        body, more = self._body.popleft()
        self._body_bytes -= len(body)
        return {"type": "http.request", "body": body, "more_body": more}

    async def _send(self, message: dict[str, Any]) -> None:
        session = self._session
        if session is None or self._is_ended:
            return
        if message["type"] == "http.response.start":
            from email.utils import formatdate  # the application has brought it

            date = formatdate(usegmt=True).encode()
            self._start = ((b":status", b"%d" % message["status"]), *message["headers"], (b"date", date))
            return
        body = b"" if self._is_head else message.get("body", b"")
        self._write(session, body, is_last=not message.get("more_body"))
        session.has_sent_frames = True
        session.touch()
        while self._session is not None and session.connection.queued_body_size(self._stream_id) > WRITE_AHEAD_BYTES:
            self._drained.clear()
            session.watch_queue(self._stream_id, self)
            await self._drained.wait()

    def _write(self, session: "ServerSession", body: bytes, *, is_last: bool) -> None:
        connection, stream_id = session.connection, self._stream_id
        if not self._has_begun:
            assert self._start is not None, "a body before its head"
            self._has_begun = True
            self._on_time()
            if is_last and not body:
                self._is_ended = True
                engine.headers_only(connection, stream_id, self._start)
                return
            engine.response_head(connection, stream_id, self._start)
        if is_last:
            self._is_ended = True
            engine.message(connection, stream_id, body)
            session.linger(stream_id)
        elif body:
            engine.data(connection, stream_id, body)


def _scope(session: "ServerSession", head: Request) -> dict[str, Any]:
    found = head.found
    raw, _, query = found.get(b":path", b"/").partition(b"?")
    name = session.transport.get_extra_info("peername") if session.transport is not None else None
    headers = [(name, value) for name, value in head.headers if name[:1] != b":"]
    if b"host" not in found:
        headers.append((b"host", found.get(b":authority", b"")))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "2",
        "method": found.get(b":method", b"GET").decode("latin-1"),
        "scheme": "https",
        "path": unquote(raw.decode("latin-1")),
        "raw_path": raw,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": name[:2] if isinstance(name, tuple) else None,
        "server": None,
        "state": {},
    }
