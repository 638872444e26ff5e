"""The same network made by a container engine: a member is a container of the image that users run.

A node is a container that only holds a network namespace, and the member's container lives in it: so a member that
is killed and started again finds its address, and its faults, as a host would. The namespaces get names as those of
the other backend have, and what is done inside them is the same for both.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any, ClassVar

from tests.e2e.cluster import PROGRAM, Member, wait_for
from tests.jepsen.engine import IMAGE, Engine, EngineError
from tests.jepsen.guard import LABEL
from tests.jepsen.network import Network, NetworkError, run

USER = 10001  # the image's
OF_HOST = ("LD_PRELOAD", "PYTHONPATH")  # variables that name what the image does not have


class Containers(Network):
    backend = "docker"
    lacks: ClassVar[dict[str, str]] = {
        "disk image": "a mount of the harness is not one of the engine's",
    }

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.engine = Engine(self.prefix)

    def _make(self) -> None:
        engine = self.engine
        engine.start()
        engine.build()
        subnet = f"198.18.{self._third}"
        engine.docker(
            *("network", "create", "--label", f"{LABEL}={self.prefix}"),
            *("--subnet", f"{subnet}.0/24", "--gateway", f"{subnet}.253"),
            *("--opt", f"com.docker.network.bridge.name={self.prefix}", self.prefix),
        )
        if engine.own:  # else the engine's bridge is in the harness's namespace
            self._reach(engine.namespace, self.prefix)
        for name in self.names:
            engine.docker(
                *("run", "--detach", "--rm", "--name", self.holder(name), "--label", f"{LABEL}={self.prefix}"),
                *("--network", self.prefix, "--ip", self.address[name], "--no-healthcheck", "--cap-drop", "ALL"),
                *("--entrypoint", "sleep", IMAGE, "infinity"),
            )
            pid = self.pid(self.holder(name))
            if not Path(f"/proc/{pid}").exists():
                raise NetworkError("the engine's processes are not of this machine")
            run("ip", "netns", "attach", self._name(name), str(pid))

    def holder(self, name: str) -> str:
        """The container that keeps the namespace of a node."""
        return f"{self.prefix}-{name}-net"

    def pid(self, container: str) -> int:
        """Of its first process; 0 while there is none."""
        try:
            return int(self.engine.docker("inspect", "--format", "{{.State.Pid}}", container))
        except EngineError:
            return 0

    def member(self, name: str, *arguments: Any) -> Member:
        return ContainerMember(self, name, *arguments)

    def use_code(self, member: Member, code: Path | None) -> None:
        """The image's, with other code put before it."""
        member.environment.pop("PYTHONPATH", None)
        if code is not None:
            member.environment["PYTHONPATH"] = str(code)

    def code_of(self, member: Member) -> Path | None:
        for entry in Path(f"/proc/{member.pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"PYTHONPATH="):
                return Path(entry.partition(b"=")[2].decode())
        return None


class ContainerMember(Member):
    """Its process is the client `docker run`, which ends with the container; its pid is that of the container."""

    def __init__(self, network: Containers, name: str, path: Path, *arguments: Any) -> None:
        super().__init__(name, path, *arguments)
        self._network = network
        self._container = f"{network.prefix}-{name}"
        self._path = path.resolve()
        self._pid = 0
        os.chown(path, USER, -1)

    def command(self) -> list[str]:
        inside = [] if self.program == PROGRAM else [f"--volume={self.program[0]}:/program:ro", "--entrypoint=/program"]
        return [
            *self._network.enter(self.name),
            *self._network.engine.client,
            *("run", "--rm", "--name", self._container, "--label", f"{LABEL}={self._network.prefix}"),
            *("--network", f"container:{self._network.holder(self.name)}", "--no-healthcheck", "--log-driver=none"),
            *("--cap-drop", "ALL", "--volume", f"{self._path}:{self._path}"),
            *(f"--env={name}={value}" for name, value in self.environment.items()),
            *(f"--volume={path}:{path}:ro" for name in OF_HOST if (path := self.environment.get(name))),
            *inside,
            IMAGE,
            *self.program[1 if inside else len(PROGRAM) :],
            *self.arguments,
        ]

    def start(self) -> None:
        self._pid = 0
        super().start()

    @property
    def pid(self) -> int:
        if not self._pid:
            wait_for(lambda: self._network.pid(self._container) or not self.running, f"a process of {self.name}")
            self._pid = self._network.pid(self._container)
            assert self._pid, f"{self.name} has ended:\n{self.log()}"
        return self._pid

    def kill(self) -> None:
        if self.process is None:
            return
        while self.running:
            with contextlib.suppress(AssertionError, ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
                self.process.wait()
        self.process.wait()
