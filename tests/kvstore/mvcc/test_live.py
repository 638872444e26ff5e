"""What the quota counts, against a count of the rows."""

import random
from pathlib import Path

from kvstore.mvcc import live, schema, transaction
from kvstore.mvcc.live import MARK_BYTES, load_live
from kvstore.mvcc.store import MvccStore
from kvstore.pb import rpc_pb2 as pb
from tests.kvstore.state.support import State, live_bytes


async def test_the_official_recipe_frees_what_was_counted(tmp_path: Path) -> None:
    """One key put again and again fills the store; a compaction empties it, a delete alone does not."""
    state = State(tmp_path / "s")
    for _ in range(20):
        await state.put(b"key", b"v" * 50_000)
    assert 20 * 50_000 < state.store.live.total < 20 * 51_000
    full = state.store.live.total
    await state.delete(b"key")
    assert state.store.live.total > full
    await state.apply(pb.CompactionRequest(revision=state.store.current_revision))
    assert 0 <= state.store.live.total < 1000
    state.close()


async def test_a_compaction_of_an_older_revision(tmp_path: Path) -> None:
    """To within what one mark covers."""
    state = State(tmp_path / "s")
    revisions = [await state.put(b"key%d" % (at % 3), b"v" * 10_000) for at in range(100)]
    await state.apply(pb.CompactionRequest(revision=revisions[49]))
    exact = 50 * 10_000 + 3 * 10_000
    assert exact < state.store.live.total < exact + 2 * MARK_BYTES
    # None is older than the mark that was used, which only keeps what there is.
    before = state.store.live.total
    await state.apply(pb.CompactionRequest(revision=revisions[50]))
    assert before - 20_000 < state.store.live.total <= before + 1000
    marks = state.store.engine.scan(schema.META_LIVE + b"/", schema.LIVE_MARKS_END).rest()
    assert 5 <= len(marks) <= 12  # those of the compacted revisions are gone
    await state.store.flush()
    state.close()
    again = MvccStore.open(tmp_path / "s")
    assert again.live == state.store.live
    again.close()


async def test_every_way_to_change_a_key_is_counted(tmp_path: Path) -> None:
    """Random requests, big deletes and large revokes among them; after each, the sum is that of the rows."""
    was, transaction.BIG_DELETE = transaction.BIG_DELETE, 12
    rng = random.Random(5)
    state = State(tmp_path / "s")
    try:
        for lease in (1, 2, 3):
            await state.apply(pb.LeaseGrantRequest(ID=lease, TTL=60))
        for step in range(400):
            key = b"k%d" % rng.randrange(60)
            value = b"v" * rng.randrange(300)
            kind = rng.randrange(20)
            request: (
                pb.PutRequest | pb.DeleteRangeRequest | pb.TxnRequest | pb.LeaseRevokeRequest | pb.LeaseGrantRequest
            )
            if kind < 8:
                request = pb.PutRequest(key=key, value=value)
            elif kind < 13:
                request = pb.PutRequest(key=key, value=value, lease=rng.randrange(1, 4))
            elif kind < 15:
                request = pb.DeleteRangeRequest(key=key)
            elif kind < 16:
                request = pb.DeleteRangeRequest(key=b"k", range_end=b"k%d" % rng.randrange(9))
            elif kind < 18:
                ops = [pb.RequestOp(request_put=pb.PutRequest(key=b"t%d" % at, value=value)) for at in range(3)]
                request = pb.TxnRequest(success=ops)
            elif kind < 19:
                request = pb.LeaseRevokeRequest(ID=rng.randrange(1, 4))
            else:
                request = pb.LeaseGrantRequest(ID=rng.randrange(1, 4), TTL=60)
            await state.apply(request, *([pb.PutRequest(key=key)] if step % 3 else []))
            assert state.store.live.keys == live_bytes(state.store), (step, request)
        await state.apply(pb.CompactionRequest(revision=state.store.current_revision))
        assert state.store.live.total == live_bytes(state.store)
    finally:
        transaction.BIG_DELETE = was
        state.close()


async def test_a_store_of_before_is_measured_once(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    for at in range(10):
        await state.put(b"k%d" % at, b"v" * 100)
    batch = state.store.engine.batch()
    batch.delete(schema.META_LIVE)
    state.store.write(batch)
    assert load_live(state.store.engine).total == live_bytes(state.store)
    assert live.LiveBytes().total == 0
    state.close()
