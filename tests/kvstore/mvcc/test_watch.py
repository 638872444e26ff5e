"""Watch, rule by rule. What is expected of single answers was seen at a real etcd 3.5.1."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.mvcc.compaction import Compactor
from kvstore.mvcc.watch import WatchLimits
from kvstore.pb import kv_pb2
from kvstore.pb import rpc_pb2 as pb
from tests.kvstore.mvcc.watching import Client, Watched

PUT, DELETE = kv_pb2.Event.PUT, kv_pb2.Event.DELETE


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path / "state")
    yield watched
    watched.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Watched]:
    """Every limit within a test's reach."""
    limits = WatchLimits(
        response_bytes_max=400,
        stream_bytes_max=2_000,
        stream_bytes_resume=500,
        watches_per_stream_max=5,
        deliveries_max=3,
        recent_events_max=4,
        catch_up_bytes=300,
        catch_up_revisions=7,
        progress_seconds=10.0,
    )
    watched = Watched(tmp_path / "state", limits)
    yield watched
    watched.close()


def seen(responses: list[pb.WatchResponse]) -> list[tuple[int, bytes, int]]:
    """(watch id, key, mod revision) of every event."""
    return [(r.watch_id, e.kv.key, e.kv.mod_revision) for r in responses for e in r.events]


# Creation


def test_created_comes_first_with_the_revision_of_the_store(watched: Watched) -> None:
    created = watched.client().create(b"k")
    assert created == pb.WatchResponse(
        header=pb.ResponseHeader(cluster_id=1, member_id=2, revision=1, raft_term=3), created=True
    )


def test_ids_count_from_0_and_skip_those_in_use(watched: Watched) -> None:
    client = watched.client()
    got = [client.create(b"k", watch_id=n).watch_id for n in (0, 0, 3, 0, 0, 0, -5)]
    assert got == [0, 1, 3, 2, 4, 5, -5]


def test_a_duplicate_id_is_refused_and_the_stream_goes_on(watched: Watched) -> None:
    client = watched.client()
    client.create(b"k", watch_id=3)
    refused = client.create(b"k", watch_id=3)
    assert (refused.watch_id, refused.created, refused.canceled) == (-1, True, True)
    assert refused.cancel_reason == "mvcc: duplicate watch ID provided on the WatchStream"
    assert client.create(b"k").watch_id == 0


@pytest.mark.parametrize("range_end", [b"a", b"b"])
def test_an_empty_range_is_refused(watched: Watched, range_end: bytes) -> None:
    answer = watched.client().create(b"b", range_end)
    assert (answer.watch_id, answer.canceled, answer.cancel_reason) == (-1, True, "mvcc: watcher range is empty")
    assert watched.hub.watcher_count == 0


def test_a_negative_start_revision_is_refused(watched: Watched) -> None:
    refused = watched.client().create(b"k", start_revision=-1)
    assert (refused.watch_id, refused.canceled) == (-1, True)
    assert refused.cancel_reason == "etcdserver: mvcc: required revision has been compacted"


def test_a_stream_has_room_for_so_many_watches(small: Watched) -> None:
    client = small.client()
    answers = [client.create(b"k").canceled for _ in range(6)]
    assert answers == [False] * 5 + [True]


# Live events


@pytest.mark.parametrize(
    ("key", "range_end", "expected"),
    [
        (b"a", b"", [b"a"]),
        (b"", b"\0", [b"a", b"ab", b"b", b"b\xff", b"\xff\xff"]),
        (b"\0", b"\0", [b"a", b"ab", b"b", b"b\xff", b"\xff\xff"]),
        (b"a", b"b", [b"a", b"ab"]),
        (b"a", b"\0", [b"a", b"ab", b"b", b"b\xff", b"\xff\xff"]),
        (b"b", b"c", [b"b", b"b\xff"]),
        (b"b\xff", b"c", [b"b\xff"]),
        (b"ab", b"bz", [b"ab", b"b"]),
        (b"\xff", b"\0", [b"\xff\xff"]),
        (b"c", b"\0", [b"\xff\xff"]),
        (b"abc", b"abd", []),
        (b"", b"", []),
    ],
)
async def test_a_watch_sees_its_range(watched: Watched, key: bytes, range_end: bytes, expected: list[bytes]) -> None:
    live, late = watched.client(), watched.client()
    live.create(key, range_end)
    await watched.put(*[(k, b"v") for k in (b"a", b"ab", b"b", b"b\xff", b"\xff\xff")])
    late.create(key, range_end, start_revision=1)
    await watched.sync()
    assert [k for _, k, _ in seen(live.take())] == expected
    assert [k for _, k, _ in seen(late.take())] == expected


