"""Watches on a member whose state jumps, because a snapshot took its place (S-52): no gap, nothing twice."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.mvcc.store import MvccStore, StoreOptions
from kvstore.mvcc.watch import WatchLimits
from kvstore.pb import rpc_pb2 as pb
from tests.kvstore.mvcc.watching import Client, Watched

EVERYTHING = b"\0", b"\0"


class Pair:
    """Two members that apply the same entries; the second one misses some and is given a snapshot of the first."""

    def __init__(self, path: Path, limits: WatchLimits | None = None) -> None:
        self._path = path
        self.leader = Watched(path / "leader")
        self.follower = Watched(path / "follower", limits)
        self.follower.store._options = StoreOptions(slice_ns=0)  # pauses whenever it can
        self._snapshots = 0

    async def put(self, *keys: bytes, both: bool = True) -> None:
        for key in keys:
            await self.leader.put((key, b"v"))
            if both:
                await self.follower.put((key, b"v"))

    async def compact(self, revision: int) -> None:
        await self.leader.compact(revision)

    def jump(self) -> None:
        self._snapshots += 1
        folder = self._path / f"snapshot-{self._snapshots}"
        self.leader.store.engine.checkpoint(folder)
        self.follower.store.swap(MvccStore.open(folder)).close()
        self.follower._sequence = self.leader._sequence

    def close(self) -> None:
        self.leader.close()
        self.follower.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    yield pair
    pair.close()


def revisions(responses: list[pb.WatchResponse]) -> list[int]:
    return [event.kv.mod_revision for response in responses for event in response.events]


def check_headers(responses: list[pb.WatchResponse]) -> None:
    found = [response.header.revision for response in responses if not response.canceled]
    assert found == sorted(found)
    for response in responses:
        assert all(event.kv.mod_revision <= response.header.revision for event in response.events)


async def test_a_synced_watch_gets_what_it_missed_and_then_goes_on(pair: Pair) -> None:
    client = pair.follower.client()
    client.create(*EVERYTHING)
    await pair.put(b"a", b"b")
    await pair.put(b"c", b"d", b"e", both=False)
    assert revisions(client.take()) == [2, 3]
    pair.jump()
    assert client.take() == []  # in slices, not while the state is swapped
    assert pair.follower.wakes
    await pair.follower.sync()
    await pair.put(b"f")
    got = client.take()
    assert revisions(got) == [4, 5, 6, 7]
    check_headers(got)
    assert pair.follower.hub.unsynced_count == 0


async def test_events_that_come_before_the_catch_up_are_not_lost(pair: Pair) -> None:
    client = pair.follower.client()
    client.create(*EVERYTHING)
    await pair.put(b"a", b"b", both=False)
    pair.jump()
    await pair.put(b"c")
    await pair.follower.sync()
    assert revisions(client.take()) == [2, 3, 4]


async def test_a_watch_from_the_future_sees_nothing_older(pair: Pair) -> None:
    """etcd#20221"""
    clients = [pair.follower.client() for _ in range(3)]
    for client, start in zip(clients, (4, 6, 8), strict=True):
        client.create(*EVERYTHING, start_revision=start)
    await pair.put(b"a")
    await pair.put(b"b", b"c", b"d", b"e", both=False)  # up to revision 6
    pair.jump()
    await pair.follower.sync()
    await pair.put(b"f", b"g")
    assert [revisions(client.take()) for client in clients] == [[4, 5, 6, 7, 8], [6, 7, 8], [8]]


async def test_what_is_compacted_is_told_and_not_skipped(pair: Pair) -> None:
    """S-53: a client that would miss events must list again."""
    behind, ahead = pair.follower.client(), pair.follower.client()
    behind.create(*EVERYTHING)
    ahead.create(*EVERYTHING, start_revision=6)
    await pair.put(b"a")
    await pair.put(b"b", b"c", b"d", b"e", both=False)
    await pair.compact(5)
    behind.take()
    pair.jump()
    await pair.follower.sync()
    (canceled,) = behind.take()
    assert (canceled.canceled, canceled.compact_revision) == (True, 5)
    assert revisions(ahead.take()) == [6]


async def test_progress_promises_nothing_that_was_not_delivered(pair: Pair) -> None:
    client = pair.follower.client()
    client.create(*EVERYTHING)
    await pair.put(b"a", b"b", both=False)
    pair.jump()
    client.stream.progress()
    assert client.take() == []
    await pair.follower.sync()
    client.stream.progress()
    *events, progress = client.take()
    assert revisions(events) == [2, 3]
    assert (progress.watch_id, progress.header.revision) == (-1, 3)


async def test_a_snapshot_that_changes_no_key_leaves_watches_alone(pair: Pair) -> None:
    client = pair.follower.client()
    client.create(*EVERYTHING)
    await pair.put(b"a")
    client.take()
    await pair.compact(2)
    pair.jump()
    assert pair.follower.hub.unsynced_count == 0
    await pair.put(b"b")
    assert revisions(client.take()) == [3]


async def test_a_jump_in_the_middle_of_a_catch_up(tmp_path: Path) -> None:
    limits = WatchLimits(recent_events_max=1, catch_up_bytes=50, catch_up_revisions=3)
    pair = Pair(tmp_path, limits)
    await pair.put(*[b"k%d" % number for number in range(20)])
    client = pair.follower.client()
    client.create(*EVERYTHING, start_revision=2, prev_kv=True)
    await pair.put(*[b"k%d" % number for number in range(20)], both=False)
    syncing = asyncio.create_task(pair.follower.sync())
    for _ in range(4):
        await asyncio.sleep(0)
    assert pair.follower.hub.unsynced_count == 1
    pair.jump()
    await syncing
    await pair.follower.sync()
    await pair.put(b"last")
    got = client.take()
    assert revisions(got) == list(range(2, 43))
    check_headers(got)
    pair.close()


@pytest.mark.parametrize("seed", range(12))
async def test_random_jumps(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    limits = WatchLimits(recent_events_max=4, catch_up_bytes=200, catch_up_revisions=5, deliveries_max=3)
    pair = Pair(tmp_path, limits)
    watches: list[tuple[Client, int]] = []
    got: dict[Client, list[pb.WatchResponse]] = {}
    syncing = asyncio.create_task(pair.follower.hub.sync_unsynced())
    for _ in range(60):
        action = rng.random()
        if action < 0.5:
            apart = pair.leader.store.applied_index > pair.follower.store.applied_index
            await pair.put(b"k%d" % rng.randrange(5), both=not apart and rng.random() < 0.7)
        elif action < 0.65:
            if pair.leader.store.applied_index > pair.follower.store.applied_index:
                pair.jump()
        elif action < 0.8:
            client = pair.follower.client()
            start = rng.randrange(1, pair.follower.store.current_revision + 6)
            client.create(*EVERYTHING, start_revision=start)
            watches.append((client, start))
            got[client] = []
        else:
            await syncing
            syncing = asyncio.create_task(pair.follower.hub.sync_unsynced())
            for _ in range(rng.randrange(9)):
                await asyncio.sleep(0)
        for client, _ in watches:
            got[client] += client.take()
    if pair.leader.store.applied_index > pair.follower.store.applied_index:
        pair.jump()
    await syncing
    await pair.follower.sync()
    last = pair.follower.store.current_revision
    for client, start in watches:
        responses = got[client] + client.take()
        assert revisions(responses) == list(range(max(start, 2), last + 1))
        check_headers(responses)
    pair.close()
