"""`kvstore local`: a cluster of separate processes on this machine.

Each member is a `kvstore serve` of its own, on two ports of 127.0.0.1, with its data and its log in a
directory of its own. This process only starts them, watches them and stops them. It restarts none: a member
that ends by itself is a finding, shown with its last log lines.

On a terminal the state is a live table; otherwise a line is printed when something changes.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from kvstore.logs import FIRST_KEYS
from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from kvstore.rpc import make_channel

if TYPE_CHECKING:
    from kvstore.pb.rpc_pb2_grpc import MaintenanceAsyncStub

HOST: Final = "127.0.0.1"
POLL_SECONDS: Final = 0.5
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
LAST_LINES: Final = 5
LAYOUT_FILE: Final = "local.json"
PR_SET_PDEATHSIG: Final = 1
LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: a forked child must not


class LocalError(Exception):
    """The cluster cannot be run. The text says what to do."""


class LocalMember:
    """One member's process, and what it last said about itself."""

    def __init__(self, name: str, path: Path, client_port: int) -> None:
        self.name = name
        self.client_url = f"http://{HOST}:{client_port}"
        self.peer_url = f"http://{HOST}:{client_port + 1}"
        self.log_path = path / f"{name}.log"
        self.data_dir = path / name
        self.process: subprocess.Popen[bytes] | None = None
        self.status: rpc_pb2.StatusResponse | None = None
        self.told = ""  # the state that was printed last
        self._stub: MaintenanceAsyncStub | None = None

    def start(self, initial_cluster: str) -> None:
        command = [
            *(sys.executable, "-m", "kvstore", "serve", f"--name={self.name}", f"--data-dir={self.data_dir}"),
            *(f"--listen-client-urls={self.client_url}", f"--advertise-client-urls={self.client_url}"),
            *(f"--listen-peer-urls={self.peer_url}", f"--initial-advertise-peer-urls={self.peer_url}"),
            f"--initial-cluster={initial_cluster}",
        ]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C comes to us, and we stop them in order
                preexec_fn=_die_with_parent if LIBC is not None else None,  # noqa: PLW1509  # it makes one system call
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.process.poll() if self.process is not None else None

    @property
    def leads(self) -> bool:
        return self.status is not None and self.status.leader == self.status.header.member_id

    def last_lines(self) -> list[str]:
        """Of its log, for people."""
        lines = self.log_path.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return [_readable(line) for line in lines]

    async def poll(self) -> None:
        if self.exit_code is not None:
            self.status = None
            return
        if self._stub is None:  # made on the loop that uses it
            self._stub = rpc_pb2_grpc.MaintenanceStub(make_channel(self.client_url))
        try:
            self.status = await self._stub.Status(rpc_pb2.StatusRequest(), timeout=2 * POLL_SECONDS)
        except grpc.RpcError:
            self.status = None

    def state(self) -> str:
        if self.exit_code is not None:
            return f"exited with code {self.exit_code}"
        if self.status is None:
            return "starting"
        if not self.status.leader:
            return "no leader"
        return "leader" if self.leads else "follower"


def _readable(line: str) -> str:
    """A JSON log line as text; anything else as it is."""
    try:
        fields = json.loads(line)
        details = " ".join(f"{key}={value}" for key, value in fields.items() if key not in FIRST_KEYS)
        return f"{fields['level']}: {fields['msg']} {details}".rstrip()
    except (ValueError, KeyError, TypeError, AttributeError):
        return line


