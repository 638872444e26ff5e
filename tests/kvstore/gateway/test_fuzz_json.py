"""Any bytes to any path of the JSON gateway: a typed answer, and nothing left behind.

The handlers are a front's own, of every kind; what they answer is random too, so that writing is looked at as well.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore.gateway.routes import ROUTES
from kvstore.gateway.rpc import Gateway
from kvstore.rpc.base import Call, Gate, Stream
from kvstore.rpc.local import LocalMethods

LIMIT = 4000
EXAMPLES = 300
NOBODY_IS_ASKED: Any = SimpleNamespace(
    refusal=lambda path: None, guard=None, is_leaderless=lambda: False, declares=lambda path: True
)

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary().map(repr) | st.just("YQ==")
names = st.sampled_from(sorted({name for route in ROUTES.values() for name in route.request.DESCRIPTOR.fields_by_name}))
documents = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(names | st.text(max_size=3), inner), max_leaves=20
)
bodies = st.binary(max_size=200) | documents.map(lambda value: json.dumps(value).encode())
pieces = st.lists(bodies, min_size=1, max_size=4)


class Methods:
    """Every path is served by a hot method that answers what it was asked, whatever kind of message that is."""

    def __init__(self) -> None:
        self.local = LocalMethods()
        self.open = 0
        for route in ROUTES.values():
            if route.asks_many:
                self.local.add_stream(route.method, self.stream, Gate(NOBODY_IS_ASKED, route.method))
            elif route.answers_many:
                self.local.add_generated(route.method, _ServerStream())
            else:
                self.local.add_calls(route.method, self.calls, Gate(NOBODY_IS_ASKED, route.method))

    def calls(self, calls: list[Call]) -> None:
        for call in calls:
            call.reply(b"")

    def stream(self, stream: Stream) -> "_Echo":
        self.open += 1
        return _Echo(self, stream)


class _ServerStream:
    async def unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b""


class _Echo:
    def __init__(self, methods: Methods, stream: Stream) -> None:
        self._methods = methods
        self._stream = stream

    def received(self, messages: list[bytes]) -> None:
        self._stream.send([b""] * len(messages))

    def drained(self) -> None:
        pass

    def half_closed(self) -> None:
        self._stream.close()

    def closed(self) -> None:
        self._methods.open -= 1


async def post(gateway: Gateway, path: str, parts: list[bytes]) -> tuple[int, bytes]:
    waiting = [
        {"type": "http.request", "body": part, "more_body": number + 1 < len(parts)}
        for number, part in enumerate(parts)
    ]
    status = 0
    body = b""

    async def receive() -> dict[str, Any]:
        if waiting:
            return waiting.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, body
        status = message.get("status", status)
        body += message.get("body", b"")

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "client": None}
    await gateway(scope, receive, send)
    return status, body


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(sorted(ROUTES)), parts=pieces)
def test_any_body(path: str, parts: list[bytes]) -> None:
    async def run() -> None:
        methods = Methods()
        status, body = await asyncio.wait_for(post(Gateway(methods.local, LIMIT), path, parts), 20)
        assert status in (200, 400, 429, 500)
        for line in body.splitlines():
            answer = json.loads(line)
            if status != 200:
                error = answer["error"]
                code = error["grpc_code"] if isinstance(error, dict) else answer["code"]
                assert code in (2, 3, 8), answer
        assert methods.open == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}, "no task is left"

    asyncio.run(run())
