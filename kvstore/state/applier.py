"""Applier: the replicated state machine. Committed entries in; a new state, events and results out.

Apply is a function of the state and the entry (ARCHITECTURE decision 14): no clock, setting, cache or
progress of physical work decides an outcome. How entries are grouped into WriteBatches is such progress:
a group ends when it is large enough or the list does, and nothing can tell afterwards.

An error that every member meets alike is a value in the result. Anything else (an unknown type of
request, a row that is not there) is raised and must stop the member: to skip it would be to diverge.

Results are built only for requests that this member took in since it started, for nobody else waits.
"""

from collections.abc import Callable
from struct import Struct
from typing import Final, Protocol, TypeAlias, final

from kvstore import errors
from kvstore.auth.changes import TokenChange
from kvstore.errors import KvError
from kvstore.failpoints import fail_async
from kvstore.mvcc.encoding import field, varint
from kvstore.mvcc.events import RevisionEvents
from kvstore.mvcc.leases import LeaseChange
from kvstore.mvcc.store import MvccStore
from kvstore.mvcc.transaction import WriteGroup
from kvstore.pb.command_pb2 import Request
from kvstore.pb.rpc_pb2 import PutRequest
from kvstore.state import alarms, auth, cluster, versions
from kvstore.state.checks import check_delete_range, check_put, check_txn
from kvstore.state.command import UnknownRequest, parse_batch
from kvstore.state.leases import apply_checkpoint, apply_grant, leases_to_revoke
from kvstore.state.txn import AppliedResult, delete_range, is_plain, put, refuse_put, txn, txn_small

__all__ = ["Applier", "ApplySinks", "AppliedResult", "LogEntry", "Result"]

Result: TypeAlias = AppliedResult | KvError

COMMAND: Final = 0  # the kind of entry that carries a RequestBatch
CONFIGURATION: Final = 2  # ... a configuration of raft, with a MemberChange as its context
GROUP_BYTES: Final = 256 << 10  # of new rows, one write of 2 to 3 ms; a group ends behind the entry that reaches it

_NOBODY: Final = -1  # no member has this id

_PAUSE_MASK: Final = 15  # the clock is looked at every 16 requests; long ones pause by themselves

_FIXED64: Final = Struct("<Q")
_SFIXED64: Final = Struct("<q")


class LogEntry(Protocol):
    """raft.Entry, as far as apply looks at it."""

    index: int
    term: int
    data: bytes

    @property
    def kind(self) -> int: ...


# A configuration entry's data -> whether it is a joint one, and its context. This layer knows no raft.
ReadConfiguration = Callable[[bytes], tuple[bool, bytes]]


def _no_configurations(data: bytes) -> tuple[bool, bytes]:
    raise UnknownRequest("a configuration entry, and nobody to read it")


class ApplySinks(Protocol):
    """Who wants to know. Called in this order after each batch has become visible; must not raise."""

    def members(self) -> None:
        """The member table has changed."""

    def events(self, batch: list[RevisionEvents]) -> None: ...

    def results(self, results: list[tuple[int, Result]]) -> None:
        """(sequence, result) of this member's requests of this boot."""

    def applied(self, index: int, term: int) -> None: ...


