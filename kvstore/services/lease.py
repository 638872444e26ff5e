"""etcdserverpb.Lease: grants and revokes go through the log, the rest to the leader's lessor.

All keep-alives that a tick brought, of all streams, are answered together; what one read of a stream
brought is one message list out. The header of a keep-alive is this member's, from before the renewal.
A lease that is not there is no error: a keep-alive answers TTL 0, a time-to-live -1.
"""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

import structlog
from google.protobuf.message import DecodeError

from kvstore.auth.table import NOBODY, Identity
from kvstore.errors import TOO_MANY_REQUESTS, KvError
from kvstore.mvcc.encoding import field, varint
from kvstore.pb.command_pb2 import LeaseRevoke
from kvstore.pb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseLeasesRequest,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
)
from kvstore.rpc.base import UNEXPECTED, Call, RpcServer, Stream
from kvstore.server.proposal import Proposal
from kvstore.services.kv import parsed
from kvstore.services.leader_streams import LeaderStreams
from kvstore.services.permissions import check, check_leases
from kvstore.services.watch import MALFORMED_MESSAGE
from kvstore.state.applier import Result
from kvstore.state.command import Op
from kvstore.state.quota import LEASE_BYTES

if TYPE_CHECKING:
    from kvstore.server.server import KvServer

log = structlog.get_logger(__name__)

LEASES_MAX: Final = 1_000_000  # about 190 MB of a member's memory; more are refused
QUEUED_BYTES_MAX: Final = 4 << 20  # of a stream whose client does not read
CHECKING_MAX: Final = 1000  # lists of one stream that wait, where keys have to be looked at
LISTED_MAX: Final = 4000  # leases that are encoded in one step
UNSIGNED: Final = 1 << 64  # a negative id on the wire


@final
class LeaseService:
    def __init__(self, server: "KvServer") -> None:
        self._server = server
        self._leases = server.leases
        self._leader_streams = LeaderStreams(server)
        self._tasks: set[asyncio.Task[None]] = set()  # the loop keeps only weak references to tasks

    def register(self, rpc: RpcServer) -> None:
        rpc.add_calls("/etcdserverpb.Lease/LeaseGrant", self.grant)
        rpc.add_calls("/etcdserverpb.Lease/LeaseRevoke", self.revoke)
        rpc.add_calls("/etcdserverpb.Lease/LeaseTimeToLive", self.time_to_live)
        rpc.add_calls("/etcdserverpb.Lease/LeaseLeases", self.list_)
        rpc.add_stream("/etcdserverpb.Lease/LeaseKeepAlive", self.open)

    def start(self) -> None:
        self._start(self._tick())

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tick(self) -> None:
        while True:
            self._leader_streams.tick(asyncio.get_running_loop().time())
            await asyncio.sleep(self._leader_streams.seconds_max / 4)

    # Through the log

    def grant(self, calls: list[Call]) -> None:
        granted: list[tuple[Call, bytes]] = []
        room = LEASES_MAX - len(self._leases.lessor)
        good = parsed(calls, LeaseGrantRequest.FromString, lambda _: None)  # apply judges: an alarm comes first
        if self._server.quota.tight:
            good = self._server.quota.admit(good, lambda _: LEASE_BYTES)
        for call, request in good:
            if len(granted) >= room:
                call.fail(TOO_MANY_REQUESTS)
                continue
            raw = call.request
            ttl_min = self._leases.ttl_min
            if ttl_min > request.TTL:
                # Here and not in apply: the least TTL follows from this member's settings.
                request.TTL = ttl_min
                raw = request.SerializeToString()
            granted.append((call, raw))
        self._propose(Op.LEASE_GRANT, granted)

    def revoke(self, calls: list[Call]) -> None:
        """Written anew: what else a client puts into its message must not be read as the leader's word."""
        good = parsed(calls, LeaseRevokeRequest.FromString, lambda _: None)
        self._propose(
            Op.LEASE_REVOKE, [(call, LeaseRevoke(ids=[request.ID]).SerializeToString()) for call, request in good]
        )

    def _propose(self, op: Op, calls: list[tuple[Call, bytes]]) -> None:
        proposals = []
        auth = self._server.auth if self._server.store.auth.enabled else None
        who = NOBODY
        for call, raw in calls:
            if auth is not None:
                try:
                    who = auth.identify(call)
                except KvError as error:
                    call.fail(error)
                    continue
            proposals.append(Proposal(op, raw, partial(self._done, call), who.user, who.revision))
        self._server.propose(proposals)

    def _done(self, call: Call, result: Result) -> None:
        if isinstance(result, KvError):
            call.fail(result)
        else:
            call.reply(self._server.header(result.revision) + result.body)

    # From the lessor

    def time_to_live(self, calls: list[Call]) -> None:
        for call, request in parsed(calls, LeaseTimeToLiveRequest.FromString, lambda _: None):
            self._start(self._answer(call, self._time_to_live(call, request.keys)))

    async def _time_to_live(self, call: Call, keys: bool) -> bytes:
        body = await self._leases.time_to_live(call.request)
        if keys and self._server.auth.is_on:
            # The leader has told the keys; whether the caller may see them is decided on a state that is not older.
            await self._server.linearizable()
            table, who = self._server.auth.table, self._server.auth.identify(call)
            if not table.is_root(who.user):
                for key in LeaseTimeToLiveResponse.FromString(body).keys:
                    check(table.refuse_read(who, key))
        return body

    def list_(self, calls: list[Call]) -> None:
        for call, _ in parsed(calls, LeaseLeasesRequest.FromString, lambda _: None):
            self._start(self._answer(call, self._listed(call)))

    async def _answer(self, call: Call, work: Coroutine[Any, Any, bytes]) -> None:
        try:
            body = await work
        except KvError as error:
            call.fail(error.with_traceback(None))
        except Exception:  # top of a task: the caller must not be left waiting
            log.exception("lease call failed")
            call.fail(UNEXPECTED)
        else:
            call.reply(self._server.header(self._server.store.current_revision) + body)

    async def _listed(self, call: Call) -> bytes:
        """As this member knows them (etcd): without a quorum too."""
        await self._leases.loaded()
        ids = self._leases.lessor.ids()
        if self._server.auth.is_on:
            with self._server.store.view() as view:
                await check_leases(view, self._server.auth.identify(call), ids, write=False)
        parts: list[bytes] = []
        for at in range(0, len(ids), LISTED_MAX):
            parts += [field(b"\x12", b"\x08" + varint(id_ % UNSIGNED)) for id_ in ids[at : at + LISTED_MAX]]
            await asyncio.sleep(0)
        return b"".join(parts)

    def open(self, stream: Stream) -> "KeepAliveHandler":
        self._leader_streams.opened(stream)
        return KeepAliveHandler(stream, self._server, self._leader_streams, self._start)


