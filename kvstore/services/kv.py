"""etcdserverpb.KV: lists of calls in, bytes out.

Each request is parsed once, checked, and on the way to the log handed on as the bytes that came. An
answer is the member's header and a body that apply or the store encoded already.

    Put, DeleteRange, Txn, Compact -> server.propose(all of the list)     -> header + body of the result
    Range, Txn of ranges only      -> one read barrier for the whole list -> header + body from the store
        serializable               -> at once, from what this member has

A small read is answered in place; one that may be long takes a task, which reads in slices at a pinned
revision. The header of a read carries the revision that was read at, not the one asked for.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog
from google.protobuf.message import DecodeError

from kvstore.auth.requests import refuse_txn
from kvstore.auth.table import NOBODY, AuthTable, Identity
from kvstore.errors import MALFORMED, NOT_SUPPORTED_FOR_LEARNER, Code, KvError
from kvstore.mvcc.encoding import field, range_body
from kvstore.mvcc.range import range_, range_small
from kvstore.mvcc.range_stream import check_range_stream, range_stream
from kvstore.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest
from kvstore.rpc.base import UNEXPECTED, Call, RpcServer
from kvstore.rpc.generated import one_stream
from kvstore.server.proposal import Proposal
from kvstore.services.permissions import check, identify
from kvstore.state.applier import Result
from kvstore.state.checks import check_compaction, check_delete_range, check_put, check_range, check_txn
from kvstore.state.command import Op
from kvstore.state.quota import put_cost, txn_cost
from kvstore.state.txn import is_read_only, read_txn

if TYPE_CHECKING:
    from kvstore.server.server import KvServer

log = structlog.get_logger(__name__)

LONG_READS_MAX: Final = 64  # at once: each pins a view, and holds its answer in memory
COMPACTION_POLL_SECONDS: Final = 0.02
REQUEST_ID: Final = "request-id"  # gRPC metadata: the client's own name for a change, kept in the history
REQUEST_ID_LENGTH_MAX: Final = 128
REQUEST_ID_TOO_LONG: Final = KvError(
    Code.INVALID_ARGUMENT, f"etcdserver: request-id must be text of at most {REQUEST_ID_LENGTH_MAX} characters"
)

Message = TypeVar("Message")
Read = RangeRequest | TxnRequest


def is_serializable(request: Read) -> bool:
    """May be answered from what this member has."""
    if isinstance(request, RangeRequest):
        return request.serializable
    return all(op.request_range.serializable for branch in (request.success, request.failure) for op in branch)


def refuse_read(table: AuthTable, who: Identity, request: Read) -> KvError | None:
    if isinstance(request, RangeRequest):
        return table.refuse_read(who, request.key, request.range_end)
    return refuse_txn(table, who, request)


class KvService:
    def __init__(self, server: "KvServer") -> None:
        self._server = server
        self._long_reads = asyncio.Semaphore(LONG_READS_MAX)
        self._tasks: set[asyncio.Task[None]] = set()  # the loop keeps only weak references to tasks

    def register(self, rpc: RpcServer) -> None:
        rpc.add_calls("/etcdserverpb.KV/Range", self.range)
        rpc.add_calls("/etcdserverpb.KV/Put", self.put)
        rpc.add_calls("/etcdserverpb.KV/DeleteRange", self.delete_range)
        rpc.add_calls("/etcdserverpb.KV/Txn", self.txn)
        rpc.add_calls("/etcdserverpb.KV/Compact", self.compact)
        add_range_stream = one_stream("etcdserverpb.KV", "RangeStream", RangeRequest.FromString)
        rpc.add_servicer(add_range_stream, self)

    # Writes

    def put(self, calls: list[Call]) -> None:
        puts = parsed(calls, PutRequest.FromString, check_put)
        if self._server.quota.tight:
            puts = self._server.quota.admit(puts, put_cost)
        self._propose(Op.PUT, [call for call, _ in puts])

    def delete_range(self, calls: list[Call]) -> None:
        self._propose(
            Op.DELETE_RANGE, [call for call, _ in parsed(calls, DeleteRangeRequest.FromString, check_delete_range)]
        )

    def compact(self, calls: list[Call]) -> None:
        logical: list[Call] = []
        for call, request in parsed(calls, CompactionRequest.FromString, check_compaction):
            if request.physical:
                self._start(self._compact_physically(call))
            else:
                logical.append(call)
        self._propose(Op.COMPACTION, logical)

    async def _compact_physically(self, call: Call) -> None:
        """Answer when nothing is left on this member of what the compaction hides."""
        try:
            who = self._server.auth.identify(call)
            result = await self._server.propose_one(
                Op.COMPACTION, call.request, who.user, who.revision, request_id=request_id_of(call)
            )
            target = self._server.store.compact_revision
            while self._server.compactor.done_revision < target and not call.cancelled:  # noqa: ASYNC110
                await asyncio.sleep(COMPACTION_POLL_SECONDS)
        except KvError as error:
            call.fail(error.with_traceback(None))
        else:
            call.reply(self._server.header(result.revision) + result.body)

    def txn(self, calls: list[Call]) -> None:
        check = partial(check_txn, max_ops=self._server.config.max_txn_ops)
        writes: list[tuple[Call, TxnRequest]] = []
        reads: list[tuple[Call, Read]] = []
        for call, request in parsed(calls, TxnRequest.FromString, check):
            if is_read_only(request):
                reads.append((call, request))
            else:
                writes.append((call, request))
        if self._server.quota.tight:
            writes = self._server.quota.admit(writes, txn_cost)
        self._propose(Op.TXN, [call for call, _ in writes])
        self._read(reads)

    def _propose(self, op: Op, calls: list[Call]) -> None:
        proposals = []
        auth = self._server.auth if self._server.store.auth.enabled else None
        who = NOBODY
        for call in calls:
            try:
                request_id = request_id_of(call)
                if auth is not None:
                    who = auth.identify(call)
            except KvError as error:
                call.fail(error)
                continue
            proposals.append(
                Proposal(op, call.request, partial(self._done, call), who.user, who.revision, request_id=request_id)
            )
        if proposals:
            self._server.propose(proposals)

    def _done(self, call: Call, result: Result) -> None:
        if isinstance(result, KvError):
            call.fail(result)
        else:
            call.reply(self._server.header(result.revision) + result.body)

    # Reads

    def range(self, calls: list[Call]) -> None:
        ranges = parsed(calls, RangeRequest.FromString, check_range)
        self._read([*ranges])

    def _read(self, reads: "list[tuple[Call, Read]]") -> None:
        local = [read for read in reads if is_serializable(read[1])]
        barred = [read for read in reads if not is_serializable(read[1])]
        if barred and self._server.is_learner:
            for call, _ in barred:
                call.fail(NOT_SUPPORTED_FOR_LEARNER)
        elif barred:
            self._server.when_linearizable(partial(self._read_after, barred), len(barred))
        self._read_now(local)

    def _read_after(self, reads: list[tuple[Call, Read]], error: KvError | None) -> None:
        if error is None:
            self._read_now(reads)
            return
        for call, _ in reads:
            call.fail(error)

    def _read_now(self, reads: list[tuple[Call, Read]]) -> None:
        store = self._server.store
        header = self._server.header(store.current_revision)
        guarded = store.auth.enabled
        for call, request in reads:
            if call.cancelled:
                continue
            try:
                if guarded:
                    self._check_read(call, request, store.auth)
                found = range_small(store, request) if isinstance(request, RangeRequest) else None
            except KvError as error:
                call.fail(error)
                continue
            if found is None:
                self._start(self._read_long(call, request))
            else:
                call.reply(header + range_body(found.kvs, found.count, found.more))

    def _check_read(self, call: Call, request: Read, table: AuthTable) -> None:
        """Whether the caller may see what is read from the state of this table. Raises KvError."""
        check(refuse_read(table, self._server.auth.identify(call), request))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read_long(self, call: Call, request: Read) -> None:
        try:
            async with self._long_reads:
                await self._read_view(call, request)
        except KvError as error:
            call.fail(error.with_traceback(None))
        except Exception:  # top of a task: the caller must not be left waiting
            log.exception("read failed")
            call.fail(UNEXPECTED)

    async def _read_view(self, call: Call, request: Read) -> None:
        if call.cancelled:
            return
        with self._server.store.view() as view:
            if view.auth.enabled:
                self._check_read(call, request, view.auth)
            if isinstance(request, RangeRequest):
                found = await range_(view, request)
                revision, body = view.current_revision, range_body(found.kvs, found.count, found.more)
            else:
                result = await read_txn(view, request)
                revision, body = result.revision, result.body
            call.reply(self._server.header(revision) + body)

    async def RangeStream(self, request: RangeRequest, context: Any) -> AsyncIterator[bytes]:
        check_range(request)
        check_range_stream(request)
        if not request.serializable:
            await self._server.linearizable()
        table = self._server.auth.table
        check(table.refuse_read(identify(self._server, context), request.key, request.range_end))
        chunks = range_stream(self._server.store, request, self._server.config.max_request_bytes)
        async with aclosing(chunks):
            async for chunk in chunks:
                header = self._server.header(chunk.revision) if chunk.last else b""
                yield field(b"\x0a", header + range_body(chunk.kvs, chunk.count, chunk.more))

    async def stop(self) -> None:
        """End what is under way; its callers get nothing: the connection is going too."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def request_id_of(call: Call) -> str:
    """The client's name for a change, or "". Raises KvError."""
    request_id = call.text(REQUEST_ID)
    if len(request_id) > REQUEST_ID_LENGTH_MAX:
        raise REQUEST_ID_TOO_LONG.fresh()
    return request_id


def parsed(
    calls: list[Call], parse: Callable[[bytes], Message], check: Callable[[Message], None]
) -> list[tuple[Call, Message]]:
    """The calls that make sense, with their messages; the others are answered."""
    good = []
    for call in calls:
        try:
            request = parse(call.request)
            check(request)
        except DecodeError:
            call.fail(MALFORMED)
        except KvError as error:
            call.fail(error)
        else:
            good.append((call, request))
    return good
