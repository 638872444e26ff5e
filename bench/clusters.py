"""Members of either system as processes: the same flags, the same disk, fresh ports and folders.

Both take etcd's flags, so a cluster is one class and a command. Every member is in a session of its own, so that a
Ctrl-C on the terminal reaches the bench alone, which then ends them.
"""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.certificates import Certificates
from bench.channel import CallFailedError, Channel, dial
from kvstore.pb import rpc_pb2 as pb

BIN: Final = Path(sys.executable).parent
COMMANDS: Final = {"etcd": [str(BIN / "etcd")], "kvstore": [sys.executable, "-m", "kvstore", "serve"]}
LOG_LEVEL: Final = {"etcd": "error", "kvstore": "warn"}
HEARTBEAT_MS, ELECTION_MS = 100, 1000  # both systems' default, given to both
QUOTA_BYTES: Final = 8 << 30  # etcd's default of 2 GiB is less than large values at full speed fill
START_SECONDS: Final = 120.0
TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
STATUS_PATH: Final = "/etcdserverpb.Maintenance/Status"


class NotServedError(Exception):
    """The system does not have what the row asks for."""


@dataclass(frozen=True)
class State:
    """What a member says of itself."""

    member_id: int
    leader: int
    revision: int
    term: int
    raft_index: int
    applied: int


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on. All are held until all are known, so that none comes twice."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


class Members:
    """A cluster of one system. Members have numbers from 0."""

    def __init__(self, system: str, folder: Path, *, size: int = 3, tls: bool = False, admin: bool = False) -> None:
        """admin: ours get admin sockets."""
        self.system = system
        self.size = size
        self._admin = admin
        self._folder = folder
        self._certificates = Certificates(folder) if tls else None
        scheme = "https" if tls else "http"
        urls = [f"{scheme}://127.0.0.1:{port}" for port in free_ports(2 * size)]
        self.urls, self._peer_urls = urls[:size], urls[size:]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._channels: dict[int, Channel] = {}

    @property
    def context(self) -> ssl.SSLContext | None:
        return self._certificates.context if self._certificates else None

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes.values()]

    def data_dir(self, number: int) -> Path:
        return self._folder / f"m{number + 1}"

    def admin_path(self, number: int) -> Path:
        return self._folder / f"m{number + 1}.sock"

    def command(self, number: int) -> list[str]:
        peers = ",".join(f"m{other + 1}={url}" for other, url in enumerate(self._peer_urls))
        return [
            *(*COMMANDS[self.system], f"--name=m{number + 1}", f"--data-dir={self.data_dir(number)}"),
            *(f"--listen-client-urls={self.urls[number]}", f"--advertise-client-urls={self.urls[number]}"),
            *(f"--listen-peer-urls={self._peer_urls[number]}", f"--initial-cluster={peers}"),
            *(f"--initial-advertise-peer-urls={self._peer_urls[number]}", "--initial-cluster-state=new"),
            *(f"--heartbeat-interval={HEARTBEAT_MS}", f"--election-timeout={ELECTION_MS}"),
            f"--log-level={LOG_LEVEL[self.system]}",
            f"--quota-backend-bytes={QUOTA_BYTES}",
            *(self._certificates.flags if self._certificates else []),
            *([f"--admin-socket={self.admin_path(number)}"] if self._admin else []),
        ]

    def start_member(self, number: int) -> None:
        """Start one process; returns at once."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD", "KV"))}
        with self._log_path(number).open("ab") as log:
            self._processes[number] = subprocess.Popen(
                self.command(number),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )

    def kill(self, number: int) -> None:
        """kill -9 of one member, and of what wraps it."""
        process = self._processes.pop(number, None)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        for number in list(self._processes):
            self.kill(number)

    async def start(self) -> int:
        """All members; returns the leader's number."""
        for number in range(self.size):
            self.start_member(number)
        return await self.settled()

    async def settled(self, seconds: float = START_SECONDS) -> int:
        """The leader's number, once every member follows it and has applied nearly all."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._check_running()
            states = [state for number in range(self.size) if (state := await self.state(number)) is not None]
            ids, leaders = [state.member_id for state in states], {state.leader for state in states}
            applied = [state.applied for state in states]
            if len(states) == self.size and len(leaders) == 1 and max(applied) - min(applied) < 100:
                leader = leaders.pop()
                if leader in ids:
                    return ids.index(leader)
            await asyncio.sleep(0.05)
        raise TimeoutError(f"{self.system}: the members did not settle within {seconds:.0f} s\n{self.log_tail()}")

    def _check_running(self) -> None:
        for number, process in self._processes.items():
            if process.poll() is not None:
                text = self.log_tail(number)
                if "not served" in text:
                    raise NotServedError(text.strip().splitlines()[-1])
                raise RuntimeError(f"{self.system} m{number + 1} ended with {process.returncode}:\n{text}")

    async def state(self, number: int, seconds: float = 2) -> State | None:
        """None when it does not answer in time."""
        try:
            answer = await self.ask(number, STATUS_PATH, b"", seconds)
        except (OSError, CallFailedError, TimeoutError):
            return None
        found = pb.StatusResponse.FromString(answer)
        header = found.header
        return State(
            header.member_id, found.leader, header.revision, found.raftTerm, found.raftIndex, found.raftAppliedIndex
        )

    async def ask(self, number: int, path: str, message: bytes, seconds: float = 30) -> bytes:
        """One call to one member, over a connection that is kept. Raises OSError, CallFailedError, TimeoutError."""
        channel = self._channels.get(number)
        if channel is None or channel.lost:
            channel = self._channels[number] = await dial(self.urls[number], self.context)
        return await channel.ask(path, message, seconds)

    async def close(self) -> None:
        self.stop()  # first: it needs no loop, so that nothing is left behind if the loop is cut short
        for channel in self._channels.values():
            await channel.close()

    def rss_bytes(self) -> float:
        """Resident memory of a member, the mean of all."""
        return sum(self.rss_each()) / len(self._processes)

    def rss_each(self) -> list[int]:
        return [_resident_bytes(pid) for pid in self.pids]

    def disk_bytes(self) -> float:
        """What a data directory takes on the disk, the mean of all."""
        total = 0
        for number in range(self.size):
            for path in self.data_dir(number).rglob("*"):
                with contextlib.suppress(FileNotFoundError):  # a compaction removed it meanwhile
                    total += path.lstat().st_blocks * 512
        return total / self.size

    def _log_path(self, number: int) -> Path:
        return self._folder / f"m{number + 1}.log"

    def log_tail(self, number: int | None = None) -> str:
        """The last lines of one member's log, or of all."""
        chosen = range(self.size) if number is None else [number]
        paths = [path for one in chosen if (path := self._log_path(one)).exists()]
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in paths)


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0  # it is ending


def cpu_seconds(pids: list[int]) -> float:
    """User and system time that these processes have used, from /proc."""
    ticks = 0
    for pid in pids:
        # The command's name may hold spaces and brackets; what follows the last bracket is in fixed places.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_SECOND


@contextlib.asynccontextmanager
async def cluster(
    system: str, *, size: int = 3, tls: bool = False, admin: bool = False
) -> AsyncIterator[tuple[Members, int]]:
    """A fresh, settled cluster and its leader's number; no process and no file is left behind."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        members = Members(system, Path(folder), size=size, tls=tls, admin=admin)
        try:
            yield members, await members.start()
        finally:
            await members.close()