async def test_an_event_is_what_etcd_sends(watched: Watched) -> None:
    client = watched.client()
    client.create(b"k", prev_kv=True)
    await watched.put((b"k", b"1"))
    await watched.put((b"k", b"2"))
    await watched.apply(pb.DeleteRangeRequest(key=b"k"))
    put, change, delete = client.take()
    first = kv_pb2.KeyValue(key=b"k", create_revision=2, mod_revision=2, version=1, value=b"1")
    second = kv_pb2.KeyValue(key=b"k", create_revision=2, mod_revision=3, version=2, value=b"2")
    assert list(put.events) == [kv_pb2.Event(kv=first)], "no prev_kv of a creation"
    assert list(change.events) == [kv_pb2.Event(kv=second, prev_kv=first)]
    gone = kv_pb2.KeyValue(key=b"k", mod_revision=4)
    assert list(delete.events) == [kv_pb2.Event(type=DELETE, kv=gone, prev_kv=second)]
    assert [r.header.revision for r in (put, change, delete)] == [2, 3, 4]


async def test_one_response_per_watcher_and_batch(watched: Watched) -> None:
    """Its header names the last revision in it, whatever else the batch changed."""
    client = watched.client()
    client.create(b"a")
    client.create(b"", b"\0")
    await watched.put((b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"c", b"1"))
    first, second = client.take()
    assert (first.watch_id, first.header.revision, seen([first])) == (0, 4, [(0, b"a", 2), (0, b"a", 4)])
    assert (second.watch_id, second.header.revision, len(second.events)) == (1, 5, 4)


async def test_filters(watched: Watched) -> None:
    client = watched.client()
    client.create(b"k", filters=[pb.WatchCreateRequest.NOPUT])
    client.create(b"k", filters=[pb.WatchCreateRequest.NODELETE])
    client.create(b"k", filters=[pb.WatchCreateRequest.NOPUT, pb.WatchCreateRequest.NODELETE, 7])
    await watched.put((b"k", b"1"))
    await watched.apply(pb.DeleteRangeRequest(key=b"k"))
    assert [(r.watch_id, [e.type for e in r.events]) for r in client.take()] == [(1, [PUT]), (0, [DELETE])]
    late = watched.client()
    late.create(b"k", filters=[pb.WatchCreateRequest.NOPUT], start_revision=1)
    await watched.sync()
    assert seen(late.take()) == [(0, b"k", 3)]


async def test_several_watches_of_one_stream_and_several_streams(watched: Watched) -> None:
    clients = [watched.client() for _ in range(3)]
    for client in clients:
        for _ in range(4):
            client.create(b"k")
    await watched.put((b"k", b"v"))
    for client in clients:
        assert seen(client.take()) == [(n, b"k", 2) for n in range(4)]


async def test_a_future_start_revision_is_silent_until_then(watched: Watched) -> None:
    """S-52: neither older events nor progress."""
    client = watched.client()
    client.create(b"k", start_revision=4, progress_notify=True)
    await watched.put((b"k", b"1"))
    await watched.put((b"k", b"2"), (b"k", b"3"), (b"k", b"4"))
    assert seen(client.take()) == [(0, b"k", 4), (0, b"k", 5)]


# The past


