"""Every fault shows that it bites and heals; one that does not is noticed; nothing is left, however a run ends."""

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from itertools import permutations
from pathlib import Path

import pytest

from tests.e2e.cluster import wait_for
from tests.jepsen import guard
from tests.jepsen.backends import capabilities
from tests.jepsen.faults import FAULTS, System
from tests.jepsen.faults.clocks import CLOCKS
from tests.jepsen.faults.disks import DISKS
from tests.jepsen.faults.failpoints import FAILPOINTS
from tests.jepsen.faults.links import LINKS
from tests.jepsen.faults.members import MEMBERS
from tests.jepsen.faults.partitions import PARTITIONS, Partition, isolate, partial, partition, ring
from tests.jepsen.faults.processes import PROCESSES
from tests.jepsen.faults.scenarios import SCENARIOS
from tests.jepsen.faults.versions import VERSIONS
from tests.jepsen.guard import ROOT
from tests.jepsen.network import Network
from tests.jepsen.probe import BACKENDS, missing, probe
from tests.jepsen.run import make_system, show

COUNT = 5


@contextlib.contextmanager
def network_of(count: int) -> Iterator[Network]:
    with Network([*(f"m{number + 1}" for number in range(count)), "clients"]) as network:
        yield network


def test_every_network_fault_bites_and_heals(netns: dict[str, str], tmp_path: Path) -> None:
    with network_of(COUNT) as network:
        system = make_system(network, COUNT, tmp_path)
        for name, fault in {**PARTITIONS, "duplicate": LINKS["duplicate"]}.items():
            if missing(fault.needs, netns):
                continue  # a run names it as skipped: test_run
            assert show(fault(system, random.Random(1))) == [], name


@pytest.mark.long
def test_every_other_link_bites_and_heals(netns: dict[str, str], tmp_path: Path) -> None:
    with network_of(3) as network:
        system = make_system(network, 3, tmp_path)
        for name, fault in LINKS.items():
            if missing(fault.needs, netns):
                pytest.skip(missing(fault.needs, netns))
            assert show(fault(system, random.Random(1))) == [], name


@pytest.mark.long
def test_every_process_fault_bites_and_heals(netns: dict[str, str], tmp_path: Path) -> None:
    with network_of(3) as network:
        system = make_system(network, 3, tmp_path)
        with system:
            for name, fault in {**PROCESSES, **MEMBERS, **CLOCKS, **FAILPOINTS, **VERSIONS}.items():
                if not missing(fault.needs, netns):
                    system.cluster.wait_leader()
                    assert show(fault(system, random.Random(1))) == [], name


@pytest.mark.long
def test_every_scenario_bites_and_heals(netns: dict[str, str], tmp_path: Path) -> None:
    """But for those that are a fault of another name."""
    with network_of(COUNT) as network:
        system = make_system(network, COUNT, tmp_path)
        with system:
            for name, fault in SCENARIOS.items():
                if fault not in FAULTS.values() and not missing(fault.needs, netns):
                    system.cluster.wait_leader()
                    assert show(fault(system, random.Random(1))) == [], name


@pytest.mark.long
def test_every_disk_fault_bites_and_heals(netns: dict[str, str], tmp_path: Path) -> None:
    with network_of(3) as network:
        system = make_system(network, 3, tmp_path, disks=not netns["disk image"])
        with system:
            for name, fault in DISKS.items():
                if not missing(fault.needs, netns):
                    system.cluster.wait_leader()
                    assert show(fault(system, random.Random(1))) == [], name


class Nothing(Partition):
    shape = staticmethod(isolate)

    def begin(self) -> str:
        self.pairs = isolate(self.system.names, self.rng)
        return "nothing"


class Late(Nothing):
    def bites(self) -> str:
        raise AssertionError("waited in vain")


class Forever(Partition):
    shape = staticmethod(isolate)

    def end(self) -> None:
        pass


def test_a_fault_that_does_nothing_or_never_ends_is_noticed(netns: dict[str, str], tmp_path: Path) -> None:
    with network_of(3) as network:
        system = make_system(network, 3, tmp_path)
        assert "does not bite" in show(Nothing(system, random.Random(1)))[0]
        assert "does not bite: waited in vain" in show(Late(system, random.Random(1)))[0]
        assert "does not heal" in show(Forever(system, random.Random(1)))[0]


def test_shapes() -> None:
    names = ["a", "b", "c", "d", "e"]
    assert {("a", "b"), ("b", "a")} <= partial(names, random.Random(1)) != set(permutations(names, 2))
    assert isolate(names, random.Random(1)) == {(x, y) for x, y in permutations(names, 2) if "a" in (x, y)}
    for name in names:  # two neighbours and itself: a majority, and everybody has another one
        assert sum(sender == name for sender, _ in ring(names, random.Random(1))) == 2


