"""One run: members in namespaces, clients, faults from a seed; then everything is judged."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.e2e.cluster import Cluster, clean_environment
from tests.jepsen.containers import Containers
from tests.jepsen.faults import FAULTS, Fault, System, Told
from tests.jepsen.guard import ROOT
from tests.jepsen.judge import FAIL, Verdict, judge, judged, longest_gap
from tests.jepsen.network import Network
from tests.jepsen.probe import missing, probe
from tests.jepsen.record import Call, Writer, calls, read

WORKER_SECONDS_MAX = 90.0  # of the last reads
QUIET_SECONDS = (0.5, 2.0)  # between two faults
FAULT_SECONDS = (1.0, 5.0)
BACKENDS: dict[str, type[Network]] = {one.backend: one for one in (Containers, Network)}
AFTER_SECONDS = 5.0  # to recover: counted to a fault's time without writes


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
    power_cut: bool = False  # a kill takes along what was not synced
    code: str = ""  # the directory whose code the members run; "": this one

    @property
    def command(self) -> str:
        nemesis = "all" if set(self.nemeses) == set(FAULTS) else ",".join(self.nemeses) or "none"
        return (
            f"make jepsen BACKEND={self.backend} WORKLOAD={self.workload} NEMESIS={nemesis} SEED={self.seed} "
            f"TIME={self.seconds:.0f}" + (' ARGS="--power-cut"' if self.power_cut else "")
        )


def possible(nemeses: tuple[str, ...], found: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Which of these faults this machine can do, and why not the others."""
    reasons = {name: missing(FAULTS[name].needs, found) for name in nemeses}
    return [name for name in nemeses if not reasons[name]], {name: why for name, why in reasons.items() if why}


def make_system(network: Network, count: int, path: Path) -> System:
    """Members inside the network, not started."""
    hosts = [network.address[f"m{number}"] for number in range(1, count + 1)]
    flags = ["--snapshot-count=500"]  # flushes fall between the faults
    return System(network, Cluster(count, path, hosts=hosts, flags=flags, make=network.member))


def change(system: System, options: Options) -> None:
    """What the members run, where it is not simply the server of this directory."""
    for member in system.cluster.members:
        if options.code:
            member.wrapper += ["env", f"--chdir={options.code}"]
        if options.power_cut:
            member.program = [sys.executable, "-m", "tests.jepsen.volatile", "serve"]


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

    def run(self) -> int:
        """0: all pass; 1: some verdict does not."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        found = probe()
        able, self.skipped = possible(self.options.nemeses, found)
        for name, why in self.skipped.items():
            print(f"SKIPPED   {name:<14} {why}")
        names = [*(f"m{number + 1}" for number in range(self.options.members)), "clients"]
        with BACKENDS[self.options.backend](names) as network:
            system = make_system(network, self.options.members, self.path)
            change(system, self.options)
            with system.cluster:
                system.cluster.wait_leader()
                started = time.monotonic_ns()
                try:
                    self._show_all(system, able)
                    started = time.monotonic_ns()
                    self._work(system, able)
                    self._judge(system)
                except (AssertionError, HarnessError) as error:
                    complaints = died(system)
                    if isinstance(error, HarnessError) and not complaints:
                        raise
                    self._add(Verdict("recovery", FAIL, complaints or [str(error)]))  # waited for in vain
        self._report(found, started)
        return int(any(verdict.result != "pass" for verdict in self.verdicts))

    def _show_all(self, system: System, able: list[str]) -> None:
        complaints = []
        for name in able:
            complaints += [f"{name}: {one}" for one in show(FAULTS[name](system, self.rng))]
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
        lines = read(self.path / "clients.jsonl") + read(self.path / "faults.jsonl")
        lines.sort(key=lambda line: line["time_ns"])
        (self.path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (self.path / "clients.jsonl").unlink()
        (self.path / "faults.jsonl").unlink()
        self.calls = calls(lines)

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
        """One fault after the other until the time is over; each in turn before any comes again."""
        end = time.monotonic() + self.options.seconds
        waiting: list[str] = []
        while (left := end - time.monotonic()) > 0:
            if worker.poll() is not None:
                raise HarnessError(f"the clients ended:\n{(self.path / 'clients.log').read_text()[-2000:]}")
            time.sleep(min(left, self.rng.uniform(*QUIET_SECONDS)))
            if not able:
                continue
            waiting = waiting or self.rng.sample(able, len(able))
            name = waiting.pop()
            fault = FAULTS[name](system, self.rng)
            what = fault.begin()
            told = Told(name, what, time.monotonic_ns())
            writer.line("nemesis", "info", name, "", what)
            time.sleep(self.rng.uniform(*FAULT_SECONDS))
            fault.end()
            told.ended = time.monotonic_ns()
            writer.line("nemesis", "info", f"end {name}", "", what)
            if sick := fault.healed():
                raise HarnessError(f"{name} does not heal: {sick}")
            self.told.append(told)

    def _judge(self, system: System) -> None:
        options = self.options
        for member in system.cluster.members:
            member.wait_ready()
        enough = int(options.rate * options.seconds / 20)
        for verdict in judge(options.workload, self.calls, system.cluster, enough):
            self._add(verdict)

    def _report(self, found: dict[str, str], started: int) -> None:
        for told in self.told:
            gap = longest_gap(self.calls, told.began, told.ended + int(AFTER_SECONDS * 1e9))
            told.unavailable = round(gap / 1e9, 3)
        report: dict[str, Any] = {
            "command": self.options.command,
            "options": asdict(self.options),
            "capabilities": {name: why or "yes" for name, why in found.items()},
            "skipped": self.skipped,
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "faults": [
                asdict(told) | {"began": (told.began - started) / 1e9, "ended": (told.ended - started) / 1e9}
                for told in self.told
            ],
        }
        (self.path / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        if all(verdict.result == "pass" for verdict in self.verdicts):
            for data in self.path.glob("m[0-9]*"):
                if data.is_dir():
                    shutil.rmtree(data)  # of use to nobody; the logs stay