async def test_a_start_revision_in_the_past_replays(watched: Watched) -> None:
    for n in range(5):
        await watched.put((b"k%d" % (n % 2), b"%d" % n))
    await watched.apply(pb.DeleteRangeRequest(key=b"k", range_end=b"l"))
    client = watched.client()
    client.create(b"k", b"l", start_revision=3, prev_kv=True)
    assert client.take() == [], "created first, events from the task"
    assert watched.wakes == 1
    await watched.sync()
    [response] = client.take()
    assert seen([response]) == [(0, b"k%d" % n, r) for n, r in ((1, 3), (0, 4), (1, 5), (0, 6), (0, 7), (1, 7))]
    assert [e.prev_kv.mod_revision for e in response.events] == [0, 2, 3, 4, 6, 5]
    assert response.header.revision == 7
    await watched.put((b"k9", b"live"))
    assert seen(client.take()) == [(0, b"k9", 8)]


async def test_catch_up_from_the_store_goes_in_slices(small: Watched) -> None:
    """A restarted member has nothing in memory; each slice is bounded in bytes and in revisions."""
    await small.put(*[(b"k%02d" % (n % 3), b"x" * 50) for n in range(40)])
    client = small.client()
    client.create(b"k00", start_revision=2, prev_kv=True)
    await small.hub.sync_unsynced()
    assert small.hub.unsynced_count == 1, "one slice is not all"
    await small.sync()
    responses = client.take()
    assert seen(responses) == [(0, b"k00", 2 + n) for n in range(0, 40, 3)]
    assert [e.prev_kv.mod_revision for r in responses for e in r.events] == [0, *range(2, 2 + 37, 3)]
    assert all(r.header.revision == r.events[-1].kv.mod_revision for r in responses)
    assert max(r.ByteSize() for r in responses) <= 400
    assert small.hub.unsynced_count == 0


async def test_catch_up_after_a_restart_reads_the_store(watched: Watched) -> None:
    await watched.put(*[(b"k", b"%d" % n) for n in range(9)])
    watched.new_hub()
    client = watched.client()
    client.create(b"k", start_revision=5)
    await watched.put((b"k", b"live"))
    await watched.sync()
    assert [r for _, _, r in seen(client.take())] == [5, 6, 7, 8, 9, 10, 11]


async def test_catch_up_ends_although_writes_go_on(small: Watched) -> None:
    await small.put(*[(b"k", b"%d" % n) for n in range(30)])
    client = small.client()
    client.create(b"k", start_revision=2)
    for _ in range(40):
        await small.hub.sync_unsynced()
        if not small.hub.unsynced_count:
            break
        await small.put((b"k", b"more"))
    assert small.hub.unsynced_count == 0
    got = [r for _, _, r in seen(client.take())]
    assert got == list(range(2, small.hub.revision + 1))


async def test_a_big_delete_is_read_back(watched: Watched) -> None:
    """Its events are never one hand-over; watchers get them whole and in one response all the same."""
    await watched.put((b"other", b""))
    count = 10_050
    for at in range(0, count, 3_350):
        ops = [pb.RequestOp(request_put=pb.PutRequest(key=b"k%05d" % n)) for n in range(at, at + 3_350)]
        await watched.apply(pb.TxnRequest(success=ops))
    client = watched.client()
    client.create(b"k", b"l")
    client.create(b"other")
    await watched.apply(pb.DeleteRangeRequest(key=b"k", range_end=b"l"))
    assert watched.hub.unsynced_count == 2
    await watched.put((b"k", b"after"))
    await watched.sync()
    [response] = client.take()
    assert [e.kv.key for e in response.events] == [b"k%05d" % n for n in range(count)] + [b"k"]
    assert {e.kv.mod_revision for e in response.events} == {6, 7}
    assert watched.hub.unsynced_count == 0


# Compaction


async def test_a_compacted_start_is_told_after_created(watched: Watched) -> None:
    await watched.put(*[(b"k", b"%d" % n) for n in range(9)])
    await watched.compact(8)
    client = watched.client()
    client.stream.create(pb.WatchCreateRequest(key=b"k", start_revision=7))
    created, canceled = client.take()
    assert created.created
    assert not created.canceled
    assert (canceled.watch_id, canceled.canceled, canceled.compact_revision) == (0, True, 8)
    assert canceled.header.revision == 0
    assert client.create(b"k", start_revision=8).watch_id == 1
    await watched.sync()
    assert seen(client.take()) == [(1, b"k", 8), (1, b"k", 9), (1, b"k", 10)]


