"""Every service over a real socket. Expected answers were seen at a real etcd 3.5.1."""

import asyncio
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from kvstore import errors
from kvstore.pb import history_pb2, history_pb2_grpc
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.rpc_pb2_grpc import ClusterStub, KVStub, MaintenanceStub, WatchStub
from kvstore.rpc import make_channel
from kvstore.version import VERSION
from tests.kvstore.services.member import FakeServer, RunningMember

MALFORMED = b"\x0a\x7fabc"


class Peer:
    """A client's stubs, and the server behind them."""

    def __init__(self, server: FakeServer, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.channel = channel
        self.kv: Any = KVStub(channel)
        self.maintenance: Any = MaintenanceStub(channel)
        self.cluster: Any = ClusterStub(channel)
        self.watch: Any = WatchStub(channel)
        self.history: Any = history_pb2_grpc.HistoryStub(channel)

    async def put(self, key: bytes, value: bytes = b"v", **options: Any) -> pb.PutResponse:
        return await self.kv.Put(pb.PutRequest(key=key, value=value, **options))

    async def read(self, call: Any) -> pb.WatchResponse:
        response = await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(call.read())), 10)
        assert isinstance(response, pb.WatchResponse), "the stream has ended"
        return response


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    async with (
        RunningMember(tmp_path / "state", election_timeout=50, progress_seconds=0.2) as member,
        make_channel(member.url) as channel,
    ):
        yield Peer(member.server, channel)


async def refused(call: Any) -> errors.KvError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return errors.KvError(errors.Code(caught.value.code().value[0]), caught.value.details() or "")


def header(revision: int) -> pb.ResponseHeader:
    return pb.ResponseHeader(cluster_id=0xC1, member_id=0xA1, revision=revision, raft_term=5)


# KV


async def test_put_range_delete(peer: Peer) -> None:
    assert await peer.put(b"a", b"1") == pb.PutResponse(header=header(2))
    changed = await peer.put(b"a", b"2", prev_kv=True)
    assert (changed.header, changed.prev_kv.value) == (header(3), b"1")
    found = await peer.kv.Range(pb.RangeRequest(key=b"a"))
    assert (found.header, found.count, found.kvs[0].value, found.kvs[0].version) == (header(3), 1, b"2", 2)
    assert await peer.kv.Range(pb.RangeRequest(key=b"nope")) == pb.RangeResponse(header=header(3))
    deleted = await peer.kv.DeleteRange(pb.DeleteRangeRequest(key=b"a", prev_kv=True))
    assert (deleted.header, deleted.deleted, deleted.prev_kvs[0].value) == (header(4), 1, b"2")
    again = await peer.kv.DeleteRange(pb.DeleteRangeRequest(key=b"a"))
    assert (again.header, again.deleted) == (header(4), 0), "nothing changed, no revision"


async def test_range_stream(peer: Peer) -> None:
    peer.server.config.max_request_bytes = 100_000
    await asyncio.gather(*[peer.put(b"k%03d" % n, bytes(1000)) for n in range(300)])
    for request in (
        pb.RangeRequest(key=b"k", range_end=b"l", sort_order=pb.RangeRequest.ASCEND),
        pb.RangeRequest(key=b"k", range_end=b"l", limit=50, serializable=True),
        pb.RangeRequest(key=b"k001"),
    ):
        barriers = peer.server.barriers
        merged = pb.RangeStreamResponse()
        sizes = []
        async for one in peer.kv.RangeStream(request):
            assert not merged.range_response.HasField("header"), "the header comes last"
            merged.MergeFrom(one)
            sizes.append(one.ByteSize())
        assert merged.range_response == await peer.kv.Range(request)
        assert max(sizes) < 101_000 + 1000
        assert peer.server.barriers == barriers + (0 if request.serializable else 2)
    request = pb.RangeRequest(key=b"k", range_end=b"l", sort_order=pb.RangeRequest.DESCEND)
    error = await refused(peer.kv.RangeStream(request).read())
    assert error == errors.KvError(errors.Code.UNIMPLEMENTED, "RangeStream does not support custom sort orders")
    assert await refused(peer.kv.RangeStream(pb.RangeRequest()).read()) == errors.KEY_NOT_PROVIDED
    assert await refused(peer.kv.RangeStream(pb.RangeRequest(key=b"k", revision=999)).read()) == errors.FUTURE_REVISION


