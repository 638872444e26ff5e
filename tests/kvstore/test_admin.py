"""The admin socket: its questions, its refusals, and that nobody else may ask."""

import asyncio
import json
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvstore.admin import CONNECTIONS_MAX, LINE_BYTES_MAX, AdminSocket
from kvstore.failpoints import FailpointError, disarm, listing
from kvstore.lag import LoopLag


class Role(IntEnum):
    LEADER = 3


@dataclass(frozen=True)
class Status:
    node_id: int
    role: Role
    progress: dict[int, int]


MEMBER: Any = SimpleNamespace(
    member_id=0xAB,
    cluster_id=0xCD,
    waiting_requests=3,
    status=lambda: Status(0xAB, Role.LEADER, {0xAB: 7}),
    store=SimpleNamespace(current_revision=5, compact_revision=2),
    transport=SimpleNamespace(connected=lambda: frozenset({0xEF})),
)


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    lag = LoopLag()
    admin = AdminSocket(tmp_path / "admin.sock", MEMBER, lag)
    await admin.start()
    yield tmp_path / "admin.sock"
    await admin.close()
    lag.close()
    for point in listing():
        disarm(point.name)
    assert not (tmp_path / "admin.sock").exists()


async def ask(path: Path, *lines: str) -> list[dict[str, Any]]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write("".join(line + "\n" for line in lines).encode())
    answers = [json.loads(await reader.readline()) for _ in lines]
    writer.close()
    return answers


async def test_only_its_user_may_open_it(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_failpoints_are_set_listed_and_cleared(path: Path) -> None:
    done, listed, cleared, after = await ask(
        path,
        '{"do": "set", "name": "walBeforeSync", "actions": "1*error"}',
        '{"do": "failpoints"}',
        '{"do": "clear"}',
        '{"do": "failpoints"}',
    )
    assert done == {"ok": True}
    armed = [point for point in listed["failpoints"] if point["actions"]]
    assert [(point["name"], point["actions"], point["hits"]) for point in armed] == [("walBeforeSync", "1*error", 0)]
    assert cleared == {"ok": True, "cleared": ["walBeforeSync"]}
    assert not [point for point in after["failpoints"] if point["actions"]]


async def test_status_lag_and_tasks(path: Path) -> None:
    status, lag, tasks = await ask(path, '{"do": "status"}', '{"do": "lag"}', '{"do": "tasks"}')
    assert status["raft"] == {"node_id": "ab", "role": "leader", "progress": {"ab": 7}}
    assert (status["member"], status["revision"], status["connected"]) == ("ab", 5, ["ef"])
    assert set(lag) == {"ok", "stall_ms", "late_ms"}
    assert any("LoopLag._run" in line for line in tasks["tasks"])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x", "not JSON"),
        ("[]", "is needed"),
        ('{"do": "stop"}', "is needed, with one of failpoints"),
        ('{"do": []}', "is needed"),
        ('{"do": "set", "name": "walBeforeSync"}', "'actions' must be a text"),
        ('{"do": "set", "name": 1, "actions": "off"}', "'name' must be a text"),
        ('{"do": "set", "name": "walBeforSync", "actions": "off"}', "near are walBeforeSync"),
        ('{"do": "clear", "name": "nowhere"}', "no failpoint"),
    ],
)
async def test_what_is_wrong_is_told(path: Path, line: str, reason: str) -> None:
    answer, after = await ask(path, line, '{"do": "lag"}')
    assert not answer["ok"]
    assert reason in answer["error"]
    assert after["ok"]


async def test_a_line_without_end_is_cut_off(path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"x" * (2 * LINE_BYTES_MAX))
    assert await reader.read() == b""
    writer.close()


async def test_connections_are_bounded(path: Path) -> None:
    held = [await asyncio.open_unix_connection(path) for _ in range(CONNECTIONS_MAX)]
    for reader, writer in held:
        writer.write(b'{"do": "lag"}\n')
        await reader.readline()
    reader, writer = await asyncio.open_unix_connection(path)
    assert await reader.read() == b""
    for _, one in [*held, (reader, writer)]:
        one.close()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(path: Path, tmp_path: Path) -> None:
    lag = LoopLag()
    with pytest.raises(FileExistsError, match="another process listens"):
        await AdminSocket(path, MEMBER, lag).start()
    plain = tmp_path / "file"
    plain.touch()
    with pytest.raises(FileExistsError, match="is no socket"):
        await AdminSocket(plain, MEMBER, lag).start()
    stale = tmp_path / "stale.sock"
    server = await asyncio.start_unix_server(lambda reader, writer: None, stale)
    server.close()
    assert stale.is_socket()
    second = AdminSocket(stale, MEMBER, lag)
    await second.start()
    assert (await ask(stale, '{"do": "lag"}'))[0]["ok"]
    await second.close()
    lag.close()


def test_a_member_does_not_start_with_a_wrong_failpoint(tmp_path: Path) -> None:
    flags = [f"--data-dir={tmp_path / 'data'}", "--failpoints=raftBeforeSav=panic"]
    command = [sys.executable, "-m", "kvstore", "serve", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "near are raftBeforeSave" in done.stderr
    assert not (tmp_path / "data").exists()
    with pytest.raises(FailpointError):
        disarm("raftBeforeSav")
