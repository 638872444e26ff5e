"""etcdserverpb.Watch: streams for the hub, and the two things that it needs from outside: a task and the time.

The task catches unsynced watchers up, one slice each, while there is one whose stream takes more; it
sleeps until the hub or a drained stream wakes it. The time makes periodic progress due, and ends streams
that asked for a leader (metadata `hasleader`) when this member has had none for three election timeouts.
"""

import asyncio
from typing import TYPE_CHECKING, Final, final

import structlog
from google.protobuf.message import DecodeError

from kvstore.errors import NO_LEADER, TOO_MANY_REQUESTS, Code, KvError
from kvstore.pb.rpc_pb2 import WatchRequest
from kvstore.rpc.base import RpcServer, Stream

if TYPE_CHECKING:
    from kvstore.mvcc.watch import WatchStream
    from kvstore.server.server import KvServer

log = structlog.get_logger(__name__)

MALFORMED_MESSAGE: Final = KvError(Code.INTERNAL, "grpc: failed to unmarshal the received message: malformed message")
ELECTION_TIMEOUTS: Final = 3  # without a leader, before streams that require one are ended
TICK_SECONDS_MAX: Final = 1.0


@final
class WatchService:
    def __init__(self, server: "KvServer") -> None:
        self._server = server
        self._hub = server.hub
        self._wakeup = asyncio.Event()
        self._hub.wake = self._wakeup.set
        self._tasks: list[asyncio.Task[None]] = []
        self._leader_streams: set[WatchHandler] = set()
        self._leaderless_since: float | None = None
        self._leaderless_max = ELECTION_TIMEOUTS * server.config.election_timeout / 1000

    def register(self, rpc: RpcServer) -> None:
        rpc.add_stream("/etcdserverpb.Watch/Watch", self.open)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._catch_up()), asyncio.create_task(self._tick())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def open(self, stream: Stream) -> "WatchHandler":
        handler = WatchHandler(stream, self._hub.open_stream(stream), self._leader_streams)
        if stream.metadata.get("hasleader") == "true":
            self._leader_streams.add(handler)
            if not self._server.has_leader:
                stream.close(NO_LEADER)
        return handler

    async def _catch_up(self) -> None:
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            try:
                while await self._hub.sync_unsynced():  # noqa: ASYNC110  # each call does a slice of work
                    await asyncio.sleep(0)
            except Exception:  # top of a task: a watch that cannot be caught up must not end all others
                log.exception("catching watches up failed")
                await asyncio.sleep(TICK_SECONDS_MAX)
                self._wakeup.set()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        seconds = min(TICK_SECONDS_MAX, self._hub.limits.progress_seconds / 4, self._leaderless_max / 4)
        while True:
            self._hub.tick(loop.time())
            self._end_leaderless(loop.time())
            await asyncio.sleep(seconds)

    def _end_leaderless(self, now: float) -> None:
        if self._server.has_leader:
            self._leaderless_since = None
        elif self._leaderless_since is None:
            self._leaderless_since = now
        elif now - self._leaderless_since >= self._leaderless_max:
            for handler in self._leader_streams:
                handler.stream.close(NO_LEADER)


@final
class WatchHandler:
    """One stream: from bytes to the hub's calls."""

    def __init__(self, stream: Stream, watches: "WatchStream", registry: "set[WatchHandler]") -> None:
        self.stream = stream
        self._watches = watches
        self._registry = registry
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
            self._watches.create(request.create_request)
        elif kind == "cancel_request":
            self._watches.cancel(request.cancel_request.watch_id)
        elif kind == "progress_request":
            self._watches.progress()

    def drained(self) -> None:
        self._watches.drained()

    def half_closed(self) -> None:
        """It asks for nothing more and goes on reading, as at etcd."""

    def closed(self) -> None:
        self._watches.close()
        self._registry.discard(self)
