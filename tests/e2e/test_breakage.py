"""Bad input and breakage: one clear line that says what to do, an exit code, no traceback, nothing lost."""

import contextlib
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvstore.pb import history_pb2, history_pb2_grpc, rpc_pb2, rpc_pb2_grpc
from tests.e2e.cluster import Cluster, Member, clean_environment, wait_for
from tests.e2e.test_failures import get, put

MakeCluster = Callable[..., Cluster]
VALUE = b"value" * 20  # no zeros, which is what the rest of a segment is filled with
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def assert_refused(member: Member, *texts: str) -> None:
    """It ends by itself with code 1 and one line that says all of `texts`."""
    code = member.wait_exit()
    log = member.log()
    assert code == 1, log
    last = log.strip().splitlines()[-1]
    for text in texts:
        assert text in last, log
    assert "Traceback" not in log


def assert_start_refused(member: Member, *texts: str) -> None:
    member.start()
    assert_refused(member, *texts)


def stopped_with_data(cluster: Cluster, count: int = 50) -> Member:
    """The single member of `cluster`, with some data, killed."""
    cluster.start()
    for number in range(count):
        put(cluster, f"key{number}".encode(), VALUE)
    [member] = cluster.members
    member.kill()
    return member


# The data directory


def test_a_wiped_member_is_refused_by_its_peers_and_says_so(make_cluster: MakeCluster) -> None:
    with make_cluster(3) as cluster:
        put(cluster, b"key", b"value")
        victim = cluster.members[0]
        victim.kill()
        shutil.rmtree(victim.data_dir)
        assert_start_refused(victim, "started from another data directory before", "put the old data directory back")
        assert get(cluster, b"key", cluster.members[1]) == b"value"


def test_a_member_of_another_cluster_is_refused_by_its_peers(make_cluster: MakeCluster, tmp_path: Path) -> None:
    with make_cluster(3) as cluster:
        stranger = cluster.members[0]
        stranger.kill()
        stranger.arguments += [f"--data-dir={tmp_path / 'other'}", "--initial-cluster-token=other"]
        assert_start_refused(stranger, "refused this node", "belongs to cluster")
        put(cluster, b"key", b"value", cluster.members[1])


def test_the_directory_of_another_cluster(make_cluster: MakeCluster) -> None:
    member = stopped_with_data(make_cluster(1))
    member.arguments.append("--initial-cluster-token=other")
    assert_start_refused(member, "belongs to cluster", "give another --data-dir")


