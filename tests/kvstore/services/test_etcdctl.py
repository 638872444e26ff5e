"""etcdctl against our services, without a cluster behind them: what it prints and how it exits."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kvstore.services.member import RunningMember

PROGRAMS = {"3.5": Path(sys.executable).parent / "etcdctl", "3.4": Path("/usr/bin/etcdctl")}


class Etcdctl:
    def __init__(self, program: Path, url: str) -> None:
        self._command = [str(program), f"--endpoints={url}"]

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        environment = {**os.environ, "ETCDCTL_API": "3"}
        return await asyncio.create_subprocess_exec(
            *self._command, *arguments, stdin=pipe, stdout=pipe, stderr=pipe, env=environment
        )

    async def __call__(self, *arguments: str, stdin: str = "") -> str:
        process = await self.start(*arguments)
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 20)
        assert process.returncode == 0, err.decode()
        return out.decode()

    async def error(self, *arguments: str) -> str:
        process = await self.start(*arguments)
        _, err = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode != 0
        return err.decode().strip().splitlines()[-1]


@pytest.fixture(params=sorted(PROGRAMS))
async def etcdctl(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Etcdctl]:
    program = PROGRAMS[request.param]
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    async with RunningMember(tmp_path / "state") as member:
        yield Etcdctl(program, member.url)


async def test_keys(etcdctl: Etcdctl) -> None:
    for key in "abc":
        assert await etcdctl("put", key, key * 3) == "OK\n"
    assert await etcdctl("put", "a", "again", "--prev-kv") == "OK\na\naaa\n"
    assert await etcdctl("get", "a") == "a\nagain\n"
    assert await etcdctl("get", "a", "--rev=2") == "a\naaa\n"
    assert await etcdctl("get", "", "--prefix", "--keys-only", "--order=DESCEND", "--sort-by=KEY") == "c\n\nb\n\na\n\n"
    assert await etcdctl("get", "b", "--from-key", "--consistency=s", "--print-value-only") == "bbb\nccc\n"
    found = json.loads(await etcdctl("get", "b", "-w", "json"))
    assert (found["header"]["revision"], found["count"]) == (5, 1)
    transaction = 'value("b") = "bbb"\n\nput d 4\nget b\n\nget a\n\n'
    assert await etcdctl("txn", stdin=transaction) == "SUCCESS\n\nOK\n\nb\nbbb\n"
    assert await etcdctl("del", "", "--prefix") == "4\n"
    assert await etcdctl("compaction", "6") == "compacted revision 6\n"
    assert await etcdctl.error("get", "a", "--rev=2") == "Error: etcdserver: mvcc: required revision has been compacted"


async def test_watch(etcdctl: Etcdctl) -> None:
    await etcdctl("put", "k", "1")
    process = await etcdctl.start("watch", "k", "--rev=2", "--prev-kv")
    assert process.stdout is not None
    try:
        first = [await asyncio.wait_for(process.stdout.readline(), 20) for _ in range(3)]
        await etcdctl("del", "k")
        second = [await asyncio.wait_for(process.stdout.readline(), 20) for _ in range(5)]
    finally:
        process.kill()
        await process.wait()
    assert b"".join(first) == b"PUT\nk\n1\n"
    assert b"".join(second) == b"DELETE\nk\n1\nk\n\n"


async def test_members_and_endpoints(etcdctl: Etcdctl) -> None:
    await etcdctl("put", "k", "1")
    [status] = json.loads(await etcdctl("endpoint", "status", "-w", "json"))
    assert (status["Status"]["version"], status["Status"]["header"]["revision"]) == ("3.6.0", 2)
    [hashes] = json.loads(await etcdctl("endpoint", "hashkv", "-w", "json"))
    assert hashes["HashKV"]["hash"] != 0
    assert "a1, started, m1, http://p:1, http://127.0.0.1:" in await etcdctl("member", "list")
    assert "Finished defragmenting" in await etcdctl("defrag")
    assert await etcdctl("alarm", "list") == ""
    assert await etcdctl("user", "list") == ""
