"""What members ask each other beside raft's messages: kvstore.v1.Leader, on the peers' port.

Some things only the leader knows or may do: whether a learner has caught up, how long a lease still lives, a
change of the membership. A follower that is asked for one asks the leader and passes the answer on.

    service -> LeaderCalls.call -> ask(leader) ~~ network ~~> answer(asker) -> methods[name] -> bytes

Requests and answers are bytes at this seam; who registers a method knows its message. An error is a KvError
on both sides, with its code and text: what the leader raises, the follower's client sees.

Whoever does not lead refuses before it does anything, so `call` may ask once more when another leader is
known by then. An answer that is lost stays lost: the caller gets an error that means "unknown".
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeAlias, final

from kvstore.errors import NO_LEADER, NOT_LEADER, TIMEOUT, TIMEOUT_CONNECTION_LOST, Code, KvError, unimplemented
from kvstore.rpc import peer_calls
from raft.transport.grpc import CHANNEL_OPTIONS, METADATA_KEYS, PeerIdentity

Method: TypeAlias = Callable[[bytes], Awaitable[bytes]]  # raises KvError
ChannelFactory: TypeAlias = Callable[[str, list[tuple[str, Any]]], Any]  # a peer's URL and gRPC's arguments

SERVICE: Final = "kvstore.v1.Leader"
MEMBERS: Final = "Members"
HASH_KV: Final = "HashKV"
METHODS: Final = ("ChangeMembers", "KeepAliveLeases", "TimeToLive", MEMBERS, HASH_KV)
ANSWERED_BY_ALL: Final = (MEMBERS, HASH_KV)
FORMAT: Final = 1  # of this service


class Host(Protocol):
    """What calls need of a KvServer."""

    leader_methods: dict[str, Method]

    @property
    def leader_id(self) -> int: ...
    @property
    def member_id(self) -> int: ...
    def check_peer(self, peer: PeerIdentity) -> str | None: ...


class LeaderCalls(ABC):
    """Both sides of one member. A network is added by `ask` here and by calling `answer` there."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def call(self, method: str, request: bytes, timeout: float) -> bytes:
        """The answer of the leader known now, which may be this member itself.

        Raises KvError: NO_LEADER, one that says the outcome is unknown (TIMEOUT...), or what the leader raised.
        """
        host = self._host
        asked = host.leader_id
        try:
            async with asyncio.timeout(timeout):
                try:
                    return await self._ask(asked, method, request, timeout)
                except KvError as error:
                    if error != NOT_LEADER or host.leader_id == asked:
                        raise
                    return await self._ask(host.leader_id, method, request, timeout)
        except TimeoutError:
            raise TIMEOUT.fresh() from None

    async def _ask(self, leader: int, method: str, request: bytes, timeout: float) -> bytes:
        if not leader:
            raise NO_LEADER.fresh()
        if leader == self._host.member_id:
            return await self.answer(method, request)
        return await self.ask(leader, method, request, timeout)

    async def answer(self, method: str, request: bytes) -> bytes:
        """For the network: what this member answers. Raises KvError, nothing else but bugs."""
        handler = self._host.leader_methods.get(method)
        if handler is None:
            raise unimplemented(f"{SERVICE}/{method}")
        if method not in ANSWERED_BY_ALL and self._host.leader_id != self._host.member_id:
            raise NOT_LEADER.fresh()
        return await handler(request)

    @abstractmethod
    async def ask(self, member: int, method: str, request: bytes, timeout: float) -> bytes:
        """Over the network. Raises KvError; TIMEOUT or TIMEOUT_CONNECTION_LOST when no answer came."""

    @abstractmethod
    async def close(self) -> None:
        """Nobody calls any more."""


@final
class GrpcLeaderCalls(LeaderCalls):
    """Channels are made when they are needed, and again when a member's URLs have changed."""

    def __init__(
        self,
        host: Host,
        identity: PeerIdentity,
        urls_of: Callable[[int], list[str]],
        channel_factory: ChannelFactory,
    ) -> None:
        super().__init__(host)
        self._identity = identity
        self._urls_of = urls_of
        self._channel_factory = channel_factory
        self._channels: dict[int, tuple[str, Any]] = {}  # by member: URL and channel

    async def ask(self, member: int, method: str, request: bytes, timeout: float) -> bytes:
        own = self._identity
        identity = (FORMAT, own.cluster_id, own.node_id, member, own.instance)
        metadata = [(key, f"{value:x}") for key, value in zip(METADATA_KEYS, identity, strict=True)]
        urls = self._urls_of(member)
        if not urls:
            raise TIMEOUT_CONNECTION_LOST.fresh()
        url, channel = self._channels.get(member, ("", None))
        if url != urls[0]:
            if channel is not None:
                await channel.close()
            url, channel = urls[0], self._channel_factory(urls[0], CHANNEL_OPTIONS)
            self._channels[member] = (url, channel)
        return await peer_calls.call(channel, f"/{SERVICE}/{method}", request, timeout, metadata)

    def register(self, server: Any) -> None:
        """Serve on the peers' port: one of GrpcTransport's `services`."""
        peer_calls.serve(server, SERVICE, METHODS, self._answer)

    async def _answer(self, method: str, request: bytes, metadata: peer_calls.Metadata) -> bytes:
        reason = self._refusal(method, metadata)
        if reason is not None:
            raise KvError(Code.FAILED_PRECONDITION, f"etcdserver: {reason}")
        return await self.answer(method, request)

    def _refusal(self, method: str, metadata: peer_calls.Metadata) -> str | None:
        if method == MEMBERS:
            return None  # asked by who is about to join, and knows neither the cluster's id nor its own
        try:
            form, cluster_id, sender, to, instance = [int(metadata[key], 16) for key in METADATA_KEYS]
        except (KeyError, ValueError):
            return "the call does not say who it comes from"
        if form != FORMAT:
            return f"this member speaks format {FORMAT} of {SERVICE}, not {form}"
        if (cluster_id, to) != (self._identity.cluster_id, self._identity.node_id):
            return f"this is member {self._identity.node_id:x} of cluster {self._identity.cluster_id:x}"
        return self._host.check_peer(PeerIdentity(cluster_id, sender, instance))

    async def close(self) -> None:
        channels, self._channels = list(self._channels.values()), {}
        for _, channel in channels:
            await channel.close()


async def ask_members(url: str, timeout: float, channel_factory: ChannelFactory) -> bytes:
    """An encoded MemberView of whoever listens at the peer URL. Raises KvError."""
    channel = channel_factory(url, CHANNEL_OPTIONS)
    try:
        return await peer_calls.call(channel, f"/{SERVICE}/{MEMBERS}", b"", timeout, [])
    finally:
        await channel.close()
