"""Clients and watchers on three members that are killed, paused and told to stop; then everything is checked.

A seeded slice, short enough for every run of the suite. The seed decides the faults and what each client asks for;
what meets what is up to the machine. `kvstore.v1.History` on each member is the truth that the checkers compare with.
"""

import os
import random
import signal
import time
from collections.abc import Callable

import grpc
import pytest

from kvstore.pb import rpc_pb2
from tests.e2e.agreement import check_log, check_members
from tests.e2e.checkers import Truth, check_linearizable, check_revisions, check_watches
from tests.e2e.cluster import Cluster, Member, wait_for
from tests.e2e.history import History, Workload

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


def check_history(history: History, truth: Truth) -> None:
    complaints = check_revisions(history, truth) + check_watches(history, truth) + check_linearizable(history)
    assert not complaints, f"{len(complaints)} complaints:\n" + "\n".join(complaints[:10])


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
