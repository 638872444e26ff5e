"""Two servers asked the same over HTTP, and what of their answers is compared.

Compared: the status, the content type, and of a JSON body every field. Ids and terms of a cluster differ between two
of one kind too, so only whether they are there; so do sizes and hashes of what is on a disk. The texts about JSON that
is no message are each server's own: there the code is compared.
"""

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.conformance.json.requests import Request

OWN = ("cluster_id", "member_id", "raft_term", "raftTerm", "leader", "raftIndex", "raftAppliedIndex", "dbSize", "hash")
OWN_FIELDS = frozenset((*OWN, "dbSizeInUse", "token", "version", "clientURLs"))
CHOSEN_MAX = 1000  # ids above it are the servers'
NOT_SERVED = "is not served by this version"


@dataclass(frozen=True)
class Answer:
    status: int
    content_type: str
    body: bytes

    @property
    def is_not_served(self) -> bool:
        return self.status == 501 and NOT_SERVED.encode() in self.body


class HttpSide:
    """One server; one connection, kept."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)

    def ask(self, request: Request) -> Answer:
        """A change of members is asked again: etcd 3.5.1 now and then loses one, and never answers."""
        attempts = 4 if "/member/" in request.path else 1
        for attempt in range(attempts):
            try:
                self._connection.request(request.method, request.path, request.body, request.headers)
                answer = self._connection.getresponse()
                return Answer(answer.status, answer.getheader("content-type", ""), answer.read())
            except TimeoutError:
                self._connection.close()
                if attempt + 1 == attempts:
                    raise AssertionError(f"{self.url} does not answer {request}") from None
        raise AssertionError("no attempt")

    def open(self, request: Request) -> http.client.HTTPResponse:
        """On a connection of its own, for an answer that does not end; close it."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=20)
        connection.request(request.method, request.path, request.body, request.headers)
        return connection.getresponse()

    def close(self) -> None:
        self._connection.close()


def comparable(answer: Answer) -> tuple[int, str, Any]:
    if answer.content_type != "application/json":
        return answer.status, answer.content_type, answer.body
    return answer.status, answer.content_type, _told(json.loads(answer.body)) if answer.body else b""


def _told(value: Any) -> Any:
    if isinstance(value, list):
        return [_told(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {name: "here" if name in OWN_FIELDS else _told(content) for name, content in value.items()}
    if "members" in found:
        return {**found, "members": len(found["members"])}
    if "leases" in found:
        leases = [lease["ID"] for lease in value["leases"] if int(lease["ID"]) <= CHOSEN_MAX]
        found = {**found, "leases": leases}
        return found if leases else {name: content for name, content in found.items() if name != "leases"}
    for name in ("ID", "lease"):
        if int(found.get(name, 0)) > CHOSEN_MAX:
            found[name] = "made up"
    if "grantedTTL" in found:
        found["TTL"] = "here"  # a second may pass between the two
    if "error" in found and isinstance(found["error"], str):
        return {"code": found["code"], "text": found["error"] if _is_servers(found["error"]) else "about the document"}
    return found


def _is_servers(text: str) -> bool:
    """Said by a handler, and not by what reads JSON."""
    return text.startswith(("etcdserver: ", "election: ", "auth: ", "grpc: ", '"leader"', "context "))