async def test_long_reads(peer: Peer) -> None:
    await asyncio.gather(*[peer.put(b"k%03d" % n) for n in range(300)])
    found = await peer.kv.Range(pb.RangeRequest(key=b"k", range_end=b"l"))
    assert (len(found.kvs), found.count, found.header.revision) == (300, 300, 301)
    old = await peer.kv.Range(pb.RangeRequest(key=b"k", range_end=b"l", revision=11, limit=3))
    assert (len(old.kvs), old.count, old.more) == (3, 10, True)
    assert old.header.revision == 301, "the revision read at, not the one asked for"
    descending = pb.RangeRequest(key=b"k", range_end=b"l", sort_order=pb.RangeRequest.DESCEND, limit=1)
    assert (await peer.kv.Range(descending)).kvs[0].key == b"k299"


async def test_txns(peer: Peer) -> None:
    put = pb.RequestOp(request_put=pb.PutRequest(key=b"k", value=b"1"))
    get = pb.RequestOp(request_range=pb.RangeRequest(key=b"k"))
    absent = pb.Compare(key=b"k", target=pb.Compare.CREATE, create_revision=0)
    answer = await peer.kv.Txn(pb.TxnRequest(compare=[absent], success=[put, get], failure=[get]))
    assert (answer.header, answer.succeeded) == (header(2), True)
    assert answer.responses[0].response_put.header == pb.ResponseHeader(revision=2), "nested: only the revision"
    entries = peer.server.entries
    read = await peer.kv.Txn(pb.TxnRequest(compare=[absent], success=[get], failure=[get]))
    assert (read.header, read.succeeded, read.responses[0].response_range.count) == (header(2), False, 1)
    assert peer.server.entries == entries, "a txn of ranges does not go through the log"
    assert (await peer.kv.Txn(pb.TxnRequest())).succeeded


async def test_wrong_requests_are_refused_before_they_are_proposed(peer: Peer) -> None:
    assert await refused(peer.kv.Put(pb.PutRequest())) == errors.KEY_NOT_PROVIDED
    assert await refused(peer.kv.Put(pb.PutRequest(key=b"k", value=b"v", ignore_value=True))) == errors.VALUE_PROVIDED
    assert await refused(peer.kv.Range(pb.RangeRequest())) == errors.KEY_NOT_PROVIDED
    assert await refused(peer.kv.Range(pb.RangeRequest(key=b"k", sort_order=9))) == errors.INVALID_SORT_OPTION
    many = [pb.RequestOp(request_range=pb.RangeRequest(key=b"k"))] * 129
    assert await refused(peer.kv.Txn(pb.TxnRequest(success=many))) == errors.TOO_MANY_OPS
    long_id = peer.kv.Put(pb.PutRequest(key=b"k"), metadata=[("request-id", "x" * 129)])
    assert (await refused(long_id)).code == errors.Code.INVALID_ARGUMENT
    assert peer.server.proposed == []


@pytest.mark.parametrize("method", ["Put", "Range", "DeleteRange", "Txn", "Compact"])
async def test_malformed_messages(peer: Peer, method: str) -> None:
    error = await refused(peer.channel.unary_unary(f"/etcdserverpb.KV/{method}")(MALFORMED))
    assert error == errors.MALFORMED


async def test_errors_of_the_state_and_of_the_log(peer: Peer) -> None:
    await peer.put(b"k")
    assert await refused(peer.kv.Range(pb.RangeRequest(key=b"k", revision=9))) == errors.FUTURE_REVISION
    assert await refused(peer.kv.Put(pb.PutRequest(key=b"no", ignore_value=True))) == errors.KEY_NOT_FOUND
    peer.server.write_error = errors.TOO_MANY_REQUESTS
    assert await refused(peer.put(b"k")) == errors.TOO_MANY_REQUESTS


async def test_reads_without_a_quorum(peer: Peer) -> None:
    """Linearizable ones fail with the barrier's error; serializable ones are local."""
    await peer.put(b"k")
    peer.server.read_error = errors.TIMEOUT
    assert await refused(peer.kv.Range(pb.RangeRequest(key=b"k"))) == errors.TIMEOUT
    assert (await peer.kv.Range(pb.RangeRequest(key=b"k", serializable=True))).count == 1
    local = pb.RequestOp(request_range=pb.RangeRequest(key=b"k", serializable=True))
    assert (await peer.kv.Txn(pb.TxnRequest(success=[local]))).responses[0].response_range.count == 1
    assert await refused(peer.cluster.MemberList(pb.MemberListRequest(linearizable=True))) == errors.TIMEOUT
    assert (await peer.cluster.MemberList(pb.MemberListRequest())).members[0].name == "m1"


