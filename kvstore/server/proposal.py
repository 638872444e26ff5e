"""What a service hands to the server: one request of a client, and whom to tell."""

import asyncio
from collections.abc import Callable
from typing import Any, final

from kvstore.state.applier import Result
from kvstore.state.command import Op


@final
class Proposal:
    """`done` is called exactly once, on the loop, with a result or a KvError."""

    __slots__ = ("auth_revision", "done", "op", "raw", "request_id", "timeout", "user")

    def __init__(
        self,
        op: Op,
        raw: bytes,
        done: Callable[[Result], None],
        user: str = "",
        auth_revision: int = 0,
        request_id: str = "",
        timeout: float | None = None,
    ) -> None:
        self.op = op
        self.raw = raw  # the encoded request, as it came
        self.done = done
        self.user = user
        self.auth_revision = auth_revision
        self.request_id = request_id
        self.timeout = timeout  # seconds; None: the server's


@final
class Answer:
    """Sets a future, unless its owner has given up."""

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self._future = future

    def __call__(self, result: object) -> None:
        if not self._future.done():
            self._future.set_result(result)
