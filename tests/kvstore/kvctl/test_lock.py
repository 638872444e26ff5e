"""kvctl lock and elect, beside etcdctl's own in one queue. All are real processes."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.rpc_pb2_grpc import KVStub
from tests.kvstore.client.clusters import BIN, Cluster
from tests.kvstore.kvctl.processes import environment, kvctl

PATIENCE = 30.0

# Says when it is in and when it is out again, and which key has let it in.
CRITICAL = """
import os, sys, time
def note(what):
    with open(sys.argv[1], "a") as journal:
        journal.write(f"{what} {sys.argv[2]} {os.environ['ETCD_LOCK_KEY']} {os.environ['ETCD_LOCK_REV']}\\n")
note("in"); time.sleep(0.05); note("out")
"""


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    """A test that fails leaves no waiters behind."""
    yield
    for process in STARTED:
        process.kill()
        process.wait()
    STARTED.clear()


def start(cluster: Cluster, tool: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [str(BIN / tool), f"--endpoints={','.join(cluster.endpoints)}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(ETCDCTL_API="3"),
    )
    STARTED.append(process)
    return process


def queued(cluster: Cluster, prefix: bytes) -> list[bytes]:
    """The oldest first."""
    with grpc.insecure_channel(cluster.endpoints[0]) as channel:
        found = KVStub(channel).Range(
            pb.RangeRequest(
                key=prefix,
                range_end=prefix[:-1] + b"0",
                sort_order=pb.RangeRequest.ASCEND,
                sort_target=pb.RangeRequest.CREATE,
            )
        )
    return [kv.key for kv in found.kvs]


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, (process.args, process.returncode, out, err)
    assert "Traceback" not in err
    return out


def test_kvctl_and_etcdctl_take_turns(cluster: Cluster, tmp_path: Path) -> None:
    """Mutual exclusion, and first come, first served, whichever tool it is."""
    journal, script = tmp_path / "journal", tmp_path / "critical.py"
    script.write_text(CRITICAL)
    holder = start(cluster, "etcdctl", "lock", "turns")
    assert holder.stdout is not None
    assert holder.stdout.readline().startswith("turns/")
    processes = []
    for number, tool in enumerate(["kvctl", "etcdctl", "kvctl", "kvctl", "etcdctl", "etcdctl"]):
        command = ["lock", "turns", "--", sys.executable, str(script), str(journal), str(number)]
        processes.append(start(cluster, tool, *command))
        until(lambda wanted=number + 2: len(queued(cluster, b"turns/")) == wanted, f"{tool} does not wait")  # type: ignore[misc]
    keys = [key.decode() for key in queued(cluster, b"turns/")][1:]
    assert not journal.exists(), "in, while another one holds it"
    holder.send_signal(signal.SIGINT)
    finished(holder)
    for process in processes:
        finished(process)
    lines = [line.split() for line in journal.read_text().splitlines()]
    assert [line[:3] for line in lines] == [
        [what, str(number), key] for number, key in enumerate(keys) for what in ("in", "out")
    ]
    revisions = [int(line[3]) for line in lines]
    assert revisions == sorted(revisions)
    assert len(set(revisions)) == 6
    assert queued(cluster, b"turns/") == []


def test_the_commands_exit_code_is_ours(cluster: Cluster) -> None:
    assert kvctl(cluster, "lock", "x", "true").code == 0
    assert kvctl(cluster, "lock", "x", "--", "sh", "-c", "exit 7").code == 7
    assert kvctl(cluster, "lock", "x", "--", "sh", "-c", "kill -TERM $$").code == 128 + signal.SIGTERM
    kvctl(cluster, "lock", "x", "/nonexistent/program").failed(1, "/nonexistent/program: No such file")
    assert queued(cluster, b"x/") == [], "given back whatever became of it"
    kvctl(cluster, "lock", "x", "-w", "table").failed(2, "no table")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_gives_it_back(cluster: Cluster, number: signal.Signals) -> None:
    holder = start(cluster, "kvctl", "lock", "s")
    assert holder.stdout is not None
    key = holder.stdout.readline().strip().encode()
    waiter = start(cluster, "kvctl", "lock", "s", "true")
    until(lambda: len(queued(cluster, b"s/")) == 2, "the second one waits")
    assert queued(cluster, b"s/")[0] == key
    waiter.send_signal(number)
    finished(waiter, 130)
    assert queued(cluster, b"s/") == [key], "a waiter leaves the queue"
    running = start(
        cluster, "kvctl", "lock", "t", "--", "sh", "-c", "trap 'exit 9' TERM; echo in; while :; do sleep 0.1; done"
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "in\n"
    running.send_signal(signal.SIGTERM)
    finished(running, 9)
    holder.send_signal(number)
    finished(holder)
    assert queued(cluster, b"s/") == queued(cluster, b"t/") == []


def test_a_command_ends_when_the_lock_is_lost(cluster: Cluster) -> None:
    """etcdctl lets it run on, beside the next holder's."""
    process = start(cluster, "kvctl", "lock", "lost", "--", "sh", "-c", "echo $ETCD_LOCK_KEY; exec sleep 1000")
    assert process.stdout is not None
    lease = process.stdout.readline().strip().rpartition("/")[2]
    assert kvctl(cluster, "lease", "revoke", lease).code == 0
    process.wait(PATIENCE)
    assert process.returncode == 1
    assert process.stderr is not None
    assert process.stderr.read().startswith("Error: the lock was lost")


def test_kvctl_and_etcdctl_elect_one_leader(cluster: Cluster) -> None:
    observer, others = start(cluster, "kvctl", "elect", "boss", "-l"), start(cluster, "etcdctl", "elect", "-l", "boss")
    first = start(cluster, "etcdctl", "elect", "boss", "one")
    until(lambda: len(queued(cluster, b"boss/")) == 1, "the first one leads")
    second = start(cluster, "kvctl", "elect", "boss", "two")
    until(lambda: len(queued(cluster, b"boss/")) == 2, "the second one waits")
    keys = [key.decode() for key in queued(cluster, b"boss/")]
    for one in (observer, others):  # one that starts late would not see the first leader any more
        assert one.stdout is not None
        assert [one.stdout.readline() for _ in range(2)] == [f"{keys[0]}\n", "one\n"]
    first.send_signal(signal.SIGTERM)
    assert finished(first) == f"{keys[0]}\none\n"
    for one in (second, observer, others):
        assert one.stdout is not None
        assert [one.stdout.readline() for _ in range(2)] == [f"{keys[1]}\n", "two\n"]
    for one in (observer, others):
        one.kill()
        one.communicate()
    second.send_signal(signal.SIGINT)
    finished(second)
    assert queued(cluster, b"boss/") == []
    kvctl(cluster, "elect", "boss").failed(2, "either a proposal or --listen")
