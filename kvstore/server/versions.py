"""What the members of this cluster can do: the leader asks each for its version, and the least is the cluster's.

    every 5 s, and when something may have changed: Members --> every started member --> the least --> the log

A member that does not answer holds a first decision up, and a later one too, for nobody knows what it can do. During
a downgrade the cluster version goes to its target at once, so that what is written can be read by the older members
that come; when all are of the target's version the downgrade is over (etcd 3.6).
"""

import asyncio
from typing import TYPE_CHECKING, Final, final

import structlog
from google.protobuf.message import DecodeError

from kvstore.errors import CLUSTER_VERSION_UNAVAILABLE, NOT_CAPABLE, KvError
from kvstore.pb.command_pb2 import ClusterVersion
from kvstore.pb.peer_pb2 import MembersRequest, MemberView
from kvstore.pb.rpc_pb2 import DowngradeInfo, DowngradeRequest, DowngradeResponse
from kvstore.server.leader_calls import MEMBERS
from kvstore.state.command import Op
from kvstore.state.versions import Minor, check_downgrade, downgrade_body, long, may_become, parse_minor, read_versions
from kvstore.version import CLUSTER_VERSION, ETCD_VERSION

if TYPE_CHECKING:
    from kvstore.server.server import KvServer

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 0.2  # while nothing is decided
ANSWER_SECONDS: Final = 1.0
OWN: Final = parse_minor(ETCD_VERSION) or (0, 0)


@final
class ClusterVersions:
    def __init__(self, server: "KvServer") -> None:
        self._server = server
        self._changed = asyncio.Event()
        self._decided = asyncio.Event()
        self.refresh()

    def refresh(self) -> None:
        """Rows of the cluster have changed, or the leader."""
        self.state = read_versions(self._server.store.get)
        if self.state.cluster is not None:
            self._decided.set()
        self._changed.set()

    @property
    def cluster(self) -> str:
        """For clients, some of which read the parts as numbers: before it is decided, what it will most likely be."""
        return CLUSTER_VERSION if self.state.cluster is None else long(self.state.cluster)

    @property
    def downgrade_info(self) -> DowngradeInfo:
        target = self.state.target
        return DowngradeInfo(enabled=target is not None, targetVersion="" if target is None else long(target))

    async def wait_decided(self) -> None:
        """Before a request of a type that not every version knows. Raises KvError."""
        try:
            async with asyncio.timeout(self._server.config.request_timeout):
                await self._decided.wait()
        except TimeoutError:
            raise NOT_CAPABLE.fresh() from None

    async def downgrade(self, request: DowngradeRequest) -> DowngradeResponse:
        """An answer without its header. Raises KvError."""
        server = self._server
        await server.linearizable()
        check_downgrade(self.state, request)
        if request.action == DowngradeRequest.VALIDATE:
            return DowngradeResponse.FromString(downgrade_body(self.state))
        if self.state.cluster is None:
            raise CLUSTER_VERSION_UNAVAILABLE.fresh()
        # Apply looks again: another one may have come first.
        result = await server.propose_one(Op.DOWNGRADE, request.SerializeToString())
        log.info("downgrade", action=DowngradeRequest.DowngradeAction.Name(request.action), version=request.version)
        return DowngradeResponse.FromString(result.body)

    # While this member leads

    async def run(self) -> None:
        self._server.on_leader_change.append(self._changed.set)
        while True:
            self._changed.clear()
            if self._server.leader_id == self._server.member_id:
                try:
                    await self._decide()
                except KvError as error:
                    log.debug("could not change the cluster version", reason=error.message)
            undecided = self.state.cluster is None
            try:
                async with asyncio.timeout(RETRY_SECONDS if undecided else LOOK_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _decide(self) -> None:
        found = await self._ask_all()
        if found is None:
            return
        state = self.state
        wanted = min(found) if state.target is None else state.target
        if may_become(state, wanted):
            request = ClusterVersion(version=long(wanted))
            await self._server.propose_one(Op.CLUSTER_VERSION, request.SerializeToString())
            log.info("cluster version", version=long(wanted))
        if state.target is not None and set(found) == {state.target}:
            over = DowngradeRequest(action=DowngradeRequest.CANCEL)
            await self._server.propose_one(Op.DOWNGRADE, over.SerializeToString())
            log.info("the downgrade is done", version=long(state.target))

    async def _ask_all(self) -> list[Minor] | None:
        """Of all that have ever started; None when one of them does not say."""
        own = self._server.member_id
        started = [member.id for member in self._server.peers.table() if member.name and member.id != own]
        found = await asyncio.gather(*[self._ask(member) for member in started])
        known = [one for one in found if one is not None]
        return [OWN, *known] if len(known) == len(started) else None

    async def _ask(self, member: int) -> Minor | None:
        request = MembersRequest().SerializeToString()
        try:
            answer = await self._server.leader_calls.ask(member, MEMBERS, request, ANSWER_SECONDS)
            return parse_minor(MemberView.FromString(answer).version)
        except (KvError, DecodeError) as error:
            log.debug("no answer about the version", peer=self._server.peers.name_of(member), reason=str(error))
            return None
