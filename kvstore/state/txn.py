"""Put, DeleteRange and Txn: from a request to changes and a response body.

A response body is the encoded response without its outer header, which the service puts before it. The
headers of nested responses carry the revision only (etcd apply.go, newTxnResp): a nested TxnResponse has
an empty one.

A txn runs in four steps (server/etcdserver/txn/txn.go). Compares of all levels are evaluated on the state
before the txn and choose the path; every operation on the path is validated; only then the first one is
carried out, so that a refused txn leaves nothing; a range of the txn sees what operations before it did.
"""

from collections.abc import Iterator
from typing import Final, final

from kvstore import errors
from kvstore.errors import KvError
from kvstore.mvcc import schema
from kvstore.mvcc.encoding import KVS_TAG, PREV_KVS_TAG, RESPONSES_TAG, field, range_body, varint
from kvstore.mvcc.range import range_, range_small
from kvstore.mvcc.store import MvccStore, Reader
from kvstore.mvcc.transaction import WriteGroup
from kvstore.pb.kv_pb2 import KeyValue
from kvstore.pb.rpc_pb2 import Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest
from kvstore.state.checks import check_op

_CHUNK: Final = 256
_ZERO: Final = KeyValue()
_EMPTY_HEADER: Final = b"\x0a\x00"

# Tags of ResponseOp.response
_RESPONSE_RANGE: Final = b"\x0a"
_RESPONSE_PUT: Final = b"\x12"
_RESPONSE_DELETE: Final = b"\x1a"
_RESPONSE_TXN: Final = b"\x22"


@final
class AppliedResult:
    """What a request came to. `body` is b"" where no response was asked for."""

    __slots__ = ("body", "revision")

    def __init__(self, revision: int, body: bytes) -> None:
        self.revision = revision  # for the header
        self.body = body

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AppliedResult) and self.revision == other.revision and self.body == other.body

    def __hash__(self) -> int:
        return hash((self.revision, self.body))

    def __repr__(self) -> str:
        return f"AppliedResult({self.revision}, {len(self.body)}B)"


# -- put ---------------------------------------------------------------------------------------------


def is_plain(request: PutRequest) -> bool:
    """Nearly all requests are puts without options, so these pay for one look at each option only."""
    return not (request.lease or request.prev_kv or request.ignore_value or request.ignore_lease) and bool(request.key)


def refuse_put(reader: Reader, request: PutRequest) -> KvError | None:
    """What only the state can tell. The order is etcd's: lease, then key."""
    if request.lease and not reader.has_lease(request.lease):
        return errors.LEASE_NOT_FOUND
    if (request.ignore_value or request.ignore_lease) and reader.get_latest(request.key) is None:
        return errors.KEY_NOT_FOUND
    return None


def put(group: WriteGroup, request: PutRequest, answer: bool) -> bytes:
    """The response's body. The request has been checked and is not refused."""
    key = request.key
    prev = group.get_latest(key)
    value, lease = request.value, request.lease
    if request.ignore_value or request.ignore_lease:
        assert prev is not None, "refuse_put lets ignore_* pass only on a live key"
        before = KeyValue.FromString(prev)
        value = before.value if request.ignore_value else value
        lease = before.lease if request.ignore_lease else lease
    group.put(key, value, lease, prev)
    return field(KVS_TAG, prev) if answer and request.prev_kv and prev is not None else b""


# -- delete ------------------------------------------------------------------------------------------


async def delete_range(group: WriteGroup, request: DeleteRangeRequest, answer: bool) -> bytes:
    prevs: list[bytes] | None = [] if answer and request.prev_kv else None
    group.deletes += 1
    if request.range_end:
        low, high = schema.range_bounds(request.key, request.range_end)
        deleted = await group.delete_range(low, high, prevs)
    else:
        prev = group.get_latest(request.key)
        deleted = 0 if prev is None else 1
        if prev is not None:
            group.delete(request.key, prev)
            if prevs is not None:
                prevs.append(prev)
    if not answer:
        return b""
    body = b"\x10" + varint(deleted) if deleted else b""
    return body + _repeated(PREV_KVS_TAG, prevs) if prevs else body


def _repeated(tag: bytes, kvs: list[bytes]) -> bytes:
    parts: list[bytes] = []
    for kv in kvs:
        parts += (tag, varint(len(kv)), kv)
    return b"".join(parts)


