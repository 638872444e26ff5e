"""Real members that end, stall or meet an error at a named point, under load; then everything is checked.

Ends in the middle of apply, store and flush are S-43, between two slices of a compaction S-45.

Which points a member passes is found out, not assumed: all are armed with `off`, which counts. A point that is passed
by nobody there stands in START or ELSEWHERE and has a test of its own, so that no test passes because nothing happened.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

import kvstore.failpoints  # noqa: F401  # declares its points
from kvstore.debug.trace import chosen, read_trace
from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from raft.failpoints import PANIC_EXIT, POINTS
from tests.e2e.agreement import check_members
from tests.e2e.cluster import Cluster, Member, clean_environment, wait_for
from tests.e2e.history import Workload
from tests.e2e.test_chaos import check_history, write

# Passed while a member starts on an empty directory.
START = [
    "startBeforeIdentity",
    "startBeforeReplay",
    "snapshotBeforeCurrent",
    "snapshotAfterCurrent",
    "walBeforeSegment",
    "walAfterSegment",
    "walAfterReset",
]
# Passed by a leader that sends a snapshot, and by the member that gets it.
SENDER = ["snapshotBeforeCheckpoint", "snapshotAfterCheckpoint", "snapshotBeforeSendPiece"]
RECEIVER = [
    "snapshotBeforeWrite",
    "snapshotBeforeFinish",
    "raftBeforeSnapshotInstall",
    "raftBeforeLogReset",
    "raftAfterSnapshotInstall",
]
MEMBERSHIP = ["memberBeforePropose", "memberBeforeApply"]
LEASES = ["leaseBeforeRenew", "leaseBeforeRevoke"]
ELSEWHERE = [*SENDER, *RECEIVER, *MEMBERSHIP, *LEASES]
CHOSEN = [
    "raftBeforeLeaderSend",
    "raftBeforeSave",
    "walBeforeSync",
    "raftAfterSave",
    "raftBeforeFollowerSend",
    "applyBeforeCommit",
    "applyAfterCommit",
    "flushAfter",
    "compactAfterBatch",
]  # for every run of the suite: each promise that a crash could break, once


def compact(cluster: Cluster, workload: Workload) -> None:
    """At the newest revision: there is something to remove."""
    revision = write(cluster)
    workload.history.compact_revision = max(workload.history.compact_revision, revision)
    with suppress(grpc.RpcError):
        cluster.kv().Compact(rpc_pb2.CompactionRequest(revision=revision), timeout=2)


def delete_many(cluster: Cluster, _: Workload) -> None:
    """A delete that is large enough to be written in slices."""
    with suppress(grpc.RpcError):
        for start in range(0, 3072, 128):
            puts = [
                rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"many/%04d" % number, value=b"v" * 100))
                for number in range(start, start + 128)
            ]
            cluster.kv().Txn(rpc_pb2.TxnRequest(success=puts), timeout=5)
        cluster.kv().DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"many/", range_end=b"many0"), timeout=5)


TRIGGERS: dict[str, Callable[[Cluster, Workload], None]] = {
    "compactBeforeBatch": compact,
    "compactAfterBatch": compact,
    "compactBeforeFinish": compact,
    "applyBeforeSpill": delete_many,
}


class Crashes:
    """Three members under load, of which one after another ends at a point and comes back."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.workload = Workload({one.name: one.target for one in cluster.members}, 1, pause=0.02)
        self._turn = 0

    def hits(self) -> dict[str, list[Member]]:
        """Which members have passed which point. Counts while all are armed with `off`."""
        found: dict[str, list[Member]] = {}
        for member in self.cluster.members:
            for point in member.admin(do="failpoints")["failpoints"]:
                if point["hits"]:
                    found.setdefault(point["name"], []).append(member)
        return found

    def count(self) -> None:
        for member in self.cluster.members:
            for name in POINTS:
                member.arm(name, "off")

    def crash_at(self, name: str) -> None:
        """Some member that passes the point ends there, the others go on, and it comes back."""
        trigger = TRIGGERS.get(name)

        def passing() -> list[Member]:
            if trigger is not None:
                trigger(self.cluster, self.workload)
            return self.hits().get(name, [])

        self.count()
        members = wait_for(passing, f"somebody passes {name}")
        self._turn += 1
        victim = members[self._turn % len(members)]
        victim.arm(name, f"{self._turn % 3}*off->1*panic")

        def ended() -> bool:
            if trigger is not None and victim.running:
                trigger(self.cluster, self.workload)
            return not victim.running

        wait_for(ended, f"{victim.name} ends at {name}")
        assert victim.wait_exit() == PANIC_EXIT, victim.log()[-3000:]
        assert f"failpoint {name}: panic" in victim.log()
        write(self.cluster)
        victim.start()
        victim.wait_ready()

    def check(self) -> None:
        self.workload.stop_clients()
        self.workload.stop(write(self.cluster))
        assert self.workload.written > 100, "too few writes to show anything"
        check_history(self.workload.history, check_members(self.cluster))


