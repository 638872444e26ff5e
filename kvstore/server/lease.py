"""Leases of one member: the lessor with a clock, a way to the log and a way to the leader.

    keep_alive(ids) --> [ list ] --> leads: one read round for all of the list, then the lessor's table
                           ^         else:  one call to the leader for all of the list
    a follower's call -----+

Keep-alives are not logged. What makes the answer of a leader worth something is the read round that began
after they came in: a quorum still followed it, so no successor has revoked what it renews, and one that is
elected later lets every lease live for its full TTL from then on. All that come during a round share the next.

While no leader is known, or it changes, keep-alives stay in the list and are tried again until they have
waited for the request timeout: a leader change costs the clients nothing.

One task renews, one lets time pass. What is due is proposed like any request, in as few as possible, one
proposal of a kind under way at a time; the term goes with it (kvstore/state/leases.py).
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, final

import structlog
from google.protobuf.message import DecodeError

from kvstore.config import ServerConfig
from kvstore.errors import (
    LEADER_CHANGED,
    NO_LEADER,
    NOT_LEADER,
    STOPPED,
    TIMEOUT,
    TIMEOUT_CONNECTION_LOST,
    TIMEOUT_LEADER_FAIL,
    TOO_MANY_REQUESTS,
    KvError,
)
from kvstore.failpoints import fail, fail_async
from kvstore.lease.lessor import CHECKPOINTED, REVOKING, SLOT_SECONDS, Due, Lessor
from kvstore.mvcc.leases import LeaseChange, keys_of, read_leases
from kvstore.mvcc.store import MvccStore, ReadView
from kvstore.pb.command_pb2 import LeaseCheckpoints, LeaseRevoke
from kvstore.pb.peer_pb2 import KeepAliveLeasesRequest, KeepAliveLeasesResponse
from kvstore.pb.rpc_pb2 import LeaseCheckpoint, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse
from kvstore.rpc.base import UNEXPECTED
from kvstore.server.company import Company
from kvstore.server.leader_calls import LeaderCalls, Method
from kvstore.server.proposal import Proposal
from kvstore.state.applier import Result
from kvstore.state.command import Op

log = structlog.get_logger(__name__)

KEEP_ALIVES_MAX: Final = 200_000  # waiting for a round or for a leader
RENEWALS_MAX: Final = 4000  # in one step: about 2 ms
RETRY_SECONDS: Final = 0.05
NO_LEASE: Final = -1  # the TTL of a lease that is not there (etcd)
# Errors that another leader, or the same a moment later, may not give. All of it may be asked twice.
PASSING: Final = frozenset({NO_LEADER, NOT_LEADER, LEADER_CHANGED, TIMEOUT_LEADER_FAIL, TIMEOUT_CONNECTION_LOST})
NOT_PROPOSED: Final = frozenset({TOO_MANY_REQUESTS, STOPPED})

Renewed = Callable[[list[int] | KvError], None]  # the TTL of each lease, 0: there is none


class Host(Protocol):
    """What leases need of a KvServer."""

    config: ServerConfig
    store: MvccStore
    leader_calls: LeaderCalls
    leader_methods: dict[str, Method]

    def now(self) -> float: ...
    def propose(self, proposals: list[Proposal]) -> None: ...
    async def linearizable(self) -> None: ...
    def fail(self, error: BaseException) -> None: ...


def ttl_min(config: ServerConfig) -> int:
    """Seconds; less is raised to it. etcd's rule: a new leader must be there before the lease is over."""
    ticks = 3 * (config.election_timeout // config.heartbeat_interval) // 2
    return -(-ticks * config.heartbeat_interval // 1000)


def _ttls(answer: bytes, count: int) -> list[int]:
    """What another member has answered. Raises KvError when it makes no sense."""
    try:
        ttls = list(KeepAliveLeasesResponse.FromString(answer).ttls)
    except DecodeError:
        ttls = []
    if len(ttls) != count:
        raise UNEXPECTED.fresh()
    return ttls


@final
class _KeepAlive:
    """Leases that one caller wants to keep alive, until it is told."""

    __slots__ = ("done", "forwarded", "ids", "left", "since", "ttls")

    def __init__(self, ids: list[int], done: Renewed, since: float, forwarded: bool) -> None:
        self.ids = ids
        self.done = done
        self.since = since
        self.forwarded = forwarded  # by a member that took us for the leader: it asks again if we are not
        self.ttls = [0] * len(ids)
        self.left = 0  # leases whose answer is not known yet

    def settle(self, position: int, outcome: int | KvError) -> None:
        """One lease's answer. The first error is everybody's."""
        if self.left <= 0:
            return
        if isinstance(outcome, KvError):
            self.left = 0
            self.done(outcome)
            return
        self.ttls[position] = outcome
        self.left -= 1
        if not self.left:
            self.done(self.ttls)


@final
class Leases:
    def __init__(self, host: Host) -> None:
        self._host = host
        self._timeout = host.config.request_timeout
        self._call_timeout = host.config.election_timeout / 1000  # of one attempt: another may lead by then
        self.expired = 0  # leases that this member has found to have run out
        self.lessor = Lessor(host.config.election_timeout / 1000, host.config.lease_checkpoint)
        self.ttl_min = ttl_min(host.config)
        self._asked: list[_KeepAlive] = []
        self._asked_ids = 0
        self._wakeup = asyncio.Event()
        self._company = Company(asyncio.get_running_loop().call_later, self._wakeup.set)
        self._leads = asyncio.Event()
        self._proposing: set[Op] = set()  # kinds of proposals under way
        self._loading: set[int] | None = None  # leases changed while the table is read
        self._reload: asyncio.Task[None] | None = None
        self._stopped = False
        host.leader_methods["KeepAliveLeases"] = self._answer_keep_alive
        host.leader_methods["TimeToLive"] = self._answer_time_to_live
        host.store.on_swap.append(self._swapped)

    # The table

    async def load(self) -> None:
        """Read all leases of the store. Before the first entry is applied."""
        await self._load(self._host.store.view())

    def _swapped(self) -> None:
        """Another state has taken the place of ours."""
        if self._reload is not None:
            self._reload.cancel()
        self._reload = asyncio.get_running_loop().create_task(self._load(self._host.store.view()))
        self._reload.add_done_callback(self._reloaded)

    def _reloaded(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._host.fail(error)

    async def _load(self, view: ReadView) -> None:
        self.lessor.clear()
        changed = self._loading = set()
        with view:
            async for rows in read_leases(view):
                self.lessor.load([row for row in rows if row[0] not in changed])
        self._loading = None

    async def loaded(self) -> None:
        """Returns when the table is whole."""
        if self._reload is not None and not self._reload.done():
            await asyncio.wait([self._reload])

    def changed(self, changes: list[LeaseChange]) -> None:
        """What has been applied."""
        if self._loading is not None:
            self._loading.update(change.lease for change in changes)
        self.lessor.changed(changes, self._host.now())

    # Leadership

    def role_changed(self, leads: bool, term: int) -> None:
        if not leads:
            if self.lessor.term:
                self.lessor.demote()
            self._leads.clear()
        elif self.lessor.term != term:
            self.lessor.promote(term, self._host.now())
            self._leads.set()

    # Keep-alives

    def keep_alive(self, ids: list[int], done: Renewed, forwarded: bool = False) -> None:
        """`done` is called once, on the loop: the TTLs in the order of `ids`, or an error."""
        if self._stopped:
            done(STOPPED)
        elif not ids:
            done([])  # what is answered when the last of its ids is would wait for ever
        elif self._asked_ids + len(ids) > KEEP_ALIVES_MAX:
            done(TOO_MANY_REQUESTS)
        else:
            self._asked_ids += len(ids)
            self._asked.append(_KeepAlive(ids, done, self._host.now(), forwarded))
            self._wakeup.set()

    async def run_keep_alives(self) -> None:
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            count = self._asked_ids
            if self._company.is_expected(count):
                continue
            asked, self._asked, self._asked_ids = self._asked, [], 0
            try:
                if self.lessor.term:
                    await fail_async("leaseBeforeRenew")
                    await self._host.linearizable()
                    await self._renew(asked)
                else:
                    await self._forward(asked)
            except KvError as error:
                await self._retry(asked, error.with_traceback(None))
            else:
                self._company.answered(count, self._asked_ids)

    async def _renew(self, asked: list[_KeepAlive]) -> None:
        """On the leader, after a round that began after all of them had come."""
        if not self.lessor.term:
            raise LEADER_CHANGED.fresh()
        steps = 0
        checkpointed: list[tuple[_KeepAlive, int]] = []
        for one in asked:
            # Again at each step: after a pause the leadership of the round may be over.
            now, term = self._host.now(), self.lessor.term
            if not term:
                one.done(LEADER_CHANGED)
                continue
            one.left = len(one.ids)
            for position, id_ in enumerate(one.ids):
                ttl = self.lessor.renew(id_, now)
                if ttl == REVOKING:
                    self.lessor.when_revoked(id_, partial(one.settle, position))
                elif ttl == CHECKPOINTED:
                    checkpointed.append((one, position))
                else:
                    one.settle(position, ttl)
            steps += len(one.ids)
            if steps >= RENEWALS_MAX:
                steps = 0
                await asyncio.sleep(0)
        if checkpointed:
            self._clear_checkpoints(checkpointed)

    def _clear_checkpoints(self, waiting: list[tuple[_KeepAlive, int]]) -> None:
        """A new leader must not count from a checkpoint that a keep-alive has made out of date."""
        checkpoints = [LeaseCheckpoint(ID=id_) for id_ in {one.ids[position]: None for one, position in waiting}]

        def done(result: Result) -> None:
            for one, position in waiting:
                outcome: int | KvError = result if isinstance(result, KvError) else LEADER_CHANGED
                if not isinstance(result, KvError) and self.lessor.term:
                    ttl = self.lessor.renew(one.ids[position], self._host.now())
                    outcome = ttl if ttl >= 0 else LEADER_CHANGED
                one.settle(position, outcome)

        raw = LeaseCheckpoints(checkpoints=checkpoints, term=self.lessor.term).SerializeToString()
        self._host.propose([Proposal(Op.LEASE_CHECKPOINT, raw, done)])

    async def _forward(self, asked: list[_KeepAlive]) -> None:
        own = [one for one in asked if not one.forwarded]
        for one in asked:
            if one.forwarded:
                one.done(NOT_LEADER)
        if not own:
            return
        request = KeepAliveLeasesRequest(ids=[id_ for one in own for id_ in one.ids])
        try:
            answer = await self._host.leader_calls.call(
                "KeepAliveLeases", request.SerializeToString(), self._call_timeout
            )
            ttls = _ttls(answer, len(request.ids))
        except KvError as error:
            asked[:] = own
            raise (NO_LEADER if error == TIMEOUT else error).fresh() from None
        at = 0
        for one in own:
            one.done(ttls[at : at + len(one.ids)])
            at += len(one.ids)

    async def _retry(self, asked: list[_KeepAlive], error: KvError) -> None:
        """Back into the list, unless it makes no sense any more."""
        now = self._host.now()
        kept = []
        for one in asked:
            if one.forwarded or error not in PASSING:
                one.done(error)
            elif now - one.since >= self._timeout:
                one.done(TIMEOUT)
            else:
                kept.append(one)
        if kept:
            await asyncio.sleep(RETRY_SECONDS)
            self._asked = kept + self._asked
            self._asked_ids += sum(len(one.ids) for one in kept)
            self._wakeup.set()

    async def _answer_keep_alive(self, request: bytes) -> bytes:
        """Of a follower's clients."""
        answer: asyncio.Future[list[int] | KvError] = asyncio.get_running_loop().create_future()
        ids = list(KeepAliveLeasesRequest.FromString(request).ids)
        self.keep_alive(ids, lambda ttls: None if answer.done() else answer.set_result(ttls), forwarded=True)
        ttls = await answer
        if isinstance(ttls, KvError):
            raise ttls.fresh()
        return KeepAliveLeasesResponse(ttls=ttls).SerializeToString()

    # Time to live

    async def time_to_live(self, request: bytes) -> bytes:
        """An encoded LeaseTimeToLiveResponse without a header. Raises KvError."""
        deadline = self._host.now() + self._timeout
        while True:
            try:
                return await self._host.leader_calls.call("TimeToLive", request, self._timeout / 2)
            except KvError as error:
                if error not in PASSING and error != TIMEOUT:
                    raise
                if self._host.now() + RETRY_SECONDS >= deadline:
                    raise TIMEOUT.fresh() from None
            await asyncio.sleep(RETRY_SECONDS)

    async def _answer_time_to_live(self, request: bytes) -> bytes:
        """On the leader."""
        wanted = LeaseTimeToLiveRequest.FromString(request)
        await self._host.linearizable()
        if not self.lessor.term:
            raise LEADER_CHANGED.fresh()
        found = self.lessor.time_to_live(wanted.ID, self._host.now())
        if found is None:
            return LeaseTimeToLiveResponse(ID=wanted.ID, TTL=NO_LEASE).SerializeToString()
        keys = []
        if wanted.keys:
            with self._host.store.view() as view:
                keys = await keys_of(view, wanted.ID)
        ttl, granted = found
        return LeaseTimeToLiveResponse(ID=wanted.ID, TTL=ttl, grantedTTL=granted, keys=keys).SerializeToString()

    # What is due

    async def run_time(self) -> None:
        """Let time pass while we lead."""
        while True:
            await self._leads.wait()
            due = self.lessor.tick(
                self._host.now(),
                revoke=Op.LEASE_REVOKE not in self._proposing,
                checkpoint=Op.LEASE_CHECKPOINT not in self._proposing,
            )
            self._propose_due(due)
            await asyncio.sleep(0 if due.more else SLOT_SECONDS)

    def _propose_due(self, due: Due) -> None:
        if due.revokes:
            revoke = LeaseRevoke(ids=due.revokes, term=self.lessor.term)
            fail("leaseBeforeRevoke")
            self._propose(Op.LEASE_REVOKE, revoke.SerializeToString(), due.revokes)
            self.expired += len(due.revokes)
            log.info("revoking expired leases", leases=len(due.revokes))
        if due.checkpoints:
            checkpoints = [LeaseCheckpoint(ID=id_, remaining_TTL=left) for id_, left in due.checkpoints]
            raw = LeaseCheckpoints(checkpoints=checkpoints, term=self.lessor.term).SerializeToString()
            self._propose(Op.LEASE_CHECKPOINT, raw, [])

    def _propose(self, op: Op, raw: bytes, ids: list[int]) -> None:
        self._proposing.add(op)
        term = self.lessor.term

        def done(result: Result) -> None:
            self._proposing.discard(op)
            if isinstance(result, KvError) and self.lessor.term == term:
                self.lessor.not_revoked(ids, result, result not in NOT_PROPOSED, self._host.now())

        self._host.propose([Proposal(op, raw, done)])

    def stop(self) -> None:
        """Nobody will be answered any more."""
        self._stopped = True
        asked, self._asked = self._asked, []
        for one in asked:
            one.done(STOPPED)
        self.lessor.demote()
        if self._reload is not None:
            self._reload.cancel()
