"""Requests made of bytes are what the generated code reads, and responses are judged as it would."""

import pytest

from bench.messages import VALUE_BYTES, Keys, fields
from bench.soak import KEYS, PREFIX, mixed
from bench.streams import after, events_in
from kvstore.pb import kv_pb2
from kvstore.pb import rpc_pb2 as pb


@pytest.mark.parametrize("size", [1, VALUE_BYTES, 64 << 10, 1 << 20])
def test_puts_are_of_new_keys_and_of_the_size_asked_for(size: int) -> None:
    keys = Keys()
    put = keys.put(size)
    found = [pb.PutRequest.FromString(put.message()) for _ in range(3)]
    assert [request.key for request in found] == [keys.key(number) for number in range(3)]
    assert {len(request.value) for request in found} == {size}
    assert put.writes == 1


def test_values_of_neighbours_differ() -> None:
    put = Keys().put()
    assert len({pb.PutRequest.FromString(put.message()).value for _ in range(4000)}) == 4000


def test_gets_are_of_keys_that_were_put() -> None:
    keys = Keys()
    put, get, serializable = keys.put(), keys.get(), keys.get(serializable=True)
    written = {pb.PutRequest.FromString(put.message()).key for _ in range(5000)}
    for operation, flag in ((get, False), (serializable, True)):
        requests = [pb.RangeRequest.FromString(operation.message()) for _ in range(1000)]
        assert {request.key for request in requests} <= written
        assert {request.serializable for request in requests} == {flag}
    assert get.right(pb.RangeResponse(kvs=[kv_pb2.KeyValue(value=b"v" * VALUE_BYTES)]).SerializeToString())
    assert not get.right(pb.RangeResponse(header=pb.ResponseHeader(revision=9)).SerializeToString())


def test_a_txn_puts_if_the_key_was_never_put() -> None:
    keys = Keys()
    txn = keys.txn()
    request = pb.TxnRequest.FromString(txn.message())
    [compare], [operation] = request.compare, request.success
    assert (compare.result, compare.target, compare.key) == (pb.Compare.EQUAL, pb.Compare.VERSION, keys.key(0))
    assert compare.WhichOneof("target_union") == "version"
    assert compare.version == 0
    assert operation.request_put.key == keys.key(0)
    assert len(operation.request_put.value) == VALUE_BYTES
    header = pb.ResponseHeader(cluster_id=2**64 - 1, member_id=2**63, revision=10**9, raft_term=3)
    assert txn.right(pb.TxnResponse(header=header, succeeded=True).SerializeToString())
    assert not txn.right(pb.TxnResponse(header=header).SerializeToString())


def test_a_range_names_keys_that_follow_one_another() -> None:
    keys = Keys()
    put = keys.put()
    for _ in range(5000):
        put.message()
    some = keys.range(1000)
    for _ in range(100):
        request = pb.RangeRequest.FromString(some.message())
        first, end = (int(key.removeprefix(keys.prefix)) for key in (request.key, request.range_end))
        assert end - first == 1000
        assert end <= keys.count
    full = [kv_pb2.KeyValue(key=keys.key(number), value=b"v" * VALUE_BYTES, version=1) for number in range(1000)]
    assert some.right(pb.RangeResponse(kvs=full, count=1000).SerializeToString())
    assert not some.right(pb.RangeResponse(kvs=full[:999], count=999).SerializeToString())
    assert not some.right(pb.RangeResponse(kvs=full[:100], count=1000, more=True).SerializeToString())


def test_a_total_must_be_exact() -> None:
    total = Keys(b"bench/").total(1_000_000)
    request = pb.RangeRequest.FromString(total.message())
    assert (request.key, request.range_end, request.count_only) == (b"bench/", b"bench0", True)
    header = pb.ResponseHeader(revision=1_000_001)
    assert total.right(pb.RangeResponse(header=header, count=1_000_000).SerializeToString())
    assert not total.right(pb.RangeResponse(header=header, count=999_999).SerializeToString())


def test_fields_of_a_message() -> None:
    message = pb.RangeRequest(key=b"a" * 300, limit=1 << 40).SerializeToString()
    assert fields(message) == [(1, b"a" * 300), (3, 1 << 40)]


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_events_are_counted(count: int) -> None:
    header = pb.ResponseHeader(cluster_id=2**64 - 1, revision=2**40)
    response = pb.WatchResponse(header=header, watch_id=300)
    for number in range(count):
        response.events.add(kv=kv_pb2.KeyValue(key=b"k", value=b"Z" * number))
    assert events_in(response.SerializeToString()) == count


def test_the_end_of_a_prefix() -> None:
    assert after(b"a/") == b"a0"


def test_the_soak_mixes_calls_that_are_what_they_claim() -> None:
    pick, kinds, reads = mixed(), set(), set()
    for _ in range(300):
        operation = pick()
        message = operation.message()
        if operation.path.endswith("Put"):
            key = pb.PutRequest.FromString(message).key
        elif operation.path.endswith("Txn"):
            request = pb.TxnRequest.FromString(message)
            key = request.compare[0].key
            assert (request.compare[0].result, request.compare[0].version) == (pb.Compare.GREATER, -1)
        else:
            asked = pb.RangeRequest.FromString(message)
            key = asked.key
            reads.add((asked.serializable, asked.limit))
        kinds.add(operation.path)
        assert 0 <= int(key.removeprefix(PREFIX)) < KEYS
    assert reads == {(False, 0), (True, 0), (False, 100)}
    assert len(kinds) == 3