def test_what_a_rejected_sender_is_told(netns: dict[str, str], tmp_path: Path) -> None:
    with network_of(2) as network:
        assert network.connects("m1", "m2", 9) == "refused"  # nobody listens
        network.cut({("m1", "m2"), ("m2", "m1")})
        assert network.connects("m1", "m2", 9, timeout=0.3) == "silence"
        network.heal()
        network.cut({("m1", "m2"), ("m2", "m1")}, "REJECT")
        for _ in range(30):  # many in a second: none is left without an answer
            assert network.connects("m1", "m2", 9, timeout=0.3) == "refused"


def left(prefix: str, pids: Collection[int]) -> list[str]:
    """What still bears the name, and which of the processes live."""
    links = [path.name for path in Path("/sys/class/net").iterdir() if path.name == prefix]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if prefix in line]
    named = [*guard.namespaces(prefix), *guard.cgroups(prefix), *guard.containers(prefix), *links, *mounts]
    return [*map(str, named), *(str(pid) for pid in pids if Path(f"/proc/{pid}").exists())]


def inodes(prefix: str) -> set[int]:
    found = set()
    for name in guard.namespaces(prefix):
        with contextlib.suppress(OSError):
            found.add((guard.NAMESPACES / name).stat().st_ino)
    return found - {os.stat("/proc/self/ns/net").st_ino}


INTERRUPTED = [
    *(("netns", number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)),
    *(("docker", number) for number in (signal.SIGINT, signal.SIGKILL)),
]
BEGIN_SECONDS = 300  # until the first fault: an image may be built before
# Three members and the clients. With an engine of our own also that, the holders of the namespaces, all shims.
PROCESSES_MIN = {"netns": 4, "docker": 12}


@pytest.mark.long
@pytest.mark.timeout(BEGIN_SECONDS + 150)
@pytest.mark.parametrize("nemesis", ["isolate", "disk-hang-majority"])
@pytest.mark.parametrize(("backend", "number"), INTERRUPTED, ids=[f"{one}-{two.name}" for one, two in INTERRUPTED])
def test_nothing_is_left_of_an_interrupted_run(
    tmp_path: Path, backend: str, number: signal.Signals, nemesis: str
) -> None:
    """Interrupted in the middle of a fault, with members and clients at work."""
    if why := missing((*BACKENDS[backend], *FAULTS[nemesis].needs), capabilities(backend, probe())):
        pytest.skip(f"backend {backend}: {why}")
    command = ["--members=3", f"--nemesis={nemesis}", "--time=60", f"--backend={backend}", f"--out={tmp_path}"]
    with (tmp_path / "out.txt").open("wb") as out:
        harness = subprocess.Popen(
            [sys.executable, "-m", "tests.jepsen", *command], stdout=out, stderr=out, cwd=ROOT, start_new_session=True
        )
    prefix = guard.prefix_of(harness.pid)
    faults = tmp_path / "register-1" / "faults.jsonl"
    try:
        wait_for(
            lambda: harness.poll() is not None or (faults.exists() and faults.stat().st_size), "a fault", BEGIN_SECONDS
        )
        assert harness.poll() is None, (tmp_path / "out.txt").read_text()
        pids = {*guard.processes_in(inodes(prefix)), *guard.processes_of(guard.cgroups(prefix))}
        assert len(pids) >= PROCESSES_MIN[backend]
        harness.send_signal(number)
        assert harness.wait(60) != 0
        wait_for(lambda: not left(prefix, pids), f"an end of {left(prefix, pids)}", 60)
    finally:
        harness.kill()
        harness.wait()


def test_a_later_run_removes_what_a_killed_guard_has_left(netns: dict[str, str]) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    prefix = guard.prefix_of(ended.pid)
    subprocess.run(["ip", "netns", "add", f"{prefix}-m1"], check=True)
    inside = subprocess.Popen(["ip", "netns", "exec", f"{prefix}-m1", "sleep", "60"])
    wait_for(lambda: guard.processes_in(inodes(prefix)), "a process inside")
    assert prefix in guard.sweep()
    assert inside.wait(5) == -signal.SIGKILL
    assert left(prefix, []) == []


def test_system_names(tmp_path: Path) -> None:
    network = Network(["m1", "m2"])
    network.address = {"m1": "198.18.1.1", "m2": "198.18.1.2"}
    system: System = make_system(network, 2, tmp_path)
    assert system.names == ["m1", "m2"]
    assert [member.wrapper[-1] for member in system.cluster.members] == [
        f"--net=/run/netns/{network.prefix}-{name}" for name in ("m1", "m2")
    ]
    assert partition(isolate).shape is isolate
