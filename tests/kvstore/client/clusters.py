"""Real three-member clusters of processes on free loopback ports: etcd's own and ours take the same flags."""

import os
import subprocess
import sys
import time
from pathlib import Path

import grpc

from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from tests.ports import free_ports

BIN = Path(sys.executable).parent
SERVERS = {"etcd": [str(BIN / "etcd")], "kvstore": [str(BIN / "kvstore"), "serve"]}
READY_SECONDS = 30.0


class Cluster:
    def __init__(self, kind: str, folder: Path, size: int = 3) -> None:
        self.kind = kind
        self._folder = folder
        ports = free_ports(2 * size)
        self.endpoints = [f"127.0.0.1:{port}" for port in ports[:size]]
        self._peers = [f"http://127.0.0.1:{port}" for port in ports[size:]]
        self.members: list[subprocess.Popen[bytes] | None] = [None] * size

    def start(self) -> None:
        for number in range(len(self.members)):
            self.start_member(number)
        self.wait_ready()

    def start_member(self, number: int) -> None:
        client = "http://" + self.endpoints[number]
        log = open(self._folder / f"m{number}.log", "ab")  # noqa: SIM115 - the process holds it
        self.members[number] = subprocess.Popen(
            [
                *SERVERS[self.kind],
                f"--name=m{number}",
                f"--data-dir={self._folder / f'm{number}'}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={self._peers[number]}",
                f"--initial-advertise-peer-urls={self._peers[number]}",
                "--initial-cluster=" + ",".join(f"m{i}={url}" for i, url in enumerate(self._peers)),
            ],
            stdout=log,
            stderr=log,
            env={key: value for key, value in os.environ.items() if not key.startswith(("ETCD", "KVSTORE", "KVCTL"))},
        )
        log.close()

    def wait_ready(self) -> None:
        """Until every member answers a linearizable read."""
        deadline = time.monotonic() + READY_SECONDS
        for endpoint, process in zip(self.endpoints, self.members, strict=True):
            with grpc.insecure_channel(endpoint) as channel:
                while True:
                    try:
                        rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(key=b"ready"), timeout=1)
                        break
                    except grpc.RpcError as error:
                        assert process is not None
                        assert process.poll() is None, f"{self.kind} ended: see {self._folder}"
                        if time.monotonic() > deadline:
                            raise AssertionError(f"{endpoint}: {error}") from error
                        time.sleep(0.1)

    def kill(self, number: int) -> None:
        process = self.members[number]
        assert process is not None
        process.kill()
        process.wait()

    def stop(self) -> None:
        for process in self.members:
            if process is not None:
                process.kill()
                process.wait()
