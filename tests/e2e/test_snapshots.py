"""Real processes: a member that was away for longer than the log reaches comes back by a snapshot, under load."""

import contextlib
import itertools
import os
import queue
import re
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from raft.config import Config
from tests.e2e.cluster import Cluster, Member, wait_for
from tests.e2e.test_failures import everything, same_hash

MakeCluster = Callable[..., Cluster]

FLAGS = [
    "--snapshot-count=40",
    "--snapshot-catchup-entries=10",
    "--snapshot-catchup-bytes=20000",
    "--log-segment-bytes=30000",
]
VALUE = b"x" * 1000
IN_FLIGHT = Config(node_id=1).inflight_appends_max  # may lie in sockets and queues on the way to a paused member


class Load:
    """Clients that write unique keys, one after another each, to the members that are given."""

    _numbers = itertools.count(1)

    def __init__(self, cluster: Cluster, members: list[Member], clients: int = 3) -> None:
        self._name = next(self._numbers)
        self.acknowledged: dict[bytes, bytes] = {}
        self._cluster = cluster
        self._members = members
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, client: int) -> None:
        number = 0
        while not self._stopping.is_set():
            number += 1
            key, value = b"load/%d/%d/%06d" % (self._name, client, number), VALUE + b"%d" % number
            member = self._members[number % len(self._members)]
            try:
                self._cluster.kv(member).Put(rpc_pb2.PutRequest(key=key, value=value), timeout=5)
            except grpc.RpcError:
                self._stopping.wait(0.01)  # its outcome is unknown
            else:
                self.acknowledged[key] = value

    def wait_more(self, count: int) -> None:
        target = len(self.acknowledged) + count
        wait_for(lambda: len(self.acknowledged) >= target, f"{count} more writes")

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


class Watch:
    """Everything that happens, as one member tells it."""

    def __init__(self, member: Member) -> None:
        self.responses: list[rpc_pb2.WatchResponse] = []
        self._requests: queue.Queue[rpc_pb2.WatchRequest | None] = queue.Queue()
        create = rpc_pb2.WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=1)
        self._requests.put(rpc_pb2.WatchRequest(create_request=create))
        self._call: Any = rpc_pb2_grpc.WatchStub(member.channel).Watch(self._ask())
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _ask(self) -> Iterator[rpc_pb2.WatchRequest]:
        while (request := self._requests.get()) is not None:
            yield request

    def _read(self) -> None:
        with contextlib.suppress(grpc.RpcError):  # the end; what is missing then is what the test looks for
            for response in self._call:
                self.responses.append(response)

    @property
    def revisions(self) -> list[int]:
        return [event.kv.mod_revision for response in self.responses for event in response.events]

    def close(self) -> None:
        self._call.cancel()
        self._requests.put(None)
        self._thread.join()


def compacted_to(member: Member) -> int:
    """The entry up to which the log may go, as the member says."""
    found = re.findall(r'compacted the log", "index": (\d+)', member.log())
    return int(found[-1]) if found else 0


def wait_log_gone(cluster: Cluster, away: Member, entries: int) -> None:
    """Until the log that `away` would have to be sent begins `entries` after where all are now."""
    leader = cluster.wait_leader(other_than=away)
    status = leader.status()
    assert status is not None
    target = status.raftIndex + entries
    wait_for(lambda: compacted_to(leader) > target, f"the log of {leader.name} compacted beyond {target}")


def installed(member: Member) -> list[int]:
    return [int(index) for index in re.findall(r'installed a snapshot", "index": (\d+)', member.log())]


def check_equal(cluster: Cluster, load: Load) -> None:
    """Every acknowledged write is on every member, and all of them are in the same state."""
    for member in cluster.members:
        found = everything(cluster, member)
        lost = {key for key, value in load.acknowledged.items() if found.get(key) != value}
        assert not lost, f"{member.name} lost {len(lost)} of {len(load.acknowledged)}: {sorted(lost)[:5]}"
    wait_for(lambda: same_hash(cluster), "equal hashes")


