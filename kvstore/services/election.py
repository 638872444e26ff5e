"""v3electionpb.Election: who leads among the clients' programs (etcd server/etcdserver/api/v3election)."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final, final

from kvstore.errors import Code, KvError
from kvstore.pb.v3election_pb2 import (
    CampaignRequest,
    CampaignResponse,
    LeaderKey,
    LeaderRequest,
    LeaderResponse,
    ProclaimRequest,
    ProclaimResponse,
    ResignRequest,
    ResignResponse,
)
from kvstore.pb.v3election_pb2_grpc import ElectionServicer
from kvstore.rpc.local import LocalMethods
from kvstore.services.inner import InnerClient
from kvstore.services.waiters import Claim, Queue, Waiters, new_lease

MISSING_LEADER: Final = KvError(Code.UNKNOWN, '"leader" field must be provided')
NO_LEADER: Final = KvError(Code.UNKNOWN, "election: no leader")
NOT_LEADER: Final = KvError(Code.UNKNOWN, "election: not leader")


@final
class ElectionService(ElectionServicer):
    def __init__(self, methods: LocalMethods, waiters: Waiters) -> None:
        self._methods = methods
        self._waiters = waiters

    async def Campaign(self, request: CampaignRequest, context: Any) -> CampaignResponse:
        """Returns when the caller leads, which may be never. The header is that of the moment it joined (etcd)."""
        queue = Queue(self._waiters, InnerClient(self._methods, context), request.name)
        with self._waiters.one_more():
            claim, joined = await queue.join(request.lease, request.value)
            if not joined.succeeded and joined.responses[0].response_range.kvs[0].value != request.value:
                try:
                    await self._proclaim(claim, request.value)
                except KvError:
                    await claim.delete()  # it resigns, as etcd: whoever waits behind it goes on
                    raise
            await queue.wait_first(claim)
            # etcd does not look again, and calls one a leader whose lease has ended while it waited.
            if not (await claim.get()).kvs:
                raise NOT_LEADER.fresh()
        leader = LeaderKey(name=request.name, key=claim.key, rev=claim.revision, lease=claim.lease)
        return CampaignResponse(header=joined.header, leader=leader)

    async def Proclaim(self, request: ProclaimRequest, context: Any) -> ProclaimResponse:
        claim = _claim(InnerClient(self._methods, context), request)
        if not claim.lease:
            claim.lease = await new_lease(InnerClient(self._methods, context))
        return await self._proclaim(claim, request.value)

    async def _proclaim(self, claim: Claim, value: bytes) -> ProclaimResponse:
        put = await claim.put(value)
        if not put.succeeded:
            raise NOT_LEADER.fresh()
        return ProclaimResponse(header=put.header)

    async def Leader(self, request: LeaderRequest, context: Any) -> LeaderResponse:
        found = await Queue(self._waiters, InnerClient(self._methods, context), request.name).first()
        if not found.kvs:
            raise NO_LEADER.fresh()
        return LeaderResponse(header=found.header, kv=found.kvs[0])

    async def Observe(self, request: LeaderRequest, context: Any) -> AsyncIterator[LeaderResponse]:
        """The leader, each of its proclamations, and every leader after it; never ends by itself."""
        queue = Queue(self._waiters, InnerClient(self._methods, context), request.name)
        with self._waiters.one_more():
            async with aclosing(queue.observe()) as values:
                async for header, kv in values:
                    yield LeaderResponse(header=header, kv=kv)

    async def Resign(self, request: ResignRequest, context: Any) -> ResignResponse:
        """Who does not lead any more resigns with success too (etcd)."""
        return ResignResponse(header=(await _claim(InnerClient(self._methods, context), request).delete()).header)


def _claim(inner: InnerClient, request: ProclaimRequest | ResignRequest) -> Claim:
    """The one that a won election was proved by."""
    if not request.HasField("leader"):
        raise MISSING_LEADER.fresh()
    leader = request.leader
    return Claim(inner, leader.key, leader.rev, leader.lease)
