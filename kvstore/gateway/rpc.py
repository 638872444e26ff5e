"""The JSON gateway: an RPC behind a POST, or behind a WebSocket where requests or answers are many.

    POST /v3/kv/put {"key": ...}   ->  200 {"header": ...}                  one answer
    POST /v3/watch  {...} {...}    ->  200 {"result": ...} ...             a stream: one object a line, sent at once
    GET  /v3/watch  (WebSocket)    ->  the same, a text message a line; token by the subprotocol "Bearer, TOKEN"

The handlers are those that gRPC's clients reach (kvstore/rpc/local.py). What a browser or a script may send beside the
body: Authorization (a token), Grpc-Timeout, and gRPC metadata as Grpc-Metadata-NAME.

An error's body has the fields of both of etcd's gateways: `error` and `message` of 3.5, `code` and `details` of 3.6.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, MutableMapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, Final, final

from kvstore.errors import Code, KvError
from kvstore.gateway.documents import Documents
from kvstore.gateway.mapping import MappingError, document_of, message_of
from kvstore.gateway.routes import ROUTES, Route
from kvstore.rpc.local import LocalMethods, Origin

Scope = MutableMapping[str, Any]
Receive = Any
Send = Any

BODY_FACTOR: Final = 2  # JSON of a message is at most a third longer, but for escapes and spaces
TIMEOUT_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
TIMEOUT_DIGITS: Final = 8
METADATA_PREFIX: Final = "grpc-metadata-"
ACCEPT: Final = "grpcgateway-accept"  # metadata by which etcd knows that a call came through its gateway

HTTP_STATUS: Final = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
_PHRASES: Final = {499: "Client Closed Request"}

JSON: Final = (b"content-type", b"application/json")
FROM_GRPC: Final = (b"grpc-metadata-content-type", b"application/grpc")  # as etcd says of every answer of a handler
PLAIN: Final = ((b"content-type", b"text/plain; charset=utf-8"), (b"x-content-type-options", b"nosniff"))


class _Gone(Exception):
    """The client is."""


@final
class Gateway:
    """An ASGI application for /v3/."""

    def __init__(self, methods: LocalMethods, message_bytes_max: int) -> None:
        """message_bytes_max: of one request, as gRPC's front bounds it."""
        self._methods = methods
        self._message_bytes_max = message_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = ROUTES.get(scope["path"])
        if scope["type"] == "websocket":
            await _WebSocket(self, receive, send).serve(route, scope)
        elif route is None:
            await _refuse(send, 404, "Not Found")
        elif scope["method"] != "POST":
            await _refuse(send, 405, "Method Not Allowed")
        else:
            await self._post(route, scope, receive, send)

    async def _post(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(receive, BODY_FACTOR * self._message_bytes_max)
        try:
            origin = origin_of(scope)
            serve = self._stream if route.answers_many else self._call
            await _unless_gone(serve(route, body, origin, send), body)
        except KvError as error:
            await _answer(send, HTTP_STATUS[error.code], error_document(error))
        except _Gone:
            pass

    async def _call(self, route: Route, body: "_Body", origin: Origin, send: Send) -> None:
        document = await self.answer(route, await body.whole(), origin)
        await _answer(send, 200, document, FROM_GRPC)

    async def _stream(self, route: Route, body: "_Body", origin: Origin, send: Send) -> None:
        requests = self.requests(route, body.chunks())
        first = await anext(requests, None)
        has_begun = False
        try:
            async with aclosing(self.answers(route, first, requests, origin)) as answers:
                async for document in answers:
                    if not has_begun:
                        has_begun = True
                        await send({"type": "http.response.start", "status": 200, "headers": [JSON, FROM_GRPC]})
                    await send({"type": "http.response.body", "body": document + b"\n", "more_body": True})
        except KvError as error:
            last, status = stream_error_document(error), HTTP_STATUS[error.code]
        else:
            last, status = b"", 200
        if not has_begun:
            await send({"type": "http.response.start", "status": status, "headers": [JSON]})
        await send({"type": "http.response.body", "body": last})

    # For both ways in

    async def answer(self, route: Route, document: bytes, origin: Origin) -> bytes:
        """One request, one answer. Raises KvError."""
        encoded = await self._encoded(route, document)
        return await document_of(route.response, await self._methods.call(route.method, encoded, origin))

    async def answers(
        self, route: Route, first: bytes | None, requests: AsyncIterator[bytes], origin: Origin
    ) -> AsyncGenerator[bytes, None]:
        """The line of each answer, without its end. Raises KvError."""
        async with aclosing(self._methods.stream(route.method, _joined(first, requests), origin)) as answers:
            async for encoded in answers:
                yield await document_of(route.response, encoded, "result")

    async def requests(self, route: Route, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Encoded. One of defaults where a single one is wanted and nothing came.

        Raises KvError for the first one only: a later one that is bad ends the asking and nothing else (etcd).
        """
        documents = Documents(BODY_FACTOR * self._message_bytes_max)
        count = 0
        try:
            async for chunk in chunks:
                for document in documents.feed(chunk):
                    yield await self._encoded(route, document)
                    count += 1
                    if not route.asks_many:
                        return
            rest = documents.rest()
            if rest or not (route.asks_many or count):
                yield await self._encoded(route, rest)
        except KvError as error:
            if count:
                return
            if route.asks_many and error.code == Code.INVALID_ARGUMENT:
                raise KvError(Code.UNKNOWN, error.message) from None  # etcd does not say whose fault it is
            raise

    async def _encoded(self, route: Route, document: bytes) -> bytes:
        try:
            message = await message_of(route.request, document)
        except MappingError as error:
            raise KvError(Code.INVALID_ARGUMENT, str(error)) from None
        encoded = message.SerializeToString()
        if len(encoded) > self._message_bytes_max:
            raise too_large(len(encoded), self._message_bytes_max)
        return encoded


async def _joined(first: bytes | None, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first is not None:
        yield first
        async for other in others:
            yield other


@final
class _Body:
    """What a client sends, and when it goes away."""

    def __init__(self, receive: Receive, bytes_max: int) -> None:
        self._receive = receive
        self._bytes_max = bytes_max
        self._at_end = asyncio.Event()
        self._is_gone = False

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Until the end of the body, or of the connection: `gone` knows."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._is_gone = True
                self._at_end.set()
                return
            if not message.get("more_body"):
                self._at_end.set()
                yield message.get("body", b"")
                return
            yield message.get("body", b"")

    async def whole(self) -> bytes:
        """Raises KvError, and _Gone."""
        parts: list[bytes] = []
        size = 0
        async for chunk in self.chunks():
            parts.append(chunk)
            size += len(chunk)
            if size > self._bytes_max:
                raise too_large(size, self._bytes_max)
        if self._is_gone:
            raise _Gone
        return b"".join(parts)

    async def gone(self) -> None:
        """Returns when the client is gone; nobody else may be reading then."""
        await self._at_end.wait()
        while not self._is_gone and (await self._receive())["type"] != "http.disconnect":
            pass


async def _unless_gone(work: Coroutine[Any, Any, None], body: _Body) -> None:
    """Do it, or as much of it as is done while the client is there."""
    tasks = [asyncio.create_task(work), asyncio.create_task(body.gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise _Gone
        await tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@final
class _WebSocket:
    """A text message is a piece of the body, a line of the answer is a text message."""

    def __init__(self, gateway: Gateway, receive: Receive, send: Send) -> None:
        self._gateway = gateway
        self._receive = receive
        self._send = send

    async def serve(self, route: Route | None, scope: Scope) -> None:
        await self._receive()  # websocket.connect
        if route is None:
            await self._send({"type": "websocket.http.response.start", "status": 404, "headers": list(PLAIN)})
            await self._send({"type": "websocket.http.response.body", "body": b"Not Found\n"})
            return
        offered = scope.get("subprotocols") or []
        chosen = "Bearer" if offered[:1] == ["Bearer"] else None
        await self._send({"type": "websocket.accept", "subprotocol": chosen})
        token = offered[1] if chosen is not None and len(offered) > 1 else ""
        try:
            origin = origin_of(scope, token)
            serve = self._stream if route.answers_many else self._call
            await serve(route, origin)
        except KvError as error:
            await self._say(error_document(error))
        except _Gone:
            return
        await self._send({"type": "websocket.close"})

    async def _call(self, route: Route, origin: Origin) -> None:
        await self._say(await self._gateway.answer(route, await anext(self._chunks(), b""), origin))

    async def _stream(self, route: Route, origin: Origin) -> None:
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)
        reading = asyncio.create_task(self._read(chunks))
        try:
            requests = self._gateway.requests(route, _taken(chunks))
            first = await anext(requests, None)
            answering = asyncio.create_task(self._answer(route, first, requests, origin))
            try:
                await asyncio.wait([reading, answering], return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    raise _Gone
                await answering
            finally:
                answering.cancel()
                await asyncio.gather(answering, return_exceptions=True)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _answer(self, route: Route, first: bytes | None, requests: AsyncIterator[bytes], origin: Origin) -> None:
        try:
            async with aclosing(self._gateway.answers(route, first, requests, origin)) as answers:
                async for document in answers:
                    await self._say(document)
        except KvError as error:
            await self._say(stream_error_document(error))

    async def _read(self, chunks: "asyncio.Queue[bytes | None]") -> None:
        """Ends when the client is gone."""
        try:
            async for chunk in self._chunks():
                await chunks.put(chunk)
        except _Gone:
            if chunks.empty():
                chunks.put_nowait(None)

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                raise _Gone
            text = message.get("text")
            yield text.encode() if text is not None else message.get("bytes") or b""

    async def _say(self, document: bytes) -> None:
        await self._send({"type": "websocket.send", "text": document.decode()})


async def _taken(chunks: "asyncio.Queue[bytes | None]") -> AsyncIterator[bytes]:
    while (chunk := await chunks.get()) is not None:
        yield chunk


def origin_of(scope: Scope, token: str = "") -> Origin:
    """Who asks, as gRPC would be told. Raises KvError."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    metadata: dict[str, str | bytes] = {
        name.removeprefix(METADATA_PREFIX): text for name, text in headers.items() if name.startswith(METADATA_PREFIX)
    }
    token = token or headers.get("authorization", "").removeprefix("Bearer ")
    if token:
        metadata["authorization"] = metadata["token"] = token
    metadata[ACCEPT] = headers.get("accept", "")
    client = scope.get("client")
    timeout = headers.get("grpc-timeout")
    return Origin(
        metadata,
        f"{'ipv6' if ':' in client[0] else 'ipv4'}:{client[0]}:{client[1]}" if client else "",
        None if timeout is None else _seconds(timeout),
    )


def _seconds(timeout: str) -> float:
    digits, unit = timeout[:-1], timeout[-1:]
    if not (digits.isascii() and digits.isdigit() and len(digits) <= TIMEOUT_DIGITS and unit in TIMEOUT_UNITS):
        raise KvError(Code.INVALID_ARGUMENT, f"invalid grpc-timeout: {timeout[:40]}")
    return int(digits) * TIMEOUT_UNITS[unit]


def too_large(size: int, most: int) -> KvError:
    return KvError(Code.RESOURCE_EXHAUSTED, f"grpc: received message larger than max ({size} vs. {most})")


def error_document(error: KvError) -> bytes:
    return _json({"error": error.message, "code": int(error.code), "message": error.message, "details": []})


def stream_error_document(error: KvError) -> bytes:
    status = HTTP_STATUS[error.code]
    return _json(
        {
            "error": {
                "grpc_code": int(error.code),
                "http_code": status,
                "message": error.message,
                "http_status": _PHRASES.get(status) or HTTPStatus(status).phrase,
                "code": int(error.code),
                "details": [],
            }
        }
    )


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


async def _refuse(send: Send, status: int, text: str) -> None:
    await _answer(send, status, f"{text}\n".encode(), head=PLAIN)


async def _answer(send: Send, status: int, body: bytes, *more: tuple[bytes, bytes], head: Any = (JSON,)) -> None:
    headers = [*head, *more, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
