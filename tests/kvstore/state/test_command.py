"""Entries' bytes: what protobuf would write, and clear refusals of what it would not."""

import pytest

from kvstore.pb.command_pb2 import Request, RequestBatch
from kvstore.pb.rpc_pb2 import PutRequest, TxnRequest
from kvstore.state.command import (
    MalformedBatch,
    Op,
    UnknownFormat,
    UnknownRequest,
    decode_batch,
    encode_batch,
    encode_request,
)


def test_the_bytes_are_those_of_the_messages() -> None:
    put = PutRequest(key=b"k", value=b"v" * 300)
    request = Request(member=2**64 - 1, boot=3, sequence=300, user="u", auth_revision=9, request_id="r", put=put)
    encoded = encode_request(Op.PUT, put.SerializeToString(), 2**64 - 1, 3, 300, "u", 9, "r")
    assert encoded == request.SerializeToString()
    other = encode_request(Op.TXN, b"", 1, 1, 1)
    assert Request.FromString(other) == Request(member=1, boot=1, sequence=1, txn=TxnRequest())
    batch = RequestBatch(format=1, time=10**18, requests=[request, Request.FromString(other)])
    assert encode_batch(10**18, [encoded, other]) == batch.SerializeToString()
    assert decode_batch(encode_batch(0, [encoded])) == RequestBatch(format=1, requests=[request])


def test_fields_of_a_newer_client_pass_through_untouched() -> None:
    raw = PutRequest(key=b"k").SerializeToString() + b"\xf8\x3f\x07"  # field 1023
    assert raw in encode_request(Op.PUT, raw, 1, 1, 1)
    decoded = decode_batch(encode_batch(1, [encode_request(Op.PUT, raw, 1, 1, 1)]))
    assert decoded.requests[0].put.SerializeToString() == raw


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (RequestBatch(format=2).SerializeToString(), UnknownFormat),
        (b"\x08\x02\x1a\xff\xff\xff", UnknownFormat),  # newer, and shaped otherwise
        (b"", UnknownFormat),
        (b"\xff\xff\xff", MalformedBatch),
        (b"\x08\x01\x1a\x05\x00", MalformedBatch),
        (RequestBatch(format=1, requests=[Request(member=1)]).SerializeToString(), UnknownRequest),
        (b"\x08\x01\x1a\x03\xba\x06\x00", UnknownRequest),  # an op of field 103
    ],
)
def test_what_is_not_ours_is_refused(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        decode_batch(data)
