"""The cluster that is fuzzed, and what must hold of it whatever it was sent."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb import rpc_pb2_grpc
from tests.e2e.cluster import Cluster, Member, wait_for

BATCH = 150  # inputs between two looks at the members
GROWTH_MAX = 160 << 20  # bytes of a member's memory: memtables and caches fill too
TASKS_MORE_MAX = 20  # than before; what is under way when they are counted
BAD_LOG = ("Traceback", "AssertionError", "internal error", "was never awaited", "never retrieved")


class Target:
    """Three members; the first is sent what there is to send."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.member = cluster.members[0]
        self.check()
        self._tasks = {member.name: self._count(member) for member in cluster.members}
        self._memory = {member.name: self._rss(member) for member in cluster.members}

    def check(self) -> None:
        """All members serve and hold the same."""
        for member in self.cluster.members:
            assert member.running, f"{member.name} has ended:\n{member.log()[-4000:]}"
            for bad in BAD_LOG:
                assert bad not in member.log(), f"{member.name}:\n{member.log()[-6000:]}"
        self._disarm()
        kv = self.cluster.kv(self.member)
        wait_for(lambda: kv.Put(pb.PutRequest(key=b"alive", value=b"1"), timeout=20).header.revision, "a put")
        wait_for(lambda: len(set(map(self._hash, self.cluster.members))) == 1, "equal hashes")

    def check_leaks(self) -> None:
        for member in self.cluster.members:
            before = self._tasks[member.name]
            wait_for(
                lambda member=member, before=before: self._count(member) <= before + TASKS_MORE_MAX,  # type: ignore[misc]
                f"tasks of {member.name} end; there were {before}, there are {self._count(member)}",
            )
            grown = self._rss(member) - self._memory[member.name]
            assert grown < GROWTH_MAX, f"{member.name} has grown by {grown >> 20} MiB"

    def _disarm(self) -> None:
        stub = rpc_pb2_grpc.MaintenanceStub(self.member.channel)
        for alarm in stub.Alarm(pb.AlarmRequest(), timeout=10).alarms:
            off = pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm)
            stub.Alarm(off, timeout=10)

    def _hash(self, member: Member) -> tuple[int, int]:
        stub = rpc_pb2_grpc.MaintenanceStub(member.channel)
        revision = self.cluster.kv(self.member).Range(pb.RangeRequest(key=b"alive"), timeout=10).header.revision
        self.cluster.kv(member).Range(pb.RangeRequest(key=b"alive"), timeout=10)  # it has applied as much
        answer = stub.HashKV(pb.HashKVRequest(revision=revision), timeout=10)
        return answer.hash, answer.compact_revision

    def _count(self, member: Member) -> int:
        return len(member.admin(do="tasks")["tasks"])

    def _rss(self, member: Member) -> int:
        return int(psutil.Process(member.pid).memory_info().rss)


@contextlib.contextmanager
def running_target(folder: Path) -> Iterator[Target]:
    with Cluster(3, folder, admin=True) as cluster:
        cluster.wait_leader()
        yield Target(cluster)


def fuzz(
    target: Target, inputs: "SearchStrategy[object]", send: Callable[[object], None], first: int, seconds: float
) -> int:
    """For so long, from this seed on. Returns the number of executions; a finding raises, made small by hypothesis."""
    end, executions, number = time.monotonic() + seconds, 0, first
    while time.monotonic() < end:
        executions += _batch(target, inputs, send, number)
        number += 1
    target.check_leaks()
    return executions


def _batch(target: Target, inputs: "SearchStrategy[object]", send: Callable[[object], None], number: int) -> int:
    count = 0

    @seed(number)
    @settings(
        max_examples=BATCH,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def one(value: object) -> None:
        nonlocal count
        count += 1
        send(value)
        assert target.member.running, "the member has ended"

    try:
        one()
        target.check()
    except BaseException:
        print(f"repro: the batch of seed {number}")
        raise
    return count
