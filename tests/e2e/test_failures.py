"""Real processes, killed: what was acknowledged is there, and writes go on."""

import os
import signal
import threading
import time
from collections.abc import Callable

import grpc
import pytest

from kvstore.pb import rpc_pb2
from tests.e2e.cluster import Cluster, Member, wait_for

MakeCluster = Callable[..., Cluster]


def put(cluster: Cluster, key: bytes, value: bytes, member: Member | None = None, timeout: float = 10) -> int:
    """The revision of the put."""
    response = cluster.kv(member).Put(rpc_pb2.PutRequest(key=key, value=value), timeout=timeout)
    return int(response.header.revision)


def get(
    cluster: Cluster, key: bytes, member: Member | None = None, *, serializable: bool = False, timeout: float = 10
) -> bytes | None:
    request = rpc_pb2.RangeRequest(key=key, serializable=serializable)
    response = cluster.kv(member).Range(request, timeout=timeout)
    return bytes(response.kvs[0].value) if response.kvs else None


class Recorder:
    """A client that writes unique keys to one member after another and remembers what was acknowledged."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.acknowledged: dict[bytes, bytes] = {}
        self._cluster = cluster
        self._name = name
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stopping.is_set():
            number += 1
            key, value = f"{self._name}/{number:06}".encode(), f"value {number}".encode()
            member = self._cluster.members[number % len(self._cluster.members)]
            try:
                self._cluster.kv(member).Put(rpc_pb2.PutRequest(key=key, value=value), timeout=1)
            except grpc.RpcError:
                self._stopping.wait(0.01)  # nobody there: not a busy loop. Its outcome is unknown.
            else:
                self.acknowledged[key] = value

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


def everything(cluster: Cluster, member: Member, *, serializable: bool = False) -> dict[bytes, bytes]:
    request = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0", serializable=serializable)
    response = cluster.kv(member).Range(request, timeout=20)
    return {bytes(kv.key): bytes(kv.value) for kv in response.kvs}


def same_hash(cluster: Cluster) -> bool:
    """Whether all members have applied the same and hash alike."""
    from kvstore.pb import rpc_pb2_grpc

    hashes = set()
    for member in cluster.members:
        response = rpc_pb2_grpc.MaintenanceStub(member.channel).HashKV(rpc_pb2.HashKVRequest(), timeout=20)
        hashes.add((response.hash, response.hash_revision, response.compact_revision))
    return len(hashes) == 1


def test_every_member_reads_and_writes(make_cluster: MakeCluster) -> None:
    with make_cluster(3) as cluster:
        for member in cluster.members:
            put(cluster, b"from", member.name.encode(), member)
            for reader in cluster.members:
                assert get(cluster, b"from", reader) == member.name.encode()


def test_the_leader_dies_and_nothing_is_lost(make_cluster: MakeCluster) -> None:
    with make_cluster(3) as cluster:
        leader = cluster.wait_leader()
        put(cluster, b"before", b"1", leader)
        leader.kill()
        new = cluster.wait_leader(other_than=leader)
        assert get(cluster, b"before", new) == b"1"
        put(cluster, b"after", b"2", new)
        leader.start()
        leader.wait_ready()
        assert get(cluster, b"before", leader) == b"1"
        assert get(cluster, b"after", leader) == b"2"


def test_a_minority_answers_serializable_reads_only(make_cluster: MakeCluster) -> None:
    with make_cluster(3, flags=["--election-timeout=500"]) as cluster:
        put(cluster, b"key", b"value", cluster.members[0])
        wait_for(lambda: get(cluster, b"key", cluster.members[2], serializable=True) == b"value" or None, "replication")
        cluster.members[0].kill()
        cluster.members[1].kill()
        alone = cluster.members[2]
        assert get(cluster, b"key", alone, serializable=True) == b"value"
        with pytest.raises(grpc.RpcError) as error:
            get(cluster, b"key", alone)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "request timed out" in error.value.details()


def test_all_members_die_under_load_and_every_acknowledged_write_is_there(make_cluster: MakeCluster) -> None:
    # A small snapshot count, so that flushes and log compactions happen between the kills.
    with make_cluster(3, flags=["--snapshot-count=50"]) as cluster:
        recorders = [Recorder(cluster, f"client{number}") for number in range(4)]
        try:
            for _ in range(3):
                before = sum(len(recorder.acknowledged) for recorder in recorders)
                wait_for(
                    lambda before=before: sum(len(one.acknowledged) for one in recorders) > before + 200,
                    "200 more writes",
                )
                for member in cluster.members:
                    member.kill()
                cluster.start()
        finally:
            for recorder in recorders:
                recorder.stop()
        acknowledged = {key: value for recorder in recorders for key, value in recorder.acknowledged.items()}
        assert len(acknowledged) > 600
        for member in cluster.members:
            found = everything(cluster, member)
            lost = {key for key, value in acknowledged.items() if found.get(key) != value}
            assert not lost, f"{member.name} lost {len(lost)} of {len(acknowledged)}: {sorted(lost)[:5]}"
        wait_for(lambda: same_hash(cluster) or None, "equal hashes")


def test_a_single_member_dies_and_keeps_what_it_acknowledged(make_cluster: MakeCluster) -> None:
    with make_cluster(1, flags=["--snapshot-count=20"]) as cluster:
        [member] = cluster.members
        recorder = Recorder(cluster, "client")
        try:
            for _ in range(3):
                before = len(recorder.acknowledged)
                wait_for(lambda before=before: len(recorder.acknowledged) > before + 100, "100 more writes")
                member.kill()
                member.start()
                member.wait_ready()
        finally:
            recorder.stop()
        found = everything(cluster, member)
        assert {key: found.get(key) for key in recorder.acknowledged} == recorder.acknowledged


def test_sigterm_hands_leadership_over_and_exits_cleanly(make_cluster: MakeCluster) -> None:
    # With an election timeout this long, a leader that merely vanished would be missed for 10 s at least.
    with make_cluster(3, flags=["--election-timeout=10000"]) as cluster:
        leader = cluster.wait_leader()
        put(cluster, b"key", b"value", leader)
        began = time.monotonic()
        assert leader.stop() == 0
        new = cluster.wait_leader(other_than=leader)
        assert time.monotonic() - began < 10
        assert get(cluster, b"key", new) == b"value"
        assert "Traceback" not in leader.log()


def test_a_leader_that_was_paused_does_not_answer_with_old_values(make_cluster: MakeCluster) -> None:
    """RELIABILITY S-39: after a pause it has to be confirmed as leader before it may answer."""
    with make_cluster(3) as cluster:
        leader = cluster.wait_leader()
        put(cluster, b"key", b"old", leader)
        others = [member for member in cluster.members if member is not leader]
        os.kill(leader.pid, signal.SIGSTOP)
        try:
            wait_for(lambda: leads_one_of(others), "another leader")
            put(cluster, b"key", b"new", others[0])
        finally:
            os.kill(leader.pid, signal.SIGCONT)
        assert get(cluster, b"key", leader) == b"new"


def leads_one_of(members: list[Member]) -> bool:
    statuses = [member.status() for member in members]
    return any(status is not None and status.leader == status.header.member_id for status in statuses)


def test_a_stopped_member_replays_little(make_cluster: MakeCluster) -> None:
    """A clean stop flushes: the next start finds everything applied."""
    with make_cluster(1) as cluster:
        [member] = cluster.members
        for number in range(20):
            put(cluster, f"k{number}".encode(), b"v")
        applied = wait_for(member.status, "status").raftAppliedIndex
        assert member.stop() == 0
        member.start()
        member.wait_ready()
        assert f'"applied": {applied}' in member.log()


def test_a_member_without_a_quorum_stops_when_told(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(3)
    alone = cluster.members[0]
    alone.start()
    wait_for(lambda: '"listening"' in alone.log(), "its port")
    assert "ready to serve" not in alone.log()
    assert alone.stop() == 0
    assert "Traceback" not in alone.log()
