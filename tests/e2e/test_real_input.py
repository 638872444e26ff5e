"""Python's standard library goes in while the leader dies, and comes out of every member byte for byte."""

import json
import shutil
import signal
import subprocess
import sys
import sysconfig
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from tests.e2e.cluster import Cluster, Member, clean_environment, wait_for

PREFIX = b"stdlib/"
PAGE = 100  # keys of one Range: some files are 700 kB


def copy_standard_library(target: Path) -> dict[bytes, bytes]:
    """Every .py file outside site-packages, copied below `target`; what each key must hold."""
    root = Path(sysconfig.get_path("stdlib"))
    expected = {}
    for source in sorted(root.rglob("*.py")):
        relative = source.relative_to(root)
        if "site-packages" in relative.parts or not source.is_file():
            continue
        copy = target / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        expected[PREFIX + str(relative).encode()] = copy.read_bytes()
    return expected


def read_all(cluster: Cluster, member: Member, serializable: bool) -> dict[bytes, bytes]:
    """Every key below PREFIX as this member answers it."""
    kv = cluster.kv(member)
    found: dict[bytes, bytes] = {}
    key, end = PREFIX, PREFIX[:-1] + bytes([PREFIX[-1] + 1])
    while True:
        request = rpc_pb2.RangeRequest(key=key, range_end=end, limit=PAGE, serializable=serializable)
        response = kv.Range(request, timeout=30)
        found |= {one.key: one.value for one in response.kvs}
        if not response.more:
            return found
        key = response.kvs[-1].key + b"\0"


def hash_kv(member: Member, revision: int) -> tuple[int, int]:
    stub = rpc_pb2_grpc.MaintenanceStub(member.channel)
    response = stub.HashKV(rpc_pb2.HashKVRequest(revision=revision), timeout=30)
    return response.hash, response.compact_revision


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_standard_library_survives_the_leader(make_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    expected = copy_standard_library(tmp_path / "stdlib")
    assert len(expected) > 500, "this Python has a standard library in files"
    with make_cluster(3) as cluster:
        leader = cluster.wait_leader()
        acked = tmp_path / "acked.jsonl"
        command = [
            *(str(Path(sys.executable).with_name("kvctl")), "import", str(tmp_path / "stdlib")),
            *("--prefix", PREFIX.decode(), "--endpoints", ",".join(cluster.endpoints)),
            *("--acked", str(acked), "--journal", str(tmp_path / "journal.jsonl")),
        ]
        importing = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=clean_environment()
        )
        try:
            wait_for(
                lambda: count_lines(acked) >= len(expected) // 2 or importing.poll() is not None, "half of it", 180
            )
            assert importing.poll() is None, (
                f"ended before the leader was killed:\n{importing.communicate()[0].decode()}"
            )
            leader.kill()
            assert leader.process is not None
            assert leader.process.returncode == -signal.SIGKILL
            before = count_lines(acked)
            cluster.wait_leader(other_than=leader)
            leader.start()
            output = importing.communicate(timeout=300)[0].decode()
        finally:
            importing.kill()
            importing.wait()
        assert importing.returncode == 0, output
        leader.wait_ready()

        acknowledged = {b64decode(json.loads(line)["key"]) for line in acked.read_text().splitlines()}
        print(f"{len(expected)} files, {before} acknowledged when the leader had been killed")
        assert acknowledged == set(expected), output
        for member in cluster.members:
            # Linearizable first: afterwards the local state is at least as new.
            for serializable in (False, True):
                found = read_all(cluster, member, serializable)
                wrong = [key for key, value in expected.items() if found.get(key) != value]
                assert not wrong, f"{member} serializable={serializable}: {len(wrong)} differ, such as {wrong[:3]}"
                assert found.keys() == expected.keys()
        revision = cluster.kv().Range(rpc_pb2.RangeRequest(key=b"x"), timeout=10).header.revision
        hashes = [hash_kv(member, revision) for member in cluster.members]
        assert len(set(hashes)) == 1, hashes


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
