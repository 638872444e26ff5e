"""The guided tour of `kvstore local --tour`: seven steps on a real cluster, each with the command typed.

Every command is run as a process of its own, as a user would, and what is shown is what it printed. A step
whose command fails ends the tour with an error: a tour that shows something else than it says is a bug.
"""

import asyncio
import os
import shlex
import signal
import subprocess
import sys
from typing import Final

from rich.console import Console

from kvstore.local import LocalCluster, LocalError, LocalMember, kvctl_command

STEP_SECONDS: Final = 30.0


async def play(cluster: LocalCluster, console: Console) -> None:
    """Raises LocalError when the cluster does not do what the tour says."""
    await Tour(cluster, console).play()


class Tour:
    def __init__(self, cluster: LocalCluster, console: Console) -> None:
        self._cluster = cluster
        self._console = console
        self._kvctl = kvctl_command()
        self._step = 0

    async def play(self) -> None:
        size = len(self._cluster.members)
        self._say(f"{size} members run, each a process of its own.")
        await self._run("member list -w table")
        self._say("Put a key, and read it back.")
        await self._run("put greeting hello")
        await self._run("get greeting", expect="hello")
        await self._watch()
        if size >= 3:
            leader = await self._kill_leader()
            self._say(f"{leader.name} is started again, on its own data. It catches up by itself.")
            leader.start(self._cluster.initial_cluster)
            await self._cluster.wait_all()
            await self._run("endpoint status -w table")
        self._say("Every change is an event, and stays: what was `greeting`, and when?")
        await self._run("history greeting", expect="hello")
        self._console.print("\nThat was the tour.", style="bold")

    async def _watch(self) -> None:
        self._say("A watch sees a put as it happens.")
        leader = await self._cluster.wait_leader()
        assert leader.status is not None
        # From the next revision on, so that nothing can come too early for it.
        watch = await self._start(f"watch greeting --rev {leader.status.header.revision + 1}")
        try:
            await self._run('put greeting "hello, watcher"')
            seen = await self._read_until(watch, "hello, watcher")
            self._console.print("the watch printed:", style="dim")
            self._console.print(seen.rstrip(), markup=False)
        finally:
            if watch.returncode is None:
                watch.terminate()
            await watch.wait()

    async def _kill_leader(self) -> LocalMember:
        leader = await self._cluster.wait_leader()
        assert leader.process is not None
        self._say(f"{leader.name} leads. Kill it, with no chance to say goodbye.")
        self._console.print(f"$ kill -9 {leader.process.pid}", style="bold cyan", markup=False)
        os.kill(leader.process.pid, signal.SIGKILL)
        leader.process.wait()
        new = await self._cluster.wait_leader(other_than=leader)
        self._say(f"{new.name} leads now. Nothing that was acknowledged is lost, and writes go on.")
        await self._run("get greeting", expect="hello, watcher")
        await self._run("put greeting survived")
        await self._run("get greeting", expect="survived")
        return leader

    # How a command is run and shown

    def _say(self, text: str) -> None:
        self._step += 1
        self._console.print(f"\n{self._step}. {text}", style="bold")

    def _arguments(self, verb: str) -> list[str]:
        line = f"{self._kvctl} --endpoints={self._cluster.endpoints} {verb}"
        self._console.print(f"$ {line}", style="bold cyan", markup=False)
        executable = [sys.executable, "-m", "kvstore.kvctl.main"] if " -m " in self._kvctl else [self._kvctl]
        return [*executable, f"--endpoints={self._cluster.endpoints}", *shlex.split(verb)]

    async def _start(self, verb: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._arguments(verb),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    async def _run(self, verb: str, expect: str = "") -> None:
        process = await self._start(verb)
        try:
            async with asyncio.timeout(STEP_SECONDS):
                output, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            raise LocalError(f"`kvctl {verb}` did not end within {STEP_SECONDS:.0f} s") from None
        text = output.decode(errors="replace")
        self._console.print(text.rstrip(), markup=False)
        if process.returncode != 0:
            raise LocalError(f"`kvctl {verb}` exited with code {process.returncode}")
        if expect not in text:
            raise LocalError(f"`kvctl {verb}` did not print {expect!r}")

    async def _read_until(self, process: asyncio.subprocess.Process, wanted: str) -> str:
        assert process.stdout is not None
        seen = ""
        try:
            async with asyncio.timeout(STEP_SECONDS):
                while wanted not in seen:
                    line = await process.stdout.readline()
                    if not line:
                        raise LocalError(f"the watch ended:\n{seen}")
                    seen += line.decode(errors="replace")
        except TimeoutError:
            raise LocalError(f"the watch did not see {wanted!r}; it printed:\n{seen}") from None
        return seen
