"""A range in chunks: put together it is the range, whatever happens between two chunks."""

from pathlib import Path
from random import Random

import pytest

from kvstore import errors
from kvstore.errors import KvError
from kvstore.mvcc.range import range_
from kvstore.mvcc.range_stream import RangeChunk, check_range_stream, range_stream
from kvstore.pb import rpc_pb2 as pb
from tests.kvstore.state.support import State

CHUNK = 4000  # bytes


async def chunks_of(state: State, request: pb.RangeRequest) -> list[RangeChunk]:
    return [chunk async for chunk in range_stream(state.store, request, CHUNK)]


async def test_chunks_are_the_range(tmp_path: Path) -> None:
    state, random = State(tmp_path / "s"), Random(5)
    keys = [b"k%03d" % n for n in range(300)]
    await state.apply(
        *[pb.PutRequest(key=key, value=random.randbytes(random.choice([0, 9, 90, 2500]))) for key in keys]
    )
    await state.apply(pb.DeleteRangeRequest(key=b"k100", range_end=b"k105"), pb.PutRequest(key=b"z", value=b"v"))
    ranges = [
        (b"k", b"l"),
        (b"k05", b"k06"),
        (b"k299", b""),
        (b"none", b""),
        (b"l", b"a"),
        (b"\0", b"\0"),
        (b"k0", b"\0"),
    ]
    for key, range_end in ranges:
        for limit in (-1, 0, 1, 9, 10, 11, 15, 30, 295, 296, 1000):
            for revision in (0, 250, state.store.current_revision):
                for options in ({}, {"keys_only": True}, {"count_only": True}):
                    request = pb.RangeRequest(key=key, range_end=range_end, limit=limit, revision=revision, **options)
                    check_range_stream(request)
                    with state.store.view() as view:
                        whole = await range_(view, request)
                    chunks = await chunks_of(state, request)
                    assert [kv for chunk in chunks for kv in chunk.kvs] == whole.kvs, request
                    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
                    assert (chunks[-1].count, chunks[-1].more) == (whole.count, whole.more), request
                    for chunk in chunks:
                        assert sum(map(len, chunk.kvs)) <= CHUNK
                        assert chunk.revision == state.store.current_revision
                    for chunk in chunks[:-1]:
                        assert (chunk.count, chunk.more) == (0, False)
    sizes = [
        len(chunk.kvs) for chunk in await chunks_of(state, pb.RangeRequest(key=b"k", range_end=b"l", keys_only=True))
    ]
    assert sizes[:3] == [10, 20, 40]
    state.close()


async def test_one_key_may_be_larger_than_a_chunk(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    await state.apply(*[pb.PutRequest(key=b"k%d" % n, value=bytes(CHUNK + 1)) for n in range(3)])
    chunks = await chunks_of(state, pb.RangeRequest(key=b"k", range_end=b"l"))
    assert [len(chunk.kvs) for chunk in chunks] == [1, 1, 1]
    state.close()


async def test_the_revision_is_that_of_the_first_chunk(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    await state.apply(*[pb.PutRequest(key=b"k%02d" % n, value=b"old") for n in range(50)])
    for compacts in (False, True):
        revision = state.store.current_revision
        stream = range_stream(state.store, pb.RangeRequest(key=b"k", range_end=b"l"), CHUNK)
        first = await anext(stream)
        await state.apply(pb.DeleteRangeRequest(key=b"k20", range_end=b"k30"))
        await state.apply(*[pb.PutRequest(key=b"k%02d" % n, value=b"new") for n in range(20, 60)])
        if compacts:
            await state.apply(pb.CompactionRequest(revision=state.store.current_revision))
            with pytest.raises(KvError) as caught:
                await anext(stream)
            assert caught.value == errors.COMPACTED
        else:
            rest = [chunk async for chunk in stream]
            assert sum(len(chunk.kvs) for chunk in rest) == 40
            assert all(b"old" in kv for chunk in [first, *rest] for kv in chunk.kvs)
            assert (rest[-1].count, rest[-1].revision) == (50, revision)
    state.close()


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (pb.RangeRequest(key=b"k", sort_order=pb.RangeRequest.DESCEND), "custom sort orders"),
        (
            pb.RangeRequest(key=b"k", sort_order=pb.RangeRequest.ASCEND, sort_target=pb.RangeRequest.MOD),
            "custom sort orders",
        ),
        (pb.RangeRequest(key=b"k", sort_target=pb.RangeRequest.VALUE), "custom sort orders"),
        (pb.RangeRequest(key=b"k", min_mod_revision=1), "revision filters"),
        (pb.RangeRequest(key=b"k", max_create_revision=1), "revision filters"),
    ],
)
def test_what_is_not_served(request_: pb.RangeRequest, text: str) -> None:
    with pytest.raises(KvError) as caught:
        check_range_stream(request_)
    assert caught.value == KvError(errors.Code.UNIMPLEMENTED, f"RangeStream does not support {text}")
