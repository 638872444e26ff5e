"""Which member to ask: round robin from the last good one, broken ones left alone for a while.

An endpoint is connected before a request is handed to it, and that is what makes failover of writes safe:
grpc gives a request to a connection only once there is one, so a request that was not handed over, because the
channel never became READY, was provably never sent and may go to the next member. After the hand-over nothing
but an answer tells (RELIABILITY.md, S-64).
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from typing import Any, Final, TypeVar, cast

import grpc
import grpc.aio

from kvstore.client.credentials import Credentials, TokenChannel, error_of
from kvstore.client.errors import ClientError, NotConnected, Unavailable, from_status
from kvstore.errors import Code, KvError
from kvstore.pb import history_pb2_grpc, rpc_pb2_grpc

T = TypeVar("T")

LOGIN_SECONDS: Final = 5.0  # a member takes long on purpose, and asks the others first
BACKOFF_SECONDS_MIN: Final = 0.05
BACKOFF_SECONDS_MAX: Final = 2.0

# grpc-core's status for a call that found no connection to leave by (its pick-first policy says so).
_NEVER_LEFT: Final = "failed to connect to all addresses"


class Endpoint:
    """One member: its channel, made on first use, and how it has been doing."""

    def __init__(self, url: str, make_channel: Callable[[str], Any], credentials: Credentials | None = None) -> None:
        self.url = url
        self._credentials = credentials
        self.failures = 0  # in a row
        self.retry_at = 0.0  # loop time before which others are preferred
        self._make_channel = make_channel

    @cached_property
    def channel(self) -> grpc.aio.Channel:
        channel = self._make_channel(self.url)
        return cast(grpc.aio.Channel, TokenChannel(channel, self._credentials) if self._credentials else channel)

    @cached_property
    def kv(self) -> "rpc_pb2_grpc.KVAsyncStub":
        return rpc_pb2_grpc.KVStub(self.channel)

    @cached_property
    def watch(self) -> "rpc_pb2_grpc.WatchAsyncStub":
        return rpc_pb2_grpc.WatchStub(self.channel)

    @cached_property
    def lease(self) -> "rpc_pb2_grpc.LeaseAsyncStub":
        return rpc_pb2_grpc.LeaseStub(self.channel)

    @cached_property
    def cluster(self) -> "rpc_pb2_grpc.ClusterAsyncStub":
        return rpc_pb2_grpc.ClusterStub(self.channel)

    @cached_property
    def maintenance(self) -> "rpc_pb2_grpc.MaintenanceAsyncStub":
        return rpc_pb2_grpc.MaintenanceStub(self.channel)

    @cached_property
    def auth(self) -> "rpc_pb2_grpc.AuthAsyncStub":
        return rpc_pb2_grpc.AuthStub(self.channel)

    @cached_property
    def history(self) -> "history_pb2_grpc.HistoryAsyncStub":
        return history_pb2_grpc.HistoryStub(self.channel)

    async def connect(self, timeout: float, login_timeout: float = LOGIN_SECONDS) -> None:
        """Return once requests can leave, in the name of the user if there is one.

        Raises NotConnected when that failed or took too long, another ClientError when the login was refused.
        """
        await self._connect(timeout)
        if self._credentials is not None:
            try:
                await self._credentials.log_in(self.channel, login_timeout)
            except grpc.aio.AioRpcError as failure:
                error = to_client_error(failure, self, mutation=False)
                if isinstance(error, Unavailable):  # nothing was sent but the login: another member may do
                    raise NotConnected(f"no login at {self.url}: {error.message}") from None
                raise error from None

    def wants_login(self, error: ClientError | grpc.aio.AioRpcError) -> bool:
        """Whether it says that the token is not good (any more). After the next `connect` there is another one."""
        if self._credentials is None:
            return False
        if isinstance(error, grpc.aio.AioRpcError):
            return self._credentials.refused(error_of(error))
        return self._credentials.refused(KvError(error.code, error.message))

    async def ask(self, call: Callable[[], Awaitable[T]], timeout: float) -> T:
        """The call's answer; where its token was refused, that of the same call with another token."""
        try:
            return await call()
        except grpc.aio.AioRpcError as failure:
            if not self.wants_login(failure):
                raise
        await self.connect(timeout, timeout)
        return await call()

    async def _connect(self, timeout: float) -> None:
        state = self.channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.READY:
            return
        try:
            async with asyncio.timeout(timeout):
                while state not in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                    await self.channel.wait_for_state_change(state)
                    state = self.channel.get_state(try_to_connect=True)
                    if state is grpc.ChannelConnectivity.READY:
                        return
        except TimeoutError:
            raise NotConnected(f"no connection to {self.url} within {timeout:.1f} s") from None
        raise NotConnected(f"cannot connect to {self.url}")

    async def close(self) -> None:
        if "channel" in self.__dict__:
            await self.channel.close(None)


class EndpointPool:
    def __init__(
        self, urls: Sequence[str], make_channel: Callable[[str], Any], credentials: Credentials | None = None
    ) -> None:
        if not urls:
            raise ValueError("a client needs at least one endpoint")
        self._make_channel = make_channel
        self.credentials = credentials
        self._by_url = {url: Endpoint(url, make_channel, credentials) for url in urls}
        self.endpoints = list(self._by_url.values())
        self._preferred = 0

    def only(self, url: str) -> "EndpointPool":
        """A pool of this one member, which need not be one of ours; it shares the connection."""
        pool = EndpointPool([url], self._make_channel, self.credentials)
        pool.endpoints = [self._by_url.setdefault(url, pool.endpoints[0])]
        return pool

    def pick(self) -> Endpoint:
        """The last good one, or the next in turn that is not backed off; if all are, the one soonest back."""
        now = _now()
        turn = self.endpoints[self._preferred :] + self.endpoints[: self._preferred]
        return next((e for e in turn if e.retry_at <= now), min(turn, key=lambda e: e.retry_at))

    def succeeded(self, endpoint: Endpoint) -> None:
        endpoint.failures = 0
        endpoint.retry_at = 0.0
        self._preferred = self.endpoints.index(endpoint)

    def failed(self, endpoint: Endpoint) -> None:
        backoff = min(BACKOFF_SECONDS_MIN * 2.0**endpoint.failures, BACKOFF_SECONDS_MAX)
        endpoint.failures = min(endpoint.failures + 1, 16)
        endpoint.retry_at = _now() + backoff * random.uniform(0.5, 1.0)
        self._preferred = (self.endpoints.index(endpoint) + 1) % len(self.endpoints)

    def wait_seconds(self) -> float:
        """Until some endpoint is worth an attempt."""
        return max(0.0, min(e.retry_at for e in self.endpoints) - _now())

    async def close(self) -> None:
        for endpoint in self._by_url.values():
            await endpoint.close()


def to_client_error(error: grpc.aio.AioRpcError, endpoint: Endpoint, *, mutation: bool) -> ClientError:
    """The error tree's view of a failed call that was handed to a connected endpoint."""
    details = error.details() or ""
    code = Code(error.code().value[0])
    if code is Code.UNAVAILABLE and details.startswith(_NEVER_LEFT):
        return NotConnected(f"cannot connect to {endpoint.url}: {details}")
    return from_status(code, details, mutation=mutation)


def _now() -> float:
    return asyncio.get_running_loop().time()
