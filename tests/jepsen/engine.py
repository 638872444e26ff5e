"""A container engine for the tests: the one that runs here, else a dockerd of our own.

Our own has a network namespace, a mount namespace and a control group to itself, all of the harness's prefix, so that
the host's rules, bridges and mounts stay as they are, and the guard ends it with all its containers. It has no way
out: images are imported or built from files. They are kept below build/docker from run to run.

    python -m tests.jepsen.engine COMMAND...     runs a command for which DOCKER_HOST is such an engine
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time

from tests.jepsen.guard import ROOT, Guarded

BASE, IMAGE = "python:3.11-slim", "kvstore:jepsen"
STATE = ROOT / "build" / "docker"
WHEELS = ROOT / "build" / "wheels"
START_SECONDS = 60.0
BUILD_SECONDS = 600.0
MADE_HERE = "kvstore.base"  # a label of the base image that deploy/base.sh makes


class EngineError(Exception):
    """There is no engine, or it has refused something."""


def running() -> bool:
    """Whether an engine answers that we have not started."""
    return shutil.which("docker") is not None and _answers(dict(os.environ))


def _answers(environment: dict[str, str]) -> bool:
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    return subprocess.run(command, capture_output=True, check=False, timeout=30, env=environment).returncode == 0


def lacking() -> str:
    """Why the tests cannot have an engine with a base image here; "" when they can."""
    if shutil.which("docker") is None:
        return "no docker client on the PATH"
    if running():
        return ""  # it pulls the base image, or says that it cannot
    if os.geteuid() != 0:
        return "no engine runs, and only root can start one"
    if shutil.which("dockerd") is None:
        return "no engine runs, and no dockerd is on the PATH (Debian: apt install docker.io)"
    return "" if (STATE / "base").exists() else "no base image: make docker-base"


class Engine:
    """`docker` of the running engine, or of one that `start` starts inside a guarded prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.own = False
        self.client = ["docker"]  # put before a command of docker's
        self.environment = dict(os.environ)

    @property
    def namespace(self) -> str:
        """Of the network: its name below /run/netns; only of our own engine."""
        return f"{self.prefix}-engine"

    def start(self) -> None:
        if running():
            return
        if shutil.which("docker") is None or shutil.which("dockerd") is None:
            raise EngineError(lacking())
        self.own = True
        STATE.mkdir(parents=True, exist_ok=True)
        socket = STATE / "docker.sock"
        self.environment["DOCKER_HOST"] = f"unix://{socket}"
        self.client = ["docker", f"--host=unix://{socket}"]
        subprocess.run(["ip", "netns", "add", self.namespace], check=True)
        subprocess.run(["ip", "-n", self.namespace, "link", "set", "lo", "up"], check=True)
        # With a /run of its own it does not meet the containerd, nor the pid files, of another engine.
        daemon = (
            f"mount -t tmpfs tmpfs /run && exec dockerd --host unix://{socket} --data-root {STATE}/data "
            f"--exec-root /run/docker --pidfile /run/docker.pid --bip 198.18.0.1/24 "
            f"--default-address-pool base=198.18.0.0/16,size=24 --iptables=false --ip-masq=false "
            f"--cgroup-parent /{self.prefix} --exec-opt native.cgroupdriver=cgroupfs"
        )
        enter = ["nsenter", f"--net=/run/netns/{self.namespace}", "unshare", "--mount", "--propagation", "slave"]
        with (STATE / "lock").open("w") as lock, (STATE / "dockerd.log").open("wb") as log:
            self._wait_for(lock.fileno())
            process = subprocess.Popen(
                [*enter, "sh", "-c", daemon],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[lock.fileno()],  # held for as long as the daemon lives
            )
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self.environment):
            if process.poll() is not None or time.monotonic() > deadline:
                raise EngineError(f"dockerd does not start; the end of {STATE}/dockerd.log:\n{self.log()}")
            time.sleep(0.1)
        self._forget()

    def _wait_for(self, lock: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.monotonic() > deadline:
                raise EngineError(f"another run uses {STATE}")
            time.sleep(0.1)

    def _forget(self) -> None:
        """What containers a killed run has had."""
        if dead := self.docker("ps", "-aq").split():
            self.docker("rm", "-f", "-v", *dead)
        self.docker("network", "prune", "-f")

    def log(self) -> str:
        return "\n".join((STATE / "dockerd.log").read_text(errors="replace").splitlines()[-10:])

    def docker(self, *arguments: str, seconds: float = 60.0) -> str:
        done = subprocess.run(
            ["docker", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            env=self.environment,
            cwd=ROOT,
        )
        if done.returncode:
            raise EngineError(f"docker {' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def build(self) -> None:
        """The image of this code, from the wheels of `make wheels` where they are: our own engine reaches no index."""
        local = self.docker("images", "-q", "--filter", f"label={MADE_HERE}", BASE).strip() != ""
        if self.own and not local:
            raise EngineError("no base image: make docker-base")
        options = ["--build-arg", "PIP_NO_INDEX=1"] if self.own or WHEELS.is_dir() else []
        self.docker("build", "-q", "-f", "deploy/Dockerfile", "-t", IMAGE, *options, ".", seconds=BUILD_SECONDS)


class EngineOnly(Guarded):
    """An engine and nothing else, as a context."""

    def __enter__(self) -> Engine:
        self.guard()
        engine = Engine(self.prefix)
        try:
            engine.start()
        except BaseException:
            self.close()
            raise
        return engine

    def __exit__(self, *_: object) -> None:
        self.close()


def main(command: list[str]) -> int:
    with EngineOnly() as engine:
        code = subprocess.run(command, check=False, env=engine.environment, cwd=ROOT).returncode
        if engine.own and engine.docker("images", "-q", BASE).strip():
            (STATE / "base").touch()
        return code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EngineError as failure:
        sys.exit(f"{failure}")
