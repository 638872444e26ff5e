"""prev_kv: what a key was at the revision before its event, wherever the event is read from."""

from pathlib import Path

from kvstore.pb import rpc_pb2 as pb
from tests.kvstore.mvcc.watching import Watched


async def test_prev_kv_of_a_key_that_changes_twice_in_one_revision(tmp_path: Path) -> None:
    """It is of the revision before, and a creation has none; live, from memory and from the store alike."""
    watched = Watched(tmp_path / "s")
    await watched.put((b"a", b"1"))
    live = watched.client()
    live.create(b"a", prev_kv=True)
    delete = pb.DeleteRangeRequest(key=b"a", range_end=b"\0")
    nested_put, nested_delete = pb.TxnRequest(), pb.TxnRequest()
    nested_put.success.add().request_put.CopyFrom(pb.PutRequest(key=b"a", value=b"2"))
    nested_delete.success.add().request_delete_range.CopyFrom(pb.DeleteRangeRequest(key=b"a"))
    txn = pb.TxnRequest()
    txn.success.add().request_delete_range.CopyFrom(delete)
    txn.success.add().request_txn.CopyFrom(nested_put)
    txn.success.add().request_txn.CopyFrom(nested_delete)
    await watched.apply(txn)
    memory = watched.client()
    memory.create(b"a", prev_kv=True, start_revision=3)
    await watched.sync()
    watched.new_hub()
    stored = watched.client()
    stored.create(b"a", prev_kv=True, start_revision=3)
    await watched.sync()
    for client in (live, memory, stored):
        (response,) = client.take()
        assert [event.prev_kv.value for event in response.events] == [b"1", b"", b"1"]
    watched.close()


async def test_what_was_before_the_compact_revision_is_not_shown(tmp_path: Path) -> None:
    """Nor where memory still has it: members must not differ by what they remember."""
    watched = Watched(tmp_path / "s")
    await watched.put((b"a", b"1"), (b"a", b"2"), (b"a", b"3"))
    await watched.compact(3)
    memory = watched.client()
    memory.create(b"a", prev_kv=True, start_revision=3)
    await watched.sync()
    watched.new_hub()
    stored = watched.client()
    stored.create(b"a", prev_kv=True, start_revision=3)
    await watched.sync()
    for client in (memory, stored):
        (response,) = client.take()
        assert [event.prev_kv.value for event in response.events] == [b"", b"2"]
    watched.close()
