"""etcdserverpb.Watch: streams for the hub, and the two things that it needs from outside: a task and the time.

The task catches unsynced watchers up, one slice each, while there is one whose stream takes more; it
sleeps until the hub or a drained stream wakes it. The time makes periodic progress due, and ends streams
that asked for a leader when there is none (services/leader_streams.py).
"""

import asyncio
from typing import TYPE_CHECKING, Final, final

import structlog
from google.protobuf.message import DecodeError

from kvstore.errors import TOO_MANY_REQUESTS, Code, KvError
from kvstore.failpoints import fail_async
from kvstore.pb.rpc_pb2 import WatchCreateRequest, WatchRequest
from kvstore.rpc.base import RpcServer, Stream
from kvstore.services.leader_streams import LeaderStreams

if TYPE_CHECKING:
    from kvstore.mvcc.watch import WatchStream
    from kvstore.server.server import KvServer

log = structlog.get_logger(__name__)

MALFORMED_MESSAGE: Final = KvError(Code.INTERNAL, "grpc: failed to unmarshal the received message: malformed message")
TICK_SECONDS_MAX: Final = 1.0


@final
class WatchService:
    def __init__(self, server: "KvServer") -> None:
        self._server = server
        self._server = server
        self._hub = server.hub
        self._wakeup = asyncio.Event()
        self._hub.wake = self._wakeup.set
        self._tasks: list[asyncio.Task[None]] = []
        self._leader_streams = LeaderStreams(server)

    def register(self, rpc: RpcServer) -> None:
        rpc.add_stream("/etcdserverpb.Watch/Watch", self.open)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._catch_up()), asyncio.create_task(self._tick())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def open(self, stream: Stream) -> "WatchHandler":
        handler = WatchHandler(stream, self._hub.open_stream(stream), self._leader_streams, self._server)
        self._leader_streams.opened(stream)
        return handler

    async def _catch_up(self) -> None:
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            try:
                await fail_async("watchBeforeSync")
                while await self._hub.sync_unsynced():  # noqa: ASYNC110  # each call does a slice of work
                    await asyncio.sleep(0)
            except Exception:  # top of a task: a watch that cannot be caught up must not end all others
                log.exception("catching watches up failed")
                await asyncio.sleep(TICK_SECONDS_MAX)
                self._wakeup.set()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        seconds = min(TICK_SECONDS_MAX, self._hub.limits.progress_seconds / 4, self._leader_streams.seconds_max / 4)
        while True:
            self._hub.tick(loop.time())
            self._leader_streams.tick(loop.time())
            await asyncio.sleep(seconds)


@final
class WatchHandler:
    """One stream: from bytes to the hub's calls."""

    def __init__(
        self, stream: Stream, watches: "WatchStream", leader_streams: LeaderStreams, server: "KvServer"
    ) -> None:
        self.stream = stream
        self._server = server
        self._watches = watches
        self._leader_streams = leader_streams
        # Answers are small and not counted against the budget, so somebody who only asks is stopped here.
        self._queued_bytes_max = 4 * watches.hub.limits.stream_bytes_max

    def received(self, messages: list[bytes]) -> None:
        for message in messages:
            try:
                request = WatchRequest.FromString(message)
            except DecodeError:
                self.stream.close(MALFORMED_MESSAGE)
                return
            self._handle(request)
        if self.stream.queued_bytes > self._queued_bytes_max:
            self.stream.close(TOO_MANY_REQUESTS)

    def _handle(self, request: WatchRequest) -> None:
        kind = request.WhichOneof("request_union")
        if kind == "create_request":
            create = request.create_request
            self._watches.create(create, self._refusal(create) if self._server.store.auth.enabled else "")
        elif kind == "cancel_request":
            self._watches.cancel(request.cancel_request.watch_id)
        elif kind == "progress_request":
            self._watches.progress()

    def _refusal(self, request: WatchCreateRequest) -> str:
        """Why the caller may not watch these keys, as etcd's cancel reason says it; "" when it may. What becomes of the
        permission later ends no watch (etcd)."""
        try:
            who = self._server.auth.identify(self.stream)
        except KvError as error:
            return _reason(error)
        refused = self._server.auth.table.refuse_read(who, request.key or b"\0", request.range_end)
        return "" if refused is None else _reason(refused)

    def drained(self) -> None:
        self._watches.drained()

    def half_closed(self) -> None:
        """It asks for nothing more and goes on reading, as at etcd."""

    def closed(self) -> None:
        self._watches.close()
        self._leader_streams.closed(self.stream)


def _reason(error: KvError) -> str:
    """A gRPC error as Go prints it."""
    return f"rpc error: code = {error.code.go_name} desc = {error.message}"
