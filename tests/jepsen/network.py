"""A network of namespaces: one for each node, joined by a bridge that lies in a namespace of its own.

    with Network(["m1", "m2", "m3", "clients"]) as network:
        network.enter("m1")                     # put before a command
        network.cut({("m1", "m2")})             # what m1 sends does not reach m2
        network.delivered(network.names)        # what arrives now, pair by pair, by sending it
        network.heal()

The harness has an address too, which no fault touches, so that it can look inside while others cannot.
Rules stand in the receiver's namespace; they, the links and the processes go with the namespaces (tests.jepsen.guard).
Addresses are of 198.18.0.0/16, which is set aside for tests (RFC 2544).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import select
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from tests.e2e.cluster import Member
from tests.jepsen.guard import NAMESPACES, Guarded

T = TypeVar("T")
Pair = tuple[str, str]  # sender, receiver
CLONE_NEWNET = 0x40000000
ARRIVAL_SECONDS = 0.3


class NetworkError(Exception):
    """A command that sets the network up or changes it has failed."""


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Network(Guarded):
    backend = "netns"
    lacks: ClassVar[dict[str, str]] = {}  # capabilities that the machine may have and this has not, and why

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self._third = 0
        self.address: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.guard()
        try:
            self._number()
            self._make()
            for name in self.names:
                # Else the kernel tells a peer only once a second that it was rejected: REJECT would turn into DROP.
                unlimited = Path("/proc/sys/net/ipv4/icmp_ratelimit")
                self.inside(name, functools.partial(unlimited.write_text, "0"))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _number(self) -> None:
        taken = run("ip", "-4", "-o", "address")
        thirds = itertools.islice(itertools.cycle(range(16, 256)), os.getpid() % 240, None)
        self._third = next(third for third in thirds if f" 198.18.{third}." not in taken)
        self.address = {name: f"198.18.{self._third}.{number}" for number, name in enumerate(self.names, 1)}

    def _make(self) -> None:
        """A namespace for each node, `_name(node)` below /run/netns, and ways between them and to the harness."""
        switch = self._name("switch")
        run("ip", "netns", "add", switch)
        run("ip", "-n", switch, "link", "add", "bridge0", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "bridge0", "up")
        self._reach(switch, "bridge0")
        for number, name in enumerate(self.names, 1):
            namespace = self._name(name)
            run("ip", "netns", "add", namespace)
            run(
                *("ip", "-n", namespace, "link", "add", "eth0"),
                *("type", "veth", "peer", "name", f"to{number}", "netns", switch),
            )
            run("ip", "-n", namespace, "address", "add", f"{self.address[name]}/24", "dev", "eth0")
            run("ip", "-n", namespace, "link", "set", "eth0", "up")
            run("ip", "-n", namespace, "link", "set", "lo", "up")
            run("ip", "-n", switch, "link", "set", f"to{number}", "master", "bridge0", "up")

    def _reach(self, namespace: str, bridge: str) -> None:
        """The harness's own link to a bridge in a namespace."""
        run("ip", "link", "add", self.prefix, "type", "veth", "peer", "name", "harness", "netns", namespace)
        run("ip", "address", "add", f"198.18.{self._third}.254/24", "dev", self.prefix)
        run("ip", "link", "set", self.prefix, "up")
        run("ip", "-n", namespace, "link", "set", "harness", "master", bridge, "up")

    def member(self, name: str, *arguments: Any) -> Member:
        """As the class Member is called, with the node's namespace around it."""
        member = Member(name, *arguments)
        member.wrapper = self.enter(name)
        return member

    def use_code(self, member: Member, code: Path | None) -> None:
        """Of this directory, from its next start on; None: the harness's own."""
        member.wrapper = [*self.enter(member.name), *(["env", f"--chdir={code}"] if code is not None else [])]

    def code_of(self, member: Member) -> Path | None:
        """The directory whose code runs there."""
        return Path(f"/proc/{member.pid}/cwd").readlink()  # `-m kvstore` is of there

    def _name(self, node: str) -> str:
        return f"{self.prefix}-{node}"

    def enter(self, node: str) -> list[str]:
        """Put before a command, it runs in the node's namespace, with the same pid."""
        return ["nsenter", f"--net={NAMESPACES / self._name(node)}"]  # unlike ip netns exec, with all mounts

    # Faults

    def cut(self, pairs: Iterable[Pair], target: str = "DROP", loss: float = 1.0) -> None:
        """Let what the first of each pair sends to the second be lost: all, or the part `loss` at random."""
        by_receiver: dict[str, list[str]] = {}
        for sender, receiver in sorted(pairs):
            by_receiver.setdefault(receiver, []).append(self.address[sender])
        chance = [] if loss == 1.0 else ["-m", "statistic", "--mode", "random", "--probability", str(loss)]
        if target == "REJECT":
            chance += ["!", "-p", "icmp"]  # which tells the sender, also where both directions are cut
        for receiver, senders in by_receiver.items():
            rule = ["-A", "INPUT", "-s", ",".join(senders), *chance, "-j", target]
            run(*self.enter(receiver), "iptables", "-w", *rule)

    def heal(self) -> None:
        for name in self.names:
            run(*self.enter(name), "iptables", "-w", "-F", "INPUT")

    # What really goes through

    def inside(self, node: str, action: Callable[[], T]) -> T:
        """The result of `action`, run in a thread that has entered the node's namespace: a socket stays there."""
        results: list[T] = []

        def enter() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            with (NAMESPACES / self._name(node)).open() as namespace:
                if libc.setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {node}")
            results.append(action())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if not results:
            raise NetworkError(f"nothing could be done inside {node}")
        return results[0]

    def delivered(self, names: list[str], count: int = 1) -> Counter[Pair]:
        """How many of `count` datagrams arrive, for each ordered pair of nodes."""
        sockets = {name: self.inside(name, functools.partial(self._bound, name)) for name in names}
        names_of = {self.address[name]: name for name in names}
        arrived: Counter[Pair] = Counter()

        def receive(seconds: float) -> bool:
            ready = select.select(list(sockets.values()), [], [], seconds)[0]
            for one in ready:
                with contextlib.suppress(ConnectionRefusedError):  # an earlier one came back rejected
                    sender = one.recvfrom(16)[1][0]
                    arrived[names_of[sender], names_of[one.getsockname()[0]]] += 1
            return bool(ready)

        try:
            for _ in range(count):
                for sender, receiver in itertools.permutations(names, 2):
                    with contextlib.suppress(ConnectionRefusedError):
                        sockets[sender].sendto(b"?", (self.address[receiver], sockets[receiver].getsockname()[1]))
                while receive(0):
                    pass
            deadline = time.monotonic() + ARRIVAL_SECONDS
            while arrived.total() < count * len(names) * (len(names) - 1) and time.monotonic() < deadline:
                receive(0.05)
            return arrived
        finally:
            for one in sockets.values():
                one.close()

    def _bound(self, name: str) -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind((self.address[name], 0))
        return one

    def connects(self, sender: str, receiver: str, port: int, timeout: float = 1.0) -> str:
        """ "yes", "refused" at once, or "silence" for all of `timeout` seconds."""

        def attempt() -> str:
            try:
                socket.create_connection((self.address[receiver], port), timeout).close()
            except ConnectionRefusedError:
                return "refused"
            except TimeoutError:
                return "silence"
            return "yes"

        return self.inside(sender, attempt)
