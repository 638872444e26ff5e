"""Watch: who asked to see which keys, and what has each of them got.

    apply --notify(batch)--> synced watchers: each gets its events of the batch in one response
                                 |  its stream is over its byte budget, or the batch has too many takers
                                 v
    create in the past ----> unsynced watchers: each knows its next revision; caught up from memory
                                 |              (the newest revisions) or from the store, in slices
                                 v
                             synced again, once nothing is missing

A watcher is synced when it has every event up to `hub.revision`, and only then gets events from
`notify`. So nothing is lost or doubled when it changes sides: `next_revision` is the whole of its state.
A slow reader costs its own stream's budget and nothing else; apply never waits for anybody.

When a snapshot has taken the place of the state (`reload`), the revisions in between were never applied
here. All who lack them become unsynced and read them from the store; nobody gets anything twice, and no
revision goes back (etcd#15271).

Responses are bytes: events are encoded by apply, a response once per group of watchers, and each watcher
only adds its id. header.revision never promises more than was delivered: of an event response it is the
last revision wholly in it, of a progress response the one that is synced to, of `created` the store's.

Knows no connection and no clock: bytes go to a sink, time is passed in.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Protocol, final

from kvstore.errors import COMPACTED
from kvstore.mvcc import watch_encoding as wire
from kvstore.mvcc.encoding import event_kv
from kvstore.mvcc.events import AppliedEvent, RevisionEvents, prev_kv, read_events
from kvstore.mvcc.schema import contains
from kvstore.mvcc.store import MvccStore
from kvstore.mvcc.watch_index import FRAGMENT, NO_DELETE, NO_PUT, PREV_KV, Group, Watcher, WatchIndex
from kvstore.pb.kv_pb2 import KeyValue
from kvstore.pb.rpc_pb2 import WatchCreateRequest

DUPLICATE_ID: Final = "mvcc: duplicate watch ID provided on the WatchStream"
EMPTY_RANGE: Final = "mvcc: watcher range is empty"
TOO_MANY: Final = "etcdserver: too many watches on the stream"

CHUNK: Final = 256  # events encoded before the loop gets a chance

_revision = attrgetter("revision")


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchLimits:
    response_bytes_max: int = 1536 * 1024  # --max-request-bytes: where fragments are cut
    stream_bytes_max: int = 4 * 1024 * 1024  # not yet taken by the transport; above it a stream is cut off
    stream_bytes_resume: int = 512 * 1024  # catch-up goes on below it
    watches_per_stream_max: int = 100_000
    deliveries_max: int = 2_000  # in one notify, about 5 ms of the loop; the rest is caught up in slices
    recent_bytes_max: int = 8 * 1024 * 1024  # newest events kept in memory for catch-up
    recent_events_max: int = 5_000  # a watcher passes over all of them at once, about 2 ms
    catch_up_bytes: int = 512 * 1024  # of one slice of one watcher
    catch_up_revisions: int = 10_000  # likewise: a range that has few events must not hold up the others
    progress_seconds: float = 600.0  # --watch-progress-notify-interval


class WatchSink(Protocol):
    """The way to the client; a kvstore.rpc Stream is one."""

    @property
    def queued_bytes(self) -> int: ...

    def send(self, messages: list[bytes]) -> None: ...


def _nobody() -> None:
    """Stands in until somebody drives catch-up."""


@final
class WatchHub:
    """All watches of a member."""

    def __init__(self, store: MvccStore, limits: WatchLimits, header: wire.Header) -> None:
        self.limits = limits
        self.store = store
        self.header = header
        self.revision = store.current_revision  # synced watchers have everything up to here
        self.wake: Callable[[], None] = _nobody  # called when sync_unsynced has something to do
        self.streams: set[WatchStream] = set()
        self._index = WatchIndex()
        self._unsynced: dict[Watcher, None] = {}  # first come, first served
        self._recent: list[RevisionEvents] = []  # without a gap up to `revision`
        self._recent_first = self.revision + 1  # where it begins
        self._recent_bytes = 0
        self._recent_events = 0
        self.sent_events = 0  # to all watchers
        self._deliveries = 0
        store.on_swap.append(self.reload)

    @property
    def watcher_count(self) -> int:
        return sum(len(stream.watchers) for stream in self.streams)

    @property
    def unsynced_count(self) -> int:
        return len(self._unsynced)

    def open_stream(self, sink: WatchSink) -> "WatchStream":
        stream = WatchStream(self, sink)
        self.streams.add(stream)
        return stream

    # Live events

    def notify(self, batch: list[RevisionEvents]) -> None:
        """What one applied batch changed, oldest first. Never blocks."""
        if not self.streams:  # whoever comes later finds it in the store
            assert batch[0].revision > self.revision, f"revision {batch[0].revision} after {self.revision}"
            self.revision = batch[-1].revision
            self._forget()
            return
        live: list[RevisionEvents] = []
        self._deliveries = 0
        for item in batch:
            assert item.revision > self.revision, f"revision {item.revision} after {self.revision}"
            if item.stored:
                self._fan_out(live)
                live = []
                self._cut_all(item.revision)
            else:
                live.append(item)
            self.revision = item.revision
            self._remember(item)
        self._trim()
        self._fan_out(live)

    def _fan_out(self, batch: list[RevisionEvents]) -> None:
        found: dict[Group, list[RevisionEvents]] = {}
        for item in batch:
            for event in item.events:
                for group in self._index.find(event.key):
                    mine = found.setdefault(group, [])
                    if not mine or mine[-1].revision != item.revision:
                        mine.append(RevisionEvents(item.revision, []))
                    mine[-1].events.append(event)
        touched: dict[WatchStream, None] = {}
        for group, mine in found.items():
            self._fan_out_group(group, mine, touched)
        for stream in touched:
            stream.flush()

    def _fan_out_group(self, group: Group, batch: list[RevisionEvents], touched: "dict[WatchStream, None]") -> None:
        shared: dict[int, tuple[list[bytes], int]] = {}
        first = batch[0].revision
        for watcher in list(group.watchers):
            if watcher.next_revision > first:
                rest = [item for item in batch if item.revision >= watcher.next_revision]
                responses, count = self._responses(wire.encode_revisions(rest, watcher.variant), watcher.variant)
            elif watcher.variant in shared:
                responses, count = shared[watcher.variant]
            else:
                encoded = wire.encode_revisions(batch, watcher.variant)
                responses, count = shared[watcher.variant] = self._responses(encoded, watcher.variant)
            if not responses:
                continue  # filtered: nothing is owed
            if watcher.stream.is_over_budget or self._deliveries >= self.limits.deliveries_max:
                self._cut(watcher, max(first, watcher.next_revision))
                continue
            self._deliveries += len(responses)
            self.sent_events += count
            touched[watcher.stream] = None
            watcher.stream.queue(watcher, responses)

    def _responses(self, encoded: list[wire.Encoded], variant: int) -> tuple[list[bytes], int]:
        """... and how many events they hold."""
        responses = wire.event_responses(encoded, variant, self.limits.response_bytes_max, self.header)
        return responses, sum([len(events) for _, events in encoded])

    def _remember(self, item: RevisionEvents) -> None:
        if item.stored:
            self._forget()
            return
        self._recent.append(item)
        self._recent_bytes += size_of(item)
        self._recent_events += len(item.events)

    def _trim(self) -> None:
        limits = self.limits
        dropped = 0
        while self._recent_bytes > limits.recent_bytes_max or self._recent_events > limits.recent_events_max:
            self._recent_bytes -= size_of(self._recent[dropped])
            self._recent_events -= len(self._recent[dropped].events)
            self._recent_first = self._recent[dropped].revision + 1
            dropped += 1
        del self._recent[:dropped]

    def _forget(self) -> None:
        """What has been up to now is in the store only."""
        self._recent.clear()
        self._recent_bytes = self._recent_events = 0
        self._recent_first = self.revision + 1

    def reload(self) -> None:
        """The store shows another, newer state."""
        first_missing, self.revision = self.revision + 1, self.store.current_revision
        self._forget()
        for group in self._index.groups():
            for watcher in list(group.watchers):
                # One that begins in the future has nothing to catch up with before that.
                missing = max(watcher.next_revision, first_missing)
                if missing <= self.revision:
                    self._cut(watcher, missing)

    # From synced to unsynced and back

    def admit(self, watcher: Watcher) -> None:
        """A new watcher joins one of the two sides."""
        if watcher.next_revision > self.revision:
            self._make_synced(watcher)
        else:
            self._make_unsynced(watcher)

    def remove(self, watcher: Watcher) -> None:
        assert not watcher.removed
        watcher.removed = True
        if watcher.synced:
            self._index.remove(watcher)
        else:
            del self._unsynced[watcher]
            watcher.stream.unsynced_count -= 1

    def _make_synced(self, watcher: Watcher) -> None:
        watcher.synced = True
        self._index.add(watcher)

    def _make_unsynced(self, watcher: Watcher) -> None:
        watcher.synced = False
        watcher.stream.unsynced_count += 1
        self._unsynced[watcher] = None
        self.wake()

    def _cut(self, watcher: Watcher, next_revision: int) -> None:
        """Its events from `next_revision` on were not delivered."""
        self._index.remove(watcher)
        watcher.next_revision = next_revision
        self._make_unsynced(watcher)

    def _cut_all(self, revision: int) -> None:
        """The events of `revision` are in the store only: everybody reads them from there."""
        for group in self._index.groups():
            for watcher in list(group.watchers):
                if watcher.next_revision <= revision:
                    self._cut(watcher, revision)

    async def sync_unsynced(self) -> bool:
        """One slice for each unsynced watcher whose stream takes more. True: call again soon."""
        for watcher in list(self._unsynced):
            if not watcher.removed and not watcher.synced and watcher.stream.takes_more:
                await self._catch_up(watcher)
        return any(watcher.stream.takes_more for watcher in self._unsynced)

    async def _catch_up(self, watcher: Watcher) -> None:
        # What is compacted may be read, but etcd promises to tell instead: a client that lists and then
        # watches would otherwise see events older than its list.
        if watcher.next_revision < self.store.compact_revision:
            watcher.stream.cancel_compacted(watcher)
            return
        if watcher.next_revision >= self._recent_first:
            # Without a pause from here to the end: the last slice cannot be overtaken by new events.
            found, high = self._recent_of(watcher)
        else:
            found, high = await self._stored_of(watcher)
            if watcher.removed:
                return
        if found:
            responses, count = self._responses(found, watcher.variant)
            self.sent_events += count
            watcher.stream.queue(watcher, responses)
            watcher.stream.flush()
        watcher.next_revision = high + 1
        if high == self.revision:
            del self._unsynced[watcher]
            watcher.stream.unsynced_count -= 1
            self._make_synced(watcher)

    def _recent_of(self, watcher: Watcher) -> tuple[list[wire.Encoded], int]:
        """A slice of its events from memory, and the revision that it has everything up to then."""
        low, high = watcher.bounds
        found: list[wire.Encoded] = []
        size = 0
        for at in range(bisect_left(self._recent, watcher.next_revision, key=_revision), len(self._recent)):
            item = self._recent[at]
            mine = [e for e in item.events if contains(low, high, e.key)]
            if item.revision <= self.store.compact_revision:  # what was before it is compacted
                mine = [AppliedEvent(e.key, e.event, e.is_delete, None) for e in mine]
            events = wire.encode_events(mine, watcher.variant)
            if events:
                if size >= self.limits.catch_up_bytes:
                    return found, found[-1][0]
                found.append((item.revision, events))
                size += sum(map(len, events))
        return found, self.revision

    async def _stored_of(self, watcher: Watcher) -> tuple[list[wire.Encoded], int]:
        """The same from the store. A single revision may be large, so even encoding is done in slices."""
        high = min(self.revision, watcher.next_revision + self.limits.catch_up_revisions - 1)
        found = await read_events(
            self.store,
            watcher.next_revision,
            high,
            bytes_max=self.limits.catch_up_bytes,
            key=watcher.key,
            range_end=watcher.range_end,
        )
        budget = self.store.budget()
        encoded: list[wire.Encoded] = []
        for item in found:
            events: list[bytes] = []
            encoded.append((item.revision, events))
            for at in range(0, len(item.events), CHUNK):
                chunk = item.events[at : at + CHUNK]
                if watcher.variant & PREV_KV:
                    chunk = [self._with_prev(event, item.revision) for event in chunk]
                events += wire.encode_events(chunk, watcher.variant)
                await budget.pause_if_spent()
        return encoded, found[-1].revision if found else high

    def _with_prev(self, event: AppliedEvent, revision: int) -> AppliedEvent:
        # A creation has none, also where the same txn has deleted the key before (etcd IsCreateEvent).
        if not event.is_delete and KeyValue.FromString(event_kv(event.event)).create_revision == revision:
            return event
        return AppliedEvent(event.key, event.event, event.is_delete, prev_kv(self.store, event.key, revision))

    # Progress

    def tick(self, now: float) -> None:
        """Periodic progress for those that asked for it and are synced. `now`: seconds, monotonic."""
        for stream in list(self.streams):
            if now >= stream.next_progress:
                first_time = stream.next_progress == 0.0
                stream.next_progress = now + self.limits.progress_seconds
                if not first_time and not stream.is_over_budget:
                    stream.notify_progress()


@final
class WatchStream:
    """One client's stream of watches. Ids are its own."""

    def __init__(self, hub: WatchHub, sink: WatchSink) -> None:
        self.hub = hub
        self.watchers: dict[int, Watcher] = {}
        self.unsynced_count = 0
        self.next_progress = 0.0  # 0: the first tick after opening sets it
        self._sink = sink
        self._next_id = 0
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0

    @property
    def is_over_budget(self) -> bool:
        return self._sink.queued_bytes + self._outbox_bytes > self.hub.limits.stream_bytes_max

    @property
    def takes_more(self) -> bool:
        return self._sink.queued_bytes + self._outbox_bytes <= self.hub.limits.stream_bytes_resume

    def queue(self, watcher: Watcher, responses: list[bytes]) -> None:
        """Event responses of one watcher; `flush` sends them."""
        watcher.had_events = True
        if watcher.id_field:
            responses = [response + watcher.id_field for response in responses]
        self._outbox += responses
        self._outbox_bytes += sum(map(len, responses))

    def flush(self) -> None:
        if self._outbox:
            messages, self._outbox, self._outbox_bytes = self._outbox, [], 0
            self._sink.send(messages)

    def drained(self) -> None:
        """The sink has nothing queued any more."""
        if self.unsynced_count:
            self.hub.wake()

    def create(self, request: WatchCreateRequest, forbidden: str = "") -> None:
        """Answers `created`, always, and before any event of the watcher. forbidden: why the caller may not have it."""
        header = self.hub.header(self.hub.store.current_revision)
        reason = self._reason_to_refuse(request, forbidden)
        if reason:
            refusal = wire.CREATED + wire.CANCELED + wire.cancel_reason_field(reason)
            self._sink.send([header + wire.INVALID_ID + refusal])
            return
        watcher = self._watcher(request)
        self._sink.send([header + watcher.id_field + wire.CREATED])
        self.watchers[watcher.watch_id] = watcher
        self.hub.admit(watcher)
        if watcher.next_revision < self.hub.store.compact_revision:
            self.cancel_compacted(watcher)

    def _reason_to_refuse(self, request: WatchCreateRequest, forbidden: str) -> str | None:
        if request.start_revision < 0:
            return COMPACTED.message
        if forbidden:
            return forbidden
        if request.range_end not in (b"", b"\0") and (request.key or b"\0") >= request.range_end:
            return EMPTY_RANGE
        if request.watch_id and request.watch_id in self.watchers:
            return DUPLICATE_ID
        if len(self.watchers) >= self.hub.limits.watches_per_stream_max:
            return TOO_MANY
        return None

    def _watcher(self, request: WatchCreateRequest) -> Watcher:
        watch_id = request.watch_id
        if not watch_id:
            while self._next_id in self.watchers:
                self._next_id += 1
            watch_id = self._next_id
            self._next_id += 1
        variant = PREV_KV if request.prev_kv else 0
        variant |= FRAGMENT if request.fragment else 0
        variant |= NO_PUT if WatchCreateRequest.NOPUT in request.filters else 0
        variant |= NO_DELETE if WatchCreateRequest.NODELETE in request.filters else 0
        return Watcher(
            stream=self,
            watch_id=watch_id,
            id_field=wire.id_field(watch_id),
            key=request.key or b"\0",
            range_end=request.range_end,
            next_revision=request.start_revision or self.hub.store.current_revision + 1,
            variant=variant,
            progress_notify=request.progress_notify,
        )

    def cancel(self, watch_id: int) -> None:
        """Answers `canceled`; says nothing about an id that is not there, as etcd."""
        watcher = self.watchers.pop(watch_id, None)
        if watcher is not None:
            self.hub.remove(watcher)
            self._sink.send([self.hub.header(self.hub.store.current_revision) + watcher.id_field + wire.CANCELED])

    def cancel_compacted(self, watcher: Watcher) -> None:
        """What it needs next is compacted: it is told to where, and must list again."""
        del self.watchers[watcher.watch_id]
        self.hub.remove(watcher)
        compacted = wire.compact_revision_field(self.hub.store.compact_revision)
        self._sink.send([self.hub.header(0) + watcher.id_field + wire.CANCELED + compacted])

    def progress(self) -> None:
        """Asked by the client: answered only when every watcher of the stream has everything (etcd#15220).

        And not while one of them begins in the future: it would take the revision for its own (etcd#20221).
        """
        if not self.unsynced_count and not any(watcher.is_ahead for watcher in self.watchers.values()):
            self._sink.send([self.hub.header(self.hub.revision) + wire.INVALID_ID])

    def notify_progress(self) -> None:
        """The periodic one, for each watcher by itself; events of the period make it superfluous."""
        header = self.hub.header(self.hub.revision)
        messages = []
        for watcher in self.watchers.values():
            if watcher.progress_notify and watcher.synced and not watcher.is_ahead and not watcher.had_events:
                messages.append(header + watcher.id_field)
            watcher.had_events = False
        if messages:
            self._sink.send(messages)

    def close(self) -> None:
        """The client is gone."""
        for watcher in self.watchers.values():
            self.hub.remove(watcher)
        self.watchers.clear()
        self.hub.streams.discard(self)


def size_of(item: RevisionEvents) -> int:
    size = 0
    for event in item.events:
        size += len(event.event)
        if event.prev is not None:
            size += len(event.prev)
    return size
