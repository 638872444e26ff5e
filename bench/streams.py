"""Measurements with streams: events to many watchers, to one at full speed, from the past; keep-alives of leases."""

import asyncio
import functools
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from bench.channel import Channel, Stream, dial
from bench.histogram import Histogram
from bench.load import WARM_UP_SECONDS, Connection, Load, Measured, Operation, Window, connect, disconnect
from bench.measure import MIB, Numbers, RefusedError, Scene, as_numbers, check
from bench.messages import Keys
from kvstore.pb import rpc_pb2 as pb

WATCH: Final = "/etcdserverpb.Watch/Watch"
GRANT, REVOKE = "/etcdserverpb.Lease/LeaseGrant", "/etcdserverpb.Lease/LeaseRevoke"
KEEP_ALIVE: Final = "/etcdserverpb.Lease/LeaseKeepAlive"
WATCHES_EACH: Final = 10  # of one stream; each stream has a connection of its own
AHEAD: Final = 20  # puts begun whose events have not all arrived
ARRIVE_SECONDS: Final = 60.0  # without any
LEASES: Final = 50
TTL_SECONDS: Final = 600


@functools.lru_cache(maxsize=1024)
def events_in(message: bytes) -> int:
    """How many events a WatchResponse holds: its fields 11. Watchers of one key get equal bytes, which are known."""
    count = place = 0
    while place < len(message):
        tag = message[place]
        number = shift = 0
        byte = 0x80
        while byte & 0x80:
            place += 1
            byte = message[place]
            number |= (byte & 0x7F) << shift
            shift += 7
        place += 1
        if tag & 7 == 2:
            place += number
        count += tag == 0x5A
    return count


class Watcher:
    """A stream with one watch or several of the same prefix; `events` counts what came, for all of them together."""

    def __init__(
        self,
        channel: Channel,
        prefix: bytes,
        arrived: Callable[[int], None] | None = None,
        *,
        start: int = 0,
        watches: int = 1,
    ) -> None:
        """arrived(events) is called for each response."""
        self._watches = watches
        self._made = 0
        self.events = 0
        self._arrived = arrived
        self.ended: int | None = None  # the stream's status
        self.last = 0.0  # when the newest event came
        self._created: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._moved = asyncio.Event()
        self._stream: Stream = channel.stream(WATCH, self._first, self._end)
        create = pb.WatchCreateRequest(key=prefix, range_end=after(prefix), start_revision=start)
        for _ in range(watches):
            self._stream.send(pb.WatchRequest(create_request=create).SerializeToString())

    def _first(self, message: bytes) -> None:
        answer = pb.WatchResponse.FromString(message)
        if answer.canceled or not answer.created:
            self._created.set_exception(RefusedError(f"the watch was not made: {answer.cancel_reason}"))
            return
        self._made += 1
        if self._made == self._watches:
            self._stream.received = self._received
            self._created.set_result(None)

    def _received(self, message: bytes) -> None:
        count = events_in(message)
        self.events += count
        self.last = time.perf_counter()
        self._moved.set()
        if self._arrived is not None:
            self._arrived(count)

    def _end(self, status: int) -> None:
        self.ended = status
        self._moved.set()
        if not self._created.done():
            self._created.set_exception(RefusedError(f"the watch ended with gRPC status {status}"))

    async def created(self) -> None:
        await asyncio.wait_for(self._created, ARRIVE_SECONDS)

    async def until(self, revisions: int) -> None:
        """Until each watch has got so many events, and no more."""
        events = revisions * self._watches
        while self.events < events:
            self._moved.clear()
            if self.ended is not None:
                raise RefusedError(f"the watch ended with gRPC status {self.ended}")
            try:
                await asyncio.wait_for(self._moved.wait(), ARRIVE_SECONDS)
            except TimeoutError:
                raise RefusedError(f"{self.events} of {events} events came, then none for a minute") from None
        if self.events > events:
            raise RefusedError(f"{self.events} events came where {events} were due")