def test_the_directory_of_another_member(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(3)
    cluster.start()
    one, two = cluster.members[:2]
    one.kill()
    two.kill()
    one.arguments.append(f"--data-dir={two.data_dir}")
    assert_start_refused(one, "belongs to member 'm2', not to --name=m1")


def test_a_member_that_is_not_in_the_cluster(make_cluster: MakeCluster) -> None:
    [member] = make_cluster(1).members
    member.arguments.append("--name=stranger")
    member.start()
    assert member.wait_exit() == 2
    assert "this member, --name=stranger, is not in it; it has m1" in member.log()


def test_two_processes_on_one_directory(make_cluster: MakeCluster) -> None:
    first, second = make_cluster(1), make_cluster(1)
    with first:
        [member] = second.members
        member.arguments.append(f"--data-dir={first.members[0].data_dir}")
        assert_start_refused(member, "in use by another process", f"pid {first.members[0].pid}", "stop that one first")
        put(first, b"key", b"value")


def test_an_unusable_directory(make_cluster: MakeCluster, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    [member] = make_cluster(1).members
    member.arguments.append(f"--data-dir={tmp_path / 'file' / 'data'}")
    assert_start_refused(member, "cannot be used: Not a directory", "give another --data-dir")


def test_an_unknown_format_of_the_directory(make_cluster: MakeCluster) -> None:
    member = stopped_with_data(make_cluster(1), 1)
    file = member.data_dir / "member.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    assert_start_refused(member, "has format 99, this version knows 1", "or a newer one")


def test_a_damaged_identity(make_cluster: MakeCluster) -> None:
    member = stopped_with_data(make_cluster(1), 1)
    (member.data_dir / "member.json").write_text("{")
    assert_start_refused(member, "member.json is damaged", "restore it from a copy")


@pytest.mark.parametrize("part", ["log", "state-*"])
def test_a_missing_part_of_the_directory(make_cluster: MakeCluster, part: str) -> None:
    member = stopped_with_data(make_cluster(1), 1)
    [folder] = member.data_dir.glob(part)
    shutil.rmtree(folder)
    assert_start_refused(member, "is gone", "must not start again")


def test_a_missing_identity_is_not_made_up(make_cluster: MakeCluster) -> None:
    member = stopped_with_data(make_cluster(1), 1)
    (member.data_dir / "member.json").unlink()
    assert_start_refused(member, "but no member.json", "restore that file")


def test_a_flipped_bit_in_the_log(make_cluster: MakeCluster) -> None:
    member = stopped_with_data(make_cluster(1))
    [segment] = (member.data_dir / "log").glob("*.log")
    content = bytearray(segment.read_bytes())
    content[len(content.rstrip(b"\0")) // 2] ^= 1
    segment.write_bytes(content)
    assert_start_refused(member, "bad record", str(segment), "must not take part")


def test_a_damaged_store(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(1)
    member = stopped_with_data(cluster)
    member.start()
    member.wait_ready()
    assert member.stop() == 0  # flushes: now there is a table file
    _flip_bits_of_tables(member)
    assert_start_refused(member, "damaged")


@pytest.mark.parametrize("read", ["lone keys", "serializable", "range", "history", "watch"])
def test_a_store_that_is_damaged_while_it_is_open_ends_the_member(make_cluster: MakeCluster, read: str) -> None:
    cluster = make_cluster(1)
    member = stopped_with_data(cluster, 200)  # more than are read without a pause, and in several blocks
    member.start()
    member.wait_ready()
    assert member.stop() == 0
    member.start()
    member.wait_ready()
    _flip_bits_of_tables(member)
    with pytest.raises(grpc.RpcError) as error:
        _read_all(cluster, read)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert_refused(member, "this member cannot go on", "is damaged", "move its data directory away")


def _read_all(cluster: Cluster, read: str) -> None:
    [member] = cluster.members
    prefix: dict[str, Any] = {"key": b"key", "range_end": b"kez"}
    if read == "range":
        cluster.kv().Range(rpc_pb2.RangeRequest(**prefix), timeout=10)
    elif read == "history":
        list(history_pb2_grpc.HistoryStub(member.channel).Read(history_pb2.ReadHistoryRequest(**prefix), timeout=10))
    elif read == "watch":
        create = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(start_revision=2, **prefix))
        list(rpc_pb2_grpc.WatchStub(member.channel).Watch(iter([create]), timeout=10))
    else:
        for number in range(200):
            assert get(cluster, f"key{number}".encode(), serializable=read == "serializable") == VALUE


def _flip_bits_of_tables(member: Member) -> None:
    for table in member.data_dir.glob("state-*/*.sst"):
        content = bytearray(table.read_bytes())
        for at in range(0, len(content), 16):
            content[at] ^= 0xFF
        with table.open("r+b") as file:  # the same file, which may be open
            file.write(content)


def test_a_torn_tail_is_no_damage(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(1)
    member = stopped_with_data(cluster)
    [segment] = (member.data_dir / "log").glob("*.log")
    content = bytearray(segment.read_bytes())
    end = len(content.rstrip(b"\0"))
    content[end : end + 20] = b"\x17" * 20  # what a crash in the middle of a write may leave
    segment.write_bytes(content)
    member.start()
    member.wait_ready()
    assert get(cluster, b"key49") == VALUE


# Ports and requests


@pytest.mark.parametrize("port", ["client_port", "peer_port"])
def test_a_taken_port(make_cluster: MakeCluster, port: str) -> None:
    [member] = make_cluster(1).members
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", getattr(member, port)))
        taken.listen()
        assert_start_refused(member, f"cannot listen on 127.0.0.1:{getattr(member, port)}", "ddress already in use")
    assert not member.data_dir.exists()
    member.start()
    member.wait_ready()


def test_an_oversized_request(make_cluster: MakeCluster) -> None:
    with make_cluster(1) as cluster:
        with pytest.raises(grpc.RpcError) as error:
            put(cluster, b"key", bytes(1536 * 1024))
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.value.details() == "etcdserver: request is too large"
        with pytest.raises(grpc.RpcError) as error:
            put(cluster, b"key", bytes(2048 * 1024 + 1))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        put(cluster, b"key", bytes(1500 * 1024))
        assert get(cluster, b"key") == bytes(1500 * 1024)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


@pytest.mark.parametrize("port", ["client_port", "peer_port"])
@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        PREFACE + b"\xff" * 1000,
        PREFACE + SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(5000),
        bytes(range(256)) * 100,
    ],
    ids=["tls", "http1", "garbage after the preface", "a giant frame", "garbage"],
)
def test_malformed_bytes_hurt_nobody_else(shared: Cluster, port: str, data: bytes) -> None:
    [member] = shared.members
    address = ("127.0.0.1", getattr(member, port))
    # A reset is as good an answer as an end.
    with socket.create_connection(address, timeout=5) as connection, contextlib.suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass
    put(shared, b"key", b"value")
    assert member.running
    assert "Traceback" not in member.log()


@pytest.mark.parametrize(
    "method", ["KV/Put", "KV/Range", "KV/Txn", "KV/DeleteRange", "KV/Compact", "Maintenance/HashKV"]
)
def test_a_malformed_message_is_an_answer(shared: Cluster, method: str) -> None:
    [member] = shared.members
    call = member.channel.unary_unary(f"/etcdserverpb.{method}")
    with pytest.raises(grpc.RpcError) as error:
        call(b"\xff\xff\xff", timeout=5)
    assert error.value.code() is grpc.StatusCode.INTERNAL
    assert "unmarshalling" in error.value.details()
    assert "Traceback" not in member.log()


def test_a_peer_that_sends_garbage_is_cut_off(shared: Cluster) -> None:
    [member] = shared.members
    with grpc.insecure_channel(f"127.0.0.1:{member.peer_port}") as channel:
        call = channel.stream_stream("/raft.v1.Peer/Stream")
        with pytest.raises(grpc.RpcError) as error:
            list(call(iter([b"\xff" * 100]), timeout=5))
        assert error.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    put(shared, b"key", b"value")
    assert "Traceback" not in member.log()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Cluster:  # type: ignore[misc]
    """One member that outlives all the nonsense it is sent."""
    with Cluster(1, tmp_path_factory.mktemp("shared")) as cluster:
        yield cluster


# The disk


def restart_under_strace(member: Member, inject: str) -> None:
    member.wrapper = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={inject.partition(':')[0]}",
        "-e",
        f"inject={inject}",
    ]
    member.start()


@needs_strace
@pytest.mark.parametrize(
    ("inject", "code"),
    [("fdatasync:error=EIO:when=12+", errno.EIO), ("pwritev,pwritev2:error=ENOSPC:when=12+", errno.ENOSPC)],
    ids=["failed fsync", "full disk"],
)
def test_a_disk_that_fails_ends_the_process_and_loses_nothing(
    make_cluster: MakeCluster, inject: str, code: int
) -> None:
    cluster = make_cluster(1)
    [member] = cluster.members
    restart_under_strace(member, inject)
    member.wait_ready()
    acknowledged: list[bytes] = []
    with pytest.raises(grpc.RpcError) as error:
        _put_until_it_fails(cluster, acknowledged)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert member.wait_exit() == 1
    last = json.loads(member.log().strip().splitlines()[-1])
    assert last["msg"] == "this member cannot go on"
    assert str(errno.errorcode[code]) in last["reason"] or os.strerror(code) in last["reason"]
    assert "start this member again" in last["reason"]
    assert "Traceback" not in member.log()
    member.wrapper = []
    member.start()
    member.wait_ready()
    assert acknowledged
    assert all(get(cluster, key) == b"value" for key in acknowledged)


@needs_strace
def test_a_member_whose_disk_fails_does_not_stop_the_others(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(3)
    broken = cluster.members[0]
    broken.wrapper = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=fdatasync",
        "-e",
        "inject=fdatasync:error=EIO:when=15+",
    ]
    cluster.start()
    others = cluster.members[1:]
    for number in range(40):
        wait_for(lambda number=number: _tried(cluster, number, others), "a put")
    assert broken.wait_exit() == 1
    assert get(cluster, b"key39", others[0]) == b"value"


def _put_until_it_fails(cluster: Cluster, acknowledged: list[bytes]) -> None:
    for number in range(1000):
        put(cluster, f"key{number}".encode(), b"value")
        acknowledged.append(f"key{number}".encode())


def _tried(cluster: Cluster, number: int, members: list[Member]) -> bool:
    """A put that may meet an election."""
    try:
        put(cluster, f"key{number}".encode(), b"value", members[number % len(members)], timeout=2)
    except grpc.RpcError:
        return False
    return True


# The command line


def test_an_unknown_flag() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "kvstore", "serve", "--data-dirr=/nowhere"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean_environment(),
    )
    assert result.returncode == 2
    assert "--data-dir" in result.stderr
    assert "Traceback" not in result.stderr
