"""A real application: PostgreSQL kept available by Patroni, whose leader lock lives on our three members.

    python -m tests.apps.patroni                  needs root, PostgreSQL 15 and the registry of Python packages

Two PostgreSQL servers under Patroni in `etcd3` mode (the JSON gateway). Killed with SIGKILL, in turn: the node of the
primary, our leader, and both at once. Each time somebody is primary again, no row is lost that was acknowledged, and
at no moment do two nodes take writes. Prints a timeline; everything listens on loopback and is ended by its pid.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.e2e.cluster import Cluster, Member, wait_for
from tests.ports import free_ports

PACKAGES = ("patroni[etcd3]==4.1.5", "psycopg[binary]==3.3.9")
PYTHON = "/usr/bin/python3"  # readable by USER; a developer's own often is not
BINARIES = Path("/usr/lib/postgresql/15/bin")
USER = "postgres"
AS_USER = ("/usr/bin/setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
# The least that Patroni takes; a dead node's lock ends after TTL_SECONDS.
TTL_SECONDS, LOOP_SECONDS, RETRY_SECONDS = 20, 2, 3
FAILOVER_SECONDS = 120.0
POLL_SECONDS = 0.1


@dataclass
class Timeline:
    begin: float = field(default_factory=time.monotonic)
    lines: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        line = f"{time.monotonic() - self.begin:7.1f} s  {text}"
        self.lines.append(line)
        print(line, flush=True)


class Node:
    """One Patroni and its PostgreSQL."""

    def __init__(self, name: str, folder: Path, python: Path, cluster: Cluster, ports: list[int]) -> None:
        self.name = name
        self.port, self.rest = ports
        self._data = folder / name
        self._config = folder / f"{name}.yml"
        self._log = folder / f"{name}.log"
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None
        hosts = [member.target for member in cluster.members]
        self._config.write_text(yaml.safe_dump(self._settings(folder, hosts)))

    def _settings(self, folder: Path, hosts: list[str]) -> dict[str, Any]:
        users = {"superuser": {"username": USER, "password": "s"}, "replication": {"username": "rep", "password": "r"}}
        return {
            "scope": "app",
            "name": self.name,
            "restapi": {"listen": f"127.0.0.1:{self.rest}", "connect_address": f"127.0.0.1:{self.rest}"},
            "etcd3": {"hosts": hosts},
            "bootstrap": {
                "dcs": {
                    **{"ttl": TTL_SECONDS, "loop_wait": LOOP_SECONDS, "retry_timeout": RETRY_SECONDS},
                    "synchronous_mode": True,  # so that no acknowledged row may be lost
                    "postgresql": {"use_pg_rewind": True, "parameters": {"wal_log_hints": "on"}},
                },
                "initdb": ["data-checksums", {"encoding": "UTF8"}],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": str(self._data),
                "bin_dir": str(BINARIES),
                "pgpass": str(folder / f"{self.name}.pgpass"),
                "authentication": users,
                "parameters": {"unix_socket_directories": str(folder)},
                "pg_hba": [
                    "local all all trust",
                    "host all all 127.0.0.1/32 md5",
                    "host replication rep 127.0.0.1/32 md5",
                ],
            },
        }

    @property
    def dsn(self) -> str:
        return f"host=127.0.0.1 port={self.port} user={USER} password=s dbname=postgres connect_timeout=2"

    def start(self) -> None:
        with self._log.open("ab") as log:
            # Not Popen's `user`: with it Python forks, and grpcio's handlers of a fork crash the child, unheard.
            self._process = subprocess.Popen(
                [*AS_USER, str(self._python), "-m", "patroni", str(self._config)],
                **{"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL, "cwd": self._config.parent},
                start_new_session=True,
                env={"PATH": f"{BINARIES}:/usr/bin:/bin", "HOME": str(self._config.parent), "LC_ALL": "C.UTF-8"},
            )

    def kill(self) -> None:
        """SIGKILL of Patroni, PostgreSQL and all that they have started: the machine is gone."""
        assert self._process is not None
        processes = [psutil.Process(self._process.pid)] if self._process.poll() is None else []
        with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
            processes.append(psutil.Process(int((self._data / "postmaster.pid").read_text().split("\n")[0])))
        with contextlib.suppress(psutil.NoSuchProcess):
            processes += [child for one in list(processes) for child in one.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def log(self) -> str:
        return self._log.read_text(errors="replace")


class Watcher:
    """Asks both nodes all the time who is primary, and writes to each as long as it is one."""

    def __init__(self, nodes: list[Node], timeline: Timeline) -> None:
        import psycopg

        self._connect = psycopg.connect
        self._error = psycopg.Error
        self._nodes = nodes
        self._timeline = timeline
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._number = 0
        self.primaries: dict[str, bool] = {}  # node -> what it last said; absent when it does not answer
        self.acknowledged: list[tuple[float, float, str, int]] = []  # from, to, node, row
        self.samples = 0
        self.split: list[str] = []
        work = [(self._write, node) for node in nodes]
        self._threads = [threading.Thread(target=target, args=(node,)) for target, node in work]
        self._threads.append(threading.Thread(target=self._sample))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def primary(self) -> Node | None:
        found = [node for node in self._nodes if self.primaries.get(node.name)]
        return found[0] if len(found) == 1 else None

    def last(self, node: Node) -> float:
        """When it last acknowledged a row."""
        return max([end for _, end, name, _ in self.acknowledged if name == node.name], default=0.0)

    def _write(self, node: Node) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                with self._connect(node.dsn, autocommit=True) as connection:
                    while not self._stop.wait(POLL_SECONDS / 2):
                        self._one_row(connection, node)
            except self._error:
                continue  # it is a replica, or down

    def _one_row(self, connection: Any, node: Node) -> None:
        with self._lock:
            self._number += 1
            number = self._number
        begin = time.monotonic()
        connection.execute("insert into marker values (%s, %s)", (number, node.name))
        with self._lock:
            self.acknowledged.append((begin, time.monotonic(), node.name, number))

    def _sample(self) -> None:
        """The first is asked again after the second: both primary at one moment, or one after the other?"""
        first, second = self._nodes
        while not self._stop.wait(POLL_SECONDS):
            said = [self._is_primary(node) for node in (first, second, first)]
            self.samples += 1
            if all(said):
                self.split.append(f"both are primaries at {time.monotonic() - self._timeline.begin:.1f} s")

    def _is_primary(self, node: Node) -> bool:
        try:
            with self._connect(node.dsn, autocommit=True) as connection:
                row = connection.execute("select not pg_is_in_recovery()").fetchone()
        except self._error:
            self.primaries.pop(node.name, None)
            return False
        said = bool(row and row[0])
        if self.primaries.get(node.name) is not said:
            self._timeline.note(f"{node.name} answers as {'the primary' if said else 'a replica'}")
        self.primaries[node.name] = said
        return said

    def rows(self, node: Node) -> set[int]:
        with self._connect(node.dsn, autocommit=True) as connection:
            return {row[0] for row in connection.execute("select id from marker").fetchall()}

    def execute(self, node: Node, statement: str) -> Any:
        with self._connect(node.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchone() if cursor.description else None

    def turns(self) -> list[str]:
        """The nodes in the order in which they acknowledged rows, each as often as it took over."""
        found: list[str] = []
        for _, _, name, _ in sorted(self.acknowledged):
            if not found or found[-1] != name:
                found.append(name)
        return found


class Run:
    def __init__(self, cluster: Cluster, nodes: list[Node], watcher: Watcher, timeline: Timeline) -> None:
        self._cluster = cluster
        self._nodes = nodes
        self._watcher = watcher
        self._note = timeline.note

    def begin(self) -> None:
        self._note("three members serve; two nodes start")
        for node in self._nodes:
            node.start()
        self._watcher.start()
        primary = self._wait_primary()
        self._watcher.execute(primary, "create table marker (id bigint primary key, node text)")
        self._wait_synchronous(primary)

    def kill_primary(self) -> None:
        self._take_over("the node of the primary", self._wait_primary(), [])

    def kill_our_leader(self) -> None:
        primary, leader = self._wait_primary(), self._cluster.wait_leader()
        killed = time.monotonic()
        leader.kill()
        self._note(f"killed our leader {leader.name}")
        self._cluster.wait_leader(other_than=leader)
        # Patroni has renewed its lock by a member that is there, or the primary would have stepped down by then.
        wait_for(lambda: self._watcher.last(primary) > killed + TTL_SECONDS + 5, f"{primary.name} goes on", 60)
        self._note(f"{primary.name} has been the primary all the time")
        self._bring_back(leader)

    def kill_both(self) -> None:
        leader = self._cluster.wait_leader()
        self._take_over("the node of the primary and our leader", self._wait_primary(), [leader])

    def _take_over(self, what: str, primary: Node, leaders: list[Member]) -> None:
        other = next(node for node in self._nodes if node is not primary)
        for leader in leaders:
            leader.kill()
        primary.kill()
        killed = time.monotonic()
        self._note(f"killed {what}: {', '.join([primary.name, *(leader.name for leader in leaders)])}")
        wait_for(
            lambda: self._watcher.last(other) > killed,
            f"{other.name} takes writes:\n{other.log()[-3000:]}",
            FAILOVER_SECONDS,
        )
        self._note(f"{other.name} takes writes, {time.monotonic() - killed:.1f} s after the kill")
        self._check_rows(other)
        for leader in leaders:
            self._bring_back(leader)
        primary.start()
        self._note(f"{primary.name} starts again")
        self._wait_synchronous(other)

    def _bring_back(self, member: Member) -> None:
        member.start()
        member.wait_ready()
        self._note(f"{member.name} serves again")

    def _wait_primary(self) -> Node:
        return wait_for(self._watcher.primary, "a primary:\n" + self._nodes[0].log()[-3000:], FAILOVER_SECONDS)

    def _wait_synchronous(self, primary: Node) -> None:
        """Until Patroni has written down that the other one has all: before that it would not let it take over."""

        def synchronous() -> bool:
            with urllib.request.urlopen(f"http://127.0.0.1:{primary.rest}/cluster", timeout=5) as answer:
                return any(one["role"] == "sync_standby" for one in json.load(answer)["members"])

        wait_for(synchronous, f"a synchronous replica:\n{primary.log()[-3000:]}", FAILOVER_SECONDS)
        self._note("the other one is a synchronous replica")

    def _check_rows(self, primary: Node) -> None:
        acknowledged = {number for _, _, _, number in list(self._watcher.acknowledged)}
        lost = acknowledged - self._watcher.rows(primary)
        assert not lost, f"{len(lost)} acknowledged rows are lost: {sorted(lost)[:10]}"
        self._note(f"all {len(acknowledged)} acknowledged rows are there")

    def end(self) -> None:
        self._check_rows(self._wait_primary())
        turns = self._watcher.turns()
        self._note(f"{self._watcher.samples} samples of both nodes; rows were taken by {', then '.join(turns)}")
        assert not self._watcher.split, self._watcher.split
        assert len(turns) == 3, "two take-overs, so three turns: a node that wrote again in between split the brain"
        self._note("no split brain")


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.apps.patroni", description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, help="with Patroni in it; made when it is not there. Default: a new one")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="patroni-"))
    nodes: list[Node] = []
    try:
        python = _venv(options.venv or folder / "venv")
        work = folder / "nodes"
        work.mkdir()
        shutil.chown(work, USER, USER)
        folder.chmod(0o755)
        with Cluster(3, folder / "members") as cluster:
            cluster.wait_leader()
            nodes += [Node(name, work, python, cluster, free_ports(2)) for name in ("pg1", "pg2")]
            timeline = Timeline()
            watcher = Watcher(nodes, timeline)
            run = Run(cluster, nodes, watcher, timeline)
            try:
                for part in (run.begin, run.kill_primary, run.kill_our_leader, run.kill_both, run.end):
                    part()
            finally:
                watcher.stop()
                for node in nodes:
                    node.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _venv(path: Path) -> Path:
    """Its Python; psycopg of it is used here too."""
    python = path / "bin" / "python"
    if not python.exists():
        subprocess.run([PYTHON, "-m", "venv", str(path)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    sys.path.append(str(next(path.glob("lib/python*/site-packages"))))
    return python


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("run it as root: PostgreSQL runs as another user")
    if not (BINARIES / "postgres").exists():
        sys.exit(f"PostgreSQL 15 is not at {BINARIES} (Debian: apt install postgresql-15)")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