def _die_with_parent() -> None:
    """In the child: should this process be killed with -9, its members go too."""
    assert LIBC is not None
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class LocalCluster:
    def __init__(self, size: int, path: Path, base_port: int) -> None:
        self.members = [LocalMember(f"m{number + 1}", path, base_port + 2 * number) for number in range(size)]
        self.initial_cluster = ",".join(f"{member.name}={member.peer_url}" for member in self.members)

    @property
    def endpoints(self) -> str:
        return ",".join(member.client_url.removeprefix("http://") for member in self.members)

    def start(self) -> None:
        for member in self.members:
            member.start(self.initial_cluster)

    async def poll(self) -> None:
        await asyncio.gather(*[member.poll() for member in self.members])

    def leader(self) -> LocalMember | None:
        """The one that says so itself, in the highest term seen."""
        leaders = [member for member in self.members if member.status is not None and member.leads]
        return max(leaders, key=_term, default=None)

    async def wait_leader(self, other_than: LocalMember | None = None) -> LocalMember:
        """Raises LocalError when there is none for START_SECONDS, or when a member gives up meanwhile."""
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    await self.poll()
                    leader = self.leader()
                    if leader is not None and leader is not other_than:
                        return leader
                    for member in self.members:
                        if member is not other_than and member.exit_code is not None:
                            raise LocalError(gone(member))
                    await asyncio.sleep(POLL_SECONDS / 5)
        except TimeoutError:
            raise LocalError(
                f"no leader after {START_SECONDS:.0f} s; see {self.members[0].log_path.parent}/*.log"
            ) from None

    async def wait_all(self) -> None:
        """Until every member knows a leader."""
        await self.wait_leader()
        while not all(member.status is not None and member.status.leader for member in self.members):
            await asyncio.sleep(POLL_SECONDS / 5)
            await self.wait_leader()

    async def stop(self) -> None:
        """SIGTERM to all; SIGKILL to whoever does not end."""
        running = [member.process for member in self.members if member.process and member.process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            try:
                await asyncio.to_thread(process.wait, STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def table(self) -> Table:
        table = Table(title=f"cluster of {len(self.members)} on this machine; Ctrl-C stops it")
        for column in ("member", "pid", "state", "term", "revision", "applied", "size", "clients"):
            table.add_column(column)
        for member in self.members:
            table.add_row(*_row(member))
        return table


def _term(member: LocalMember) -> int:
    return member.status.raftTerm if member.status is not None else 0


def _row(member: LocalMember) -> list[str]:
    status = member.status
    numbers = ["-"] * 4
    if status is not None:
        size = f"{status.dbSize / 2**20:.1f} MiB"
        numbers = [str(status.raftTerm), str(status.header.revision), str(status.raftAppliedIndex), size]
    pid = str(member.process.pid) if member.process is not None and member.exit_code is None else "-"
    return [member.name, pid, member.state(), *numbers, member.client_url]


def gone(member: LocalMember) -> str:
    """What to tell about a member that ended by itself."""
    lines = "\n".join(f"    {line}" for line in member.last_lines())
    return f"member {member.name} exited with code {member.exit_code}; its last log lines ({member.log_path}):\n{lines}"


def kvctl_command() -> str:
    """How to call kvctl from here: by the shortest path that works when pasted."""
    beside = Path(sys.executable).parent / "kvctl"
    if shutil.which("kvctl") == str(beside):
        return "kvctl"
    if not beside.exists():
        return f"{sys.executable} -m kvstore.kvctl.main"
    relative = os.path.relpath(beside)
    return str(beside) if relative.startswith("..") else relative


def run_local(size: int, data_dir: Path | None, base_port: int, tour: bool) -> int:
    """Until Ctrl-C or SIGTERM. Returns the exit code. Raises LocalError."""
    temporary = data_dir is None
    path = Path(tempfile.mkdtemp(prefix="kvstore-local-")) if data_dir is None else data_dir
    try:
        _check_layout(path, size, base_port)
        _check_ports(size, base_port)
        return asyncio.run(_run(LocalCluster(size, path, base_port), tour))
    finally:
        if temporary:
            shutil.rmtree(path, ignore_errors=True)


def _check_layout(path: Path, size: int, base_port: int) -> None:
    """A directory is used again with the same members: their ids come from their ports."""
    layout = {"size": size, "base_port": base_port}
    file = path / LAYOUT_FILE
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists():
            file.write_text(json.dumps(layout))
            return
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise LocalError(f"{path} cannot be used: {error}; give another --data-dir") from None
    if found != layout:
        raise LocalError(
            f"{path} holds a cluster of another shape: run it with --size {found.get('size')} "
            f"--base-port {found.get('base_port')}, or give another --data-dir"
        )


def _check_ports(size: int, base_port: int) -> None:
    for port in range(base_port, base_port + 2 * size):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except (OSError, OverflowError):
                raise LocalError(
                    f"port {port} is taken; stop what listens there, or give another --base-port "
                    f"({2 * size} ports from there on are used)"
                ) from None


async def _run(cluster: LocalCluster, tour: bool) -> int:
    console = Console(highlight=False, soft_wrap=True)
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    cluster.start()
    work = asyncio.create_task(_play(cluster, tour, console))
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        return 0
    finally:
        console.print("stopping all members")
        await cluster.stop()


async def _play(cluster: LocalCluster, tour: bool, console: Console) -> int:
    await cluster.wait_all()
    if tour:
        from kvstore.tour import play

        await play(cluster, console)
        if not sys.stdin.isatty() or not console.is_terminal:
            return 0
    _print_next(cluster, console)
    return await _show(cluster, console)


def _print_next(cluster: LocalCluster, console: Console) -> None:
    kvctl = f"{kvctl_command()} --endpoints={cluster.endpoints}"
    console.print(f"\n{len(cluster.members)} members serve clients on {cluster.endpoints}. Type in another terminal:\n")
    for verb in (
        "put greeting hello",
        "get greeting",
        "watch --prefix greeting",
        "history greeting",
        "endpoint status -w table",
    ):
        console.print(f"  {kvctl} {verb}")
    console.print(f"\nAny etcd client works too:\n  etcdctl --endpoints={cluster.endpoints} get greeting\n")


async def _show(cluster: LocalCluster, console: Console) -> int:
    """The state, until nothing runs any more."""
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with live or contextlib.nullcontext():
        while True:
            await cluster.poll()
            for member in cluster.members:
                _tell(member, console, every_state=live is None)
            if live is not None:
                live.update(Group(cluster.table()), refresh=True)
            if all(member.exit_code is not None for member in cluster.members):
                console.print("no member is left")
                return 1
            await asyncio.sleep(POLL_SECONDS)


def _tell(member: LocalMember, console: Console, every_state: bool) -> None:
    """Changes only."""
    state = member.state()
    if state == member.told:
        return
    member.told = state
    if member.exit_code is not None:
        console.print(gone(member), markup=False)
    elif every_state:
        console.print(
            f"{member.name}: {state} (pid {member.process.pid if member.process else '-'}, {member.client_url})"
        )
