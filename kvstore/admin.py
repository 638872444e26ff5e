"""The admin socket: a look inside a running member, and failpoints set by hand. Off unless --admin-socket names a path.

One JSON object a line in, one out: {"ok": true, ...} or {"ok": false, "error": "..."}.

    {"do": "failpoints"}                                       all points, with what is armed and how often passed
    {"do": "set", "name": "walBeforeSync", "actions": "error"}
    {"do": "clear", "name": "walBeforeSync"}                   without a name: all
    {"do": "status"}                                           raft state, revisions, queues, clocks
    {"do": "lag"}                                              the loop's worst stall since the last question, ms
    {"do": "tasks"}                                            what every asyncio task waits for

Whoever may open the file may end the process, so it is this user's alone (mode 0600), and there is no port.

    echo '{"do": "status"}' | nc -UN data/admin.sock
"""

import asyncio
import json
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import structlog

from kvstore.failpoints import FailpointError, arm, disarm, listing
from kvstore.lag import LoopLag

if TYPE_CHECKING:
    from kvstore.server.server import KvServer

log = structlog.get_logger(__name__)

LINE_BYTES_MAX: Final = 64 * 1024
CONNECTIONS_MAX: Final = 8
ID_FIELDS: Final = ("node_id", "vote", "leader_id")

Request = dict[str, Any]
Command = Callable[[Request], dict[str, Any]]


class AdminError(Exception):
    """A request that cannot be done. The text is the answer."""


@final
class AdminSocket:
    """Made on the loop; `start`, and `close` at the end."""

    def __init__(self, path: Path, server: "KvServer", lag: LoopLag) -> None:
        self._path = path
        self._member = server
        self._lag = lag
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._commands: dict[str, Command] = {
            "failpoints": self._failpoints,
            "set": self._set,
            "clear": self._clear,
            "status": self._status,
            "lag": self._report_lag,
            "tasks": self._tasks,
        }

    async def start(self) -> None:
        """Raises OSError when the path cannot be had."""
        _remove_stale(self._path)
        self._listener = await asyncio.start_unix_server(self._serve, self._path, limit=LINE_BYTES_MAX)
        self._path.chmod(0o600)  # the umask of the process has kept others out until here
        log.warning("the admin socket is open", path=str(self._path))

    async def close(self) -> None:
        if self._listener is None:
            return
        self._listener.close()
        for writer in list(self._connections):
            writer.close()
        with suppress(FileNotFoundError):
            self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            writer.close()
            return
        self._connections.add(writer)
        try:
            while line := await reader.readline():
                writer.write(json.dumps(self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError) as error:  # ValueError: a line over the limit
            log.info("an admin connection was cut", reason=str(error))
        finally:
            self._connections.discard(writer)
            writer.close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            command = self._commands.get(str(request.get("do"))) if isinstance(request, dict) else None
            if command is None:
                raise AdminError(f'{{"do": ...}} is needed, with one of {", ".join(self._commands)}')
            return {"ok": True, **command(request)}
        except (AdminError, FailpointError) as error:
            return {"ok": False, "error": str(error)}
        except ValueError as error:
            return {"ok": False, "error": f"not JSON: {error}"}

    # Commands

    def _failpoints(self, _: Request) -> dict[str, Any]:
        return {"failpoints": [asdict(point) for point in listing()]}

    def _set(self, request: Request) -> dict[str, Any]:
        name, actions = _text(request, "name"), _text(request, "actions")
        arm(name, actions)
        log.warning("failpoint armed", name=name, actions=actions)
        return {}

    def _clear(self, request: Request) -> dict[str, Any]:
        names = [_text(request, "name")] if "name" in request else [point.name for point in listing() if point.actions]
        for name in names:
            disarm(name)
            log.warning("failpoint cleared", name=name)
        return {"cleared": names}

    def _status(self, _: Request) -> dict[str, Any]:
        member = self._member
        return {
            "member": f"{member.member_id:x}",
            "cluster": f"{member.cluster_id:x}",
            "raft": _plain(member.status()),
            "revision": member.store.current_revision,
            "compact_revision": member.store.compact_revision,
            "connected": [f"{peer:x}" for peer in sorted(member.transport.connected())],
            "waiting_requests": member.waiting_requests,
            "clock": {"wall_ns": time.time_ns(), "monotonic_ns": time.monotonic_ns()},
        }

    def _report_lag(self, _: Request) -> dict[str, Any]:
        return self._lag.take()

    def _tasks(self, _: Request) -> dict[str, Any]:
        return {"tasks": sorted([_task_line(task) for task in asyncio.all_tasks()])}


def _plain(value: object) -> Any:
    """What JSON can hold; ids as logs write them."""
    if is_dataclass(value):
        plain = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return {name: f"{one:x}" if name in ID_FIELDS else one for name, one in plain.items()}
    if isinstance(value, dict):
        return {f"{key:x}": _plain(one) for key, one in value.items()}
    if isinstance(value, Enum):
        return value.name.lower()
    return value if isinstance(value, int | float | str | None) else repr(value)


def _text(request: Request, name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str):
        raise AdminError(f"{name!r} must be a text")
    return value


def _task_line(task: "asyncio.Task[Any]") -> str:
    """Which coroutine, and the line that its innermost frame stands at."""
    frames = task.get_stack(limit=1)
    coroutine = task.get_coro()
    name = getattr(coroutine, "__qualname__", repr(coroutine))
    where = f" at {Path(frames[0].f_code.co_filename).name}:{frames[0].f_lineno}" if frames else ""
    return f"{name}{where}"


def _remove_stale(path: Path) -> None:
    """A socket that a killed process left behind is in the way; one that somebody listens on is not ours to take."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(f"--admin-socket: {path} is there and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FileExistsError(f"--admin-socket: another process listens on {path}")
