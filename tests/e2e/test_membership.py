"""Five members of real processes under load while their membership changes; then everything is checked.

A member that was away for longer than the log remembers is brought back by snapshot, a learner is added (by snapshot
too) and promoted, another member removed, and the leader moved. No write may fail but those that the change of the
leader meets, members agree at the end, and nothing that was acknowledged is lost.

The small size runs with the suite. The big one is for a release: `python -m tests.e2e.test_membership [--mib 1024]`
prints its figures.
"""

import argparse
import itertools
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from tests.e2e.cluster import Cluster, Member, wait_for

VALUE_BYTES = 64 * 1024
SMALL_MIB, BIG_MIB = 16, 1024  # written while a member is away
FLAGS = ["--snapshot-count=500", "--snapshot-catchup-entries=100", "--snapshot-catchup-bytes=4194304"]
WRITERS = 4
IN_FLIGHT = 16  # large values
LEADER_CHANGE_SECONDS = 5.0  # after a planned one was asked for, writes may fail
LONG_SECONDS = 300.0  # for what takes as long as the data are large


@dataclass
class Writer:
    """Puts one after another on the members that stay; each key once, so that each can be looked for."""

    stubs: list[rpc_pb2_grpc.KVStub]
    number: int
    acknowledged: dict[bytes, bytes] = field(default_factory=dict)
    answered: list[float] = field(default_factory=list)
    failed: list[tuple[float, str]] = field(default_factory=list)
    _stopping: bool = False

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._thread.join(30)

    def _run(self) -> None:
        for number in itertools.count():
            if self._stopping:
                return
            stub = self.stubs[number % len(self.stubs)]
            key, value = b"load/%d/%d" % (self.number, number), b"%d" % number
            try:
                stub.Put(rpc_pb2.PutRequest(key=key, value=value), timeout=10)
            except grpc.RpcError as error:
                self.failed.append((time.monotonic(), f"{error.code().name}: {error.details()}"))
            else:
                self.acknowledged[key] = value
                self.answered.append(time.monotonic())
            time.sleep(0.002)


@dataclass
class Figures:
    """Of one run."""

    values_mib: int
    filled: float = 0.0  # seconds
    brought_back: float = 0.0
    snapshot_bytes: int = 0
    learner_ready: float = 0.0
    promoted: float = 0.0
    removed: float = 0.0
    transfer_gap: float = 0.0
    transfer_failed: int = 0  # writes that the change of the leader met
    writes: int = 0
    longest_gap: float = 0.0
    took: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.values_mib} MiB of {VALUE_BYTES // 1024} KiB values written in {self.filled:.1f} s\n"
            f"member back by a snapshot of {self.snapshot_bytes / (1 << 20):.0f} MiB in {self.brought_back:.1f} s\n"
            f"learner added and ready in {self.learner_ready:.1f} s, promoted in {self.promoted:.1f} s\n"
            f"member removed in {self.removed:.1f} s\n"
            f"leader moved: {self.transfer_gap * 1000:.0f} ms without a write, {self.transfer_failed} failed\n"
            f"{self.writes:,} small writes acknowledged in {self.took:.0f} s, none failed otherwise; "
            f"the longest gap was {self.longest_gap * 1000:.0f} ms"
        )


