"""Bytes written by hand are protobuf's own."""

from hypothesis import example, given
from hypothesis import strategies as st

from kvstore.mvcc import encoding
from kvstore.pb import kv_pb2
from kvstore.pb import rpc_pb2 as pb

numbers = st.one_of(st.integers(1, 300), st.integers(1, 2**63 - 1))
blobs = st.one_of(st.binary(max_size=3), st.binary(min_size=120, max_size=140))


@given(st.integers(0, 2**64 - 1))
@example(127)
@example(128)
@example(2**14 - 1)
@example(2**14)
@example(2**21 - 1)
@example(2**21)
def test_varint(n: int) -> None:
    assert encoding.varint(n) == pb.ResponseHeader(cluster_id=n).SerializeToString()[1:] or n == 0


@given(blobs.filter(bool), numbers, numbers, numbers, blobs, st.integers(0, 2**62))
def test_key_value_and_events(key: bytes, create: int, mod: int, version: int, value: bytes, lease: int) -> None:
    message = kv_pb2.KeyValue(
        key=key, create_revision=create, mod_revision=mod, version=version, value=value, lease=lease
    )
    kv = encoding.key_value(key, encoding.varint(create), encoding.varint(mod), version, value, lease)
    assert kv == message.SerializeToString()
    assert encoding.key_of(kv) == key
    put = encoding.put_event(kv)
    assert put == kv_pb2.Event(kv=message).SerializeToString()
    assert (encoding.event_key(put), encoding.event_kv(put), encoding.is_delete(put)) == (key, kv, False)
    gone = kv_pb2.KeyValue(key=key, mod_revision=mod)
    delete = encoding.delete_event(key, encoding.varint(mod))
    assert delete == kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=gone).SerializeToString()
    assert (encoding.event_key(delete), encoding.is_delete(delete)) == (key, True)
    message.ClearField("value")
    assert encoding.without_value(kv) == message.SerializeToString()


def test_range_body() -> None:
    kvs = [kv_pb2.KeyValue(key=b"k", value=b"v" * size) for size in (0, 200)]
    answer = pb.RangeResponse(kvs=kvs, more=True, count=300)
    assert encoding.range_body([kv.SerializeToString() for kv in kvs], 300, True) == answer.SerializeToString()
    assert encoding.range_body([], 0, False) == b""