# -- txn ---------------------------------------------------------------------------------------------


def is_read_only(request: TxnRequest) -> bool:
    """Only range operations in both branches; a nested txn, however harmless, goes through the log."""
    for branch in (request.success, request.failure):
        for op in branch:
            if not op.HasField("request_range"):
                return False
    return True


async def choose_path(reader: Reader, request: TxnRequest) -> list[bool]:
    """Whether each txn on the way succeeds, in the order in which they are met (depth first)."""
    path = [True]
    for compare in request.compare:
        if not await _holds(reader, compare):
            path[0] = False
            break
    for op in request.success if path[0] else request.failure:
        if op.HasField("request_txn"):
            path += await choose_path(reader, op.request_txn)
    return path


async def _holds(reader: Reader, compare: Compare) -> bool:
    """The comparison must hold for every key of its range (etcd applyCompare)."""
    if not compare.range_end:
        kv = reader.get_latest(compare.key)
        if kv is None:
            return _holds_for_none(compare)
        return _compares(compare, KeyValue.FromString(kv))
    low, high = schema.range_bounds(compare.key, compare.range_end)
    scan = reader.scan_latest(low, high)
    budget = reader.budget()
    found = False
    while not scan.done:
        rows = scan.rows(_CHUNK)
        found = found or bool(rows)
        if not all(_compares(compare, KeyValue.FromString(kv)) for _, kv in rows):
            return False
        await budget.pause_if_spent()
    return found or _holds_for_none(compare)


def _holds_for_none(compare: Compare) -> bool:
    # No key compares as a key of zeros, but has no value at all: not even an empty one.
    return compare.target != Compare.VALUE and _compares(compare, _ZERO)


def _compares(compare: Compare, kv: KeyValue) -> bool:
    """A missing operand compares as 0 or empty."""
    target, order = compare.target, 0
    if target == Compare.VALUE:
        order = _order(kv.value, compare.value)
    elif target == Compare.VERSION:
        order = _order(kv.version, compare.version)
    elif target == Compare.CREATE:
        order = _order(kv.create_revision, compare.create_revision)
    elif target == Compare.MOD:
        order = _order(kv.mod_revision, compare.mod_revision)
    elif target == Compare.LEASE:
        order = _order(kv.lease, compare.lease)
    result = compare.result
    if result == Compare.EQUAL:
        return order == 0
    if result == Compare.NOT_EQUAL:
        return order != 0
    if result == Compare.GREATER:
        return order > 0
    return order < 0 if result == Compare.LESS else True


def _order(left: bytes | int, right: bytes | int) -> int:
    return (left > right) - (left < right)  # type: ignore[operator]


def _on_path(request: TxnRequest, path: Iterator[bool]) -> Iterator[RequestOp]:
    """The operations that will run, nested ones included."""
    for op in request.success if next(path) else request.failure:
        if op.HasField("request_txn"):
            yield from _on_path(op.request_txn, path)
        else:
            yield op


def refuse_txn(reader: Reader, request: TxnRequest, path: list[bool]) -> KvError | None:
    """What would go wrong first on the chosen path, found before anything is done (etcd checkTxn).

    The rule against duplicate keys lets a put follow a delete with an open end (checks.py): what that has
    deleted is no key that the put could take a value from. etcd does not look, and dies.
    """
    deleted_from: bytes | None = None
    for op in _on_path(request, iter(path)):
        refused = None
        if op.HasField("request_put"):
            wants = op.request_put
            refused = refuse_put(reader, wants)
            if deleted_from is not None and wants.key >= deleted_from and (wants.ignore_value or wants.ignore_lease):
                refused = refused or errors.KEY_NOT_FOUND
        elif op.HasField("request_delete_range"):
            delete = op.request_delete_range
            if delete.range_end == b"\0":
                deleted_from = delete.key if deleted_from is None else min(deleted_from, delete.key)
        elif op.HasField("request_range"):
            refused = _refuse_revision(reader, op.request_range.revision)
        if refused is not None:
            return refused
    return None