async def test_the_delete_at_the_compaction_revision_is_seen(watched: Watched) -> None:
    """S-54 (etcd#18089, #19179): compacted exactly at a delete, watched from there, also after the removal."""
    await watched.put((b"k", b"1"), (b"other", b"1"))
    await watched.apply(pb.DeleteRangeRequest(key=b"k"))
    await watched.put((b"other", b"2"))
    await watched.compact(4)
    await Compactor(watched.store).run()
    watched.new_hub()
    client = watched.client()
    client.create(b"", b"\0", start_revision=4, prev_kv=True)
    await watched.sync()
    [response] = client.take()
    assert [(e.type, e.kv.key) for e in response.events] == [(DELETE, b"k"), (PUT, b"other")]
    assert not response.events[0].HasField("prev_kv"), "what was before is compacted"


async def test_a_slow_watcher_overtaken_by_compaction_is_told_and_never_skips(small: Watched) -> None:
    """S-53 (etcd#17529)."""
    slow, quick = small.client(), small.client()
    slow.create(b"k")
    quick.create(b"k")
    slow.sink.stuck = True
    for n in range(40):
        await small.put((b"k", b"x" * 100 + b"%d" % n))
    before = seen(slow.take())
    assert [r for _, _, r in before] == list(range(2, 2 + len(before)))
    assert len(before) < 40
    await small.compact(41)
    await small.sync()
    assert slow.take() == [], "nothing more while it is stuck"
    slow.sink.release()
    await small.sync()
    [canceled] = slow.take()
    assert (canceled.canceled, canceled.compact_revision) == (True, 41)
    assert [r for _, _, r in seen(quick.take())] == list(range(2, 42))


# Slow streams


async def test_a_slow_stream_is_cut_off_and_caught_up(small: Watched) -> None:
    slow = small.client()
    slow.create(b"k")
    slow.sink.stuck = True
    for _ in range(60):
        await small.put((b"k", b"x" * 100))
    assert slow.sink.queued_bytes < 2_000 + 400, "a budget and one response"
    assert small.hub.unsynced_count == 1
    slow.sink.release()
    slow.stream.drained()
    assert small.wakes >= 2
    await small.sync()
    assert [r for _, _, r in seen(slow.take())] == list(range(2, 62))


async def test_a_batch_with_too_many_takers_is_finished_by_catch_up(small: Watched) -> None:
    clients = [small.client() for _ in range(8)]
    for client in clients:
        client.create(b"k")
    await small.put((b"k", b"v"))
    assert small.hub.unsynced_count == 5
    assert small.wakes == 5
    await small.sync()
    assert [seen(client.take()) for client in clients] == [[(0, b"k", 2)]] * 8


# Fragments


async def test_a_large_revision_is_split_only_for_who_asked(small: Watched) -> None:
    client = small.client()
    client.create(b"", b"\0", fragment=True)
    client.create(b"", b"\0")
    ops = [pb.RequestOp(request_put=pb.PutRequest(key=b"%d" % n, value=b"x" * 100)) for n in range(6)]
    await small.apply(pb.TxnRequest(success=ops))
    await small.sync()
    responses = client.take()
    pieces = [r for r in responses if r.watch_id == 0]
    assert [r.fragment for r in pieces] == [True] * (len(pieces) - 1) + [False]
    assert len(pieces) == 3
    assert max(r.ByteSize() for r in pieces) <= 400
    assert [e.kv.key for r in pieces for e in r.events] == [b"%d" % n for n in range(6)]
    [whole] = [r for r in responses if r.watch_id == 1]
    assert len(whole.events) == 6


async def test_a_single_event_is_never_split(small: Watched) -> None:
    client = small.client()
    client.create(b"k", fragment=True)
    await small.put((b"k", b"x" * 1000))
    [response] = client.take()
    assert not response.fragment
    assert len(response.events[0].kv.value) == 1000


# Cancel and close