def run(cluster: Cluster, mib: int) -> Figures:
    """All of it, one after another, with writers that do not stop."""
    figures = Figures(mib)
    leader = cluster.wait_leader()
    away, leaves, first, second = [member for member in cluster.members if member is not leader]
    stubs = [cluster.kv(member) for member in (leader, first, second)]  # those that stay
    writers = [Writer(stubs, number) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    began = time.monotonic()
    try:
        away.kill()
        last = wait_for(leader.status, "the leader's status").raftIndex
        figures.filled = timed(lambda: fill(cluster, mib))
        figures.brought_back = timed(lambda: bring_back(cluster, away, last))
        figures.snapshot_bytes = snapshot_bytes(cluster)
        figures.learner_ready, figures.promoted = add_and_promote(cluster)
        figures.removed = timed(lambda: remove(cluster, leaves))
        moved = transfer(cluster, first)
        time.sleep(1)  # of writes with the new leader
    finally:
        for writer in writers:
            writer.stop()
    figures.took = time.monotonic() - began
    times = sorted([one for writer in writers for one in writer.answered])
    figures.transfer_gap = gap([one for one in times if moved - 1 < one < moved + LEADER_CHANGE_SECONDS])
    figures.longest_gap = gap(times)
    figures.writes = len(times)
    figures.transfer_failed = check_failures(writers, moved)
    check_end(cluster, writers, figures.writes)
    return figures


def timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def gap(times: list[float]) -> float:
    """The longest time between two answers, in seconds."""
    return max([later - earlier for earlier, later in itertools.pairwise(times)], default=0.0)


def fill(cluster: Cluster, mib: int) -> None:
    """Large values, several at a time; no two alike."""
    tail = random.Random(mib).randbytes(VALUE_BYTES - 8)  # what cannot be compressed away
    stub: Any = cluster.kv(cluster.wait_leader())
    waiting: list[Any] = []
    for number in range(mib * (1 << 20) // VALUE_BYTES):
        put = rpc_pb2.PutRequest(key=b"large/%06d" % number, value=number.to_bytes(8, "big") + tail)
        waiting.append(stub.Put.future(put, timeout=120))
        if len(waiting) >= IN_FLIGHT:
            waiting.pop(0).result()
    for one in waiting:
        one.result()


def bring_back(cluster: Cluster, away: Member, last: int) -> None:
    """Start it, until it has what the leader had then. It had `last` at most, which the log does not go back to."""
    leader = cluster.wait_leader()
    wait_for(lambda: leader.admin(do="status")["raft"]["first_index"] > last + 1, "a shorter log", LONG_SECONDS)
    target = wait_for(cluster.wait_leader().status, "the leader's status").raftIndex
    away.start()
    away.wait_ready(LONG_SECONDS)

    def caught_up() -> bool:
        status = away.status()
        return status is not None and status.raftAppliedIndex >= target

    wait_for(caught_up, f"{away.name} at {target}", LONG_SECONDS)
    assert "installed a snapshot" in away.log(), "it came back without a snapshot: this run shows nothing"


def snapshot_bytes(cluster: Cluster) -> int:
    """Of the newest snapshot that the leader took."""
    lines = [json.loads(line) for line in cluster.wait_leader().log().splitlines() if "took a snapshot" in line]
    return int(lines[-1]["bytes"])


def add_and_promote(cluster: Cluster) -> tuple[float, float]:
    """A new member as learner, then a voter. Seconds of both."""
    began = time.monotonic()
    learner = cluster.add_member(learner=True)
    learner.start()
    learner.wait_ready(LONG_SECONDS)
    ready = time.monotonic() - began
    cluster.promote(learner, LONG_SECONDS)
    return ready, time.monotonic() - began - ready


def remove(cluster: Cluster, leaves: Member) -> None:
    """Until its process has ended by itself, and said why."""
    cluster.remove_member(leaves)
    assert leaves.wait_exit() != 0
    assert "removed" in leaves.log(), leaves.log()[-3000:]


def transfer(cluster: Cluster, to: Member) -> float:
    """Returns when it was asked for."""
    to_id, moved = to.member_id, time.monotonic()
    cluster.move_leader(to)
    assert wait_for(cluster.leader, "a leader").member_id == to_id
    return moved


# Checks


def check_failures(writers: list[Writer], moved: float) -> int:
    """How many writes the change of the leader met; any other that failed is one too many."""
    failed = [one for writer in writers for one in writer.failed]
    others = [text for at, text in failed if not moved - 0.1 < at < moved + LEADER_CHANGE_SECONDS]
    assert not others, f"{len(others)} writes failed, such as: {others[:3]}"
    return len(failed)


def check_end(cluster: Cluster, writers: list[Writer], writes: int) -> None:
    """Members agree, and everything that was acknowledged is there."""
    assert writes > 100, "too few writes to show anything"
    assert len(cluster.members) == 5
    listed = cluster.members_stub().MemberList(rpc_pb2.MemberListRequest(), timeout=10).members
    assert {one.ID for one in listed} == {member.member_id for member in cluster.members}
    assert not any(one.isLearner for one in listed)

    def hashes() -> set[tuple[int, int, int]]:
        request = rpc_pb2.HashKVRequest()
        stubs = [rpc_pb2_grpc.MaintenanceStub(member.channel) for member in cluster.members]
        answers = [stub.HashKV(request, timeout=LONG_SECONDS) for stub in stubs]
        return {(one.hash, one.hash_revision, one.compact_revision) for one in answers}

    wait_for(lambda: len(hashes()) == 1, "equal hashes", LONG_SECONDS)
    for member in cluster.members:
        request = rpc_pb2.RangeRequest(key=b"load/", range_end=b"load0", serializable=True)
        found = {kv.key: kv.value for kv in cluster.kv(member).Range(request, timeout=60).kvs}
        for writer in writers:
            lost = [key for key, value in writer.acknowledged.items() if found.get(key) != value]
            assert not lost, f"{member.name} lost {len(lost)} acknowledged writes, such as {lost[:3]}"


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_membership_changes_under_load(make_cluster: Callable[..., Cluster]) -> None:
    with make_cluster(5, flags=[*FLAGS, "--log-segment-bytes=1048576"], admin=True) as cluster:
        print(run(cluster, SMALL_MIB))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="tests.e2e.test_membership", description="the big one; prints its figures")
    parser.add_argument("--mib", type=int, default=BIG_MIB, help="of large values")
    parser.add_argument("--dir", type=Path, help="where the members' data may lie; ten times as much is needed")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=options.dir) as scratch,
        Cluster(5, Path(scratch), flags=FLAGS, admin=True) as members,
    ):
        print(run(members, options.mib))
