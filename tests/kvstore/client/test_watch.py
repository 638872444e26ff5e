"""Watches over a scripted member: what is resumed, from where, and what is never seen twice."""

# ruff: noqa: SIM117 - the client stands on a line of its own below its members

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from kvstore.client import Client, WatchResponse, errors
from kvstore.client.watch import BUFFERED_EVENTS_MAX
from kvstore.pb import kv_pb2, rpc_pb2
from tests.kvstore.client.clusters import Cluster
from tests.kvstore.client.fake import FakeMember


def event(revision: int, key: bytes = b"k") -> kv_pb2.Event:
    return kv_pb2.Event(kv=kv_pb2.KeyValue(key=key, mod_revision=revision, version=1))


def response(watch_id: int, *revisions: int, at: int = 0, **fields: Any) -> rpc_pb2.WatchResponse:
    header = rpc_pb2.ResponseHeader(revision=at or (revisions[-1] if revisions else 0))
    return rpc_pb2.WatchResponse(header=header, watch_id=watch_id, events=[event(r) for r in revisions], **fields)


async def create(requests: Any, context: Any, watch_id: int, at: int = 1) -> rpc_pb2.WatchCreateRequest:
    request = await anext(aiter(requests))
    await context.write(response(watch_id, at=at, created=True))
    assert request.HasField("create_request"), request
    created: rpc_pb2.WatchCreateRequest = request.create_request
    return created


def revisions(*responses: WatchResponse) -> list[int]:
    return [event.kv.mod_revision for response in responses for event in response.events]


