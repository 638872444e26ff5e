"""Random HTTP requests to the JSON gateway: of every path, right, almost right and wrong.

    generator = Generator(seed, paths)
    generator.request()     # a Request; the next one, the same for every server that is asked

Bodies are made from the descriptors of the messages, in all the spellings that proto3's JSON allows. What would take
the cluster out of the comparison (a second member, auth switched on) is left out by the pools of values.
"""

import base64
import json
import random
from dataclasses import dataclass, field
from typing import Any

from kvstore.gateway.routes import ROUTES

KEYS = [b"", b"a", b"b", b"c", b"d", b"\0"]
STREAMS = frozenset(path for path, route in ROUTES.items() if route.answers_many)
# They wait for somebody, or say what no two servers say alike: asked by name in the test.
# (A removal that is refused may leave etcd 3.5.1 without an answer for a long time.)
LEFT_OUT = {
    *STREAMS,
    *("/v3/lock/lock", "/v3/election/campaign", "/v3/maintenance/downgrade", "/v3/auth/enable"),
    *("/v3/cluster/member/remove",),
}
PATHS = sorted(set(ROUTES) - LEFT_OUT)
OFTEN = ["/v3/kv/put", "/v3/kv/range", "/v3/kv/txn", "/v3/kv/deleterange", "/v3/lease/grant", "/v3/lease/revoke"]

POOLS: dict[str, list[Any]] = {
    "revision": [0, 0, 0, 1, 2, 3, 5, -1, 10**6],
    "limit": [0, 0, 1, 2, -1, 2**63 - 1],
    "version": [0, 1, 2, 3],
    "lease": [0, 0, 7, 8, 9],
    "ID": [7, 7, 8, 9, 10],
    "sort_order": [0, 1, 2],
    "sort_target": [0, 1, 2, 3, 4],
    "TTL": [600, 700, 9_000_000_000, 9_000_000_001],  # none ends meanwhile
    "peerURLs": ["nope", "http://", "127.0.0.1:1", "http://a:b", "ftp://127.0.0.1:9"],
    "isLearner": [False],
    "targetID": [0, 5],
    "action": [0],
    "alarm": [0],
    "memberID": [0, 5],
    "physical": [False],
    "name": ["", "alice", "bob"],
    "user": ["", "alice", "bob"],
    "role": ["", "reader", "writer"],
    "password": ["", "secret"],
    "hashedPassword": [""],
    "hash": [0],
}
# Not here: base64 without padding (3.6 takes it), an array for bytes (Go takes it), a whole number with a point.
WRONG: list[Any] = [None, True, 5, -1, 1.5, 10**30, "x", "", "5", "!!!!", {}, {"a": 1}]
DOCUMENTS = [
    *(b"", b" \n", b"null", b"[]", b"{", b"x", b"5", b'"a"', b"true", b"{}", b"{} trailing", b'{"a":1}{"b":2}'),
    *(
        b'{"leader":"x"}',
        b'{"key":"YQ=="',
        b'{"key":"YQ==",}',
        b"{'key':'YQ=='}",
        b'{"key":NaN}',
        b"\xff\xfe",
        b'{"key":"\\ud800"}',
    ),
]


@dataclass(frozen=True)
class Request:
    path: str
    body: bytes
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)


class Generator:
    def __init__(self, seed: int, paths: list[str]) -> None:
        self._random = random.Random(seed)
        self._paths = paths

    def request(self) -> Request:
        draw = self._random
        path = draw.choice(OFTEN) if draw.random() < 0.6 else draw.choice(self._paths)
        kind = draw.random()
        if kind < 0.08:
            return Request(path, draw.choice(DOCUMENTS))
        value = self._message(ROUTES[path].request.DESCRIPTOR, 0)
        if path == "/v3/auth/role/grant":  # 3.6 refuses what is no range, 3.5 keeps it
            value["perm"] = {"permType": draw.choice([0, "WRITE"]), "key": "YQ=="}
        if kind < 0.2 and value and "alarm" not in path:  # an alarm's action of -1 ends etcd 3.5.1 ...
            name = draw.choice(sorted(value))
            if name not in ("sort_target", "sortTarget", "perm"):  # ... and so does a sort by the fifth target
                value[name] = draw.choice(WRONG)
        if kind > 0.97:
            path = path.replace("/v3/", "/v3beta/")
        elif kind > 0.95:
            path += draw.choice(["/", "x", "?a=b"])
        method = draw.choice(["GET", "PUT", "HEAD", "DELETE", "PATCH"]) if 0.93 < kind < 0.95 else "POST"
        if draw.random() < 0.05:
            value["unknownField"] = draw.choice(WRONG)
        body = json.dumps(value, indent=draw.choice([None, None, 1])).encode()
        return Request(path, b"" if method == "HEAD" else body, method)

    def _message(self, kind: Any, depth: int) -> dict[str, Any]:
        draw = self._random
        chosen = {one.name for oneof in kind.oneofs if draw.random() < 0.9 for one in [draw.choice(oneof.fields)]}
        value = {}
        for found in kind.fields:
            if found.name == "header" or (found.containing_oneof is not None and found.name not in chosen):
                continue
            if found.containing_oneof is None and draw.random() < 0.4 and found.name not in ("key", "ID", "TTL"):
                continue
            if found.message_type is not None and depth > 2:
                continue
            if found.is_repeated:
                content: Any = [self._one(found, depth) for _ in range(draw.choice([0, 1, 1, 2]))]
            else:
                content = self._one(found, depth)
            value[found.name if draw.random() < 0.8 else found.json_name] = content
        return value

    def _one(self, found: Any, depth: int) -> Any:
        draw = self._random
        if found.message_type is not None:
            return self._message(found.message_type, depth + 1)
        if found.type == found.TYPE_BYTES:
            return base64.b64encode(draw.choice(KEYS)).decode()
        if found.type == found.TYPE_STRING:
            return draw.choice(POOLS.get(found.name, ["", "a"]))
        if found.type == found.TYPE_BOOL:
            return draw.choice(POOLS.get(found.name, [True, False]))
        if found.enum_type is not None:
            known = found.enum_type.values
            one = known[draw.choice(POOLS[found.name])] if found.name in POOLS else draw.choice(known)
            return one.name if draw.random() < 0.5 else one.number
        number = draw.choice(POOLS.get(found.name, [0, 1, 2, 3]))
        return str(number) if draw.random() < 0.5 else number