@pytest.mark.parametrize("physical", [False, True])
async def test_compact(peer: Peer, physical: bool) -> None:
    for n in range(9):
        await peer.put(b"k", b"%d" % n)
    compact = pb.CompactionRequest(revision=8, physical=physical)
    answer = await peer.kv.Compact(compact, metadata=[("request-id", "tidy up")])
    assert answer == pb.CompactionResponse(header=header(10))
    assert peer.server.proposed[-1].request_id == "tidy up"
    if physical:
        assert peer.server.compactor.done_revision == 8
    assert await refused(peer.kv.Compact(pb.CompactionRequest(revision=8, physical=physical))) == errors.COMPACTED
    assert await refused(peer.kv.Compact(pb.CompactionRequest(revision=80))) == errors.FUTURE_REVISION
    assert await refused(peer.kv.Range(pb.RangeRequest(key=b"k", revision=7))) == errors.COMPACTED


# Watch


async def test_watch(peer: Peer) -> None:
    await peer.put(b"k", b"old")
    call = peer.watch.Watch()
    await call.write(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k", start_revision=2)))
    created = await peer.read(call)
    assert (created.header, created.created) == (header(2), True)
    past = await peer.read(call)
    await peer.put(b"k", b"new")
    live = await peer.read(call)
    assert [(e.kv.value, r.header.revision) for r in (past, live) for e in r.events] == [(b"old", 2), (b"new", 3)]
    await call.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
    assert (await peer.read(call)).watch_id == -1
    await call.write(pb.WatchRequest())
    await call.write(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=0)))
    assert (await peer.read(call)).canceled
    await call.write(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k")))
    assert (await peer.read(call)).created
    await call.done_writing()
    await peer.put(b"k", b"after it stopped asking")
    assert (await peer.read(call)).events[0].kv.mod_revision == 4
    call.cancel()
    while peer.server.hub.streams:
        await asyncio.sleep(0)


async def test_watch_progress_is_notified(peer: Peer) -> None:
    call = peer.watch.Watch()
    await call.write(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k", progress_notify=True)))
    assert (await peer.read(call)).created
    progress = await peer.read(call)
    assert (progress.watch_id, progress.header, len(progress.events)) == (0, header(1), 0)


async def test_a_malformed_watch_request_ends_the_stream(peer: Peer) -> None:
    call: Any = peer.channel.stream_stream("/etcdserverpb.Watch/Watch")()
    await call.write(b"\xff\xff")
    error = await refused(call.read())
    assert error.code == errors.Code.INTERNAL
    assert error.message == "grpc: failed to unmarshal the received message: malformed message"


async def test_streams_that_require_a_leader(peer: Peer) -> None:
    """S-57: ended when there has been none for three election timeouts, and refused at once while there is none."""
    call = peer.watch.Watch(metadata=[("hasleader", "true")])
    other = peer.watch.Watch()
    for stream in (call, other):
        await stream.write(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k")))
        assert (await peer.read(stream)).created
    peer.server.leader_id = 0
    assert await refused(call.read()) == errors.NO_LEADER
    again = peer.watch.Watch(metadata=[("hasleader", "true")])
    assert await refused(again.read()) == errors.NO_LEADER
    await peer.put(b"k")
    assert len((await peer.read(other)).events) == 1, "who did not ask goes on"


async def test_calls_that_require_a_leader(peer: Peer) -> None:
    """Of both kinds of handlers."""
    wanted = (("hasleader", "true"),)
    await peer.kv.Range(pb.RangeRequest(key=b"k"), metadata=wanted)
    peer.server.leader_id = 0
    assert await refused(peer.kv.Range(pb.RangeRequest(key=b"k"), metadata=wanted)) == errors.NO_LEADER
    assert await refused(peer.maintenance.Status(pb.StatusRequest(), metadata=wanted)) == errors.NO_LEADER
    await peer.kv.Range(pb.RangeRequest(key=b"k"), metadata=(("hasleader", "false"),))
    assert list((await peer.maintenance.Status(pb.StatusRequest())).errors) == ["etcdserver: no leader"]


async def test_a_reader_that_stops_reading_costs_its_budget_only(peer: Peer) -> None:
    slow, quick = peer.watch.Watch(), peer.watch.Watch()
    for stream in (slow, quick):
        await stream.write(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k")))
        assert (await peer.read(stream)).created
    for n in range(100):
        await peer.put(b"k", b"%03d" % n + b"x" * 100_000)
        assert (await peer.read(quick)).events[0].kv.value.startswith(b"%03d" % n)
    assert peer.server.hub.unsynced_count == 1
    got: list[bytes] = []
    while len(got) < 100:
        got += [event.kv.value[:3] for event in (await peer.read(slow)).events]
    assert got == [b"%03d" % n for n in range(100)]
    while peer.server.hub.unsynced_count:
        await asyncio.sleep(0)


# Maintenance, cluster, history, and what is not served


async def test_status(peer: Peer) -> None:
    await peer.put(b"k")
    status = await peer.maintenance.Status(pb.StatusRequest())
    assert (status.header, status.version, status.storageVersion) == (header(2), "3.6.0", "3.6.0")
    assert (status.leader, status.raftTerm, status.raftIndex, status.raftAppliedIndex) == (0xA1, 5, 1, 1)
    assert list(status.errors) == []
    peer.server.leader_id = 0
    assert list((await peer.maintenance.Status(pb.StatusRequest())).errors) == ["etcdserver: no leader"]


async def test_hash_kv(peer: Peer) -> None:
    for n in range(5):
        await peer.put(b"k", b"%d" % n)
    newest = await peer.maintenance.HashKV(pb.HashKVRequest())
    assert (newest.header, newest.hash_revision) == (header(6), 6)
    assert (await peer.maintenance.HashKV(pb.HashKVRequest(revision=6))).hash == newest.hash
    assert (await peer.maintenance.HashKV(pb.HashKVRequest(revision=3))).hash != newest.hash
    assert await refused(peer.maintenance.HashKV(pb.HashKVRequest(revision=7))) == errors.FUTURE_REVISION
    assert (await peer.maintenance.Hash(pb.HashRequest())).hash == newest.hash


async def test_maintenance_answers_as_etcd_does(peer: Peer) -> None:
    assert await peer.maintenance.Alarm(pb.AlarmRequest()) == pb.AlarmResponse(header=header(1))
    assert await peer.maintenance.Defragment(pb.DefragmentRequest()) == pb.DefragmentResponse()
    assert await peer.maintenance.MoveLeader(pb.MoveLeaderRequest(targetID=9)) == pb.MoveLeaderResponse()
    assert peer.server.moved_to == [9]


async def test_members_need_a_url(peer: Peer) -> None:
    for urls in ([], ["a:1"], ["http://a"], ["http://a:1", "http://b:1/"]):
        assert await refused(peer.cluster.MemberAdd(pb.MemberAddRequest(peerURLs=urls))) == errors.MEMBER_BAD_URLS
        update = pb.MemberUpdateRequest(ID=0xA1, peerURLs=urls)
        assert await refused(peer.cluster.MemberUpdate(update)) == errors.MEMBER_BAD_URLS
        update.ID = 1
        assert await refused(peer.cluster.MemberUpdate(update)) == errors.MEMBER_NOT_FOUND, "said first"


async def test_member_list_has_no_revision(peer: Peer) -> None:
    members = await peer.cluster.MemberList(pb.MemberListRequest(linearizable=True))
    assert members.header == header(0)
    assert members.members[0].ID == 0xA1


async def test_history(peer: Peer) -> None:
    await peer.kv.Put(pb.PutRequest(key=b"k", value=b"1"), metadata=[("request-id", "order 7")])
    await peer.put(b"k", b"2")
    await peer.kv.DeleteRange(pb.DeleteRangeRequest(key=b"k"))
    await peer.kv.Compact(pb.CompactionRequest(revision=4))
    changes = [
        change
        async for response in peer.history.Read(history_pb2.ReadHistoryRequest(key=b"k"))
        for change in response.changes
    ]
    assert [(c.event.type, c.event.kv.value, c.event.kv.mod_revision) for c in changes] == [
        (0, b"1", 2),
        (0, b"2", 3),
        (1, b"", 4),
    ]
    assert changes[0].request_id == "order 7"
    assert [c.time for c in changes] == sorted(c.time for c in changes)
    assert changes[0].member == 0xA1
    assert await refused(anext(aiter(peer.history.Read(history_pb2.ReadHistoryRequest())))) == errors.KEY_NOT_PROVIDED


def test_our_version_is_the_packages() -> None:
    with (Path(__file__).parents[3] / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == VERSION