@final
class Applier:
    def __init__(
        self,
        store: MvccStore,
        member_id: int,
        boot: int,
        sinks: ApplySinks,
        read_configuration: ReadConfiguration = _no_configurations,
        lease_sink: Callable[[list[LeaseChange]], None] | None = None,
        token_sink: Callable[[list[TokenChange]], None] | None = None,
    ) -> None:
        """lease_sink, token_sink: told before the sinks what became of leases and tokens: nobody else wants to know."""
        self._store = store
        self._member_id = member_id
        self._boot = boot
        self._sinks = sinks
        self._read_configuration = read_configuration
        self._lease_sink = lease_sink
        self._token_sink = token_sink
        self._read_alarms()
        store.on_swap.append(self._read_alarms)

    def _read_alarms(self) -> None:
        self._alarms = alarms.raised(self._store)

    @property
    def applied_index(self) -> int:
        return self._store.applied_index

    async def apply(self, entries: list[LogEntry]) -> None:
        """In order, each entry once. Entries at or below `applied_index` must not come."""
        group, results = WriteGroup(self._store), []
        for entry in entries:
            assert entry.index > self._store.applied_index, f"entry {entry.index} is applied already"
            if entry.kind == COMMAND:
                results += await self._apply_batch(group, entry)
            elif entry.kind == CONFIGURATION:
                joint, context = self._read_configuration(entry.data)
                await fail_async("memberBeforeApply")
                cluster.apply_configuration(group, entry.data, context, joint)
            if group.size_bytes >= GROUP_BYTES:
                await self._commit(group, entry, results)
                group, results = WriteGroup(self._store), []
        if entries and entries[-1].index > self._store.applied_index:
            await self._commit(group, entries[-1], results)

    async def _commit(self, group: WriteGroup, entry: LogEntry, results: list[tuple[int, Result]]) -> None:
        await fail_async("applyBeforeCommit")
        await group.commit(entry.index, entry.term)
        await fail_async("applyAfterCommit")
        if group.leases.changes and self._lease_sink is not None:
            self._lease_sink(group.leases.changes)
        if group.auth.tokens and self._token_sink is not None:
            self._token_sink(group.auth.tokens)
        sinks = self._sinks
        if group.has_cluster_rows:
            sinks.members()
        if group.events:
            sinks.events(group.events)
        if results:
            sinks.results(results)
        sinks.applied(entry.index, entry.term)

    async def _apply_batch(self, group: WriteGroup, entry: LogEntry) -> list[tuple[int, Result]]:
        batch = parse_batch(entry.data)
        await fail_async("applyBeforeBatch")
        group.entry_time = max(group.entry_time, batch.time)
        results: list[tuple[int, Result]] = []
        origins: list[bytes] = []
        budget = group.budget()
        source, seen, author = _NOBODY, (0, 0), b""  # whose request came last, and the newest of that member
        calm = not (self._alarms or group.auth.table.enabled)
        for position, request in enumerate(batch.requests):
            member, sequence = request.member, request.sequence
            identity = (request.boot, sequence)
            if member != source:
                if source != _NOBODY:
                    group.see(source, seen)
                source, seen, author = member, group.seen(member), _author(member)
            ours = member == self._member_id and identity[0] == self._boot
            if identity <= seen:
                # Forwarded twice, or overtaken by a later one: whoever still waits for it cannot know.
                if ours:
                    results.append((sequence, errors.TIMEOUT))
                continue
            seen = identity
            revision = group.current_revision
            result = _apply_small(group, request, ours) if calm else None
            if result is None:
                result = await self._apply_request(group, request, entry.term, position, ours, origins)
                calm = not (self._alarms or group.auth.table.enabled)
            elif group.current_revision > revision:
                origins.append(_origin(group.revision_varint, position, author, request))
            if ours:
                results.append((sequence, result))
            if position & _PAUSE_MASK == _PAUSE_MASK:
                await budget.pause_if_spent()
        if source != _NOBODY:
            group.see(source, seen)
        if origins:
            group.put_record(_record(entry, group.entry_time, origins))
        return results

    async def _apply_request(
        self, group: WriteGroup, request: Request, term: int, position: int, answer: bool, origins: list[bytes]
    ) -> Result:
        """All that is not small, or that has to be looked at twice, with its revision."""
        if group.auth.table.enabled:
            denied = await auth.refuse(group, request, request.WhichOneof("op"))
            if denied is not None:
                return denied
        author = _author(request.member)
        refused = alarms.refusal(self._alarms, request) if self._alarms else None
        if refused is not None:
            return refused
        if request.HasField("lease_revoke"):
            # The one request that may have several revisions: each lease's keys go in one of their own.
            leases = leases_to_revoke(group, request, term)
            if isinstance(leases, KvError):
                return leases
            for lease in leases:
                await group.revoke(lease)
                if group.end_request():
                    origins.append(_origin(group.revision_varint, position, author, request))
            return AppliedResult(group.current_revision, b"")
        result = await _apply_op(group, request, term, answer)
        if group.end_request():
            origins.append(_origin(group.revision_varint, position, author, request))
        if request.HasField("alarm"):
            self._alarms = alarms.raised(group)
        return result


