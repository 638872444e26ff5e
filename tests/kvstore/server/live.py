"""Members as they are, several in one process: real logs, stores, sockets and services; only short elections.

async with Live(tmp_path, 3) as live:
    leader = await live.leader()
    new = await live.add("m4")        # by the API, then started with --initial-cluster-state=existing
    await live.stub(leader).MemberRemove(...)
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from kvstore.config import ServerConfig
from kvstore.errors import Code, KvError
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb import rpc_pb2_grpc
from kvstore.rpc import make_peer_channel, make_peer_server, make_server
from kvstore.server.bootstrap import OpenMember, open_member
from kvstore.server.server import KvServer
from kvstore.services import register
from raft.transport.grpc import GrpcTransport, PeerIdentity
from tests.ports import free_ports

HEARTBEAT_MS, ELECTION_MS = 30, 300
WAIT_SECONDS = 30.0  # bounds a test that hangs


async def until(condition: Callable[[], Any], what: str) -> None:
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {WAIT_SECONDS:.0f} s for: {what}") from None


async def refused(call: Any) -> KvError:
    """The error of a call that must fail, as the client sees it."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return KvError(Code(error.code().value[0]), error.details() or "")
    raise AssertionError("the call went through")


class LiveMember:
    """One started member. `failed` is why it ended by itself."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.url = config.listen_client_urls[0]
        self.failed: BaseException | None = None
        self.running = False

    async def open(self) -> None:
        """The first half of `start`."""
        self.member: OpenMember = await open_member(self.config)
        identity = self.member.identity
        self.id = identity.member_id
        transport = GrpcTransport(
            PeerIdentity(identity.cluster_id, identity.member_id, identity.instance),
            list(self.config.listen_peer_urls),
            server_factory=make_peer_server,
            channel_factory=make_peer_channel,
        )
        self.server = KvServer(self.config, self.member, transport)

    async def start(self) -> None:
        await self.open()
        self._rpc = make_server()
        self._services = register(self._rpc, self.server)
        self._services.start()
        self._watching = asyncio.create_task(self._watch())
        self._channel = make_peer_channel(self.url.removeprefix("http://"), [("grpc.use_local_subchannel_pool", 1)])
        self.running = True
        await self.server.start()
        await self._rpc.start([self.url])

    async def _watch(self) -> None:
        self.failed = await self.server.wait_failed()

    async def stop(self) -> None:
        if not self.running:
            return
        self.running = False
        self._watching.cancel()
        await self._channel.close()
        await self._rpc.stop(0)
        await self._services.stop()
        with suppress(OSError):
            await self.server.stop()
        self.member.store.close()
        self.member.release()

    @property
    def cluster(self) -> Any:
        return rpc_pb2_grpc.ClusterStub(self._channel)

    @property
    def kv(self) -> Any:
        return rpc_pb2_grpc.KVStub(self._channel)

    @property
    def maintenance(self) -> Any:
        return rpc_pb2_grpc.MaintenanceStub(self._channel)

    @property
    def stub_lease(self) -> Any:
        return rpc_pb2_grpc.LeaseStub(self._channel)

    @property
    def stub_watch(self) -> Any:
        return rpc_pb2_grpc.WatchStub(self._channel)

    @property
    def leads(self) -> bool:
        return self.running and self.server.leader_id == self.id


class Live:
    def __init__(self, path: Path, size: int, **settings: Any) -> None:
        self._path = path
        self._settings = settings
        self._peer_urls = {f"m{n}": f"http://127.0.0.1:{port}" for n, port in enumerate(free_ports(size), 1)}
        self.members: dict[str, LiveMember] = {}

    def config(self, name: str, peer_url: str, **settings: Any) -> ServerConfig:
        url = f"http://127.0.0.1:{free_ports(1)[0]}"
        names = {**self._peer_urls, name: peer_url}
        return ServerConfig(
            **{
                "name": name,
                "data_dir": self._path / name,
                "listen_client_urls": (url,),
                "advertise_client_urls": (url,),
                "listen_peer_urls": (peer_url,),
                "initial_advertise_peer_urls": (peer_url,),
                "initial_cluster": tuple((one, (at,)) for one, at in sorted(names.items())),
                "initial_cluster_given": True,
                "heartbeat_interval": HEARTBEAT_MS,
                "election_timeout": ELECTION_MS,
                **self._settings,
                **settings,
            }
        )

    async def __aenter__(self) -> "Live":
        for name, peer_url in self._peer_urls.items():
            self.members[name] = LiveMember(self.config(name, peer_url))
        try:
            await asyncio.gather(*[member.start() for member in self.members.values()])
            await until(self.all_published, "all published")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*[member.stop() for member in self.members.values()])

    def all_published(self) -> bool:
        running = self.running
        return all(
            len(one.server.cluster.members()) == len(running) and all(row.name for row in one.server.cluster.members())
            for one in running
        )

    @property
    def running(self) -> list[LiveMember]:
        return [member for member in self.members.values() if member.running]

    async def leader(self, *, healthy: bool = True) -> LiveMember:
        """Whom all agree on; healthy: connected to all for long enough that members may be changed."""
        found: list[LiveMember] = []

        def agreed() -> bool:
            found[:] = [member for member in self.running if member.leads]
            known = {member.server.leader_id for member in self.running}
            agreed = len(found) == 1 and known == {found[0].id}
            return agreed and (not healthy or found[0].server.membership.is_healthy())

        await until(agreed, "one healthy leader")
        return found[0]

    async def follower(self) -> LiveMember:
        leader = await self.leader()
        return next(member for member in self.running if member is not leader and not member.server.is_learner)

    async def add(self, name: str, *, learner: bool = False, via: LiveMember | None = None) -> LiveMember:
        """Added, started, and caught up enough to be published."""
        peer_url = f"http://127.0.0.1:{free_ports(1)[0]}"
        asked = via or await self.leader()
        answer = await asked.cluster.MemberAdd(pb.MemberAddRequest(peerURLs=[peer_url], isLearner=learner))
        member = self.members[name] = LiveMember(self.config(name, peer_url, initial_cluster_state="existing"))
        await member.start()
        assert member.id == answer.member.ID
        await member.server.published.wait()
        return member