def test_a_paused_member_comes_back_by_snapshot_and_its_watch_goes_on(make_cluster: MakeCluster) -> None:
    """S-52 (etcd#15271): a watch that is open on it misses nothing, gets nothing twice and never goes back."""
    with make_cluster(3, flags=FLAGS) as cluster:
        leader = cluster.wait_leader()
        away, *others = [member for member in cluster.members if member is not leader]
        load = Load(cluster, [leader, *others])
        through = Load(
            cluster, [away], clients=2
        )  # its requests are inside the snapshot: the answer may not be a guess
        watch = Watch(away)
        try:
            load.wait_more(30)
            wait_for(lambda: len(watch.revisions) > 20, "events")
            os.kill(away.pid, signal.SIGSTOP)
            wait_log_gone(cluster, away, IN_FLIGHT + 200)
            os.kill(away.pid, signal.SIGCONT)
            wait_for(lambda: installed(away), f"{away.name} installs a snapshot; its log:\n{away.log()[-3000:]}")
            load.wait_more(50)
        finally:
            load.stop()
            through.stop()
        load.acknowledged |= through.acknowledged
        check_equal(cluster, load)
        status = away.status()
        assert status is not None
        last = status.header.revision
        wait_for(lambda: watch.revisions[-1:] == [last], f"the event of revision {last}")
        watch.close()
        assert watch.revisions == list(range(2, last + 1))
        headers = [response.header.revision for response in watch.responses]
        assert headers == sorted(headers)
        assert not any(response.canceled for response in watch.responses)


@pytest.mark.slow
def test_a_member_that_was_killed_comes_back_by_snapshot_again_and_again(make_cluster: MakeCluster) -> None:
    """S-24, S-27: and what it has installed is what it starts with afterwards."""
    with make_cluster(3, flags=FLAGS) as cluster:
        away = next(member for member in cluster.members if member is not cluster.wait_leader())
        load = Load(cluster, [member for member in cluster.members if member is not away])
        try:
            for _ in range(2):
                load.wait_more(20)
                away.kill()
                wait_log_gone(cluster, away, 100)
                away.start()
                wait_for(lambda: installed(away), f"{away.name} installs a snapshot; its log:\n{away.log()[-3000:]}")
                away.wait_ready()
        finally:
            load.stop()
        check_equal(cluster, load)
        away.kill()
        away.start()
        away.wait_ready()
        check_equal(cluster, load)
        folders = sorted(path.name for path in away.data_dir.iterdir() if path.name.startswith("s"))
        current = (away.data_dir / "CURRENT").read_text().split()[1]
        assert current != "state-0"
        assert folders == [current]


@pytest.mark.slow
def test_a_slow_transfer_disturbs_nobody_and_survives_a_kill_of_its_receiver(make_cluster: MakeCluster) -> None:
    """S-21: no election, writes go on; S-25: a member that dies while it receives begins again."""
    with make_cluster(3, flags=[*FLAGS, "--snapshot-bytes-per-second=65536"]) as cluster:
        leader = cluster.wait_leader()
        away = next(member for member in cluster.members if member is not leader)
        for number in range(120):
            request = rpc_pb2.PutRequest(key=b"large/%d" % number, value=os.urandom(1500))  # does not compress
            cluster.kv(leader).Put(request, timeout=10)
        before = leader.status()
        assert before is not None
        away.kill()
        load = Load(cluster, [member for member in cluster.members if member is not away], clients=1)
        try:
            wait_log_gone(cluster, away, 100)
            away.start()
            wait_for(lambda: list(away.data_dir.glob("state-*.part/*.sst")), "a part of the snapshot")
            load.wait_more(20)
            assert not installed(away)
            away.kill()
            assert list(away.data_dir.glob("state-*.part"))
            away.start()
            wait_for(lambda: installed(away), f"{away.name} installs a snapshot; its log:\n{away.log()[-3000:]}")
            away.wait_ready()
        finally:
            load.stop()
        check_equal(cluster, load)
        after = leader.status()
        assert after is not None
        assert (after.raftTerm, after.leader) == (before.raftTerm, before.leader)
        assert not list(away.data_dir.glob("*.part"))
