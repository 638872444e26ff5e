"""Real processes: a fourth member joins as a learner, votes, the leader is removed, and nothing is lost."""

import json
import subprocess
import sys
from pathlib import Path

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb import rpc_pb2_grpc
from tests.e2e.cluster import Cluster, Member, clean_environment, wait_for
from tests.ports import free_ports

ELECTION_MS = 500
FLAGS = ["--heartbeat-interval=50", f"--election-timeout={ELECTION_MS}"]


def kvctl(member: Member, *arguments: str) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "kvctl"), f"--endpoints={member.client_url}", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean_environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def joined(cluster: Cluster, name: str, path: Path, added: str) -> Member:
    """Started with the settings that `kvctl member add` has printed."""
    client, peer = free_ports(2)
    peer = int(added.split("ETCD_INITIAL_ADVERTISE_PEER_URLS=")[1].split('"')[1].rpartition(":")[2])
    member = Member(name, path, client, peer)
    member.arguments = [*cluster.member_flags(member), *FLAGS]
    settings = [line.split("=", 1) for line in added.splitlines() if line.startswith("ETCD_INITIAL_CLUSTER")]
    member.arguments += [
        f"--{key.removeprefix('ETCD_').lower().replace('_', '-')}={json.loads(value)}" for key, value in settings
    ]
    cluster.members.append(member)
    member.start()
    member.wait_ready()
    return member


def hashes(members: list[Member]) -> set[tuple[int, int]]:
    found = set()
    for member in members:
        answer = rpc_pb2_grpc.MaintenanceStub(member.channel).HashKV(pb.HashKVRequest(), timeout=5)
        found.add((answer.header.revision, answer.hash))
    return found


def rows(member: Member) -> list[list[str]]:
    return [line.split(", ") for line in kvctl(member, "member", "list").splitlines()]


def change(member: Member, *arguments: str) -> str:
    """Again while the members have not been connected for long enough."""

    def done() -> str | None:
        try:
            return kvctl(member, *arguments)
        except AssertionError as error:
            if "unhealthy cluster" in str(error) or "in sync with leader" in str(error):
                return None
            raise

    return wait_for(done, " ".join(arguments))


def test_a_learner_joins_votes_and_the_leader_is_removed(tmp_path: Path) -> None:
    with Cluster(3, tmp_path, flags=FLAGS) as cluster:
        leader = cluster.wait_leader()
        kv = cluster.kv(leader)
        for number in range(50):
            kv.Put(pb.PutRequest(key=b"k%d" % number, value=b"v" * 1000), timeout=5)
        asked = next(member for member in cluster.members if member is not leader)
        url = f"http://127.0.0.1:{free_ports(1)[0]}"
        added = change(asked, "member", "add", "m4", f"--peer-urls={url}", "--learner")
        new = joined(cluster, "m4", tmp_path, added)
        own = next(row for row in rows(asked) if row[2] == "m4")
        assert own[-1] == "true"
        status = new.status()
        assert status is not None
        assert (f"{status.header.member_id:x}", status.isLearner) == (own[0], True)
        assert f"Member {int(own[0], 16):16x} promoted" in change(asked, "member", "promote", own[0])
        kv.Put(pb.PutRequest(key=b"during", value=b"1"), timeout=5)

        removed = next(row for row in rows(asked) if row[2] == leader.name)[0]
        change(leader, "member", "remove", removed)
        assert leader.wait_exit() == 1
        assert "has been removed from the cluster" in leader.log()
        assert "kvctl member add" in leader.log()
        cluster.wait_leader(other_than=leader)
        cluster.kv(new).Put(pb.PutRequest(key=b"after", value=b"1"), timeout=10)
        left = [member for member in cluster.members if member is not leader]
        wait_for(lambda: len(hashes(left)) == 1, "the same data on all")
        assert sorted(row[2] for row in rows(new)) == sorted(member.name for member in left)

        # Its data directory is there, its id is not: the others refuse it, and it says so and ends.
        leader.start()
        assert leader.wait_exit() == 1
        assert "has been removed from the cluster" in leader.log()
        # A member that has joined starts again with the flags it joined with.
        assert new.stop() == 0
        new.start()
        new.wait_ready()
        assert len({revision for revision, _ in hashes(left)}) == 1


def test_a_follower_that_is_removed_ends_by_itself(tmp_path: Path) -> None:
    with Cluster(3, tmp_path, flags=FLAGS) as cluster:
        leader = cluster.wait_leader()
        gone = next(member for member in cluster.members if member is not leader)
        row = next(row for row in rows(leader) if row[2] == gone.name)
        change(leader, "member", "remove", row[0])
        assert gone.wait_exit() == 1
        assert "has been removed from the cluster" in gone.log()
        term = leader.status()
        cluster.kv(leader).Put(pb.PutRequest(key=b"k", value=b"1"), timeout=5)
        again = leader.status()
        assert term is not None
        assert again is not None
        assert again.raftTerm == term.raftTerm
