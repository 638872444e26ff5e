"""The codec: everything that goes out comes back, and nothing that no correct peer sends comes in."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.codec import FRAME_BYTES_MAX, decode_batch, decode_hello, encode_batch, encode_hello, size_of
from raft.errors import MalformedMessage
from raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Forward,
    Heartbeat,
    HeartbeatResponse,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from raft.pb import peer_pb2 as pb
from raft.types import INDEX_MAX, Entry, EntryKind

ID_MAX = 2**64 - 1

ids = st.integers(1, ID_MAX)
numbers = st.integers(0, INDEX_MAX)
flags = st.booleans()


def fields(message: Message) -> dict[str, object]:
    return {"class": type(message), **{name: getattr(message, name) for name in type(message).__slots__}}


@st.composite
def appends(draw: st.DrawFn) -> AppendEntries:
    prev_index = draw(st.integers(0, 2**62))
    term = draw(st.integers(1, INDEX_MAX))
    prev_term = draw(st.integers(0, term))
    terms = sorted(draw(st.lists(st.integers(max(prev_term, 1), term), max_size=5)))
    entries = [
        Entry(prev_index + 1 + i, t, draw(st.binary(max_size=300)), draw(st.sampled_from(EntryKind)))
        for i, t in enumerate(terms)
    ]
    return AppendEntries(
        draw(ids), draw(ids), term, prev_index, prev_term, entries, draw(numbers), draw(numbers), draw(numbers)
    )


messages = st.one_of(
    st.builds(RequestVote, ids, ids, numbers, numbers, numbers, flags, flags),
    st.builds(RequestVoteResponse, ids, ids, numbers, flags, flags),
    appends(),
    st.builds(AppendEntriesResponse, ids, ids, numbers, numbers, flags, numbers, numbers, numbers),
    st.builds(Heartbeat, ids, ids, numbers, numbers, numbers, numbers, flags),
    st.builds(HeartbeatResponse, ids, ids, numbers, numbers),
    st.builds(ReadIndex, ids, ids, numbers, numbers),
    st.builds(ReadIndexResponse, ids, ids, numbers, numbers, numbers),
    st.builds(TimeoutNow, ids, ids, numbers),
    st.builds(Forward, ids, ids, numbers, st.lists(st.binary(max_size=300), max_size=4)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(messages, max_size=6))
def test_what_goes_out_comes_back_in_order(batch: list[Message]) -> None:
    frame = encode_batch(batch)
    assert [fields(message) for message in decode_batch(frame)] == [fields(message) for message in batch]
    assert len(frame) <= sum(size_of(message) for message in batch)


@settings(max_examples=100, deadline=None)
@given(appends())
def test_entries_have_the_wire_form_of_the_generated_class(message: AppendEntries) -> None:
    """They are put together by hand; other implementations of peer.proto must read them."""
    parsed = pb.MessageBatch.FromString(encode_batch([message]))
    assert pb.MessageBatch.FromString(parsed.SerializeToString()) == parsed
    body = parsed.messages[0].append_entries
    assert [(e.index, e.term, e.kind, e.data) for e in body.entries] == [
        (e.index, e.term, e.kind, e.data) for e in message.entries
    ]


def frame_of(**values: object) -> bytes:
    return pb.MessageBatch(messages=[pb.Message(**{"to": 1, "sender": 2, "term": 5, **values})]).SerializeToString()  # type: ignore[arg-type]


def append(*entries: pb.Entry, prev_index: int = 10, prev_term: int = 3) -> bytes:
    return frame_of(append_entries=pb.AppendEntries(prev_index=prev_index, prev_term=prev_term, entries=entries))


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        pytest.param(b"\xff\xff\xff", "not a MessageBatch", id="garbage"),
        pytest.param(frame_of(), "without a body", id="no body"),
        pytest.param(frame_of(to=0, timeout_now=pb.TimeoutNow()), "node ids", id="to nobody"),
        pytest.param(frame_of(sender=0, timeout_now=pb.TimeoutNow()), "node ids", id="from nobody"),
        pytest.param(frame_of(term=2**63, timeout_now=pb.TimeoutNow()), "term", id="term too large"),
        pytest.param(frame_of(heartbeat=pb.Heartbeat(commit=2**63)), "no index", id="commit too large"),
        pytest.param(append(pb.Entry(index=12, term=3)), "entry 12@3", id="gap after prev_index"),
        pytest.param(append(pb.Entry(index=11, term=3), pb.Entry(index=11, term=3)), "entry 11@3", id="twice"),
        pytest.param(append(pb.Entry(index=11, term=2)), "entry 11@2", id="term goes back"),
        pytest.param(append(pb.Entry(index=11, term=6)), "entry 11@6", id="entry of a later term"),
        pytest.param(append(pb.Entry(index=1, term=0), prev_index=0, prev_term=0), "entry 1@0", id="entry of term 0"),
        pytest.param(append(pb.Entry(index=11, term=3, kind=7)), "unknown kind", id="unknown kind"),  # type: ignore[arg-type]
        pytest.param(
            append(pb.Entry(index=2**63, term=3), prev_index=2**63 - 1), "no index", id="beyond the last index"
        ),
    ],
)
def test_malformed_messages_are_refused(frame: bytes, reason: str) -> None:
    with pytest.raises(MalformedMessage, match=reason):
        decode_batch(frame)


def test_a_frame_above_the_bound_is_not_even_parsed() -> None:
    with pytest.raises(MalformedMessage, match="bytes"):
        decode_batch(bytes(FRAME_BYTES_MAX + 1))


def test_random_damage_never_raises_anything_else() -> None:
    rng = random.Random(1)
    frame = encode_batch([AppendEntries(1, 2, 5, 10, 3, [Entry(11, 4, b"data")], 9), Heartbeat(1, 2, 5, 9)])
    refused = 0
    for _ in range(3000):
        damaged = bytearray(frame)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            decode_batch(bytes(damaged[: rng.randint(1, len(damaged))]))
        except MalformedMessage:
            refused += 1
    assert refused > 300


def test_hello() -> None:
    assert decode_hello(encode_hello(ID_MAX, 7, 9)) == (1, ID_MAX, 7, 9)
    with pytest.raises(MalformedMessage):
        decode_hello(b"\xff")