async def _apply_op(group: WriteGroup, request: Request, term: int, answer: bool) -> Result:
    op = request.WhichOneof("op")
    try:
        if op == "put":
            return _apply_put(group, request.put, answer)
        if op == "txn":
            check_txn(request.txn, None)
            return await txn(group, request.txn, answer)
        if op == "delete_range":
            check_delete_range(request.delete_range)
            body = await delete_range(group, request.delete_range, answer)
            return AppliedResult(group.latest_revision, body)
        if op in _SHORT_OPS:
            return _SHORT_OPS[op](group, request, term)
    except KvError as error:
        return error.with_traceback(None)
    raise UnknownRequest(f"a request of type {op}: upgrade this member")


def _apply_small(group: WriteGroup, request: Request, answer: bool) -> Result | None:
    """Nearly all requests are plain puts and compare-and-sets: they are done in one step, with their revision. None:
    it is something else, and nothing has been done."""
    if request.HasField("put"):
        plain = request.put
        return AppliedResult(group.put_plain(plain.key, plain.value), b"") if is_plain(plain) else None
    if not request.HasField("txn"):
        return None
    try:
        return txn_small(group, request.txn, answer)
    except KvError as error:
        return error.with_traceback(None)


def _apply_put(group: WriteGroup, request: PutRequest, answer: bool) -> Result:
    check_put(request)
    refused = refuse_put(group, request)
    if refused is not None:
        return refused
    body = put(group, request, answer)
    return AppliedResult(group.latest_revision, body)


def _apply_compaction(group: WriteGroup, revision: int) -> Result:
    """Logical, and at once; compaction.py removes the rows later."""
    if revision > group.current_revision:
        return errors.FUTURE_REVISION
    if revision <= group.compact_revision:
        return errors.COMPACTED
    group.compact(revision)
    return AppliedResult(group.current_revision, b"")


# Requests that are carried out in one short step. The number is the entry's term.
_SHORT_OPS: Final[dict[str, Callable[[WriteGroup, Request, int], Result]]] = {
    "compaction": lambda group, request, _: _apply_compaction(group, request.compaction.revision),
    "lease_grant": lambda group, request, _: apply_grant(group, request),
    "lease_checkpoint": lambda group, request, term: apply_checkpoint(group, request.lease_checkpoint, term),
    "alarm": lambda group, request, _: alarms.apply_alarm(group, request.alarm),
    "downgrade": lambda group, request, _: versions.apply_downgrade(group, request.downgrade),
    "cluster_version": lambda group, request, _: versions.apply_cluster_version(group, request.cluster_version),
    "member_publish": lambda group, request, _: cluster.apply_publish(group, request.member_publish),
    "member_update": lambda group, request, _: cluster.apply_update(group, request.member_update),
    **{op: lambda group, request, _: auth.apply_auth(group, request) for op in auth.AUTH_OPS},
}


def _author(member: int) -> bytes:
    """An encoded Origin.member."""
    return b"\x19" + _FIXED64.pack(member)


def _origin(revision: bytes, position: int, author: bytes, request: Request) -> bytes:
    """An encoded EntryRecord.origins field; `revision` is a varint."""
    user, request_id = request.user, request.request_id
    if user:
        author += field(b"\x22", user.encode())
    if request_id:
        author += field(b"\x2a", request_id.encode())
    sub = varint(position)
    size = 2 + len(revision) + len(sub) + len(author)
    return b"\x22%b\x08%b\x10%b%b" % (varint(size), revision, sub, author)


def _record(entry: LogEntry, time_ns: int, origins: list[bytes]) -> bytes:
    """An encoded EntryRecord: who, when and why of an entry's revisions."""
    head = b"\x08%b\x10%b\x19%b" % (varint(entry.index), varint(entry.term), _SFIXED64.pack(time_ns))
    return head + b"".join(origins)
