"""Clients and watchers on three members that are killed, paused and told to stop; then everything is checked.

A seeded slice, short enough for every run of the suite. The seed decides the faults and what each client asks for;
what meets what is up to the machine. `kvstore.v1.History` on each member is the truth that the checkers compare with.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable

import grpc
import pytest

from kvstore.pb import history_pb2, history_pb2_grpc, kv_pb2, rpc_pb2, rpc_pb2_grpc
from tests.e2e.checkers import Truth, check_linearizable, check_revisions, check_watches
from tests.e2e.cluster import Cluster, Member, wait_for
from tests.e2e.history import History, Workload

EVERYTHING = b"\0"
FAULTS = 8
RECOVERY_SECONDS = 10.0  # from the end of a fault to a write that goes through; twice what a busy machine needs


def kill(victims: list[Member], seconds: float) -> None:
    for member in victims:
        member.kill()
    time.sleep(seconds)
    for member in victims:
        member.start()


def pause(victims: list[Member], seconds: float) -> None:
    for member in victims:
        os.kill(member.pid, signal.SIGSTOP)
    time.sleep(seconds)
    for member in victims:
        os.kill(member.pid, signal.SIGCONT)


def stop(victims: list[Member], seconds: float) -> None:
    """SIGTERM: a leader hands over."""
    for member in victims:
        assert member.stop() == 0, member.log()[-3000:]
    time.sleep(seconds)
    for member in victims:
        member.start()


def victims_of(cluster: Cluster, rng: random.Random) -> list[Member]:
    """The leader, some member, a majority, or all."""
    leader = cluster.wait_leader()
    members = rng.sample(cluster.members, len(cluster.members))
    return rng.choice([[leader], [leader], members[:1], members[: len(members) // 2 + 1], members])


def write(cluster: Cluster, timeout: float = RECOVERY_SECONDS) -> int:
    """The revision of a put that went through, on whichever member takes it."""

    def put() -> int | None:
        for member in cluster.running:
            try:
                response = cluster.kv(member).Put(rpc_pb2.PutRequest(key=b"probe", value=b"v"), timeout=0.5)
            except grpc.RpcError:
                continue
            return int(response.header.revision)
        return None

    return wait_for(put, "a write that goes through", timeout)


def changes_of(member: Member) -> list[kv_pb2.Event]:
    stub = history_pb2_grpc.HistoryStub(member.channel)
    request = history_pb2.ReadHistoryRequest(key=EVERYTHING, range_end=EVERYTHING)
    return [change.event for answer in stub.Read(request, timeout=60) for change in answer.changes]


def check_members(cluster: Cluster) -> Truth:
    """All members tell the same history and hash alike. Returns that history."""
    histories = [changes_of(member) for member in cluster.members]
    assert all(one == histories[0] for one in histories), "members tell different histories"

    def same_hash() -> bool:
        hashes = set()
        for member in cluster.members:
            answer = rpc_pb2_grpc.MaintenanceStub(member.channel).HashKV(rpc_pb2.HashKVRequest(), timeout=30)
            hashes.add((answer.hash, answer.hash_revision, answer.compact_revision))
        return len(hashes) == 1

    def same_index() -> bool:
        return len({status and status.raftAppliedIndex for status in map(Member.status, cluster.members)}) == 1

    wait_for(same_hash, "equal hashes")
    wait_for(same_index, "equal applied indexes")
    return Truth(histories[0])


def check_history(history: History, truth: Truth) -> None:
    complaints = check_revisions(history, truth) + check_watches(history, truth) + check_linearizable(history)
    assert not complaints, f"{len(complaints)} complaints:\n" + "\n".join(complaints[:10])


def check_log(member: Member) -> None:
    """Nothing in the log of any run of the member says that something went wrong inside."""
    for line in member.log_path.read_text(errors="replace").splitlines():
        level = json.loads(line)["level"] if line.startswith("{") else "not of the logger"
        assert level in {"debug", "info", "warning"}, f"{member.name}: {line}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_chaos(make_cluster: Callable[..., Cluster], seed: int) -> None:
    rng = random.Random(seed)
    # A small snapshot count: flushes and log compactions fall between the faults.
    with make_cluster(3, flags=["--snapshot-count=50"]) as cluster:
        workload = Workload({one.name: one.target for one in cluster.members}, seed, pause=0.02)
        workload.start()
        for _ in range(FAULTS):
            time.sleep(rng.uniform(0.2, 1))
            fault = rng.choice([kill, pause, stop])
            fault(victims_of(cluster, rng) if fault is not stop else [cluster.wait_leader()], rng.uniform(0.2, 2.5))
            write(cluster)
        workload.stop_clients()
        for member in cluster.members:
            member.wait_ready()
        workload.stop(write(cluster))
        assert workload.written > 200, "too few writes to show anything"
        truth = check_members(cluster)
        check_history(workload.history, truth)
        for member in cluster.members:
            check_log(member)