def scripted(*streams: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """One script per stream, in order; each ends its stream as Unavailable."""
    left = list(streams)

    async def watch(member: FakeMember, requests: Any, context: Any) -> None:
        await left.pop(0)(requests, context)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")

    return watch


async def test_resumes_behind_the_last_revision_on_another_member() -> None:
    starts = []

    async def first(requests: Any, context: Any) -> None:
        starts.append((await create(requests, context, 0, at=6)).start_revision)
        await context.write(response(0, 7, 7, 8))

    async def second(requests: Any, context: Any) -> None:
        starts.append((await create(requests, context, 3, at=20)).start_revision)
        # A member may well begin too early; what was delivered does not come again.
        await context.write(response(3, 8, 9, 10))
        await asyncio.Event().wait()

    async with FakeMember(watch=scripted(first)) as a, FakeMember(watch=scripted(second)) as b:
        async with Client([a.url, b.url]) as client, client.watch("k") as watch:
            assert watch.next_revision == 7
            assert revisions(await anext(watch)) == [7, 7, 8]
            assert revisions(await anext(watch)) == [9, 10]
    assert starts == [0, 9]


async def test_a_watch_without_events_resumes_where_it_was_created() -> None:
    starts = []

    async def first(requests: Any, context: Any) -> None:
        await create(requests, context, 0, at=41)

    async def second(requests: Any, context: Any) -> None:
        await create(requests, context, 0, at=60)
        await context.write(response(0, at=70))

    async def third(requests: Any, context: Any) -> None:
        starts.append((await create(requests, context, 0, at=80)).start_revision)
        await context.write(response(0, 71))
        await asyncio.Event().wait()

    async with FakeMember(watch=scripted(first, second, third)) as member, Client([member.url]) as client:
        async with client.watch("k", progress_notify=True) as watch:
            progress = await anext(watch)
            assert (progress.is_progress, progress.header.revision) == (True, 70)
            assert revisions(await anext(watch)) == [71]
    assert starts == [71]


async def test_a_revision_in_fragments_comes_whole_or_again() -> None:
    starts = []

    async def first(requests: Any, context: Any) -> None:
        assert (await create(requests, context, 0, at=1)).fragment
        await context.write(response(0, 5, fragment=True))
        await context.write(response(0, 5))
        await context.write(response(0, 6, fragment=True))

    async def second(requests: Any, context: Any) -> None:
        starts.append((await create(requests, context, 0, at=9)).start_revision)
        await context.write(response(0, 6, 6))
        await asyncio.Event().wait()

    async with FakeMember(watch=scripted(first, second)) as member, Client([member.url]) as client:
        async with client.watch("k") as watch:
            assert revisions(await anext(watch)) == [5, 5]
            assert revisions(await anext(watch)) == [6, 6]
    assert starts == [6]


async def test_compaction_is_an_error_that_says_from_where_to_go_on() -> None:
    async def stream(requests: Any, context: Any) -> None:
        await create(requests, context, 0)
        await context.write(response(0, canceled=True, compact_revision=12))
        await asyncio.Event().wait()

    async with FakeMember(watch=scripted(stream)) as member, Client([member.url]) as client:
        async with client.watch("k", start_revision=3) as watch:
            with pytest.raises(errors.Compacted) as caught:
                await anext(watch)
    assert caught.value.compact_revision == 12
    assert member.watch_streams == 1


async def test_a_refused_watch_says_why() -> None:
    async def stream(requests: Any, context: Any) -> None:
        await anext(aiter(requests))
        await context.write(response(-1, created=True, canceled=True, cancel_reason="etcdserver: permission denied"))
        await asyncio.Event().wait()

    async with FakeMember(watch=scripted(stream)) as member, Client([member.url]) as client:
        async with client.watch("k") as watch:
            with pytest.raises(errors.WatchCanceled, match="permission denied"):
                await anext(watch)


async def test_a_reader_that_does_not_read_is_cut_off_and_resumed() -> None:
    last = BUFFERED_EVENTS_MAX + 10
    seen: dict[str, Any] = {}

    async def stream(requests: Any, context: Any) -> None:
        await create(requests, context, 7, at=0)
        await context.write(response(7, *range(1, last + 1)))
        await context.write(response(7, last + 1))
        seen["cancel"] = (await anext(aiter(requests))).cancel_request.watch_id
        # Sent before the cancel was seen: it comes again after the resume.
        await context.write(response(7, last + 2))
        seen["resumed at"] = (await create(requests, context, 8, at=last + 2)).start_revision
        await context.write(response(8, last + 1, last + 2))
        await asyncio.Event().wait()

    async with FakeMember(watch=scripted(stream)) as member, Client([member.url]) as client:
        async with client.watch("k", start_revision=1) as watch:
            got = revisions(await anext(watch), await anext(watch))
    assert got == list(range(1, last + 3))
    assert seen == {"cancel": 7, "resumed at": last + 1}
    assert member.watch_streams == 1


async def test_watches_share_one_stream_and_are_told_apart() -> None:
    async def stream(requests: Any, context: Any) -> None:
        await create(requests, context, 0)
        await create(requests, context, 1)
        await context.write(response(1, 2))
        await context.write(response(0, 3))
        assert (await anext(aiter(requests))).cancel_request.watch_id == 1
        await context.write(response(0, 4))
        await asyncio.Event().wait()

    async with FakeMember(watch=scripted(stream)) as member, Client([member.url]) as client, client.watch("a") as a:
        async with client.watch("b") as b:
            assert revisions(await anext(b)) == [2]
        assert revisions(await anext(a), await anext(a)) == [3, 4]
    assert member.watch_streams == 1


async def test_no_loss_and_nothing_twice_while_members_are_killed(cluster: Cluster) -> None:
    """Each member in turn is killed with -9 and started again, under writes; the watch sees what the log has."""
    async with Client(cluster.endpoints) as client, Client(cluster.endpoints) as writer:
        header = (await writer.put("w/start", "")).header
        done = asyncio.Event()

        async def write() -> None:
            number = 0
            while not done.is_set():
                number += 1
                try:
                    await writer.put(f"w/{number % 7}", str(number), timeout=2.0)
                except errors.Unavailable:
                    continue

        async with client.watch("w/", prefix=True, start_revision=header.revision + 1) as watch:
            writing = asyncio.create_task(write())
            for number in range(len(cluster.members)):
                await asyncio.to_thread(cluster.kill, number)
                await asyncio.sleep(0.3)
                cluster.start_member(number)
                await asyncio.to_thread(cluster.wait_ready)
            done.set()
            await writing
            last = (await writer.put("w/end", "")).header.revision
            seen = []
            async for item in watch.events():
                seen.append((item.kv.mod_revision, item.kv.key))
                if item.kv.mod_revision == last:
                    break
    # Every revision since is a put below w/: one event each, in order, none missing.
    assert [revision for revision, _ in seen] == list(range(header.revision + 1, last + 1))