def after(prefix: bytes) -> bytes:
    """The end of the range of all keys with the prefix."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


class FanOut:
    """Puts to a prefix that many watch, each begun when less than AHEAD puts have not reached every watcher."""

    def __init__(self, connection: Connection, put: Operation, watchers: int) -> None:
        self._connection = connection
        self._put = put
        self._watchers = watchers
        self._begun = 0
        self.delivered = 0
        self.answered = 0
        self.failed: Counter[str] = Counter()
        self._stopped = True

    def start(self) -> None:
        self._stopped = False
        self.arrived(0)

    def stop(self) -> None:
        self._stopped = True

    def arrived(self, events: int) -> None:
        """Some watcher got so many."""
        self.delivered += events
        while not self._stopped and self._begun * self._watchers - self.delivered < AHEAD * self._watchers:
            self._begun += 1
            self._connection.call(self._put.path, self._put.message(), self._answered)

    def _answered(self, status: int, response: bytes) -> None:
        self.answered += status == 0
        if status:
            self.failed[f"gRPC status {status}"] += 1
            self._stopped = True

    @property
    def begun(self) -> int:
        return self._begun


async def fan_out(scene: Scene) -> Numbers:
    """Events that the watchers of one prefix get each second, all together."""
    prefix, count = b"fan-out/", scene.effort.watchers
    channels = [await dial(scene.leader_url, scene.members.context) for _ in range(count // WATCHES_EACH)]
    [putting] = await connect([scene.leader_url], 1, scene.members.context)
    try:
        fan = FanOut(putting, Keys(prefix).put(), count)
        watchers = [Watcher(channel, prefix, fan.arrived, watches=WATCHES_EACH) for channel in channels]
        for watcher in watchers:
            await watcher.created()
        before = await scene.state()
        fan.start()
        await asyncio.sleep(WARM_UP_SECONDS)
        window, delivered = Window(scene.members.pids), fan.delivered
        await asyncio.sleep(scene.effort.seconds)
        events, measured = fan.delivered - delivered, window.close(0, fan.failed)
        fan.stop()
        for watcher in watchers:
            await watcher.until(fan.begun)
        moved = (await scene.state()).revision - before.revision
    finally:
        await disconnect([*channels, putting])
    if fan.failed or moved != fan.begun or not events:
        raise RefusedError(f"{moved} of {fan.begun} puts were done, {events} events came {dict(fan.failed) or ''}")
    return {**event_numbers(events, measured), "watchers": count, "rss_mb": scene.members.rss_bytes() / MIB}


def event_numbers(events: int, measured: Measured) -> Numbers:
    return {
        "rate": events / measured.seconds,
        "cpu_us": measured.server_cpu / events * 1e6,
        "generator_cpu_us": measured.generator_cpu / events * 1e6,
        "generator_share": measured.generator_cpu / measured.seconds,
        "done": events,
        "seconds": measured.seconds,
    }


async def full_rate(scene: Scene, *, connections: int = 100, each: int = 10) -> Numbers:
    """One watcher of everything that is put at full speed; the clock stops when it has got the last event."""
    prefix = b"full-rate/"
    put = Keys(prefix).put()
    watching = await dial(scene.leader_url, scene.members.context)
    opened = await connect([scene.leader_url], connections, scene.members.context)
    try:
        watcher = Watcher(watching, prefix)
        await watcher.created()
        before = await scene.state()
        window = Window(scene.members.pids)
        load = Load(opened, lambda: put, scene.members.pids)
        puts = await load.closed(connections * each, scene.effort.seconds)
        answered = time.perf_counter()
        await watcher.until(puts.writes)
        measured = window.close(puts.writes, load.failed)
        check(puts, before, await scene.state())
    finally:
        await disconnect([watching, *opened])
    behind = max(0.0, watcher.last - answered)
    return {**event_numbers(watcher.events, measured), "behind_s": behind, "put_rate": puts.done / puts.seconds}


async def catch_up(scene: Scene) -> Numbers:
    """All events of the newer half of the keys, by a watch that starts in the past."""
    due = scene.keys.count // 2
    start = (await scene.state()).revision - due + 1
    watching = await dial(scene.leader_url, scene.members.context)
    try:
        window = Window(scene.members.pids)
        watcher = Watcher(watching, scene.keys.prefix, start=start)
        await watcher.created()
        await watcher.until(due)
        measured = window.close(0, Counter())
    finally:
        await watching.close()
    return event_numbers(watcher.events, measured)


async def keep_alives(scene: Scene) -> Numbers:
    """Keep-alives answered each second: a lease on each of some connections, the next asked when one is answered."""
    granted = pb.LeaseGrantRequest(TTL=TTL_SECONDS).SerializeToString()
    ask = scene.members.ask
    leases = [pb.LeaseGrantResponse.FromString(await ask(scene.leader, GRANT, granted)).ID for _ in range(LEASES)]
    channels = [await dial(scene.leader_url, scene.members.context) for _ in leases]
    try:
        keepers = [Keeper(channel, lease) for channel, lease in zip(channels, leases, strict=True)]
        await asyncio.sleep(WARM_UP_SECONDS)
        window = Window(scene.members.pids)
        for keeper in keepers:
            keeper.record = window.histogram.record
        await asyncio.sleep(scene.effort.seconds)
        measured = window.close(0, Counter())
        for keeper in keepers:
            await keeper.stop()
    finally:
        await disconnect(list(channels))
    for lease in leases:
        await ask(scene.leader, REVOKE, pb.LeaseRevokeRequest(ID=lease).SerializeToString())
    wrong = [keeper.wrong for keeper in keepers if keeper.wrong]
    if wrong or not measured.done:
        raise RefusedError(f"keep-alives failed: {', '.join(wrong)}")
    return as_numbers(measured)


class Keeper:
    """Asks for one lease to be kept, over one stream, again and again; `pause` seconds after each answer."""

    def __init__(self, channel: Channel, lease: int, *, pause: float = 0.0) -> None:
        self._pause = pause
        self._lease = lease
        self._message = pb.LeaseKeepAliveRequest(ID=lease).SerializeToString()
        self._stream = channel.stream(KEEP_ALIVE, self._received, self._end)
        self._stopping = False
        self._idle = asyncio.Event()
        self.record = Histogram().record
        self.wrong = ""
        self._ask()

    def _ask(self) -> None:
        self._asked = time.perf_counter()
        self._stream.send(self._message)

    def _received(self, message: bytes) -> None:
        self.record(time.perf_counter() - self._asked)
        answer = pb.LeaseKeepAliveResponse.FromString(message)
        if self._lease != answer.ID or answer.TTL <= 0:
            self.wrong = f"lease {self._lease:x} answered TTL {answer.TTL}"
        if self._stopping or self.wrong:
            self._idle.set()
        elif self._pause:
            asyncio.get_running_loop().call_later(self._pause, self._ask)
        else:
            self._ask()

    def _end(self, status: int) -> None:
        self.wrong = self.wrong or f"the stream ended with gRPC status {status}"
        self._idle.set()

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.wait_for(self._idle.wait(), ARRIVE_SECONDS)
        self._stream.cancel()
