"""A delete of 500,000 keys, under load, on three members: nobody is deposed, and no loop stands still."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import grpc
import pytest

from kvstore.lag import VARIABLE
from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from tests.e2e.cluster import Cluster, Member, wait_for

KEYS = 500_000
KEYS_PER_TXN = 128  # the most that --max-txn-ops allows
TXNS_IN_FLIGHT = 8
STALL_MS_MAX = 50
COUNT = rpc_pb2.RangeRequest(key=b"big/", range_end=b"big0", count_only=True, serializable=True)


def load(cluster: Cluster, leader: Member) -> None:
    """KEYS small keys below big/, in txns, a few in flight."""
    kv = cluster.kv(leader)
    numbers = range(0, KEYS, KEYS_PER_TXN)
    waiting: list[grpc.Future[rpc_pb2.TxnResponse]] = []
    for start in numbers:
        txn = rpc_pb2.TxnRequest()
        for number in range(start, min(start + KEYS_PER_TXN, KEYS)):
            put = txn.success.add().request_put
            put.key, put.value = b"big/%07d" % number, b"value"
        waiting.append(kv.Txn.future(txn, timeout=60))
        if len(waiting) == TXNS_IN_FLIGHT:
            waiting.pop(0).result()
    for one in waiting:
        one.result()


def timed_out(error: grpc.RpcError) -> bool:
    """On a slow machine the delete takes longer than a request may wait (7 s), and so does what is behind it."""
    return bool(error.code() is grpc.StatusCode.UNAVAILABLE and "request timed out" in (error.details() or ""))


class CpuTime:
    """How much processor time a member takes."""

    def __init__(self, member: Member) -> None:
        self._stat = Path(f"/proc/{member.process.pid}/stat")  # type: ignore[union-attr]
        self._seconds, self._at = self._read(), time.monotonic()

    def _read(self) -> float:
        fields = self._stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_low(self) -> bool:
        """Whether the last second was an idle one."""
        now = time.monotonic()
        if now - self._at < 1:
            return False
        seconds, self._seconds = self._seconds, self._read()
        at, self._at = self._at, now
        return self._seconds - seconds < 0.2 * (now - at)


class Writers:
    """Threads that put keys of their own through each member until they are told to stop."""

    def __init__(self, cluster: Cluster) -> None:
        self.done = 0
        self.timed_out = 0
        self.slowest = 0.0
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(cluster, member, number), daemon=True)
            for number, member in enumerate(cluster.members)
        ]
        for thread in self._threads:
            thread.start()

    def _write(self, cluster: Cluster, member: Member, number: int) -> None:
        kv = cluster.kv(member)
        count = 0
        while not self._stop.is_set():
            start = time.monotonic()
            try:
                kv.Put(rpc_pb2.PutRequest(key=b"load/%d/%d" % (number, count % 1000), value=b"x" * 256), timeout=20)
            except grpc.RpcError as error:
                if not timed_out(error):
                    self.errors.append(str(error))
                    return
                self.timed_out += 1
            count += 1
            self.done += 1
            self.slowest = max(self.slowest, time.monotonic() - start)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


def report_lag(member: Member) -> dict[str, float]:
    """The member's worst loop lag since the last report."""
    seen = member.log().count("loop lag")
    member.process.send_signal(signal.SIGUSR1)  # type: ignore[union-attr]
    wait_for(lambda: member.log().count("loop lag") > seen, f"{member} to report its lag")
    line = [line for line in member.log().splitlines() if "loop lag" in line][-1]
    if line.startswith("{"):
        found = json.loads(line)
        return {name: found[name] for name in ("stall_ms", "late_ms")}
    return {name: float(value) for name, value in re.findall(r"(stall_ms|late_ms)=([\d.]+)", line)}


def is_gone(kv: rpc_pb2_grpc.KVStub) -> bool:
    """Whether none is left, and never only some."""
    left = kv.Range(COUNT, timeout=60).count
    assert left in {0, KEYS}, f"a delete half done was seen: {left} of {KEYS}"
    return bool(left == 0)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.timeout(500)
def test_big_delete_stalls_nobody(make_cluster: Callable[..., Cluster]) -> None:
    with make_cluster(3, environment={VARIABLE: "1"}) as cluster:
        leader = cluster.wait_leader()
        load(cluster, leader)
        kv = cluster.kv(leader)
        assert kv.Range(COUNT, timeout=60).count == KEYS
        for member in cluster.members:
            # Files of the load are merged for seconds more, beside whatever follows.
            wait_for(CpuTime(member).is_low, f"{member} to have done with the load", 60)
        before = {member: member.status() for member in cluster.members}
        writers = Writers(cluster)
        try:
            wait_for(lambda: writers.done > 100 or writers.errors, "the load to run")
            for member in cluster.members:
                report_lag(member)  # what loading cost is not what is asked here
            start = time.monotonic()
            delete = rpc_pb2.DeleteRangeRequest(key=b"big/", range_end=b"big0")
            deleted = KEYS
            try:
                deleted = kv.DeleteRange(delete, timeout=120).deleted
            except grpc.RpcError as error:
                if not timed_out(error):
                    raise
            # Each member says so once it has applied the delete too: the whole of it at once.
            for member in cluster.members:
                wait_for(partial(is_gone, cluster.kv(member)), f"{member} to apply the delete", 120)
            seconds = time.monotonic() - start
            lags = {member.name: report_lag(member) for member in cluster.members}
        finally:
            writers.stop()
        print(
            f"deleted {deleted} keys on all members in {seconds:.1f} s; lag by member: {lags}; {writers.done} puts "
            f"beside it, the slowest {writers.slowest:.2f} s, {writers.timed_out} timed out"
        )
        assert deleted == KEYS
        assert not writers.errors
        for member in cluster.members:
            status, old = member.status(), before[member]
            assert status is not None
            assert old is not None
            assert (status.raftTerm, status.leader) == (old.raftTerm, old.leader), f"{member}: an election"
        worst = max(lag["stall_ms"] for lag in lags.values())
        assert worst <= STALL_MS_MAX, lags
