"""The asyncio client of a cluster.

    async with Client(["127.0.0.1:2379", "127.0.0.1:2479"]) as client:
        await client.put("config/color", "green")
        print((await client.get("config/color")).value)
        async with client.watch("config/", prefix=True) as watch:
            async for response in watch: ...

The rules of retry, and why:
- Every call has one deadline, over all its attempts.
- A read (get, history, member_list, status, hash_kv, alarms) is asked again on another member when the answer is
  Unavailable or does not come.
- A mutation (put, delete, txn, compact) is handed to a connection once. It goes to another member only while no
  connection existed to hand it to. After that an Unavailable or DeadlineExceeded is raised with
  `outcome_unknown`: it may have been applied, and whether to send it again is for the caller to say. A txn of
  reads only is a read.
- A watch goes on from the revision after the last one that it delivered (kvstore/client/watch.py).
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self, TypeVar, Unpack

import grpc.aio
import tenacity

from kvstore import rpc
from kvstore.client import txn as ops
from kvstore.client.auth import AuthCalls
from kvstore.client.credentials import Credentials
from kvstore.client.election import Election
from kvstore.client.endpoints import Endpoint, EndpointPool, to_client_error
from kvstore.client.errors import DeadlineExceeded, NotConnected, NotFound, Unavailable
from kvstore.client.lease import KeepAlive, LeaseHub, keep_alive_once
from kvstore.client.lock import LOCK_TTL, Lock
from kvstore.client.options import DeleteOptions, GetOptions, PutOptions, WatchOptions
from kvstore.client.session import SESSION_TTL, Session
from kvstore.client.streams import Stream, snapshot_parts
from kvstore.client.types import (
    Alarm,
    AlarmList,
    Bytes,
    Change,
    CompactResult,
    DeleteResult,
    Downgrade,
    GetResult,
    HashKv,
    Header,
    KeyValue,
    LeaseGrant,
    LeaseKept,
    LeaseList,
    LeaseRevoked,
    LeaseTtl,
    MemberAdded,
    MemberList,
    PutResult,
    SnapshotPart,
    Status,
    TxnResult,
    key_range,
)
from kvstore.client.watch import Watch, WatchHub, watch_request
from kvstore.errors import LEASE_NOT_FOUND
from kvstore.pb import history_pb2, rpc_pb2

TIMEOUT_SECONDS: Final = 5.0
DEFRAGMENT_TIMEOUT_SECONDS: Final = 600.0
SNAPSHOT_TIMEOUT_SECONDS: Final = 600.0  # a member makes the whole file before it sends the first byte
DIAL_TIMEOUT_SECONDS: Final = 2.0

Q = TypeVar("Q", contravariant=True)  # noqa: PLC0105
R = TypeVar("R", covariant=True)  # noqa: PLC0105


class _Method(Protocol[Q, R]):
    def __call__(self, request: Q, /, *, timeout: float | None = None) -> Awaitable[R]: ...


class Client:
    """Use as an async context manager, on one event loop.

    endpoints: "host:port", "http://host:port" or "https://host:port", one per member. A bad one raises ValueError on
    first use.
    timeout: seconds a call may take, with all its attempts. Each method takes its own `timeout` too.
    dial_timeout: seconds after which a call gives up when no member can be connected.
    tls: whom to believe and what to show at https:// endpoints, and at those that name no scheme.
    user, password: who asks, where authentication is on.
    make_channel: (endpoint) -> a channel with grpc.aio's surface; has its own TLS.
    """

    def __init__(
        self,
        endpoints: Sequence[str] = ("127.0.0.1:2379",),
        *,
        timeout: float = TIMEOUT_SECONDS,
        dial_timeout: float = DIAL_TIMEOUT_SECONDS,
        tls: rpc.ChannelTls | None = None,
        user: str = "",
        password: str = "",
        make_channel: Callable[[str], Any] | None = None,
    ) -> None:
        if make_channel is None:
            # grpcio cannot be told to believe anybody.
            front = "nghttp2" if tls is not None and not tls.verify else None
            make_channel = partial(rpc.make_channel, options=rpc.ChannelOptions(tls=tls), front=front)
        self._timeout = timeout
        self._dial_timeout = dial_timeout
        self._pool = EndpointPool(endpoints, make_channel, Credentials(user, password) if user else None)
        self._watches = WatchHub(self._pool, dial_timeout)
        self._leases = LeaseHub(self._pool, dial_timeout)
        self.auth = AuthCalls(self._read, self._mutate)  # users, roles and permissions

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._watches.close()
        await self._leases.close()
        await self._pool.close()

    # ---- keys ----

    async def get(
        self, key: Bytes, range_end: Bytes | None = None, *, timeout: float | None = None, **options: Unpack[GetOptions]
    ) -> GetResult:
        """Read one key, [key, range_end), a prefix, or all from a key on. Linearizable unless `serializable`."""
        request = ops.get(key, range_end, **options)
        return GetResult.of(await self._read(lambda e: e.kv.Range, request, timeout))

    async def put(
        self, key: Bytes, value: Bytes = b"", *, timeout: float | None = None, **options: Unpack[PutOptions]
    ) -> PutResult:
        request = ops.put(key, value, **options)
        return PutResult.of(await self._mutate(lambda e: e.kv.Put, request, timeout))

    async def delete(
        self,
        key: Bytes,
        range_end: Bytes | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[DeleteOptions],
    ) -> DeleteResult:
        request = ops.delete(key, range_end, **options)
        return DeleteResult.of(await self._mutate(lambda e: e.kv.DeleteRange, request, timeout))

    async def txn(
        self,
        when: Sequence[rpc_pb2.Compare] = (),
        then: Sequence[ops.Request] = (),
        otherwise: Sequence[ops.Request] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        """`then` when every compare of `when` holds, else `otherwise`: see kvstore/client/txn.py."""
        request = ops.txn(when, then, otherwise)
        call = self._read if ops.reads_only(request) else self._mutate
        return TxnResult.of(await call(lambda e: e.kv.Txn, request, timeout))

    async def compact(self, revision: int, *, physical: bool = False, timeout: float | None = None) -> CompactResult:
        """Give up the revisions below `revision` for get and watch; the history keeps them."""
        request = rpc_pb2.CompactionRequest(revision=revision, physical=physical)
        return CompactResult(Header.of((await self._mutate(lambda e: e.kv.Compact, request, timeout)).header))

    # ---- streams ----

    def watch(
        self,
        key: Bytes,
        range_end: Bytes | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[WatchOptions],
    ) -> Watch:
        """`async with` it: entering returns when the server has taken the watch, within `timeout`."""
        return Watch(self._watches, watch_request(key, range_end, **options), timeout or self._timeout)

    async def get_stream(
        self,
        key: Bytes,
        range_end: Bytes | None = None,
        *,
        prefix: bool = False,
        from_key: bool = False,
        revision: int = 0,
        limit: int = 0,
        keys_only: bool = False,
        serializable: bool = False,
        timeout: float | None = None,
    ) -> AsyncIterator[KeyValue]:
        """A range of any size, in key order and as it was at one revision; kvstore and etcd 3.7 or newer.

        `timeout` is for each message of the answer. When a stream breaks, it goes on behind the last key.
        """
        patience = timeout or self._timeout
        if not revision:
            revision = (await self.get(key or b"\0", keys_only=True, serializable=serializable)).header.revision
        request = ops.get(key, range_end, prefix=prefix, from_key=from_key, revision=revision, limit=limit)
        request.keys_only, request.serializable = keys_only, serializable
        while True:
            last = b""
            stream = await self._open(lambda e: e.kv.RangeStream, request, patience)
            try:
                async for message in stream.messages(patience):
                    for kv in map(KeyValue.of, message.range_response.kvs):
                        last = kv.key
                        if limit:
                            request.limit -= 1
                        yield kv
                return
            except Unavailable:
                if limit and not request.limit:
                    return
                if not last:
                    raise
                request.key = last + b"\0"

    async def history(
        self,
        key: Bytes = b"",
        range_end: Bytes | None = None,
        *,
        prefix: bool = False,
        from_key: bool = False,
        from_revision: int = 0,
        to_revision: int = 0,
        limit: int = 0,
        serializable: bool = False,
        timeout: float | None = None,
    ) -> AsyncIterator[Change]:
        """Every change, oldest first, also from before the compaction point. key "": of every key.

        `timeout` is for each message of the answer. When a stream breaks, it goes on behind the last change.
        """
        first, end = key_range(key, range_end, prefix or not key, from_key)
        request = history_pb2.ReadHistoryRequest(
            key=first, range_end=end, from_revision=from_revision, to_revision=to_revision, serializable=serializable
        )
        patience = timeout or self._timeout
        yielded = at_revision = 0  # changes in all, and of revision request.from_revision
        while True:
            # The server counts from the revision on, so what was yielded of it comes again and is skipped.
            request.limit = limit - yielded + at_revision if limit else 0
            skip, before = at_revision, yielded
            stream = await self._open(lambda e: e.history.Read, request, patience)
            try:
                async for message in stream.messages(patience):
                    for change in map(Change.of, message.changes):
                        if skip:
                            skip -= 1
                            continue
                        at_revision = at_revision + 1 if change.revision == request.from_revision else 1
                        request.from_revision = change.revision
                        yielded += 1
                        yield change
                return
            except Unavailable:
                if yielded == before:
                    raise

    # ---- leases ----

    async def lease_grant(self, ttl: int, lease: int = 0, *, timeout: float | None = None) -> LeaseGrant:
        """A lease of `ttl` seconds. lease: its id; 0: the server chooses one."""
        request = rpc_pb2.LeaseGrantRequest(TTL=ttl, ID=lease)
        return LeaseGrant.of(await self._mutate(lambda e: e.lease.LeaseGrant, request, timeout))

    async def lease_revoke(self, lease: int, *, timeout: float | None = None) -> LeaseRevoked:
        """End it, and delete all keys that are bound to it, in one revision. NotFound when there is none."""
        request = rpc_pb2.LeaseRevokeRequest(ID=lease)
        response = await self._mutate(lambda e: e.lease.LeaseRevoke, request, timeout)
        return LeaseRevoked(Header.of(response.header))

    async def lease_time_to_live(self, lease: int, *, keys: bool = False, timeout: float | None = None) -> LeaseTtl:
        """What is left of it; keys: and what is bound to it. `ttl` is -1 when there is none."""
        request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease, keys=keys)
        return LeaseTtl.of(await self._read(lambda e: e.lease.LeaseTimeToLive, request, timeout))

    async def leases(self, *, timeout: float | None = None) -> LeaseList:
        request = rpc_pb2.LeaseLeasesRequest()
        return LeaseList.of(await self._read(lambda e: e.lease.LeaseLeases, request, timeout))

    async def lease_keep_alive_once(self, lease: int, *, timeout: float | None = None) -> LeaseKept:
        """Its full TTL from now on. NotFound when there is no such lease."""
        request = rpc_pb2.LeaseKeepAliveRequest(ID=lease)
        # Asked twice it does no harm, so it is retried as a read is.
        kept = LeaseKept.of(await self._read(keep_alive_once, request, timeout))
        if not kept.ttl:
            raise NotFound(LEASE_NOT_FOUND.message)
        return kept

    def lease_keep_alive(self, lease: int, *, timeout: float | None = None) -> KeepAlive:
        """`async with` it: keeps the lease alive in the background, through leader changes; see KeepAlive."""
        return KeepAlive(self._leases, lease, timeout or self._timeout)

    # ---- locks and elections ----

    def session(self, ttl: int = SESSION_TTL) -> Session:
        """`async with` it: a lease that is kept alive; several locks and elections may share one."""
        return Session(self, ttl)

    def lock(self, name: Bytes, ttl: int = LOCK_TTL, *, session: Session | None = None) -> Lock:
        """`async with` it: one holder at a time, in the order of their coming; see kvstore/client/lock.py.

        ttl: seconds after which a holder that gives no sign of life loses it.
        """
        return Lock(self, name, ttl, session)

    def election(self, name: Bytes, ttl: int = SESSION_TTL, *, session: Session | None = None) -> Election:
        """See kvstore/client/election.py."""
        return Election(self, name, ttl, session)

    # ---- the cluster ----

    async def member_list(self, *, linearizable: bool = True, timeout: float | None = None) -> MemberList:
        request = rpc_pb2.MemberListRequest(linearizable=linearizable)
        return MemberList.of(await self._read(lambda e: e.cluster.MemberList, request, timeout))

    async def member_add(
        self, peer_urls: Sequence[str], *, learner: bool = False, timeout: float | None = None
    ) -> MemberAdded:
        """Let a process that listens on `peer_urls` join; it then starts with --initial-cluster-state=existing."""
        request = rpc_pb2.MemberAddRequest(peerURLs=peer_urls, isLearner=learner)
        return MemberAdded.of(await self._mutate(lambda e: e.cluster.MemberAdd, request, timeout))

    async def member_remove(self, member_id: int, *, timeout: float | None = None) -> MemberList:
        """For ever: the process ends, and its id never comes back. Returns who is left."""
        request = rpc_pb2.MemberRemoveRequest(ID=member_id)
        return MemberList.of(await self._mutate(lambda e: e.cluster.MemberRemove, request, timeout))

    async def member_update(
        self, member_id: int, peer_urls: Sequence[str], *, timeout: float | None = None
    ) -> MemberList:
        """Tell the others where a member listens from now on."""
        request = rpc_pb2.MemberUpdateRequest(ID=member_id, peerURLs=peer_urls)
        return MemberList.of(await self._mutate(lambda e: e.cluster.MemberUpdate, request, timeout))

    async def member_promote(self, member_id: int, *, timeout: float | None = None) -> MemberList:
        """Make a voter of a learner that has caught up."""
        request = rpc_pb2.MemberPromoteRequest(ID=member_id)
        return MemberList.of(await self._mutate(lambda e: e.cluster.MemberPromote, request, timeout))

    async def move_leader(self, member_id: int, *, timeout: float | None = None) -> None:
        """Hand leadership to this voter. Only the leader does it: this client's endpoint must be the leader's."""
        request = rpc_pb2.MoveLeaderRequest(targetID=member_id)
        await self._mutate(lambda e: e.maintenance.MoveLeader, request, timeout)

    async def status(self, endpoint: str | None = None, *, timeout: float | None = None) -> Status:
        """Of this endpoint's member; of any one's without it."""
        request = rpc_pb2.StatusRequest()
        return Status.of(await self._read(lambda e: e.maintenance.Status, request, timeout, endpoint))

    async def hash_kv(self, endpoint: str | None = None, *, revision: int = 0, timeout: float | None = None) -> HashKv:
        """The hash of all revisions up to `revision` (0: the newest): equal on all members at one revision."""
        request = rpc_pb2.HashKVRequest(revision=revision)
        return HashKv.of(await self._read(lambda e: e.maintenance.HashKV, request, timeout, endpoint))

    async def snapshot(
        self, endpoint: str | None = None, *, timeout: float = SNAPSHOT_TIMEOUT_SECONDS
    ) -> AsyncGenerator[SnapshotPart, None]:
        """A snapshot file of one member's state, piece by piece: write all blobs one behind the other. The last one is
        the SHA-256 of the others, which belongs to the file and which this method has checked; without it the file is
        not whole, and an error was raised. A stream that breaks does not go on elsewhere.

        timeout: for each piece. The first one comes when the member has made all of them.
        """
        stream = await self._open(lambda e: e.maintenance.Snapshot, rpc_pb2.SnapshotRequest(), timeout, endpoint)
        async with aclosing(snapshot_parts(stream, timeout)) as parts:
            async for part in parts:
                yield part

    async def alarms(self, *, timeout: float | None = None) -> AlarmList:
        request = rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.GET)
        return AlarmList.of(await self._read(lambda e: e.maintenance.Alarm, request, timeout))

    async def alarm_disarm(self, alarm: Alarm, *, timeout: float | None = None) -> AlarmList:
        """Take it back, once the space is free or the damaged member replaced. Empty when it was not there."""
        off, kind = rpc_pb2.AlarmRequest.DEACTIVATE, rpc_pb2.AlarmType.Value(alarm.type)
        request = rpc_pb2.AlarmRequest(action=off, memberID=alarm.member_id, alarm=kind)
        return AlarmList.of(await self._mutate(lambda e: e.maintenance.Alarm, request, timeout))

    async def defragment(self, endpoint: str, *, timeout: float = DEFRAGMENT_TIMEOUT_SECONDS) -> None:
        """Let this endpoint's member give back the disk space that it has freed; it goes on serving."""
        await self._read(lambda e: e.maintenance.Defragment, rpc_pb2.DefragmentRequest(), timeout, endpoint)

    async def downgrade(
        self, action: Literal["validate", "enable", "cancel"], version: str = "", *, timeout: float | None = None
    ) -> Downgrade:
        """Whether the cluster may go down to `version` ("3.5"); begin it; end it."""
        wanted = rpc_pb2.DowngradeRequest.DowngradeAction.Value(action.upper())
        request = rpc_pb2.DowngradeRequest(action=wanted, version=version)
        return Downgrade.of(await self._mutate(lambda e: e.maintenance.Downgrade, request, timeout))

    # ---- attempts ----

    async def _read(
        self,
        method: Callable[[Endpoint], _Method[Q, R]],
        request: Q,
        timeout: float | None,
        endpoint: str | None = None,
    ) -> R:
        pool = self._pool if endpoint is None else self._pool.only(endpoint)
        return await self._retrying(pool, method, request, timeout, mutation=False)

    async def _mutate(self, method: Callable[[Endpoint], _Method[Q, R]], request: Q, timeout: float | None) -> R:
        return await self._retrying(self._pool, method, request, timeout, mutation=True)

    async def _retrying(
        self,
        pool: EndpointPool,
        method: Callable[[Endpoint], _Method[Q, R]],
        request: Q,
        timeout: float | None,
        *,
        mutation: bool,
    ) -> R:
        deadline = _now() + (timeout or self._timeout)
        async for attempt in self._attempts(pool, deadline, mutation=mutation):
            with attempt:
                return await self._attempt(pool, method, request, deadline, mutation=mutation)
        raise AssertionError("tenacity ends with a result or an exception")

    def _attempts(self, pool: EndpointPool, deadline: float, *, mutation: bool) -> tenacity.AsyncRetrying:
        dial_deadline = min(deadline, _now() + self._dial_timeout)

        def stop(state: tenacity.RetryCallState) -> bool:
            assert state.outcome is not None
            never_sent = isinstance(state.outcome.exception(), NotConnected)
            return _now() >= (dial_deadline if never_sent else deadline)

        return tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(NotConnected if mutation else Unavailable),
            wait=lambda _: min(pool.wait_seconds(), max(0.0, deadline - _now())),
            stop=stop,
            reraise=True,
        )

    async def _attempt(
        self,
        pool: EndpointPool,
        method: Callable[[Endpoint], _Method[Q, R]],
        request: Q,
        deadline: float,
        *,
        mutation: bool,
    ) -> R:
        endpoint = pool.pick()
        # A member that is cut off from the others answers nobody: leave time to ask another one.
        share = 2 if len(pool.endpoints) > 1 else 1
        try:
            left = max(0.0, deadline - _now())
            await endpoint.connect(min(self._dial_timeout, left) / share, left / share)
            remaining = deadline - _now()
            if remaining <= 0:
                raise DeadlineExceeded("no time was left to send the request")
            seconds = remaining if mutation else remaining / share
            response = await endpoint.ask(lambda: method(endpoint)(request, timeout=seconds), seconds)
        except grpc.aio.AioRpcError as failure:
            error = to_client_error(failure, endpoint, mutation=mutation)
            if isinstance(error, Unavailable):
                pool.failed(endpoint)
            raise error from None
        except NotConnected:
            pool.failed(endpoint)
            raise
        pool.succeeded(endpoint)
        return response

    async def _open(
        self, method: Callable[[Endpoint], Any], request: Any, timeout: float, endpoint: str | None = None
    ) -> Stream:
        """Start a streamed read, on the first member that gives a first message."""
        pool = self._pool if endpoint is None else self._pool.only(endpoint)

        async def first(endpoint_request: Any, endpoint: Endpoint, remaining: float | None) -> Stream:
            stream = Stream(method(endpoint)(endpoint_request), endpoint, pool)
            await stream.fetch(remaining or timeout)
            return stream

        def opener(endpoint: Endpoint) -> _Method[Any, Stream]:
            return lambda endpoint_request, /, *, timeout=None: first(endpoint_request, endpoint, timeout)

        return await self._retrying(pool, opener, request, timeout, mutation=False)


def _now() -> float:
    return asyncio.get_running_loop().time()
