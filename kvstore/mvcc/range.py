"""Range: keys of an interval, now or at an old revision, with etcd's options.

The order of work is etcd's (server/etcdserver/txn/range.go): fetch, filter by revisions, sort, cut to the
limit. `count` is of the interval whatever the limit and the filters say, so even a limited range passes
over all of it; rows behind the limit are counted without being read.

Three ways lead here: `range_point` for one key and `range_small` for few are synchronous and pin nothing;
`range_` does everything else, in slices, on whatever Reader it is given.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Any, Final, final

from kvstore import errors
from kvstore.mvcc import schema
from kvstore.mvcc.encoding import without_value
from kvstore.mvcc.events import stored_kv
from kvstore.mvcc.slices import Budget
from kvstore.mvcc.store import MvccStore, Reader
from kvstore.pb.kv_pb2 import KeyValue
from kvstore.pb.rpc_pb2 import RangeRequest

_CHUNK: Final = 256
_CHUNK_BYTES: Final = 256 << 10  # of values that are looked up in one step
_SORT_RUN: Final = 2048  # sorted in one piece, about 2 ms
SMALL_ROWS: Final = 128


@final
class RangeResult:
    __slots__ = ("count", "kvs", "more")

    def __init__(self, kvs: list[bytes], count: int, more: bool) -> None:
        self.kvs = kvs  # encoded KeyValues
        self.count = count  # keys in the interval, whatever the limit and the filters
        self.more = more  # the limit cut the answer short

    def __repr__(self) -> str:
        return f"RangeResult({len(self.kvs)} of {self.count}{' more' if self.more else ''})"


def check_revision(reader: Reader, revision: int) -> None:
    """Raises FUTURE_REVISION or COMPACTED. The compact revision itself can be read."""
    if revision > reader.current_revision:
        raise errors.FUTURE_REVISION.fresh()
    if 0 < revision < reader.compact_revision:
        raise errors.COMPACTED.fresh()


def range_point(store: Reader, key: bytes) -> RangeResult:
    """One key, newest revision, no options."""
    kv = store.get_latest(key)
    return RangeResult([], 0, False) if kv is None else RangeResult([kv], 1, False)


def range_small(store: MvccStore, request: RangeRequest) -> RangeResult | None:
    """Answer at once what is cheap to answer; None: it is not, use `range_` on a view."""
    if request.revision > 0 or request.sort_order or request.sort_target or has_filters(request):
        return None
    if not request.range_end:
        result = range_point(store, request.key)
    elif request.count_only and (count := store.count_latest(*_interval(request))) is not None:
        return RangeResult([], count, False)
    elif store.ended:
        return None
    else:
        page = _small_page(store, request)
        if page is None:
            return None
        result = page
    if request.count_only:
        return RangeResult([], result.count, False)
    if request.keys_only:
        result.kvs = [without_value(kv) for kv in result.kvs]
    return result


def _small_page(store: MvccStore, request: RangeRequest) -> RangeResult | None:
    """The first keys of an interval, up to the limit, when they are few and it is cheap to say how many there are."""
    limit = request.limit
    scan = store.scan(*schema.latest_rows(*_interval(request)))
    rows = scan.rows(limit if 0 < limit < SMALL_ROWS else SMALL_ROWS)
    count: int | None = len(rows)
    if not scan.done:
        if not 0 < limit == len(rows):
            return None
        count = limit + len(scan.keys(SMALL_ROWS))
        if not scan.done:
            count = store.count_latest(*_interval(request))
    return None if count is None else RangeResult([kv for _, kv in rows], count, len(rows) < count)


def _interval(request: RangeRequest) -> tuple[bytes, bytes | None]:
    return schema.range_bounds(request.key, request.range_end)


async def range_(reader: Reader, request: RangeRequest) -> RangeResult:
    """Raises KvError: FUTURE_REVISION, COMPACTED. `serializable` is the caller's matter."""
    check_revision(reader, request.revision)
    budget = reader.budget()
    revision = request.revision
    filtered = has_filters(request)
    descending = request.sort_order == RangeRequest.DESCEND
    # A target without an order means ascending; ascending by key is how they come.
    sorts = bool(descending or request.sort_target)
    limit = max(request.limit, 0)
    # Without an order the limit takes the first ones by key, and only these are sorted (etcd rangeLimit).
    everything = filtered or not limit or (sorts and request.sort_order != RangeRequest.NONE)
    fetch_max = 0 if everything else limit + 1
    known: int | None = None  # what `count` comes to
    source = source_of(reader, *_interval(request), revision)
    if isinstance(source, _Latest):
        known = reader.count_latest(*_interval(request))
        if known is None and (request.count_only or fetch_max):
            known = await _walk(reader, request, budget)
    kvs: list[bytes] = []
    count = 0
    while not request.count_only and not source.ended and (not fetch_max or len(kvs) < fetch_max):
        chunk = source.kvs(min(_CHUNK, fetch_max - len(kvs)) if fetch_max else _CHUNK)
        count += len(chunk)
        kvs += [kv for kv in chunk if _passes(request, kv)] if filtered else chunk
        await budget.pause_if_spent()
    while known is None and not source.ended:
        count += source.count(_CHUNK)
        await budget.pause_if_spent()
    if sorts:
        kvs = await _sorted(kvs, request.sort_target, descending, limit + 1 if limit else None, budget)
    more = 0 < limit < len(kvs)
    if more:
        del kvs[limit:]
    if request.keys_only:
        for at in range(0, len(kvs), _CHUNK):
            kvs[at : at + _CHUNK] = [without_value(kv) for kv in kvs[at : at + _CHUNK]]
            await budget.pause_if_spent()
    return RangeResult(kvs, count if known is None else known, more)


