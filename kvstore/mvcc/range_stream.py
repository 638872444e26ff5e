"""A range in chunks, for ranges that are larger than a message (etcd 3.7's RangeStream).

The revision is that of the first chunk. Each chunk has a view of its own, so a client that reads slowly pins nothing; a
compaction that comes in between is told, as to any read of an old revision. Chunks begin with ten keys and double until
they are as large as a request may be. Put together they are what `range_` answers.
"""

from collections.abc import AsyncGenerator
from typing import Final, final

from kvstore.errors import Code, KvError
from kvstore.mvcc import schema
from kvstore.mvcc.encoding import key_of, without_value
from kvstore.mvcc.range import Source, check_revision, has_filters, range_, source_of
from kvstore.mvcc.store import MvccStore, Reader
from kvstore.pb.rpc_pb2 import RangeRequest

FIRST_KEYS: Final = 10
STEP_KEYS: Final = 16  # read at once: what is read and does not fit is read again
COUNT_KEYS: Final = 256  # passed over without a pause

SORT_UNSUPPORTED: Final = KvError(Code.UNIMPLEMENTED, "RangeStream does not support custom sort orders")
FILTERS_UNSUPPORTED: Final = KvError(Code.UNIMPLEMENTED, "RangeStream does not support revision filters")


def check_range_stream(request: RangeRequest) -> None:
    """What cannot be answered in key order, as it comes. Raises KvError."""
    if request.sort_target != RangeRequest.KEY or request.sort_order == RangeRequest.DESCEND:
        raise SORT_UNSUPPORTED.fresh()
    if has_filters(request):
        raise FILTERS_UNSUPPORTED.fresh()


@final
class RangeChunk:
    """`count` and `more` are 0 and False but in the last one."""

    __slots__ = ("count", "kvs", "last", "more", "revision")

    def __init__(self, kvs: list[bytes], revision: int, last: bool, count: int = 0, more: bool = False) -> None:
        self.kvs = kvs  # encoded KeyValues
        self.revision = revision  # the store's when the first chunk was read
        self.last = last
        self.count = count
        self.more = more


async def range_stream(store: MvccStore, request: RangeRequest, bytes_max: int) -> AsyncGenerator[RangeChunk, None]:
    """For a request that `check_range_stream` lets pass. Raises KvError.

    bytes_max: of a chunk, unless one key alone is larger.
    """
    with store.view() as view:
        newest = view.current_revision
        if request.count_only or not request.range_end:
            found = await range_(view, request)
            yield RangeChunk(found.kvs, newest, True, found.count, found.more)
            return
    revision = request.revision if request.revision > 0 else newest
    low, high = schema.range_bounds(request.key, request.range_end)
    keys, sent = FIRST_KEYS, 0
    while True:
        with store.view() as view:
            check_revision(view, revision)
            source = source_of(view, low, high, revision)
            wanted = min(keys, request.limit - sent) if request.limit > 0 else keys
            kvs, fitted = await _read(view, source, wanted, bytes_max, request.keys_only)
            sent += len(kvs)
            behind = await _count(view, source) if sent == request.limit else 0
            last = source.ended and fitted
        if last:
            yield RangeChunk(kvs, newest, True, sent + behind, behind > 0)
            return
        yield RangeChunk(kvs, newest, False)
        keys *= 2
        if kvs:
            low = key_of(kvs[-1]) + b"\0"


async def _read(view: Reader, source: Source, wanted: int, bytes_max: int, keys_only: bool) -> tuple[list[bytes], bool]:
    """(at most so many KeyValues, whether all that were read fit)."""
    budget = view.budget()
    kvs: list[bytes] = []
    size = 0
    while len(kvs) < wanted and not source.ended:
        some = source.kvs(min(STEP_KEYS, wanted - len(kvs)))
        for kv in map(without_value, some) if keys_only else some:
            size += len(kv)
            if size > bytes_max and kvs:
                return kvs, False
            kvs.append(kv)
        await budget.pause_if_spent()
    return kvs, True


async def _count(view: Reader, source: Source) -> int:
    budget = view.budget()
    passed = 0
    while not source.ended:
        passed += source.count(COUNT_KEYS)
        await budget.pause_if_spent()
    return passed