async def test_cancel(watched: Watched) -> None:
    """S-56: unknown ids are silent, ids are not given again, what was queued before stays before."""
    client = watched.client()
    client.create(b"k")
    client.stream.cancel(9)
    assert client.take() == []
    await watched.put((b"k", b"1"))
    client.stream.cancel(0)
    client.stream.cancel(0)
    event, canceled = client.take()
    assert seen([event]) == [(0, b"k", 2)]
    assert (canceled.watch_id, canceled.canceled, canceled.header.revision) == (0, True, 2)
    await watched.put((b"k", b"2"))
    assert client.take() == []
    assert client.create(b"k").watch_id == 1


async def test_cancel_while_it_is_caught_up(small: Watched) -> None:
    await small.put(*[(b"k", b"%d" % n) for n in range(20)])
    client = small.client()
    client.create(b"k", start_revision=2)
    await small.hub.sync_unsynced()
    client.stream.cancel(0)
    assert client.take()[-1].canceled
    await small.sync()
    assert client.take() == []
    assert small.hub.unsynced_count == 0


async def test_nothing_is_left_of_closed_streams(watched: Watched) -> None:
    """S-56 (etcd#20067): ten thousand opened and closed, synced and not."""
    await watched.put((b"k", b"1"))
    for n in range(10_000):
        client = watched.client()
        client.create(b"k%d" % (n % 7), b"l" if n % 3 else b"", start_revision=n % 2)
        client.stream.close()
    hub = watched.hub
    assert (hub.watcher_count, hub.unsynced_count, len(hub.streams)) == (0, 0, 0)
    assert hub._index.groups() == []
    assert hub._index._prefixes == {}


# Progress


async def test_progress_is_for_everybody_on_the_stream(watched: Watched) -> None:
    """S-55 (etcd#15220): only when all watchers have everything, and with what they have."""
    client = watched.client()
    client.create(b"k")
    await watched.put((b"k", b"1"), (b"other", b"1"))
    client.stream.progress()
    event, progress = client.take()
    assert seen([event]) == [(0, b"k", 2)]
    assert (progress.watch_id, progress.header.revision, len(progress.events)) == (-1, 3, 0)
    client.create(b"k", start_revision=2)
    client.stream.progress()
    assert client.take() == [], "one of two still lacks events"
    await watched.sync()
    client.stream.progress()
    event, progress = client.take()
    assert (event.watch_id, progress.watch_id) == (1, -1)


async def test_progress_of_a_stream_without_watches(watched: Watched) -> None:
    client = watched.client()
    client.stream.progress()
    [progress] = client.take()
    assert (progress.watch_id, progress.header.revision) == (-1, 1)


async def test_no_progress_while_a_watch_begins_in_the_future(watched: Watched) -> None:
    """etcd#20221."""
    client = watched.client()
    client.create(b"k", start_revision=4)
    client.stream.progress()
    assert client.take() == []
    await watched.put((b"x", b"1"), (b"x", b"2"))
    client.stream.progress()
    assert [r.header.revision for r in client.take()] == [3], "it begins with the next one"


async def test_periodic_progress(small: Watched) -> None:
    """For those that asked, are synced, and saw no event since the last time (etcd#17566: idle ones do get it)."""
    client = small.client()
    client.create(b"k", progress_notify=True)
    client.create(b"k")
    client.create(b"idle", progress_notify=True)
    client.create(b"idle", progress_notify=True, start_revision=1000)
    small.hub.tick(100.0)
    small.hub.tick(109.0)
    assert client.take() == []
    await small.put((b"k", b"1"))
    client.take()
    small.hub.tick(110.0)
    assert [(r.watch_id, r.header.revision, len(r.events)) for r in client.take()] == [(2, 2, 0)]
    small.hub.tick(119.9)
    assert client.take() == []
    small.hub.tick(120.0)
    assert [(r.watch_id, r.header.revision) for r in client.take()] == [(0, 2), (2, 2)]


async def test_no_periodic_progress_for_a_watcher_that_lacks_events(small: Watched) -> None:
    await small.put((b"k", b"1"))
    client: Client = small.client()
    small.hub.tick(1.0)
    client.create(b"k", progress_notify=True, start_revision=2)
    small.hub.tick(20.0)
    assert client.take() == []
