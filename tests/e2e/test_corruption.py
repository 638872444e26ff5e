"""A value that is flipped in one member's database while it is stopped: found before it serves, and by the leader."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb import rpc_pb2_grpc
from tests.e2e.cluster import Cluster, Member, wait_for
from tests.e2e.test_quota import alarms, disarm, maintenance, refusal

# In a process of its own: RocksDB's threads do not survive in a test that ends badly.
FLIP = """
import sys
from pathlib import Path
from kvstore.mvcc.engine import Engine
engine = Engine(Path(sys.argv[1]))
batch = engine.batch()
for kind in sys.argv[2]:
    low = kind.encode()
    row, value = next(row for row in engine.scan(low, low + b"\\xff").rest() if b"right" in row[1])
    batch.put(row, value.replace(b"right", b"wrong"))
engine.write(batch)
import asyncio
asyncio.run(engine.flush())
"""


def flip(member: Member, kind: str) -> None:
    """Change the value of k0 in its row of `latest` (l), of `events` (e) or in both, which then agree."""
    state = member.data_dir / (member.data_dir / "CURRENT").read_text().split()[1]
    subprocess.run([sys.executable, "-c", FLIP, str(state), kind], check=True, timeout=60)


def removed(leader: Member, member_id: int) -> bool:
    """False while the leader believes that it is there."""
    cluster = rpc_pb2_grpc.ClusterStub(leader.channel)
    return not refusal(cluster.MemberRemove, pb.MemberRemoveRequest(ID=member_id))


def filled(cluster: Cluster) -> None:
    for number in range(20):
        cluster.kv().Put(pb.PutRequest(key=b"k%d" % number, value=b"right"), timeout=5)


@pytest.mark.parametrize("kind", ["l", "el"])
def test_a_member_that_was_damaged_does_not_start(tmp_path: Path, kind: str) -> None:
    with Cluster(3, tmp_path, flags=["--feature-gates=InitialCorruptCheck=true"]) as cluster:
        filled(cluster)
        cluster.wait_leader()
        damaged = cluster.members[2]
        assert damaged.stop() == 0
        flip(damaged, kind)
        damaged.start()
        assert damaged.wait_exit() == 1
        assert "found data inconsistency with peers" in damaged.log()
        assert ("it differs from that of m1, m2" if kind == "el" else "contradict each other") in damaged.log()
        # The others are as they were; one of them may be started again although the damaged one is away.
        assert cluster.members[0].stop() == 0
        cluster.members[0].start()
        cluster.members[0].wait_ready()
        assert alarms(cluster.members[0]) == []


@pytest.mark.parametrize("kind", ["l", "el"])
def test_the_leader_finds_who_is_damaged(tmp_path: Path, kind: str) -> None:
    with Cluster(3, tmp_path, flags=["--corrupt-check-time=300ms"]) as cluster:
        filled(cluster)
        leader = cluster.wait_leader()
        damaged = next(member for member in cluster.members if member is not leader)
        assert damaged.stop() == 0
        flip(damaged, kind)
        damaged.start()
        damaged.wait_ready()
        expected = [(damaged.member_id, pb.AlarmType.CORRUPT)]
        wait_for(lambda: alarms(leader) == expected, "the alarm")
        for member in cluster.members:
            kv = cluster.kv(member)
            wait_for(lambda kv=kv: refusal(kv.Put, pb.PutRequest(key=b"x")), "a refusal")
            assert refusal(kv.Put, pb.PutRequest(key=b"x")) == "etcdserver: corrupt cluster"
            assert refusal(kv.DeleteRange, pb.DeleteRangeRequest(key=b"x")) == "etcdserver: corrupt cluster"
            grant = rpc_pb2_grpc.LeaseStub(member.channel).LeaseGrant
            assert refusal(grant, pb.LeaseGrantRequest(TTL=9)) == "etcdserver: corrupt cluster"
            assert kv.Range(pb.RangeRequest(key=b"k1"), timeout=5).count == 1
        with pytest.raises(urllib.error.HTTPError) as unhealthy:
            urllib.request.urlopen(f"{leader.client_url}/health", timeout=5)
        assert json.loads(unhealthy.value.read()) == {"health": "false", "reason": "ALARM CORRUPT"}
        with pytest.raises(urllib.error.HTTPError) as unready:
            urllib.request.urlopen(f"{leader.client_url}/readyz", timeout=5)
        assert b"[-]data_corruption failed: alarm activated: CORRUPT" in unready.value.read()
        # Repaired: the damaged one goes, its alarm is taken back, and writes go on.
        damaged.kill()
        wait_for(lambda: removed(leader, expected[0][0]), f"{damaged.name} is removed")
        disarm(leader)
        cluster.kv(leader).Put(pb.PutRequest(key=b"after"), timeout=5)
        assert alarms(leader) == []
        hash_kv = maintenance(leader).HashKV(pb.HashKVRequest(), timeout=5)
        assert hash_kv.hash_revision == 22
