"""What members ask each other: errors as they were raised, one retry, and nobody who does not belong."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc.aio
import pytest

from kvstore.errors import LEASE_NOT_FOUND, NO_LEADER, NOT_LEADER, TIMEOUT, TIMEOUT_CONNECTION_LOST, Code, KvError
from kvstore.rpc import make_peer_channel
from kvstore.rpc.base import UNEXPECTED
from kvstore.server.leader_calls import GrpcLeaderCalls, Method, ask_members
from raft.transport.grpc import PeerIdentity

CLUSTER = 0xC1


class Host:
    """As much of a KvServer as calls see."""

    def __init__(self, member_id: int) -> None:
        self.member_id = member_id
        self.leader_id = 0
        self.answered: list[bytes] = []
        self.refuses = ""
        self.leader_methods: dict[str, Method] = {"TimeToLive": self._echo, "Members": self._members}

    def check_peer(self, peer: PeerIdentity) -> str | None:
        return self.refuses or None

    async def _echo(self, request: bytes) -> bytes:
        self.answered.append(request)
        if request == b"bad":
            raise LEASE_NOT_FOUND.fresh()
        if request == b"bug":
            raise ZeroDivisionError
        if request == b"slow":
            await asyncio.sleep(60)
        return b"%d:%b" % (self.member_id, request)

    async def _members(self, request: bytes) -> bytes:
        return b"members of %d" % self.member_id


class Peers:
    """Three members that can call each other."""

    def __init__(self) -> None:
        self.hosts = {one: Host(one) for one in (1, 2, 3)}
        self.urls: dict[int, list[str]] = {4: ["http://127.0.0.1:1"]}
        self.calls = {one: self._calls(one, CLUSTER) for one in self.hosts}
        self._servers: list[grpc.aio.Server] = []

    def _calls(self, one: int, cluster: int) -> GrpcLeaderCalls:
        identity = PeerIdentity(cluster, one, 100 + one)
        return GrpcLeaderCalls(self.hosts[one], identity, lambda to: self.urls.get(to, []), make_peer_channel)

    def lead(self, leader: int, *members: int) -> None:
        for one in members or self.hosts:
            self.hosts[one].leader_id = leader

    async def start(self) -> None:
        for one, calls in self.calls.items():
            server = grpc.aio.server()
            calls.register(server)
            self.urls[one] = [f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"]
            await server.start()
            self._servers.append(server)

    async def stop(self) -> None:
        for calls in self.calls.values():
            await calls.close()
        for server in self._servers:
            await server.stop(None)

    def stranger(self, cluster: int) -> GrpcLeaderCalls:
        return self._calls(1, cluster)


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    peers = Peers()
    await peers.start()
    yield peers
    await peers.stop()


async def refused(call: Awaitable[bytes]) -> KvError:
    with pytest.raises(KvError) as caught:
        await call
    return caught.value


async def test_the_leader_answers_and_its_errors_arrive_as_they_are(peers: Peers) -> None:
    assert await refused(peers.calls[1].call("TimeToLive", b"x", 5)) == NO_LEADER
    peers.lead(2)
    assert await peers.calls[1].call("TimeToLive", b"x", 5) == b"2:x"
    assert await peers.calls[2].call("TimeToLive", b"y", 5) == b"2:y"  # itself, without the network
    assert await refused(peers.calls[1].call("TimeToLive", b"bad", 5)) == LEASE_NOT_FOUND
    assert (await refused(peers.calls[1].call("KeepAliveLeases", b"", 5))).code is Code.UNIMPLEMENTED
    assert await refused(peers.calls[1].call("TimeToLive", b"bug", 5)) == UNEXPECTED


async def test_once_more_when_another_leader_is_known_by_then(peers: Peers) -> None:
    peers.lead(2, 1)
    peers.lead(3, 2, 3)
    assert await refused(peers.calls[1].call("TimeToLive", b"x", 5)) == NOT_LEADER
    answer = peers.calls[2].answer
    learn: Callable[[], None] = lambda: peers.lead(3)  # noqa: E731

    async def learning(method: str, request: bytes) -> bytes:
        learn()  # the asker hears of the election while its question is on the way
        return await answer(method, request)

    peers.lead(2, 1)
    peers.calls[2].answer = learning  # type: ignore[method-assign]
    assert await peers.calls[1].call("TimeToLive", b"x", 5) == b"3:x"
    assert peers.hosts[2].answered == []


async def test_no_answer_means_that_nobody_knows(peers: Peers) -> None:
    peers.lead(2)
    assert await refused(peers.calls[1].call("TimeToLive", b"slow", 0.2)) == TIMEOUT
    peers.lead(4, 1)
    assert await refused(peers.calls[1].call("TimeToLive", b"x", 5)) == TIMEOUT_CONNECTION_LOST
    peers.lead(5, 1)  # nobody knows where it is
    assert await refused(peers.calls[1].call("TimeToLive", b"x", 5)) == TIMEOUT_CONNECTION_LOST


async def test_only_members_are_answered_but_about_the_members_everybody(peers: Peers) -> None:
    peers.lead(2)
    stranger = peers.stranger(0xBAD)
    error = await refused(stranger.ask(2, "TimeToLive", b"x", 5))
    assert (error.code, error.message) == (Code.FAILED_PRECONDITION, "etcdserver: this is member 2 of cluster c1")
    peers.hosts[2].refuses = "it was removed"
    assert "it was removed" in (await refused(peers.calls[1].ask(2, "TimeToLive", b"x", 5))).message
    assert peers.hosts[2].answered == []
    assert await ask_members(peers.urls[3][0], 5, make_peer_channel) == b"members of 3"
    await stranger.close()
