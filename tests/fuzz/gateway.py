"""The JSON gateway: every path with any message as JSON, damaged JSON and raw HTTP/1.1, on the clients' port."""

import json
import socket
from http import HTTPStatus

from google.protobuf.json_format import MessageToDict
from hypothesis import strategies as st

from kvstore.gateway.routes import ROUTES
from tests.fuzz.frames import exchange
from tests.fuzz.strategies import message
from tests.fuzz.target import Target

# What waits is given up at once; see client.py for what is left out.
LEFT_OUT = {"AuthEnable", "MoveLeader", "Defragment", "MemberAdd"}
WAITING = {"Watch", "LeaseKeepAlive", "Lock", "Campaign", "Observe", "Snapshot"}
WAIT_SECONDS, HANG_SECONDS = 0.02, 30.0
BYTES_MAX = 1 << 20


class GatewayPort:
    def __init__(self, target: Target) -> None:
        self._target = target

    def inputs(self) -> "st.SearchStrategy[object]":
        return st.one_of(st.sampled_from(sorted(ROUTES)).flatmap(_requests), _raw())

    def send(self, value: object) -> None:
        port = self._target.member.client_port
        if isinstance(value, bytes):
            exchange(port, value)
            return
        assert isinstance(value, tuple)
        path, body = value
        waits = ROUTES[path].method.rpartition("/")[2] in WAITING
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        received = b""
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.settimeout(WAIT_SECONDS if waits else HANG_SECONDS)
            try:
                connection.sendall(head.encode() + body)
                while len(received) < BYTES_MAX and (part := connection.recv(65536)):
                    received += part
            except TimeoutError:
                assert waits, f"{path} hangs"
                return
            except ConnectionError:
                pass  # it is looked below at what had come
        _check(path, received)

    def close(self) -> None:
        """Nothing is kept open."""


def _requests(path: str) -> "st.SearchStrategy[object]":
    route = ROUTES[path]
    if route.method.rpartition("/")[2] in LEFT_OUT:
        return st.tuples(st.just(path), st.binary(max_size=20))
    good = message(route.request.DESCRIPTOR).map(
        lambda one: json.dumps(MessageToDict(one, preserving_proto_field_name=True)).encode()
    )
    values = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from([field.name for field in route.request.DESCRIPTOR.fields] + ["", "x"]),
                inner,
                max_size=3,
            ),
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode())
    nested = st.integers(1, 3000).map(lambda depth: b'{"a":' * depth + b"[" * depth)
    return st.tuples(st.just(path), st.one_of(good, good, values, nested, st.binary(max_size=60)))


def _raw() -> "st.SearchStrategy[bytes]":
    parts = st.sampled_from(
        [
            *(b"GET ", b"POST ", b"OPTIONS ", b"/v3/kv/range", b"/health?serializable=true", b"/metrics", b"/version"),
            *(b" HTTP/1.1\r\n", b"\r\n", b"Host: x\r\n", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"{}"),
            *(b"Transfer-Encoding: chunked\r\n", b"5\r\n", b"ffffffffff\r\n", b"0\r\n\r\n", b"Upgrade: websocket\r\n"),
            *(
                b"Connection: Upgrade\r\n",
                b"Sec-WebSocket-Key: x\r\n",
                b"Sec-WebSocket-Version: 13\r\n",
                b"\0",
                b"\xff",
            ),
            *(b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n", b"/" * 9000, b"X: " + b"y" * 70_000 + b"\r\n"),
        ]
    )
    return st.lists(st.one_of(parts, parts, st.binary(max_size=10)), max_size=14).map(b"".join)


def _check(path: str, received: bytes) -> None:
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), f"{path}: no answer: {received[:200]!r}"
    status = int(head.split(b" ")[1])
    assert status in list(HTTPStatus), f"{path}: {head[:100]!r}"
    assert b"internal error" not in body, f"{path}: {body[:300]!r}"
    if status >= HTTPStatus.BAD_REQUEST and body:
        assert b"Traceback" not in body, f"{path}: {body[:300]!r}"
