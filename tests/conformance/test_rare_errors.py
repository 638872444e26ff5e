"""Errors that need members that fail, or a learner: etcd and ours, the same calls.

They are those of the differential test's table (differential/coverage.py) that one healthy member cannot give. What
differs, and why:

| what | etcd 3.4 and 3.5 | ours |
|---|---|---|
| code of a refusal by a learner, etcd 3.4 | Unavailable | FailedPrecondition, as etcd 3.6 |
| a write at a member that knows no leader | Unknown, context deadline exceeded | request timed out, as the reads |
| a change of members there (not asked) | unhealthy cluster | no leader |
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from kvstore.pb import rpc_pb2 as pb
from tests.conformance.differential.servers import JUDGES, judge_is_here
from tests.conformance.differential.sides import text
from tests.conformance.etcd import EtcdCluster
from tests.conformance.rpcs import RPCS
from tests.conformance.test_transcripts import OurCluster
from tests.e2e.cluster import wait_for
from tests.ports import free_ports

pytestmark = pytest.mark.long

CALL_SECONDS = 20.0  # above the seven after which a server gives up
NO_LEADER = "etcdserver: no leader"
LEARNER = "etcdserver: rpc not supported for learner"
Metadata = tuple[tuple[str, str], ...]


class Side:
    """A cluster of three, and what it has said."""

    def __init__(self, cluster: Any, kill: Callable[[int], None]) -> None:
        self._cluster = cluster
        self._kill = kill
        self._channels = [self._channel(url) for url in cluster.client_urls]
        self.peer_url = cluster.peer_urls[0]
        self.alive = set(range(3))
        self.lines: list[str] = []

    def _channel(self, url: str) -> grpc.Channel:
        return grpc.insecure_channel(url.removeprefix("http://"), [("grpc.use_local_subchannel_pool", 1)])

    def ask(self, member: int, call: str, message: Message, metadata: Metadata = ()) -> Any:
        """Raises grpc.RpcError."""
        rpc = RPCS[call]
        request: Any = iter([message]) if rpc.client_streams else message
        answer = rpc.on(self._channels[member])(request, timeout=CALL_SECONDS, metadata=metadata)
        return next(answer) if rpc.server_streams else answer

    def text(self, member: int, call: str, message: Message, metadata: Metadata = ()) -> str:
        try:
            return text(self.ask(member, call, message, metadata))
        except grpc.RpcError as error:
            return text(error)

    def say(self, member: int, call: str, message: Message, metadata: Metadata = ()) -> str:
        line = self.text(member, call, message, metadata)
        self.lines.append(f"{call}({message}) {metadata}: {line}")
        return line

    def say_all(self, member: int, calls: list[tuple[str, Message, Metadata]]) -> None:
        """At once: each may take as long as a server waits."""
        with ThreadPoolExecutor(len(calls)) as threads:
            answers = list(threads.map(lambda one: self.text(member, *one), calls))
        for (call, message, metadata), answer in zip(calls, answers, strict=True):
            self.lines.append(f"{call}({message}) {metadata}: {answer}")

    def leader(self) -> int:
        def found() -> int | None:
            for member in self.alive:
                status = self.ask(member, "Status", pb.StatusRequest())
                if status.leader == status.header.member_id:
                    return member + 1
            return None

        return wait_for(found, "a leader") - 1

    def kill(self, member: int) -> None:
        self.alive.discard(member)
        self._kill(member)

    def join(self) -> int:
        """Add a learner and start it. Returns its number."""
        client, peer = (f"http://127.0.0.1:{port}" for port in free_ports(2))
        request = pb.MemberAddRequest(peerURLs=[peer], isLearner=True)
        leader = self.leader()
        # Members must have been connected for some seconds.
        wait_for(lambda: self.text(leader, "MemberAdd", request).startswith("MemberAddResponse"), "a learner is added")
        self._cluster.join("m4", client, peer)
        self._channels.append(self._channel(client))
        wait_for(
            lambda: self.text(3, "Range", pb.RangeRequest(key=b"a", serializable=True)).startswith("RangeResponse"),
            "the learner serves",
        )
        return 3

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


@pytest.fixture(params=list(JUDGES))
def sides(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    if not judge_is_here(request.param):
        pytest.skip(f"etcd {request.param} is not installed: {JUDGES[request.param]}")
    (tmp_path / "etcd").mkdir()
    (tmp_path / "ours").mkdir()
    etcd = EtcdCluster(tmp_path / "etcd", program=JUDGES[request.param])
    ours = OurCluster(tmp_path / "ours")
    try:
        etcd.start()
        with ours.cluster:
            ours.cluster.wait_leader()
            both = Side(etcd, etcd.kill), Side(ours, lambda member: ours.cluster.members[member].kill())
            yield both
            for side in both:
                side.close()
    finally:
        etcd.stop()


def refused(side: Side, member: int, call: str, message: Message, reason: str) -> Callable[[], bool]:
    return lambda: side.text(member, call, message).endswith(reason)


def has_no_leader(side: Side, member: int) -> Callable[[], bool]:
    return lambda: NO_LEADER in side.ask(member, "Status", pb.StatusRequest()).errors


def as_ours(line: str) -> str:
    """See above."""
    line = line.replace("UNAVAILABLE: " + LEARNER, "FAILED_PRECONDITION: " + LEARNER)
    return line.replace("UNKNOWN: context deadline exceeded", "UNAVAILABLE: etcdserver: request timed out")


PUT = pb.PutRequest(key=b"a")
HAS_LEADER = (("hasleader", "true"),)
WITHOUT_QUORUM: list[tuple[str, Message, Metadata]] = [
    ("Put", PUT, ()),
    ("Put", PUT, HAS_LEADER),
    ("Range", pb.RangeRequest(key=b"a"), ()),
    ("Range", pb.RangeRequest(key=b"a"), HAS_LEADER),
    ("DeleteRange", pb.DeleteRangeRequest(key=b"a"), ()),
    ("Txn", pb.TxnRequest(success=[pb.RequestOp(request_put=PUT)]), ()),
    ("Compact", pb.CompactionRequest(revision=1), ()),
    ("LeaseGrant", pb.LeaseGrantRequest(TTL=60), ()),
    ("LeaseRevoke", pb.LeaseRevokeRequest(ID=1), ()),
    ("UserAdd", pb.AuthUserAddRequest(name="u", password="p"), ()),
    ("UserList", pb.AuthUserListRequest(), ()),
    ("Alarm", pb.AlarmRequest(action="ACTIVATE", alarm="NOSPACE"), ()),
    ("Watch", pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"a")), HAS_LEADER),
]


def test_a_cluster_that_falls_apart(sides: tuple[Side, Side]) -> None:
    for side in sides:
        leader = side.leader()
        followers = sorted(side.alive - {leader})
        own = side.ask(followers[0], "Status", pb.StatusRequest()).header.member_id
        assert side.text(followers[0], "MoveLeader", pb.MoveLeaderRequest(targetID=own)).endswith("not leader")
        learner = side.join()
        for call, message in (
            ("Put", PUT),
            ("Range", pb.RangeRequest(key=b"a")),
            ("LeaseGrant", pb.LeaseGrantRequest(TTL=60)),
            ("MemberList", pb.MemberListRequest()),
            ("UserList", pb.AuthUserListRequest()),
        ):
            side.say(learner, call, message)
        side.kill(followers[0])
        voter = pb.MemberAddRequest(peerURLs=[side.peer_url])  # there is one: it is refused in any case
        wait_for(refused(side, leader, "MemberAdd", voter, "unhealthy cluster"), "one that is down is noticed")
        side.say(leader, "MemberAdd", pb.MemberAddRequest(peerURLs=["http://127.0.0.1:1"]))
        side.kill(followers[1])
        side.say(leader, "Put", PUT)  # while it takes itself for the leader
        wait_for(has_no_leader(side, leader), "no leader is left")
        side.say_all(leader, WITHOUT_QUORUM)
    ours = sides[1].lines
    assert ours == list(map(as_ours, sides[0].lines))
    print("\n".join(ours))
    for reason in ("unhealthy cluster", "no leader", "request timed out", "for learner"):
        assert any(line.endswith(reason) for line in ours), reason
