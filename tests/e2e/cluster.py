"""Real member processes on free loopback ports, for tests.

    with Cluster(3, tmp_path) as cluster:          # started, every member ready
        leader = cluster.wait_leader()             # a Member
        leader.kill()                              # SIGKILL
        cluster.wait_leader(other_than=leader)
        leader.start(); leader.wait_ready()        # same ports, same data directory
        cluster.endpoints                          # ["http://127.0.0.1:40001", ...] of all members
        cluster.kv()                               # a generated KV stub on the first running member; kv(member) on one

`Cluster(size, path, flags=[...], environment={...})` gives every member more flags; with `tls=certificates` all ports
speak TLS and ask for a certificate. Logs are at
`member.log_path`; `member.log()` is their text. Nothing here sleeps for a fixed time: each wait polls a
condition and fails with the member's last log lines.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc

from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from tests.certificates import Certificates, Pair
from tests.ports import free_ports

READY = "ready to serve client requests"
POLL_SECONDS = 0.02
WAIT_SECONDS = 30.0
PROGRAM = [sys.executable, "-m", "kvstore", "serve"]
T = TypeVar("T")


def wait_for(condition: Callable[[], T | None], what: str, timeout: float = WAIT_SECONDS) -> T:
    """The first true value of `condition`; AssertionError naming `what` when none came in `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:.0f} s for: {what}")
        time.sleep(POLL_SECONDS)


class Member:
    """One `kvstore serve` process; it can be killed and started again on its data directory."""

    def __init__(
        self,
        name: str,
        path: Path,
        client_port: int,
        peer_port: int,
        tls: Certificates | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        scheme = "http" if tls is None else "https"
        self.name = name
        self.tls = tls
        self.data_dir = path / name
        self.log_path = path / f"{name}.log"
        self.admin_path = path / f"{name}.sock"
        self.client_url = f"{scheme}://{host}:{client_port}"
        self.peer_url = f"{scheme}://{host}:{peer_port}"
        self.target = f"{host}:{client_port}"  # for a grpc channel
        self.client_port = client_port
        self.peer_port = peer_port
        self.arguments: list[str] = []
        self.environment: dict[str, str] = {}
        self.wrapper: list[str] = []  # put before the command, such as strace and its options
        self.program = PROGRAM
        self.expected: list[str] = []  # a line of its log that has one of these may tell of an error: it was made
        self.process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._channel: grpc.Channel | None = None

    def command(self) -> list[str]:
        return [*self.wrapper, *self.program, *self.arguments]

    def start(self) -> None:
        """Start the process; returns at once."""
        assert not self.running, f"{self.name} runs already"
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**clean_environment(), **self.environment},
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def log(self) -> str:
        """What this run has written to stdout and stderr."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def wait_ready(self, timeout: float = WAIT_SECONDS) -> None:
        """Until this run says that it serves. Fails at once when the process ends instead."""

        def ready() -> bool:
            if READY in self.log():
                return True
            assert self.running, f"{self.name} exited with {self.process and self.process.poll()}:\n{self.log()}"
            return False

        wait_for(ready, f"{self.name} ready; its log:\n{self.log()[-3000:]}", timeout)
        # The channel may still be in the back-off of its last failure.
        grpc.channel_ready_future(self.channel).result(timeout)

    def wait_exit(self, timeout: float = WAIT_SECONDS) -> int:
        """The exit code, once the process has ended by itself."""
        assert self.process is not None
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {timeout:.0f} s:\n{self.log()[-3000:]}") from None

    def kill(self) -> None:
        """SIGKILL and wait. The whole process group, so that a wrapper dies too."""
        if self.process is not None:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def stop(self, timeout: float = WAIT_SECONDS) -> int:
        """SIGTERM and wait for the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait_exit(timeout)

    @property
    def channel(self) -> grpc.Channel:
        """One channel for the life of this object; it connects again by itself after a restart."""
        if self._channel is None:
            options = [
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50 if self.tls is None else 1000),  # bounds the handshake too
                ("grpc.max_reconnect_backoff_ms", 200),
                ("grpc.max_receive_message_length", -1),
            ]
            if self.tls is None:
                self._channel = grpc.insecure_channel(self.target, options=options)
            else:
                own = self.tls.client
                credentials = grpc.ssl_channel_credentials(
                    *(file.read_bytes() for file in (self.tls.ca, own.key, own.cert))
                )
                self._channel = grpc.secure_channel(self.target, credentials, options=options)
        return self._channel

    def status(self, timeout: float = 2.0) -> rpc_pb2.StatusResponse | None:
        """Maintenance.Status, or None when nobody answers."""
        try:
            stub = rpc_pb2_grpc.MaintenanceStub(self.channel)
            response: rpc_pb2.StatusResponse = stub.Status(rpc_pb2.StatusRequest(), timeout=timeout)
        except grpc.RpcError:
            return None
        return response

    @property
    def member_id(self) -> int:
        """As the member says itself."""
        return int(wait_for(self.status, f"{self.name} answers").header.member_id)

    def admin(self, **request: str) -> dict[str, Any]:
        """One question at the admin socket (Cluster(admin=True)); AssertionError when it is refused."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(WAIT_SECONDS)
            connection.connect(str(self.admin_path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile() as answers:
                answer: dict[str, Any] = json.loads(answers.readline())
        assert answer.pop("ok"), answer
        return answer

    def arm(self, name: str, actions: str) -> None:
        """Set a failpoint of the running process."""
        self.admin(do="set", name=name, actions=actions)

    def disarm(self, name: str) -> None:
        self.admin(do="clear", name=name)

    def close(self) -> None:
        self.kill()
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def __repr__(self) -> str:
        return f"Member({self.name} {self.client_url})"


class Cluster:
    """`size` members that know each other. A context manager: starts all, kills all."""

    def __init__(
        self,
        size: int,
        path: Path,
        *,
        flags: list[str] | None = None,
        environment: dict[str, str] | None = None,
        tls: Certificates | None = None,
        admin: bool = False,
        hosts: list[str] | None = None,
        make: Callable[..., Member] = Member,
    ) -> None:
        """admin: give each member an admin socket, for failpoints. hosts: an address for each, instead of loopback."""
        ports = free_ports(2 * size)
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._flags = list(flags or [])
        self._environment = dict(environment or {})
        self._admin = admin
        self._tls = tls
        self._make = make
        self._names = itertools.count(size + 1)
        self._removed: list[Member] = []
        hosts = hosts or ["127.0.0.1"] * size
        self.members = [
            make(f"m{number + 1}", path, ports[2 * number], ports[2 * number + 1], tls, hosts[number])
            for number in range(size)
        ]
        self.initial_cluster = ",".join(f"{member.name}={member.peer_url}" for member in self.members)
        for member in self.members:
            self._prepare(member)

    def _prepare(self, member: Member) -> None:
        member.environment = dict(self._environment)
        member.arguments = [*self.member_flags(member), *self._flags]
        if self._admin:
            member.arguments.append(f"--admin-socket={member.admin_path}")

    def move_data(self, member: Member, to: Path) -> None:
        """Before its first start."""
        member.data_dir = to
        self._prepare(member)

    def member_flags(self, member: Member) -> list[str]:
        return [
            f"--name={member.name}",
            f"--data-dir={member.data_dir}",
            f"--listen-client-urls={member.client_url}",
            f"--advertise-client-urls={member.client_url}",
            f"--listen-peer-urls={member.peer_url}",
            f"--initial-advertise-peer-urls={member.peer_url}",
            f"--initial-cluster={self.initial_cluster}",
            *(tls_flags(self._tls, self._tls.server) if self._tls is not None else ()),
        ]

    def start(self) -> None:
        """Start every member that does not run, and wait until all are ready."""
        for member in self.members:
            if not member.running:
                member.start()
        for member in self.members:
            member.wait_ready()

    def add_member(self, *, learner: bool = False, timeout: float = WAIT_SECONDS) -> Member:
        """A new member, known to the cluster and not started: `start`, then `wait_ready`."""
        member = self._make(f"m{next(self._names)}", self._path, *free_ports(2), self._tls)
        request = rpc_pb2.MemberAddRequest(peerURLs=[member.peer_url], isLearner=learner)

        def added() -> rpc_pb2.MemberAddResponse | None:
            try:
                response: rpc_pb2.MemberAddResponse = self.members_stub().MemberAdd(request, timeout=timeout)
            except grpc.RpcError as error:
                if "unhealthy cluster" in error.details():  # all must have been connected for some seconds
                    return None
                raise
            return response

        answer = wait_for(added, f"{member.name} may be added", timeout)
        # As an operator is told to write it: all that are members now, the new one by the name it will have.
        names = {one.peer_url: one.name for one in [*self.members, member]}
        self.initial_cluster = ",".join(f"{names[url]}={url}" for one in answer.members for url in one.peerURLs)
        self._prepare(member)
        member.arguments.append("--initial-cluster-state=existing")
        self.members.append(member)
        return member

    def promote(self, member: Member, timeout: float = WAIT_SECONDS) -> None:
        """Until it is caught up enough to become a voter."""
        request = rpc_pb2.MemberPromoteRequest(ID=member.member_id)

        def promoted() -> bool:
            try:
                self.members_stub().MemberPromote(request, timeout=timeout)
            except grpc.RpcError as error:
                if "in sync with leader" in error.details():
                    return False
                raise
            return True

        wait_for(promoted, f"{member.name} is promoted", timeout)

    def remove_member(self, member: Member, timeout: float = WAIT_SECONDS) -> None:
        """Out of the cluster; its process is expected to end by itself."""
        request = rpc_pb2.MemberRemoveRequest(ID=member.member_id)
        self.members.remove(member)
        self._removed.append(member)
        self.members_stub().MemberRemove(request, timeout=timeout)

    def move_leader(self, to: Member, timeout: float = WAIT_SECONDS) -> None:
        stub = rpc_pb2_grpc.MaintenanceStub(self.wait_leader().channel)
        stub.MoveLeader(rpc_pb2.MoveLeaderRequest(targetID=to.member_id), timeout=timeout)

    def members_stub(self) -> rpc_pb2_grpc.ClusterStub:
        return rpc_pb2_grpc.ClusterStub(self.running[0].channel)

    def stop(self) -> None:
        """Kill whatever still runs. Idempotent."""
        for member in self._removed:
            member.close()
        for member in self.members:
            member.close()

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def endpoints(self) -> list[str]:
        return [member.client_url for member in self.members]

    @property
    def running(self) -> list[Member]:
        return [member for member in self.members if member.running]

    def leader(self) -> Member | None:
        """The running member that says so itself, in the highest term seen; None when there is none."""
        found: tuple[int, Member] | None = None
        for member in self.running:
            status = member.status()
            if (
                status is not None
                and status.leader == status.header.member_id
                and (found is None or status.raftTerm > found[0])
            ):
                found = (status.raftTerm, member)
        return found[1] if found else None

    def wait_leader(self, *, other_than: Member | None = None, timeout: float = WAIT_SECONDS) -> Member:
        def elected() -> Member | None:
            leader = self.leader()
            return leader if leader is not None and leader is not other_than else None

        return wait_for(elected, "a leader", timeout)

    def kv(self, member: Member | None = None) -> rpc_pb2_grpc.KVStub:
        return rpc_pb2_grpc.KVStub((member or self.running[0]).channel)

    def each_kv(self) -> Iterator[rpc_pb2_grpc.KVStub]:
        for member in self.running:
            yield self.kv(member)


def tls_flags(tls: Certificates, pair: Pair) -> list[str]:
    """A member that shows `pair` and asks everybody for a certificate of the authority."""
    return [
        flag
        for prefix in ("", "peer-")
        for flag in (
            f"--{prefix}cert-file={pair.cert}",
            f"--{prefix}key-file={pair.key}",
            f"--{prefix}trusted-ca-file={tls.ca}",
            f"--{prefix}client-cert-auth",
        )
    ]


def clean_environment() -> dict[str, str]:
    """The environment without settings of a member that the developer may have around."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KVSTORE_", "ETCD_", "KVCTL_", "ETCDCTL_"))
    }
