"""Bugs that etcd once had, and what its clients silently rely on: each has a test here, or is looked up in TRAPS.

Numbers are etcd's issues. The table is checked: a test that is renamed or removed is missed here.
"""

import ast
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvstore import errors
from kvstore.mvcc.compaction import Compactor
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.rpc_pb2_grpc import KVStub, MaintenanceStub
from tests.e2e.cluster import Cluster
from tests.kvstore.mvcc.watching import Watched
from tests.kvstore.state.support import State, state_hash

HERE = "kvstore/test_traps.py"
TESTS = Path(__file__).parents[1]

TRAPS = {
    # Durability and consistency
    "#14370 a single member acknowledges before its fsync": [
        "e2e/test_failures.py::test_a_single_member_dies_and_keeps_what_it_acknowledged",
        "raft/test_durability.py::test_a_failed_fsync_ends_the_node_before_it_says_anything",
    ],
    "#13766 applied index and data out of step": [
        "kvstore/state/test_crash.py::test_after_a_kill_in_a_flush_the_applied_index_is_not_ahead_of_the_data"
    ],
    "#18667 #21432 a range at a compacted revision inside a txn": [f"{HERE}::test_a_compacted_range_in_a_txn"],
    "#14571 members diverge by what is their own": [
        "kvstore/state/test_determinism.py::test_three_members_agree_at_every_index"
    ],
    "#17780 the revision goes down after a crash in a compaction": [
        "kvstore/state/test_crash.py::test_compaction_cut_off_anywhere_changes_no_answer_and_ends_the_same"
    ],
    "#14685 a crash while it defragments": [f"{HERE}::test_killed_while_it_defragments"],
    "#18055 two snapshots asked for at once": ["kvstore/snapshot/test_save.py::test_so_many_at_once_and_no_more"],
    "#20418 a stale read after a pause": [
        "e2e/test_failures.py::test_a_leader_that_was_paused_does_not_answer_with_old_values"
    ],
    # Watch
    "#15220 #17507 #20271 progress before all have everything": [
        "kvstore/mvcc/test_watch.py::test_progress_is_for_everybody_on_the_stream",
        "kvstore/mvcc/test_watch.py::test_no_periodic_progress_for_a_watcher_that_lacks_events",
    ],
    "#20221 progress for a watch of the future": [
        "kvstore/mvcc/test_watch.py::test_no_progress_while_a_watch_begins_in_the_future"
    ],
    "#15271 a watch goes back in time": [
        "e2e/test_snapshots.py::test_a_paused_member_comes_back_by_snapshot_and_its_watch_goes_on",
        "kvstore/mvcc/test_watch_swap.py::test_progress_promises_nothing_that_was_not_delivered",
    ],
    "#17247 an event twice after a txn": [f"{HERE}::test_a_txn_is_delivered_once"],
    "#17529 events lost when it starves": [
        "kvstore/mvcc/test_watch.py::test_a_slow_watcher_overtaken_by_compaction_is_told_and_never_skips"
    ],
    "#18089 #19179 the delete at the compact revision": [
        "kvstore/mvcc/test_watch.py::test_the_delete_at_the_compaction_revision_is_seen"
    ],
    "all events of a revision in one response": [
        f"{HERE}::test_a_txn_is_delivered_once",
        "kvstore/mvcc/test_watch.py::test_a_large_revision_is_split_only_for_who_asked",
    ],
    "created before events; events is field 11; progress by hand has id -1": [f"{HERE}::test_a_watch_as_bytes"],
    "prev_kv is absent on a create": [
        "kvstore/mvcc/test_watch_prev_kv.py::test_prev_kv_of_a_key_that_changes_twice_in_one_revision"
    ],
    # Wire
    "one port: h2c, HTTP/1.1 and TLS": [
        "kvstore/rpc/test_http1.py::test_first_bytes_may_come_one_by_one_and_http2_stays",
        "e2e/test_tls.py::test_http_on_the_port_of_grpc",
    ],
    "pings each five seconds are allowed": [
        "kvstore/rpc/test_front.py::test_pings_without_calls_are_allowed_each_five_seconds"
    ],
    "max receive is max-request-bytes and 512 KiB": [f"{HERE}::test_how_large_a_request_may_be"],
    "/version has digits only": ["kvstore/gateway/test_gateway.py::test_health_version_and_what_is_not_there"],
    "int64 are JSON strings": ["kvstore/gateway/test_json.py::test_what_is_written"],
    "gateway errors have error, message and code": ["kvstore/gateway/test_json.py::test_errors_have_every_field"],
    "an empty store is at revision 1, and no change is no revision": [
        "kvstore/mvcc/test_store.py::test_an_empty_store_is_at_revision_1_and_stays_there_without_changes"
    ],
    "headers of Cluster have no revision": ["kvstore/services/test_services.py::test_member_list_has_no_revision"],
    "a snapshot is bbolt, with a SHA-256 behind it": ["kvstore/snapshot/test_save.py::test_the_stream_is_as_etcds"],
    "duplicate keys, also in the branch not taken": [
        "kvstore/state/test_checks.py::test_duplicate_keys_in_either_branch"
    ],
    "nested txns share the budget": [
        "kvstore/state/test_checks.py::test_the_operation_budget_is_shared_with_nested_txns"
    ],
    "all is validated before anything is applied": ["kvstore/state/test_applier.py::test_a_refused_txn_leaves_nothing"],
    "#16028 a restored cluster uses no revision again": [
        "e2e/test_snapshot_round_trip.py::test_a_revision_is_never_used_again"
    ],
}


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_has_its_test(trap: str) -> None:
    for test in TRAPS[trap]:
        file, _, name = test.partition("::")
        tree = ast.parse((TESTS / file).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in names, f"{test} is not there"


async def test_a_compacted_range_in_a_txn(tmp_path: Path) -> None:
    """Whatever a member has removed by then: all of them refuse it, or all of them answer the same."""
    members = [State(tmp_path / name) for name in "abc"]
    answers: list[list[Any]] = []
    for which, member in enumerate(members):
        for number in range(5):
            await member.put(b"k", b"%d" % number)
        await member.apply(pb.CompactionRequest(revision=4))
        if which == 1:
            await Compactor(member.store).run()
        if which == 2:
            await member.store.flush()
        answers.append([])
        for revision in (3, 4, 5, 99):
            ranged = pb.RequestOp(request_range=pb.RangeRequest(key=b"k", revision=revision))
            written = pb.RequestOp(request_put=pb.PutRequest(key=b"done", value=b"%d" % revision))
            [answer] = await member.apply(pb.TxnRequest(success=[written, ranged]))
            answers[-1].append(answer if isinstance(answer, errors.KvError) else (answer.revision, answer.body))
    assert answers[0][0] == errors.COMPACTED
    assert answers[0][3] == errors.FUTURE_REVISION
    assert [isinstance(answer, tuple) for answer in answers[0]] == [False, True, True, False]
    assert answers[0] == answers[1] == answers[2]
    assert len({state_hash(member.store) for member in members}) == 1
    for member in members:
        member.close()


async def test_a_txn_is_delivered_once(tmp_path: Path) -> None:
    """To who is there, to who catches up from memory or from the store, and to who goes on behind it."""
    watched = Watched(tmp_path / "s")
    live = watched.client()
    live.create(b"k", b"l")
    nested = pb.TxnRequest(success=[pb.RequestOp(request_put=pb.PutRequest(key=b"k3"))])
    keys = [pb.RequestOp(request_put=pb.PutRequest(key=key)) for key in (b"k1", b"k2")]
    await watched.put((b"k0", b""))
    await watched.apply(pb.TxnRequest(success=[*keys, pb.RequestOp(request_txn=nested)]))
    wanted = [(b"k0", 2), (b"k1", 3), (b"k2", 3), (b"k3", 3)]
    responses = live.take()
    assert [(event.kv.key, event.kv.mod_revision) for one in responses for event in one.events] == wanted
    assert [len(one.events) for one in responses] == [1, 3]
    for start, count in ((2, 4), (3, 3), (4, 0)):
        for anew in (False, True):
            if anew:
                watched.new_hub()
            late = watched.client()
            late.create(b"k", b"l", start_revision=start)
            await watched.sync()
            events = [(event.kv.key, event.kv.mod_revision) for one in late.take() for event in one.events]
            assert events == wanted[4 - count :]
    watched.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(1, tmp_path_factory.mktemp("one")) as running:
        yield running


def test_how_large_a_request_may_be(cluster: Cluster) -> None:
    """Above 1.5 MiB the server refuses it by name, above 512 KiB more gRPC does."""
    kv, limit = cluster.kv(), 1536 * 1024
    assert kv.Put(pb.PutRequest(key=b"k", value=bytes(limit - 200))).header.revision
    for size, code, text in (
        (limit, grpc.StatusCode.INVALID_ARGUMENT, errors.REQUEST_TOO_LARGE.message),
        (limit + 512 * 1024 - 20, grpc.StatusCode.INVALID_ARGUMENT, errors.REQUEST_TOO_LARGE.message),
        (limit + 512 * 1024, grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            kv.Put(pb.PutRequest(key=b"k", value=bytes(size)))
        error: Any = caught.value
        assert error.code() is code
        assert text in error.details()


def test_a_watch_as_bytes(cluster: Cluster) -> None:
    """Not by our own classes, which would be wrong on both ends: tag by tag."""
    with grpc.insecure_channel(cluster.members[0].target) as channel:
        revision = KVStub(channel).Put(pb.PutRequest(key=b"w", value=b"v")).header.revision
        create = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"w", start_revision=revision))
        synced, end = threading.Event(), threading.Event()

        def requests() -> Iterator[bytes]:
            yield create.SerializeToString()
            synced.wait()  # nobody is told of progress before
            yield pb.WatchRequest(progress_request=pb.WatchProgressRequest()).SerializeToString()
            end.wait()

        call = channel.stream_stream("/etcdserverpb.Watch/Watch")
        responses = call(requests(), timeout=20)
        found = [fields_of(next(responses)) for _ in range(2)]
        synced.set()
        found.append(fields_of(next(responses)))
        end.set()
        responses.cancel()
    assert found[0] == {1, 3}, "created: header and created alone"
    assert found[1] == {1, 11}, "events"
    assert found[2] == {1, 2}, "progress: header and watch id"


def fields_of(message: bytes) -> set[int]:
    """The numbers of the fields of an encoded message."""
    found, at = set(), 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        tag = varint()
        found.add(tag >> 3)
        size = varint()
        if tag & 7 == 2:
            at += size
    return found


def test_killed_while_it_defragments(tmp_path: Path) -> None:
    with Cluster(1, tmp_path) as running:
        [member] = running.members
        kv = running.kv()
        acknowledged = [kv.Put(pb.PutRequest(key=b"%03d" % n, value=bytes(10_000))).header.revision for n in range(200)]
        with grpc.insecure_channel(member.target) as channel:
            asked = [MaintenanceStub(channel).Defragment.future(pb.DefragmentRequest()) for _ in range(5)]
            member.kill()
            for one in asked:
                one.exception(20)
        member.start()
        member.wait_ready()
        found = running.kv().Range(pb.RangeRequest(key=b"0", range_end=b"9"))
        assert found.count == 200
        assert found.header.revision == acknowledged[-1]