async def _walk(reader: Reader, request: RangeRequest, budget: Budget) -> int | None:
    """Count, and keep what is learned on the way; None: here that is not to be."""
    counts = reader.begin_counts(*_interval(request))
    if counts is None:
        return None
    scan = reader.scan(*schema.latest_rows(*_interval(request)))
    passed = 0
    try:
        while rows := scan.keys(_CHUNK):
            counts.walked(rows)
            passed += len(rows)
            await budget.pause_if_spent()
    finally:
        counts.end(passed if scan.done else 0)
    return passed


def has_filters(request: RangeRequest) -> bool:
    return bool(
        request.max_mod_revision
        or request.min_mod_revision
        or request.max_create_revision
        or request.min_create_revision
    )


def _passes(request: RangeRequest, kv: bytes) -> bool:
    """The four bounds are inclusive, 0 is none."""
    message = KeyValue.FromString(kv)
    mod, create = message.mod_revision, message.create_revision
    return not (
        (request.max_mod_revision and mod > request.max_mod_revision)
        or (request.min_mod_revision and mod < request.min_mod_revision)
        or (request.max_create_revision and create > request.max_create_revision)
        or (request.min_create_revision and create < request.min_create_revision)
    )


_SORT_FIELDS: Final = {
    RangeRequest.KEY: "key",
    RangeRequest.VERSION: "version",
    RangeRequest.CREATE: "create_revision",
    RangeRequest.MOD: "mod_revision",
    RangeRequest.VALUE: "value",
}


async def _sorted(kvs: list[bytes], target: int, descending: bool, limit: int | None, budget: Budget) -> list[bytes]:
    """Sorted runs, then merged, so that no step is long. Equals stay in key order."""
    name = _SORT_FIELDS[RangeRequest.SortTarget.ValueType(target)]
    by_key = itemgetter(0)
    runs: list[list[tuple[Any, bytes]]] = []
    for at in range(0, len(kvs), _SORT_RUN):
        run = [(getattr(KeyValue.FromString(kv), name), kv) for kv in kvs[at : at + _SORT_RUN]]
        run.sort(key=by_key, reverse=descending)
        runs.append(run)
        await budget.pause_if_spent()
    # Consumed runs shrink: to free a million tuples at once would be a pause of its own.
    ordered = merge(*[_drain(run) for run in runs], key=by_key, reverse=descending)
    found: list[bytes] = []
    while limit is None or len(found) < limit:
        chunk = [kv for _, kv in islice(ordered, _CHUNK if limit is None else min(_CHUNK, limit - len(found)))]
        if not chunk:
            break
        found += chunk
        await budget.pause_if_spent()
    for run in runs:
        run.clear()
        await budget.pause_if_spent()
    return found


def _drain(run: list[tuple[Any, bytes]]) -> Iterator[tuple[Any, bytes]]:
    run.reverse()
    while run:
        yield run.pop()


class Source(ABC):
    """Where the KeyValues of a range come from, in key order. Each step is short; it may bring nothing."""

    ended = False

    @abstractmethod
    def kvs(self, count: int) -> list[bytes]:
        """The next ones, at most `count`."""

    @abstractmethod
    def count(self, count: int) -> int:
        """How many are passed over, reading about `count` rows."""


@final
class _Latest(Source):
    def __init__(self, reader: Reader, low: bytes, high: bytes | None) -> None:
        self._scan = reader.scan_latest(low, high)

    def kvs(self, count: int) -> list[bytes]:
        rows = self._scan.rows(count)
        self.ended = self._scan.done
        return [kv for _, kv in rows]

    def count(self, count: int) -> int:
        passed = self._scan.count(count)
        self.ended = self._scan.done
        return passed


def source_of(reader: Reader, low: bytes, high: bytes | None, revision: int) -> Source:
    """The keys of [low, high) at a revision that can be read; 0: the newest."""
    if revision <= 0 or revision == reader.latest_revision:
        return _Latest(reader, low, high)
    return _AtRevision(reader, low, high, revision)


class LiveVersions:
    """The version of each key of [low, high) that was live at a revision, from `versions`."""

    def __init__(self, reader: Reader, low: bytes, high: bytes | None, revision: int) -> None:
        self._scan = reader.scan(*schema.version_rows(low, high))
        self._revision = revision
        self._passed = b""  # prefix of the key whose newest version at the revision has been seen

    def next(self, count: int) -> tuple[list[tuple[int, int]], bool]:
        """((revision, sub) of each live key among the next `count` rows, whether more rows may follow)."""
        rows = self._scan.rows(count)
        live: list[tuple[int, int]] = []
        for row, mark in rows:
            prefix, revision, sub = schema.split_version(row)
            if revision > self._revision or prefix == self._passed:
                continue
            self._passed = prefix
            if mark != schema.TOMBSTONE:
                live.append((revision, sub))
        return live, not self._scan.done


@final
class _AtRevision(Source):
    def __init__(self, reader: Reader, low: bytes, high: bytes | None, revision: int) -> None:
        self._reader = reader
        self._versions = LiveVersions(reader, low, high, revision)
        self._live: list[tuple[int, int]] = []  # found, not yet handed out
        self._more = True

    def _fill(self) -> None:
        if not self._live:
            self._live, self._more = self._versions.next(_CHUNK)

    def kvs(self, count: int) -> list[bytes]:
        self._fill()
        found: list[bytes] = []
        size = 0
        for revision, sub in self._live[:count]:
            if size >= _CHUNK_BYTES:
                break
            found.append(stored_kv(self._reader, revision, sub))
            size += len(found[-1])
        self._live = self._live[len(found) :]
        self.ended = not self._live and not self._more
        return found

    def count(self, count: int) -> int:
        self._fill()
        passed, self._live = len(self._live), []
        self.ended = not self._more
        return passed
