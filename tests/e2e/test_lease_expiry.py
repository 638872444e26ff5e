"""Leases of real processes: none is lost in a leader change, and thousands may end at once without an election.

LEASES=10000 in the environment makes them more.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb import rpc_pb2_grpc
from tests.e2e.cluster import Cluster, Member, wait_for

COUNT = int(os.environ.get("LEASES", "2000"))
TTL = 30 + COUNT // 200  # seconds: far more than it takes to grant them all
PART = 200  # calls in flight


def all_of(call: Any, requests: Iterator[Any]) -> list[Any]:
    """The answers, some calls in flight at a time."""
    answers: list[Any] = []
    flying: list[Any] = []
    for request in requests:
        flying.append(call.future(request, timeout=30))
        if len(flying) == PART:
            answers += [one.result() for one in flying]
            flying = []
    return answers + [one.result() for one in flying]


@pytest.mark.alone
def test_leases_end_together_and_not_early(tmp_path: Path) -> None:
    """The leader is killed, so its successor gives all of them the same full TTL: then they are all due at once."""
    with Cluster(3, tmp_path) as cluster:
        old = cluster.wait_leader()
        lease = rpc_pb2_grpc.LeaseStub(old.channel)
        grants = all_of(lease.LeaseGrant, (pb.LeaseGrantRequest(TTL=TTL) for _ in range(COUNT)))
        puts = (pb.PutRequest(key=b"k/%d" % at, lease=one.ID) for at, one in enumerate(grants))
        all_of(cluster.kv(old).Put, puts)
        old.kill()
        leader = cluster.wait_leader(other_than=old)
        assert keys(cluster, leader) == COUNT, "a lease was lost in the leader change"
        status = leader.status()
        assert status is not None
        wait_for(none_left(cluster, leader), "all leases end", timeout=TTL + 60 + COUNT / 500)
        after = leader.status()
        assert after is not None
        assert (after.raftTerm, after.leader) == (status.raftTerm, status.leader), "their end has cost the leader"
        assert after.header.revision == COUNT + 1 + COUNT  # each lease a revision of its own
        listed = rpc_pb2_grpc.LeaseStub(leader.channel).LeaseLeases(pb.LeaseLeasesRequest())
        assert not listed.leases
        old.start()
        old.wait_ready()
        wait_for(none_left(cluster, old), "the restarted member agrees")


def keys(cluster: Cluster, member: Member) -> int:
    found = cluster.kv(member).Range(pb.RangeRequest(key=b"k/", range_end=b"k0", count_only=True), timeout=10)
    return int(found.count)


def none_left(cluster: Cluster, member: Member) -> Callable[[], bool]:
    return lambda: keys(cluster, member) == 0
