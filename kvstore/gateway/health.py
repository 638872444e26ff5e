"""How a member is: /health for etcd's old clients, /livez and /readyz for those that ask what to do about it.

    /health               200 or 503 and the first reason; `serializable=true` asks this member alone, `exclude=NOSPACE`
                          takes no account of an alarm
    /livez                serializable_read: a restart may help when it fails
    /readyz               data_corruption, serializable_read, linearizable_read, non_learner: whether to send it any
    /livez/NAME ...       one of them

`verbose` lists what was looked at, `exclude=NAME` leaves it out. Bodies are etcd's own: scripts compare them.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final, final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from kvstore.errors import KvError
from kvstore.server.alarms import name_of

if TYPE_CHECKING:
    from kvstore.server.server import KvServer

Check = Callable[[], Awaitable[str]]  # why not; "" when it is well

NO_LEADER: Final = "RAFT NO LEADER"
CORRUPT: Final = "CORRUPT"
NOSNIFF: Final = {"x-content-type-options": "nosniff"}


def alarms(server: "KvServer") -> list[str]:
    """The kinds of alarm that are on: NOSPACE, CORRUPT."""
    return list(dict.fromkeys(map(name_of, server.alarms.active)))


@final
class Health:
    def __init__(self, server: "KvServer") -> None:
        self._server = server
        self.answers = {True: 0, False: 0}  # of /health, by whether it was well
        self.newest: dict[tuple[str, str], bool] = {}  # of each check (livez or readyz, name): how it was last
        self.checks: Counter[tuple[str, str, bool]] = Counter()  # how often it was so
        self._checks: dict[str, dict[str, Check]] = {
            "livez": {"serializable_read": self._serializable_read},
            "readyz": {
                "data_corruption": self._data_corruption,
                "serializable_read": self._serializable_read,
                "linearizable_read": self._linearizable_read,
                "non_learner": self._non_learner,
            },
        }

    def routes(self) -> Iterable[Route]:
        yield Route("/health", self.health)
        for kind, checks in self._checks.items():
            for name in (*checks, ""):
                path = f"/{kind}/{name}" if name else f"/{kind}"
                yield Route(path, self._page(kind, [name] if name else list(checks)))

    async def health(self, request: Request) -> Response:
        parameters = request.query_params
        reason = await self._reason(parameters.get("serializable") == "true", set(parameters.getlist("exclude")))
        healthy = not reason
        self.answers[healthy] += 1
        body = json.dumps({"health": "true" if healthy else "false", "reason": reason}, separators=(",", ":"))
        return PlainTextResponse(body) if healthy else failure(503, body)

    async def _reason(self, serializable: bool, excluded: set[str]) -> str:
        for alarm in alarms(self._server):
            if alarm not in excluded:
                return f"ALARM {alarm}"
        if not serializable and not self._server.has_leader:
            return NO_LEADER
        found = await (self._serializable_read() if serializable else self._linearizable_read())
        return f"RANGE ERROR:{found}" if found else ""

    def _page(self, kind: str, names: list[str]) -> Callable[[Request], Awaitable[Response]]:
        async def page(request: Request) -> Response:
            excluded = set(request.query_params.getlist("exclude")) if len(names) > 1 else set()
            lines, is_well = [], True
            for name in names:
                if name in excluded:
                    continue
                reason = await self._checks[kind][name]()
                lines.append(f"[-]{name} failed: {reason}\n" if reason else f"[+]{name} ok\n")
                is_well = is_well and not reason
                self.newest[kind, name] = not reason
                self.checks[kind, name, not reason] += 1
            if not is_well:
                return failure(503, "".join(lines))
            details = "".join(lines) if "verbose" in request.query_params else ""
            return PlainTextResponse(f"{details}ok\n", headers=NOSNIFF)

        return page

    # The checks

    async def _data_corruption(self) -> str:
        return f"alarm activated: {CORRUPT}" if CORRUPT in alarms(self._server) else ""

    async def _serializable_read(self) -> str:
        try:
            with self._server.store.view():
                return ""
        except Exception as error:  # whatever it is, no read is answered
            return " ".join(str(error).split()) or type(error).__name__

    async def _linearizable_read(self) -> str:
        server = self._server
        try:
            async with asyncio.timeout(server.config.request_timeout):
                await server.linearizable()
        except KvError as error:
            return error.message
        except TimeoutError:
            return "context deadline exceeded"
        return ""

    async def _non_learner(self) -> str:
        return "not supported for learner" if self._server.is_learner else ""


def failure(status: int, text: str) -> Response:
    """As Go's http.Error writes it."""
    return PlainTextResponse(f"{text}\n", status, headers=NOSNIFF)
