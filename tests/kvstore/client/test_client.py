"""The client's calls over a real cluster."""

import pytest

from kvstore.client import Client, errors, txn
from kvstore.client.types import GetResult, PutResult, TxnResult, prefix_end
from tests.kvstore.client.clusters import Cluster


async def test_put_get_delete_with_every_range(cluster: Cluster) -> None:
    async with Client(cluster.endpoints) as client:
        for key in ("r/a", "r/b", "r/c"):
            await client.put(key, key[-1])
        put = await client.put("r/b", b"\xff\x00", prev_kv=True)
        assert put.prev_kv is not None
        assert put.prev_kv.value == b"b"
        assert (await client.get("r/b")).value == b"\xff\x00"
        assert (await client.get("r/b", revision=put.header.revision - 1)).value == b"b"
        assert (await client.get("r/none")).value is None
        found = await client.get("r/", prefix=True, limit=2, sort_by="key", order="descend")
        assert [kv.key for kv in found.kvs] == [b"r/c", b"r/b"]
        assert (found.more, found.count) == (True, 3)
        assert [kv.key for kv in (await client.get("r/a", "r/c", keys_only=True)).kvs] == [b"r/a", b"r/b"]
        assert (await client.get("r/b", from_key=True, count_only=True, serializable=True)).count >= 2
        assert (await client.get("", prefix=True, count_only=True)).count >= 3
        deleted = await client.delete("r/", prefix=True, prev_kv=True)
        assert (deleted.deleted, [kv.key for kv in deleted.prev_kvs]) == (3, [b"r/a", b"r/b", b"r/c"])


async def test_txn_compares_nests_and_takes_one_branch(cluster: Cluster) -> None:
    """All compares, nested ones too, see the state before the txn; operations see those before them."""
    async with Client(cluster.endpoints) as client:
        revision = (await client.put("t/a", "1")).header.revision
        holds = [
            txn.value("t/a").equals("1"),
            txn.value("t/a").not_equals("2"),
            txn.version("t/a").greater(0),
            txn.mod_revision("t/a").equals(revision),
            txn.create_revision("t/a").less(revision + 1),
            txn.lease("t/a").equals(0),
            txn.create_revision("t/", prefix=True).greater(0),
        ]
        result = await client.txn(
            holds, [txn.put("t/b", "2"), txn.txn([txn.version("t/b").equals(0)], [txn.get("t/b")])], [txn.get("t/a")]
        )
        assert result.succeeded
        assert isinstance(result.responses[0], PutResult)
        nested = result.responses[1]
        assert isinstance(nested, TxnResult)
        got = nested.responses[0]
        assert isinstance(got, GetResult)
        assert got.value == b"2"
        result = await client.txn([txn.value("t/a").greater("1")], [], [txn.delete("t/", prefix=True)])
        assert not result.succeeded
        with pytest.raises(errors.InvalidRequest, match="duplicate key"):
            await client.txn(then=[txn.put("t/x", "1"), txn.put("t/x", "2")])


async def test_compaction_and_revisions_have_their_errors(cluster: Cluster) -> None:
    async with Client(cluster.endpoints) as client:
        revision = 0
        for number in range(3):
            revision = (await client.put("c/k", str(number))).header.revision
        await client.compact(revision)
        with pytest.raises(errors.Compacted):
            await client.get("c/k", revision=revision - 1)
        with pytest.raises(errors.FutureRevision):
            await client.get("c/k", revision=revision + 1000)
        async with client.watch("c/k", start_revision=1) as watch:
            with pytest.raises(errors.Compacted) as caught:
                await anext(watch)
        assert caught.value.compact_revision == revision
        with pytest.raises(errors.KeyNotFound):
            await client.put("c/none", ignore_value=True)
        with pytest.raises(errors.RequestTooLarge):
            await client.put("c/big", b"x" * (1536 * 1024 + 1))