def crash(cluster: Cluster, names: list[str]) -> None:
    crashes = Crashes(cluster)
    crashes.workload.start()
    for name in names:
        crashes.crash_at(name)
    crashes.check()


# Flushes, new segments of the log and its compactions come often.
FLAGS = ["--snapshot-count=50", "--snapshot-catchup-bytes=20000", "--log-segment-bytes=60000"]


def test_crash_at_chosen_points(make_cluster: Callable[..., Cluster]) -> None:
    with make_cluster(3, flags=FLAGS, admin=True) as cluster:
        crash(cluster, CHOSEN)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_crash_at_every_other_point(make_cluster: Callable[..., Cluster]) -> None:
    with make_cluster(3, flags=FLAGS, admin=True) as cluster:
        crash(cluster, [name for name in POINTS if name not in {*CHOSEN, *START, *ELSEWHERE}])


def test_the_lists_name_points() -> None:
    assert {*CHOSEN, *START, *ELSEWHERE, *TRIGGERS} <= set(POINTS)


@pytest.mark.long
@pytest.mark.parametrize("name", START)
def test_crash_at_the_first_start(make_cluster: Callable[..., Cluster], name: str) -> None:
    cluster = make_cluster(1)
    member = cluster.members[0]
    member.environment["KVSTORE_FAILPOINTS"] = f"{name}=panic"
    member.start()
    assert member.wait_exit() == PANIC_EXIT, member.log()[-3000:]
    del member.environment["KVSTORE_FAILPOINTS"]
    cluster.start()
    write(cluster)


# Errors and stalls


def test_s08_a_leader_whose_save_hangs_loses_leadership(make_cluster: Callable[..., Cluster]) -> None:
    """S-08: the loop is alive and the disk is not. Another leads, and the old one does not come back as such."""
    cluster = make_cluster(3, admin=True)
    traces = [member.log_path.with_suffix(".jsonl") for member in cluster.members]
    for member, trace in zip(cluster.members, traces, strict=True):
        member.arguments.append(f"--raft-trace={trace}")
    with cluster:
        leader = cluster.wait_leader()
        term = wait_for(leader.status, "a status").raftTerm
        leader.arm("raftBeforeSave", "1*sleep(3000)")
        asked = ask(leader)
        other = cluster.wait_leader(other_than=leader, timeout=15)
        assert write(cluster)
        assert wait_for(other.status, "a status").raftTerm > term
        wait_for(lambda: _follows(leader, other), "the old leader follows")
        asked.cancel()
        check_members(cluster)
        events, strange = read_trace(traces)
        assert not strange
        elected = [event.node for event in chosen(events, [], 0, None, ["became leader"])]
        assert [elected[0], elected[-1]] == [f"n{leader.member_id:x}", f"n{other.member_id:x}"]


def ask(member: Member) -> Any:
    """A put whose answer nobody waits for; it is given up when what this returns is."""
    put: Any = rpc_pb2_grpc.KVStub(member.channel).Put
    return put.future(rpc_pb2.PutRequest(key=b"asked", value=b"v"), timeout=30)


