"""Events and compaction (S-54, the store's part), and how a reader goes on."""

from pathlib import Path

from kvstore.mvcc.compaction import Compactor
from kvstore.mvcc.events import prev_kv, read_events
from kvstore.mvcc.hash import hash_kv
from kvstore.mvcc.range import range_
from kvstore.pb import rpc_pb2 as pb
from tests.kvstore.state.support import State


async def test_compaction_at_a_delete_keeps_its_event_and_hides_the_key(tmp_path: Path) -> None:
    """S-54: a watch that opens at the compact revision must still see the delete there."""
    state = State(tmp_path / "s")
    await state.put(b"k", b"1")  # 2
    await state.put(b"other")  # 3
    deleted = await state.delete(b"k")  # 4
    await state.put(b"k", b"2")  # 5
    await state.apply(pb.CompactionRequest(revision=deleted))
    compactor = Compactor(state.store)
    for _ in range(2):  # before and after the rows are gone
        events = await read_events(state.store, deleted, 99)
        assert [one.revision for one in events] == [4, 5]
        assert [event.is_delete for one in events for event in one.events] == [True, False]
        with state.store.view() as view:
            at = await range_(view, pb.RangeRequest(key=b"k", revision=deleted))
            assert at.count == 0
        assert prev_kv(state.store, b"k", deleted) is None  # revision 3 is compacted
        assert prev_kv(state.store, b"k", 5) is None  # absent
        assert prev_kv(state.store, b"other", 5) is not None
        await compactor.run()
    # History is all there, from before the compaction point too.
    assert [one.revision for one in await read_events(state.store, 0, 99)] == [2, 3, 4, 5]
    state.close()


async def test_compaction_of_many_versions_keeps_what_can_be_read(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    for n in range(300):
        await state.apply(*[pb.PutRequest(key=b"k%d" % (n % 3), value=b"%d" % n)])
    compactor = Compactor(state.store)
    await state.apply(pb.CompactionRequest(revision=100))
    with state.store.view() as view:
        answers = [
            (await range_(view, pb.RangeRequest(key=b"k", range_end=b"l", revision=revision))).kvs
            for revision in (100, 150, 301)
        ]
        hashed = await hash_kv(view, 0)
    assert compactor.pending
    await compactor.run()
    assert not compactor.pending
    assert compactor.removed == 96
    with state.store.view() as view:
        assert answers == [
            (await range_(view, pb.RangeRequest(key=b"k", range_end=b"l", revision=revision))).kvs
            for revision in (100, 150, 301)
        ]
        assert await hash_kv(view, 0) == hashed
    state.close()


async def test_a_reader_goes_on_behind_the_last_revision_until_nothing_comes(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    for n in range(20):
        txn = pb.TxnRequest()
        for key in (b"a", b"b", b"c"):
            txn.success.add().request_put.CopyFrom(pb.PutRequest(key=key, value=b"%d" % n))
        await state.apply(txn)
    everything = await read_events(state.store, 0, 99)
    assert everything == state.sinks.revisions
    low, found = 0, []
    while part := await read_events(state.store, low, 99, bytes_max=70):
        assert len(part) < 20
        assert all(len(one.events) == 3 for one in part)  # revisions stay whole
        found += part
        low = part[-1].revision + 1
    assert found == everything
    some = await read_events(state.store, 5, 7, key=b"b", range_end=b"c")
    assert [(one.revision, [event.key for event in one.events]) for one in some] == [
        (5, [b"b"]),
        (6, [b"b"]),
        (7, [b"b"]),
    ]
    assert await read_events(state.store, 0, 99, key=b"x", range_end=b"") == []
    state.close()


async def test_hashes_differ_where_states_do(tmp_path: Path) -> None:
    found = set()
    for which in range(4):
        state = State(tmp_path / str(which))
        await state.put(b"k", b"1")
        await state.put(b"k2", b"2" if which == 1 else b"1")
        if which == 2:
            await state.delete(b"k")
        if which == 3:
            await state.put(b"k", b"1")
        with state.store.view() as view:
            found.add((await hash_kv(view, 0))[0])
            # At revision 2 they were all alike.
            assert (await hash_kv(view, 2))[1:] == (0, 2)
        state.close()
    assert len(found) == 4
