"""Watchers: streams with several watches each, of all kinds, some read slowly; broken ones are resumed elsewhere."""

import asyncio
from typing import TYPE_CHECKING, Final, final

from kvstore.errors import NO_LEADER
from kvstore.pb import rpc_pb2 as pb
from tests.e2e.history import HIGH, LOW
from tests.e2e.watches import WatchLog
from tests.sim.member.loop import MILLISECOND, SECOND

if TYPE_CHECKING:
    from tests.sim.member.front import SimStream
    from tests.sim.member.world import World

_RESUME_SECONDS: Final = 0.05


@final
class Watcher:
    def __init__(self, world: "World", number: int) -> None:
        self._world = world
        self._rng = world.options.stream(f"watcher {number}")
        self._logs: dict[int, WatchLog] = {}
        self._next: int = 1  # where the main watch goes on
        self._stream: SimStream | None = None
        self._main: WatchLog | None = None

    @property
    def told(self) -> int:
        """Of the main watch, over all streams."""
        return max(self._next - 1, self._main.told if self._main is not None else 0)

    async def run(self) -> None:
        """Until the world has a final revision and the main watch was told all up to it."""
        world, rng = self._world, self._rng
        while not self._is_done():
            member = rng.choice(world.members)
            if member.link is not None and member.serves:
                await self._watch(member.name)
            await asyncio.sleep(_RESUME_SECONDS)

    def _is_done(self) -> bool:
        final = self._world.final_revision
        return final is not None and self._next > final

    async def _watch(self, name: str) -> None:
        world, rng, loop = self._world, self._rng, self._world.loop
        link = world.by_name[name].link
        assert link is not None
        self._logs = {}
        metadata = {"hasleader": "true"} if rng.chance(0.2) else {}
        self._stream = stream = link.open("/etcdserverpb.Watch/Watch", metadata, self._receive)
        if rng.chance(0.3) and not world.calm:
            stream.read_delay = int(rng.log_uniform(1, 300) * MILLISECOND)
        start = self._next
        if world.final_revision is None and rng.chance(0.2):  # sometimes from the past, or the future
            start = max(1, start + rng.below(40) - 30)
        self._main = self._create(name, stream, 1, start, whole=True)
        for watch_id in range(2, 2 + rng.below(3)):
            self._create(name, stream, watch_id, rng.choice([0, start, max(1, start - rng.below(40))]), whole=False)
        until = loop.now + int((0.5 + 8 * rng.random()) * SECOND)
        while not stream.ended.done() and loop.now < until and not self._caught_up():
            await asyncio.sleep(rng.random() * 0.3)
            if rng.chance(0.4):
                stream.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()).SerializeToString())
            if rng.chance(0.05) and len(self._logs) > 1:
                cancel = pb.WatchCancelRequest(watch_id=max(self._logs))
                stream.write(pb.WatchRequest(cancel_request=cancel).SerializeToString())
        if stream.ended.done() and stream.ended.result() == NO_LEADER:
            world.mark("watch_no_leader")
        stream.cancel()
        self._next = max(self._next, self._main.told + 1, self._compacted(self._main))

    def _caught_up(self) -> bool:
        final = self._world.final_revision
        return final is not None and self._main is not None and self._main.told >= final

    def _compacted(self, log: WatchLog) -> int:
        return max([response.compact_revision for response in log.responses], default=0)

    def _create(self, member: str, stream: "SimStream", watch_id: int, start: int, whole: bool) -> WatchLog:
        rng = self._rng
        request = pb.WatchCreateRequest(key=LOW, range_end=HIGH, start_revision=start, watch_id=watch_id)
        request.prev_kv = rng.chance(0.5)
        request.progress_notify = rng.chance(0.5)
        request.fragment = rng.chance(0.3)
        if not whole:
            epoch = self._world.begun // 250
            request.key = LOW + f"{epoch:04}/".encode()
            request.range_end = b"" if rng.chance(0.3) else request.key[:-1] + b"0"
            if not request.range_end:
                request.key += b"1"
            if rng.chance(0.3):
                request.filters.append(rng.choice([pb.WatchCreateRequest.NOPUT, pb.WatchCreateRequest.NODELETE]))
        log = WatchLog(member, request)
        self._logs[watch_id] = log
        self._world.watches.append(log)
        stream.write(pb.WatchRequest(create_request=request).SerializeToString())
        return log

    def _receive(self, messages: list[bytes]) -> None:
        for message in messages:
            response = pb.WatchResponse.FromString(message)
            if response.watch_id == -1 and not response.created:
                # Progress of the whole stream: each watch that has been created has everything up to it.
                for log in self._logs.values():
                    if log.responses and not log.responses[-1].canceled:
                        log.took(response)
            elif response.watch_id in self._logs:
                self._logs[response.watch_id].took(response)
            else:
                self._world.complain(f"a response for no watch of the stream: {response}")