def _follows(member: Member, leader: Member) -> bool:
    status = member.status()
    return status is not None and status.leader == leader.member_id


def test_a_leader_whose_process_stalls_loses_leadership(make_cluster: Callable[..., Cluster]) -> None:
    """S-08, S-39: the whole process stands still. Afterwards it answers no stale read, and follows."""
    with make_cluster(3, admin=True) as cluster:
        leader = cluster.wait_leader()
        leader.arm("walBeforeSync", "1*sleep(3000)")  # the fsync is inline: the whole process stands still
        asked = ask(leader)
        other = cluster.wait_leader(other_than=leader, timeout=15)
        revision = write(cluster)
        read = rpc_pb2.RangeRequest(key=b"probe")
        wait_for(lambda: _follows(leader, other), "the old leader follows")
        answer = cluster.kv(leader).Range(read, timeout=10)
        assert answer.header.revision >= revision
        asked.cancel()


@pytest.mark.parametrize(
    "name",
    [
        "walBeforeSync",
        *[pytest.param(name, marks=pytest.mark.long) for name in ("walBeforeWrite", "storeBeforeWrite", "flushBefore")],
    ],
)
def test_an_error_of_the_disk_ends_the_process(make_cluster: Callable[..., Cluster], name: str) -> None:
    """S-50: never a second fsync; the others go on, and what was acknowledged is there after a restart."""
    with make_cluster(3, flags=FLAGS, admin=True) as cluster:
        member = cluster.wait_leader()
        revision = write(cluster)
        member.arm(name, "1*error")
        ended = time.monotonic() + 30
        while member.running and time.monotonic() < ended:
            revision = write(cluster)
        assert member.wait_exit() == 1, member.log()[-3000:]
        assert "the disk failed" in member.log() or "cannot write" in member.log() or "failed" in member.log()
        member.start()
        member.wait_ready()
        assert write(cluster) > revision
        check_members(cluster)


def test_broken_streams_between_members_are_built_again(make_cluster: Callable[..., Cluster]) -> None:
    with make_cluster(3, admin=True) as cluster:
        for member in cluster.members:
            member.arm("peerBeforeWrite", "2%error")
            member.arm("peerAfterRead", "2%error")
        for _ in range(40):
            write(cluster)
        assert all(member.running for member in cluster.members)
        for member in cluster.members:
            member.admin(do="clear")
        check_members(cluster)


def test_a_slow_apply_delays_its_member_only(make_cluster: Callable[..., Cluster]) -> None:
    """The apply task sleeps, heartbeats go on: nobody is deposed."""
    with make_cluster(3, admin=True) as cluster:
        leader = cluster.wait_leader()
        term = wait_for(leader.status, "a status").raftTerm
        follower = next(member for member in cluster.members if member is not leader)
        follower.arm("raftBeforeApply", "sleep(300)")
        for _ in range(20):
            write(cluster)
        follower.disarm("raftBeforeApply")
        check_members(cluster)
        assert wait_for(leader.status, "a status").raftTerm == term


@pytest.mark.long
def test_s53_watchers_that_are_caught_up_slowly_skip_nothing(make_cluster: Callable[..., Cluster]) -> None:
    """S-53: catching up stalls while revisions are written and compacted. A watch gets every event, or is told."""
    with make_cluster(3, admin=True) as cluster:
        crashes = Crashes(cluster)
        for member in cluster.members:
            member.arm("watchBeforeSync", "50%sleep(300)")
            member.arm("watchBeforeNotify", "2%sleep(20)")
        crashes.workload.start()
        for _ in range(8):
            compact(cluster, crashes.workload)
            time.sleep(0.4)
        assert any(one["fired"] for one in cluster.members[0].admin(do="failpoints")["failpoints"])
        for member in cluster.members:
            member.admin(do="clear")
        crashes.check()


def test_a_wrong_name_refuses_the_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvstore", "serve", f"--data-dir={tmp_path / 'data'}"],
        env={**clean_environment(), "KVSTORE_FAILPOINTS": "walBeforSync=panic"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "near are walBeforeSync" in done.stderr