@final
class KeepAliveHandler:
    """One stream of keep-alives."""

    def __init__(
        self,
        stream: Stream,
        server: "KvServer",
        leader_streams: LeaderStreams,
        start: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._stream = stream
        self._server = server
        self._leader_streams = leader_streams
        self._start = start  # a task of the service
        self._waiting = 0  # lists without an answer
        self._half_closed = False

    def received(self, messages: list[bytes]) -> None:
        try:
            ids = [LeaseKeepAliveRequest.FromString(message).ID for message in messages]
        except DecodeError:
            self._stream.close(MALFORMED_MESSAGE)
            return
        if self._stream.queued_bytes > QUEUED_BYTES_MAX:
            self._stream.close(TOO_MANY_REQUESTS)
            return
        self._waiting += 1
        if self._server.store.auth.enabled:
            self._check_first(ids)
        else:
            self._keep_alive(ids)

    def _keep_alive(self, ids: list[int]) -> None:
        head = self._server.header(self._server.store.current_revision)
        self._server.leases.keep_alive(ids, partial(self._renewed, head, ids))

    def _check_first(self, ids: list[int]) -> None:
        """To renew a lease is to keep its keys: who may not write them may not renew it."""
        auth = self._server.auth
        try:
            who = auth.identify(self._stream)
            check(auth.table.refuse_user(who))
        except KvError as error:
            self._stream.close(error)
            return
        if auth.table.may_write_everything(who.user):
            self._keep_alive(ids)
        elif self._waiting > CHECKING_MAX:
            self._stream.close(TOO_MANY_REQUESTS)
        else:
            self._start(self._checked(who, ids))

    async def _checked(self, who: Identity, ids: list[int]) -> None:
        try:
            with self._server.store.view() as view:
                await check_leases(view, who, ids, write=True)
        except KvError as error:
            self._stream.close(error.with_traceback(None))
        else:
            self._keep_alive(ids)

    def _renewed(self, head: bytes, ids: list[int], ttls: list[int] | KvError) -> None:
        self._waiting -= 1
        if isinstance(ttls, KvError):
            self._stream.close(ttls)
            return
        self._stream.send([_response(head, id_, ttl) for id_, ttl in zip(ids, ttls, strict=True)])
        if self._half_closed and not self._waiting:
            self._stream.close()

    def drained(self) -> None:
        pass

    def half_closed(self) -> None:
        """The client asks for nothing more: the stream ends with the last answer, as at etcd."""
        self._half_closed = True
        if not self._waiting:
            self._stream.close()

    def closed(self) -> None:
        self._leader_streams.closed(self._stream)


def _response(head: bytes, id_: int, ttl: int) -> bytes:
    """An encoded LeaseKeepAliveResponse; a TTL of 0 is left out."""
    body = b"%b\x10%b" % (head, varint(id_ % UNSIGNED)) if id_ else head
    return b"%b\x18%b" % (body, varint(ttl)) if ttl else body
