"""The nine properties of a watch, against a model that saw every event, under a seeded mess.

Filter, Ordered, Unique, Atomic, Bookmarkable, Reliable, Resumable, PrevKV, IsCreate: each watcher's answers
are checked as they come; slow streams, compactions, hub restarts, cancels and resumed watches in between.
"""

import random
from pathlib import Path

import pytest

from kvstore.mvcc.schema import contains, range_bounds
from kvstore.mvcc.watch import WatchLimits
from kvstore.pb import kv_pb2
from kvstore.pb import rpc_pb2 as pb
from tests.kvstore.mvcc.watching import Client, Watched

KEYS = [b"a", b"ab", b"abc", b"b", b"b\xff", b"c"]
RANGES = [(b"a", b""), (b"a", b"b"), (b"", b"\0"), (b"b", b"\0"), (b"ab", b"ba"), (b"b\xff", b"c"), (b"c", b"")]
FILTERS = [[], [], [], [pb.WatchCreateRequest.NOPUT], [pb.WatchCreateRequest.NODELETE]]


class Model:
    """Truth: what every revision did, and what every key was."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self.live: dict[bytes, kv_pb2.KeyValue] = {}
        self.events: dict[int, list[kv_pb2.Event]] = {}  # with prev_kv filled, where there was one

    def change(self, puts: list[tuple[bytes, bytes]], deletes: list[bytes]) -> None:
        events = []
        revision = self.revision + 1
        for key in deletes:
            if (before := self.live.pop(key, None)) is not None:
                gone = kv_pb2.KeyValue(key=key, mod_revision=revision)
                events.append(kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=gone, prev_kv=before))
        for key, value in puts:
            before = self.live.get(key)
            now = kv_pb2.KeyValue(key=key, create_revision=revision, mod_revision=revision, version=1, value=value)
            if before is not None:
                now.create_revision, now.version = before.create_revision, before.version + 1
            events.append(kv_pb2.Event(kv=now, prev_kv=before))
            self.live[key] = now
        if events:
            self.revision = revision
            self.events[revision] = events


class Watch:
    """What one watch asked for, and what it may still get."""

    def __init__(self, model: Model, request: pb.WatchCreateRequest, next_revision: int) -> None:
        self.model = model
        self.request = request
        self.low, self.high = range_bounds(request.key or b"\0", request.range_end)
        self.next_revision = next_revision  # everything below was delivered, or is not for it
        self.bookmark = 0
        self.pieces: list[kv_pb2.Event] = []
        self.compacted_at = 0

    def wants(self, event: kv_pb2.Event) -> bool:
        unwanted = pb.WatchCreateRequest.NODELETE if event.type else pb.WatchCreateRequest.NOPUT
        return contains(self.low, self.high, event.kv.key) and unwanted not in self.request.filters

    def expected(self, revision: int) -> list[kv_pb2.Event]:
        return [event for event in self.model.events.get(revision, []) if self.wants(event)]

    def got(self, response: pb.WatchResponse) -> None:
        revision = response.header.revision
        if not response.events:
            assert revision >= self.bookmark, "a bookmark went back"
            self.bookmark = revision
            self.passed(revision)
            return
        self.pieces += response.events
        if response.fragment:
            assert self.request.fragment
            return
        events, self.pieces = self.pieces, []
        by_revision: dict[int, list[kv_pb2.Event]] = {}
        for event in events:
            by_revision.setdefault(event.kv.mod_revision, []).append(event)
        assert list(by_revision) == sorted(by_revision), "not in order"
        assert min(by_revision) > self.bookmark, "an event behind a bookmark"
        assert revision == max(by_revision), "the header promises another revision"
        for at, found in by_revision.items():
            assert at >= self.next_revision, "an event came twice, or is older than asked for"
            self.passed(at - 1)
            self.compare(found, self.expected(at))
            self.next_revision = at + 1

    def passed(self, revision: int) -> None:
        """It is told that it has everything up to `revision`."""
        for skipped in range(self.next_revision, revision + 1):
            assert not self.expected(skipped), f"revision {skipped} is missing"
        self.next_revision = max(self.next_revision, revision + 1)

    def compare(self, found: list[kv_pb2.Event], expected: list[kv_pb2.Event]) -> None:
        """Whole, in order, each as it was."""
        assert [(e.type, e.kv) for e in found] == [(e.type, e.kv) for e in expected]
        for got, truth in zip(found, expected, strict=True):
            if not self.request.prev_kv:
                assert not got.HasField("prev_kv")
            elif got.HasField("prev_kv"):
                assert got.prev_kv == truth.prev_kv
            elif truth.HasField("prev_kv"):
                assert got.kv.mod_revision - 1 < self.model.compacted, "prev_kv is missing and not compacted"


class Run:
    def __init__(self, path: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        limits = WatchLimits(
            response_bytes_max=self.rng.choice([300, 2_000]),
            stream_bytes_max=self.rng.choice([500, 3_000]),
            stream_bytes_resume=300,
            deliveries_max=self.rng.choice([2, 100]),
            recent_events_max=self.rng.choice([1, 10, 1000]),
            catch_up_bytes=self.rng.choice([100, 1_000]),
            catch_up_revisions=self.rng.choice([3, 1_000]),
            progress_seconds=5.0,
        )
        self.watched = Watched(path, limits)
        self.model = Model()
        self.clients: list[tuple[Client, dict[int, Watch]]] = []
        self.now = 0.0
        self.compacted_watches = 0
        self.delivered = 0

    async def step(self) -> None:
        self.now += 1.0
        action = self.rng.choices(
            [
                self.write,
                self.open,
                self.watch,
                self.stall,
                self.cancel,
                self.compact,
                self.sync,
                self.progress,
                self.leave,
            ],
            weights=[40, 4, 10, 8, 3, 2, 15, 6, 1],
        )[0]
        await action()
        self.watched.hub.tick(self.now)
        for client, watches in self.clients:
            if not client.sink.stuck:
                self.read(client, watches)

    async def write(self) -> None:
        requests = []
        for _ in range(self.rng.choice([1, 1, 2, 6])):
            keys = self.rng.sample(KEYS, self.rng.choice([1, 1, 3]))
            deletes = [k for k in keys if self.rng.random() < 0.3]
            puts = [(k, b"%d" % self.rng.randrange(10) * self.rng.choice([1, 60])) for k in keys if k not in deletes]
            ops = [pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=k)) for k in deletes]
            ops += [pb.RequestOp(request_put=pb.PutRequest(key=k, value=v)) for k, v in puts]
            requests.append(pb.TxnRequest(success=ops))
            self.model.change(puts, deletes)
        await self.watched.apply(*requests)
        assert self.watched.store.current_revision == self.model.revision

    async def open(self) -> None:
        if len(self.clients) < 6:
            self.clients.append((self.watched.client(), {}))

    async def watch(self) -> None:
        """Anew, or where an earlier one ended: at its last + 1."""
        if not self.clients:
            return
        client, watches = self.rng.choice(self.clients)
        key, range_end = self.rng.choice(RANGES)
        model = self.model
        start = self.rng.choice([0, 0, model.revision + self.rng.randrange(-20, 10), model.compacted])
        self.create(
            client,
            watches,
            pb.WatchCreateRequest(
                key=key,
                range_end=range_end,
                start_revision=max(start, 0),
                prev_kv=self.rng.random() < 0.5,
                fragment=self.rng.random() < 0.5,
                progress_notify=self.rng.random() < 0.5,
                filters=self.rng.choice(FILTERS),
            ),
        )

    def create(self, client: Client, watches: dict[int, Watch], request: pb.WatchCreateRequest) -> None:
        stuck, client.sink.stuck = client.sink.stuck, False
        self.read(client, watches)
        client.stream.create(request)
        [created, *rest] = client.take()
        assert created.created
        assert created.header.revision == self.model.revision
        assert not created.canceled
        watches[created.watch_id] = Watch(self.model, request, request.start_revision or self.model.revision + 1)
        for response in rest:
            self.answer(client, watches, response)
        client.sink.stuck = stuck

    async def stall(self) -> None:
        if self.clients:
            client, _ = self.rng.choice(self.clients)
            if client.sink.stuck:
                client.sink.release()
                client.stream.drained()
            else:
                client.sink.stuck = True
                client.sink._queued = 0

    async def cancel(self) -> None:
        """And resume, where the client would."""
        if not self.clients:
            return
        client, watches = self.rng.choice(self.clients)
        self.read(client, watches)
        if watches:
            watch_id = self.rng.choice(list(watches))
            watch = watches[watch_id]
            client.stream.cancel(watch_id)
            self.read(client, watches)
            assert watch_id not in watches
            if self.rng.random() < 0.7 and not watch.pieces:
                again = pb.WatchCreateRequest()
                again.CopyFrom(watch.request)
                again.start_revision = watch.next_revision
                self.create(client, watches, again)

    async def compact(self) -> None:
        revision = self.model.revision - self.rng.randrange(15)
        if revision > max(self.model.compacted, 1):
            await self.watched.compact(revision)
            self.model.compacted = revision

    async def sync(self) -> None:
        for _ in range(self.rng.choice([1, 1, 5])):
            await self.watched.hub.sync_unsynced()

    async def progress(self) -> None:
        if self.clients:
            self.rng.choice(self.clients)[0].stream.progress()

    async def leave(self) -> None:
        if self.clients:
            client, _ = self.clients.pop(self.rng.randrange(len(self.clients)))
            client.stream.close()

    def read(self, client: Client, watches: dict[int, Watch]) -> None:
        for response in client.take():
            self.answer(client, watches, response)

    def answer(self, client: Client, watches: dict[int, Watch], response: pb.WatchResponse) -> None:
        if response.watch_id == -1:
            for watch in watches.values():
                watch.got(response)
            return
        watch = watches[response.watch_id]
        if response.canceled:
            del watches[response.watch_id]
            if response.compact_revision:
                assert watch.next_revision < response.compact_revision <= self.model.compacted
                assert response.header.revision == 0
                self.compacted_watches += 1
            return
        self.delivered += len(response.events)
        watch.got(response)

    async def finish(self) -> None:
        """Everybody reads again: nothing may be missing in the end."""
        for client, watches in self.clients:
            client.sink.release()
            self.read(client, watches)
        await self.watched.sync()
        for client, watches in self.clients:
            self.read(client, watches)
            for watch in watches.values():
                assert not watch.pieces
                watch.passed(self.model.revision)
        assert self.watched.hub.unsynced_count == 0
        self.watched.close()


@pytest.mark.parametrize("seed", range(8))
async def test_watchers_get_what_they_are_owed(tmp_path: Path, seed: int) -> None:
    print(f"repro: pytest {__file__} -k '[{seed}]'")
    run = Run(tmp_path / "state", seed)
    for _ in range(700):
        await run.step()
    await run.finish()
    assert run.delivered > 500
    assert run.compacted_watches > 0 or run.model.compacted == 0