def _refuse_revision(reader: Reader, revision: int) -> KvError | None:
    """In a Range of its own any revision below 0 means the newest; a txn takes it by its number (etcd checkRange).

    Where nothing has been compacted etcd's compact revision is -1, and ours 0.
    """
    if revision > reader.current_revision:
        return errors.FUTURE_REVISION
    return errors.COMPACTED if revision and revision < (reader.compact_revision or -1) else None


async def txn(group: WriteGroup, request: TxnRequest, answer: bool) -> AppliedResult | KvError:
    """The request has been checked. Changes nothing when it is refused."""
    path = await choose_path(group, request)
    refused = refuse_txn(group, request, path)
    if refused is not None:
        return refused
    group.txns += 1
    body = await _run(group, group, request, iter(path), answer)
    return AppliedResult(group.latest_revision, body)


def txn_small(group: WriteGroup, request: TxnRequest, answer: bool) -> AppliedResult | None:
    """A compare-and-set as nearly all are: compares of single keys, then one put without options, or nothing. Checks,
    does and ends it in one step. None: it is another txn, and nothing has been done. Raises KvError, likewise.
    """
    success, failure = request.success, request.failure
    if len(success) > 1 or len(failure) > 1:
        return None
    succeeded = True
    for compare in request.compare:
        key = compare.key
        if not key or compare.range_end:
            return None
        if succeeded:
            kv = group.get_latest(key)
            succeeded = _holds_for_none(compare) if kv is None else _compares(compare, KeyValue.FromString(kv))
    taken, other = (success, failure) if succeeded else (failure, success)
    wants = taken[0].request_put if taken else None  # of another operation: an empty one
    if wants is not None and not is_plain(wants):
        return None
    if other:
        if other[0].HasField("request_txn"):
            return None
        check_op(other[0], None)
    group.txns += 1
    body = b"\x10\x01" if succeeded else b""
    if wants is None:
        return AppliedResult(group.current_revision, body)
    revision = group.put_plain(wants.key, wants.value)
    if answer:
        body += field(RESPONSES_TAG, field(_RESPONSE_PUT, _nested_header(revision)))
    return AppliedResult(revision, body)


async def read_txn(reader: Reader, request: TxnRequest) -> AppliedResult:
    """A read-only txn on a pinned view. Raises KvError."""
    assert is_read_only(request)
    path = await choose_path(reader, request)
    refused = refuse_txn(reader, request, path)
    if refused is not None:
        raise refused.fresh()
    body = await _run(reader, None, request, iter(path), True)
    return AppliedResult(reader.current_revision, body)


async def _run(
    reader: Reader, group: WriteGroup | None, request: TxnRequest, path: Iterator[bool], answer: bool
) -> bytes:
    """Carry out one level. Returns the TxnResponse without its header."""
    succeeded = next(path)
    parts = [b"\x10\x01"] if succeeded else []
    for op in request.success if succeeded else request.failure:
        if op.HasField("request_range"):
            response = await _run_range(reader, group, op.request_range) if answer else b""
        elif op.HasField("request_txn"):
            body = await _run(reader, group, op.request_txn, path, answer)
            response = field(_RESPONSE_TXN, _EMPTY_HEADER + body)
        else:
            assert group is not None, "a txn that writes runs in a group"
            response = await _run_write(group, op, answer)
        if answer:
            parts.append(field(RESPONSES_TAG, response))
    return b"".join(parts) if answer else b""


async def _run_range(reader: Reader, group: WriteGroup | None, request: RangeRequest) -> bytes:
    if group is not None and request.revision > 0:
        await group.spill(group.budget())  # versions of this group's own revisions are looked up in the engine
    result = range_small(reader, request) if isinstance(reader, MvccStore) else None
    if result is None:
        result = await range_(reader, request)
    header = _nested_header(reader.latest_revision)
    return field(_RESPONSE_RANGE, header + range_body(result.kvs, result.count, result.more))


async def _run_write(group: WriteGroup, op: RequestOp, answer: bool) -> bytes:
    if op.HasField("request_put"):
        body, tag = put(group, op.request_put, answer), _RESPONSE_PUT
    else:
        body, tag = await delete_range(group, op.request_delete_range, answer), _RESPONSE_DELETE
    return field(tag, _nested_header(group.latest_revision) + body)


def _nested_header(revision: int) -> bytes:
    return field(b"\x0a", b"\x18" + varint(revision))