async def test_watches_deliver_in_order_with_previous_values(cluster: Cluster) -> None:
    async with (
        Client(cluster.endpoints) as client,
        client.watch("w", prefix=True, prev_kv=True) as everything,
        client.watch("w1", only="DELETE") as deletes,
    ):
        await client.put("w1", "a")
        await client.put("w1", "b")
        await client.delete("w1")
        events = []
        async for event in everything.events():
            events.append((event.type, event.kv.value, event.prev_kv and event.prev_kv.value))
            if event.type == "DELETE":
                break
        assert events == [("PUT", b"a", None), ("PUT", b"b", b"a"), ("DELETE", b"", b"b")]
        assert [event.type for event in (await anext(deletes)).events] == ["DELETE"]


async def test_the_cluster_describes_itself(cluster: Cluster) -> None:
    async with Client(cluster.endpoints) as client:
        await client.put("s/k", "v")
        members = (await client.member_list()).members
        assert len(members) == len({member.id for member in members}) == 3
        statuses = [await client.status(endpoint) for endpoint in cluster.endpoints]
        assert {status.header.member_id for status in statuses} == {member.id for member in members}
        assert sum(status.is_leader for status in statuses) == 1
        revision = (await client.get("s/k")).header.revision
        for endpoint in cluster.endpoints:
            await client.get("s/k", timeout=5.0)
            async with Client([endpoint]) as one:
                await one.get("s/k")  # linearizable: this member has applied up to the revision now
        hashes = {(await client.hash_kv(endpoint, revision=revision)).hash for endpoint in cluster.endpoints}
        assert len(hashes) == 1
        assert (await client.alarms()).alarms == ()


async def test_history_goes_back_behind_the_compaction(cluster: Cluster) -> None:
    if cluster.kind == "etcd":
        pytest.skip("etcd has no history")
    async with Client(cluster.endpoints) as client:
        first = (await client.put("h/a", "1")).header.revision
        await client.put("h/b", "2")
        await client.delete("h/a")
        last = (await client.put("h/a", "3")).header.revision
        await client.compact(last)
        changes = [change async for change in client.history("h/", prefix=True)]
        assert [(c.event.type, c.event.kv.key, c.event.kv.value) for c in changes] == [
            ("PUT", b"h/a", b"1"),
            ("PUT", b"h/b", b"2"),
            ("DELETE", b"h/a", b""),
            ("PUT", b"h/a", b"3"),
        ]
        assert [c.revision for c in changes] == list(range(first, last + 1))
        assert changes == sorted(changes, key=lambda change: change.time_ns)
        assert {c.member_id for c in changes} <= {m.id for m in (await client.member_list()).members}
        some = [c async for c in client.history("h/a", from_revision=first + 1, limit=1)]
        assert [c.revision for c in some] == [first + 2]
        assert [c.revision async for c in client.history("h/a", to_revision=first)] == [first]


def test_the_end_of_a_prefix() -> None:
    assert prefix_end(b"a") == b"b"
    assert prefix_end(b"a\xff\xff") == b"b"
    assert prefix_end(b"\xff") == b"\0"
    assert prefix_end(b"") == b"\0"


async def test_a_range_of_any_size_at_one_revision(cluster: Cluster) -> None:
    async with Client(cluster.endpoints) as client:
        for number in range(40):
            await client.put(f"s/{number:02}", "old")
        stream = client.get_stream("s/", prefix=True, limit=35)
        if cluster.kind == "etcd":
            with pytest.raises(errors.ClientError):  # 3.5 has no such method
                await anext(stream)
            return
        found = [await anext(stream)]
        await client.put("s/39", "new")
        await client.delete("s/20")
        found += [kv async for kv in stream]
        assert [(kv.key, kv.value) for kv in found] == [(b"s/%02d" % number, b"old") for number in range(35)]
        assert [kv.key async for kv in client.get_stream("s/38", from_key=True, keys_only=True)][:2] == [
            b"s/38",
            b"s/39",
        ]
