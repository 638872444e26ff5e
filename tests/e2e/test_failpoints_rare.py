"""Real members that end or stall where only a snapshot, a change of the members or a lease leads them."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import pytest

from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from raft.failpoints import PANIC_EXIT
from tests.e2e.agreement import check_members
from tests.e2e.cluster import Cluster, Member, wait_for
from tests.e2e.test_chaos import write
from tests.e2e.test_failpoints import LEASES, MEMBERSHIP, RECEIVER, SENDER

pytestmark = pytest.mark.long

# Whoever is away for a few dozen writes comes back by snapshot.
SHORT_LOG = [
    "--snapshot-count=20",
    "--snapshot-catchup-entries=10",
    "--snapshot-catchup-bytes=20000",
    "--log-segment-bytes=30000",
]
VALUE = b"v" * 1000


def leave_behind(cluster: Cluster, away: Member) -> None:
    """Kill it, and write until the others do not have in their logs what it lacks."""
    last = wait_for(cluster.wait_leader().status, "the leader's status").raftIndex
    away.kill()

    def forgotten() -> bool:
        for _ in range(20):
            cluster.kv().Put(rpc_pb2.PutRequest(key=b"key", value=VALUE), timeout=10)
        return all(first_index(member) > last + 1 for member in cluster.running)

    wait_for(forgotten, "a log that begins later")


def first_index(member: Member) -> int:
    return int(member.admin(do="status")["raft"]["first_index"])


@pytest.mark.parametrize("name", [*RECEIVER, *SENDER])
def test_crash_while_a_snapshot_is_sent_and_installed(make_cluster: Callable[..., Cluster], name: str) -> None:
    """S-25, S-51: whoever ends at whichever step, it comes back and all are equal in the end."""
    with make_cluster(3, flags=SHORT_LOG, admin=True) as cluster:
        leader = cluster.wait_leader()
        away = next(member for member in cluster.members if member is not leader)
        leave_behind(cluster, away)
        leader = cluster.wait_leader()
        victim = leader if name in SENDER else away
        if victim is leader:
            leader.arm(name, "1*panic")
        else:
            away.environment["KVSTORE_FAILPOINTS"] = f"{name}=panic"
        away.start()
        assert victim.wait_exit() == PANIC_EXIT, f"{name}:\n{victim.log()[-3000:]}"
        away.environment.pop("KVSTORE_FAILPOINTS", None)
        victim.start()
        for member in cluster.members:
            member.wait_ready()
        write(cluster)
        check_members(cluster)


@pytest.mark.parametrize("name", MEMBERSHIP)
def test_crash_of_the_leader_in_a_change_of_the_members(make_cluster: Callable[..., Cluster], name: str) -> None:
    """S-30: a voter is added. The change is done or not done on all, also when only the joint half of it was in the
    log, and it may be asked for again."""
    with make_cluster(3, admin=True) as cluster:
        leader = cluster.wait_leader()
        other = next(member for member in cluster.members if member is not leader)
        leader.arm(name, "1*panic")
        stub = rpc_pb2_grpc.ClusterStub(other.channel)
        added = rpc_pb2.MemberAddRequest(peerURLs=["http://127.0.0.1:1"])

        def ended() -> bool:  # a change is refused until all have been connected for some seconds
            with suppress(grpc.RpcError):
                stub.MemberAdd(added, timeout=5)
            return not leader.running

        wait_for(ended, f"the leader ends at {name}")
        assert leader.wait_exit() == PANIC_EXIT, leader.log()[-3000:]
        leader.start()  # first of all: three of the four must be there
        leader.wait_ready()
        write(cluster)

        def lists() -> list[list[int]]:
            request = rpc_pb2.MemberListRequest()
            stubs = [rpc_pb2_grpc.ClusterStub(member.channel) for member in cluster.members]
            return [sorted(one.ID for one in stub.MemberList(request, timeout=10).members) for stub in stubs]

        def added_everywhere() -> bool:
            with suppress(grpc.RpcError):
                stub.MemberAdd(added, timeout=5)  # refused when the first one was done
            found = lists()
            pending = [member.admin(do="status")["raft"]["pending_change"] for member in cluster.members]
            return len(found[0]) == 4 and found == [found[0]] * 3 and not any(pending)

        wait_for(added_everywhere, "all have the new member")
        check_members(cluster)


class Lease:
    """One lease with one key, and a client that keeps it alive with whoever answers."""

    def __init__(self, cluster: Cluster, id_: int, ttl: int) -> None:
        self.cluster = cluster
        self.id = id_
        stub = rpc_pb2_grpc.LeaseStub(cluster.running[0].channel)
        stub.LeaseGrant(rpc_pb2.LeaseGrantRequest(ID=id_, TTL=ttl), timeout=10)
        self.key = b"lease/%d" % id_
        cluster.kv().Put(rpc_pb2.PutRequest(key=self.key, value=b"v", lease=id_), timeout=10)

    def keep_alive(self, member: Member) -> int:
        """The TTL it has now; 0: there is no such lease, -1: no answer."""
        stub: Any = rpc_pb2_grpc.LeaseStub(member.channel)
        requests = iter([rpc_pb2.LeaseKeepAliveRequest(ID=self.id)])
        try:
            return int(next(stub.LeaseKeepAlive(requests, timeout=3)).TTL)
        except grpc.RpcError:
            return -1

    def has_key(self, member: Member) -> bool:
        return bool(self.cluster.kv(member).Range(rpc_pb2.RangeRequest(key=self.key), timeout=10).count)


@pytest.mark.parametrize("name", LEASES)
def test_crash_of_the_leader_that_renews_or_revokes(make_cluster: Callable[..., Cluster], name: str) -> None:
    """A crash before a renewal costs no lease, one before a revoke delays it: the next leader sees to both."""
    with make_cluster(3, admin=True) as cluster:
        leader = cluster.wait_leader()
        others = [member for member in cluster.members if member is not leader]
        lease = Lease(cluster, 7, 30 if name == "leaseBeforeRenew" else 2)
        leader.arm(name, "1*panic")
        if name == "leaseBeforeRenew":
            lease.keep_alive(others[0])
        assert leader.wait_exit() == PANIC_EXIT, leader.log()[-3000:]
        cluster.wait_leader(other_than=leader)
        if name == "leaseBeforeRenew":
            wait_for(lambda: lease.keep_alive(others[1]) > 0, "the lease is kept alive by the next leader")
            assert lease.has_key(others[0])
        else:
            wait_for(lambda: not lease.has_key(others[0]), "the next leader revokes the lease")
        leader.start()
        leader.wait_ready()
        check_members(cluster)


def test_s58_a_stalled_leader_does_not_revoke_through_the_next(make_cluster: Callable[..., Cluster]) -> None:
    """S-58: the leader stands still with a revoke in its hand; the next one keeps the lease alive."""
    with make_cluster(3, admin=True) as cluster:
        leader = cluster.wait_leader()
        others = [member for member in cluster.members if member is not leader]
        lease = Lease(cluster, 7, 2)
        leader.arm("leaseBeforeRevoke", "1*sleep(5000)")
        stalled = time.monotonic()
        cluster.wait_leader(other_than=leader, timeout=15)
        wait_for(lambda: lease.keep_alive(others[0]) > 0, "the next leader keeps it alive")
        hits = 0
        while not hits or time.monotonic() < stalled + 12:
            assert lease.keep_alive(others[0]) != 0, "the lease was revoked"
            assert lease.has_key(others[1])
            if leader.status(timeout=0.2) is not None:
                hits = sum(one["hits"] for one in leader.admin(do="failpoints")["failpoints"])
            time.sleep(0.2)
        assert lease.keep_alive(others[1]) > 0
        check_members(cluster)
