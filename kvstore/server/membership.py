"""Changes of the membership: asked of any member, checked and made by the leader, one at a time.

    any member   change() -> LeaderCalls "ChangeMembers" -> the leader: read barrier, checks, then
                 add, remove, promote   Node.change_configuration, with the MemberChange as context
                 update                 an ordinary request: raft's configuration has no URLs
                 -> everybody applies it (state/cluster.py); the asked member waits until it has, too

The checks are etcd's (server.go: mayAddMember, mayRemoveMember, mayPromoteMember), in its order and with its
errors. They keep an operator from a step that would leave the cluster without a quorum: not while members
that were added have never started, nor while some cannot be reached. What they look at is right when it is
looked at, since changes wait for each other here and a barrier comes first.

A removed member stops itself. It hears of its removal in the log, or, when nobody replicates to it any more,
from the first peer that refuses it (server/peers.py).
"""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NoReturn, final

import structlog

from kvstore.config import url_problem
from kvstore.errors import (
    LEADER_CHANGED,
    LEARNER_NOT_READY,
    MEMBER_BAD_URLS,
    MEMBER_ID_EXISTS,
    MEMBER_NOT_FOUND,
    NO_LEADER,
    NOT_A_LEARNER,
    NOT_ENOUGH_STARTED,
    NOT_LEADER,
    PEER_URL_EXISTS,
    STOPPED,
    TIMEOUT,
    TOO_MANY_LEARNERS,
    TOO_MANY_REQUESTS,
    UNHEALTHY,
    Code,
    KvError,
)
from kvstore.failpoints import fail_async
from kvstore.pb import rpc_pb2
from kvstore.pb.command_pb2 import MemberChange
from kvstore.pb.peer_pb2 import ChangeMembersResponse
from kvstore.state.cluster import member_id
from kvstore.state.command import Op
from raft.errors import ChangeRefused, NotLeader, Stopped
from raft.types import ConfigurationChange

if TYPE_CHECKING:
    from kvstore.server.server import KvServer

log = structlog.get_logger(__name__)

HEALTH_SECONDS_MAX: Final = 5.0  # members must have been connected for so long (etcd's HealthInterval) ...
HEALTH_ELECTIONS: Final = 5  # ... or for so many election timeouts, where these are short
READY_PERCENT: Final = 90  # of the leader's log, before a learner is promoted
RETRY_SECONDS: Final = 0.05
WAITING_MAX: Final = 16  # changes at the leader
SEEN_SECONDS: Final = 1.0  # after a change, for the asked member to apply it too


@final
class Membership:
    def __init__(self, server: "KvServer") -> None:
        self._server = server
        self._one_at_a_time = asyncio.Lock()
        self._waiting = 0
        self._second: asyncio.Task[None] | None = None
        config = server.config
        self._health_seconds = min(HEALTH_SECONDS_MAX, HEALTH_ELECTIONS * config.election_timeout / 1000)

    # On any member

    async def change(self, change: MemberChange) -> ChangeMembersResponse:
        """Done, and applied here too if that does not take long. Raises KvError."""
        server = self._server
        deadline = server.now() + server.config.request_timeout
        request = change.SerializeToString()
        while True:
            try:
                answer = await server.leader_calls.call("ChangeMembers", request, deadline - server.now())
                break
            except KvError as error:
                # Neither did anything: while there is an election, wait for its end.
                if error not in (NO_LEADER, NOT_LEADER) or server.now() + RETRY_SECONDS >= deadline:
                    raise
            await asyncio.sleep(RETRY_SECONDS)
        response = ChangeMembersResponse.FromString(answer)
        try:
            async with asyncio.timeout(SEEN_SECONDS):
                await server.node.wait_applied(response.index)
        except (TimeoutError, Stopped):
            log.debug("a change of members is not applied here yet", index=response.index)
        return response

    # On the leader

    async def answer(self, request: bytes) -> bytes:
        """`ChangeMembers`."""
        change = MemberChange.FromString(request)
        if self._waiting >= WAITING_MAX:
            raise TOO_MANY_REQUESTS.fresh()
        self._waiting += 1
        try:
            async with self._one_at_a_time:
                return await self._change(change)
        finally:
            self._waiting -= 1

    async def _change(self, change: MemberChange) -> bytes:
        server = self._server
        await server.linearizable()
        op = change.op
        if op == MemberChange.UPDATE:
            update = rpc_pb2.MemberUpdateRequest(ID=change.member.ID, peerURLs=change.member.peerURLs)
            await server.propose_one(Op.MEMBER_UPDATE, update.SerializeToString())
        elif op == MemberChange.ADD:
            change.member.ID = self._check_add(list(change.member.peerURLs), change.member.isLearner)
            one = (change.member.ID,)
            learner = change.member.isLearner
            added = ConfigurationChange(
                voters=() if learner else one,
                learners=one if learner else (),
                context=change.SerializeToString(deterministic=True),
            )
            if learner or len(server.peers.voters()) > 1:
                await self._configure(added)
            else:
                await self._add_second_voter(added)
        elif op == MemberChange.REMOVE:
            self._check_remove(change.member.ID)
            await self._configure(
                ConfigurationChange(removed=(change.member.ID,), context=change.SerializeToString(deterministic=True))
            )
        elif op == MemberChange.PROMOTE:
            self._check_promote(change.member.ID)
            await self._configure(
                ConfigurationChange(voters=(change.member.ID,), context=change.SerializeToString(deterministic=True))
            )
        else:
            raise KvError(Code.UNIMPLEMENTED, f"a change of members of type {op}: upgrade this member")
        log.info("changed the members", change=MemberChange.Op.Name(op), member=f"{change.member.ID:x}")
        return ChangeMembersResponse(
            index=server.store.applied_index,
            member=change.member,
            members=self._members(change),
        ).SerializeToString()

    def _members(self, change: MemberChange) -> list[rpc_pb2.Member]:
        """As they are after the change."""
        members = {one.id: one.message() for one in self._server.cluster.members()}
        if change.op == MemberChange.ADD:
            members.setdefault(change.member.ID, change.member)
        return [members[one] for one in sorted(members)]

    async def _add_second_voter(self, change: ConfigurationChange) -> None:
        """To one voter: the two are a quorum only together, so it is done when the second one has started. Nobody
        could start it before this is answered; and what the only voter of the old configuration has on its disk
        cannot be lost. From here on nothing is committed until then, as in etcd."""
        [added] = change.voters
        done = asyncio.get_running_loop().create_task(self._configure(change))
        done.add_done_callback(_note_failed)
        self._second = done  # the loop keeps only weak references to tasks
        while not done.done() and not self._server.peers.is_pending(added):  # noqa: ASYNC110
            await asyncio.sleep(RETRY_SECONDS)
        if done.done():
            await done

    async def _configure(self, change: ConfigurationChange) -> None:
        """Until it is applied here. Raises KvError."""
        server = self._server
        deadline = server.now() + server.config.request_timeout
        while True:
            try:
                await fail_async("memberBeforePropose")
                await server.node.change_configuration(change)
                return
            except ChangeRefused as error:
                # An earlier leader's change may still be under way. Any other reason was ruled out by the checks.
                if not server.status().pending_change:
                    raise KvError(Code.FAILED_PRECONDITION, f"etcdserver: {error}") from None
            except NotLeader:
                raise LEADER_CHANGED.fresh() from None
            except Stopped:
                raise STOPPED.fresh() from None
            if server.now() >= deadline:
                raise TIMEOUT.fresh()
            await asyncio.sleep(RETRY_SECONDS)

    async def stop(self) -> None:
        """Nobody waits any more."""
        if self._second is not None:
            self._second.cancel()
            await asyncio.gather(self._second, return_exceptions=True)

    # What etcd checks

    def _check_add(self, peer_urls: list[str], learner: bool) -> int:
        """The new member's id."""
        server = self._server
        members = server.peers.table()
        if server.config.strict_reconfig_check:
            if not learner and not self._is_ready_to_add():
                self._reject("not enough members have started", NOT_ENOUGH_STARTED)
            if not self.is_healthy():
                self._reject("a voting member has not been connected for long enough", UNHEALTHY)
        removed = server.cluster.removed()
        seconds = server.wall_clock() // 1_000_000_000
        while (new := member_id(peer_urls, str(seconds))) in removed or not new:
            seconds += 1  # removed and added again within a second
        if new in [member.id for member in members]:
            raise MEMBER_ID_EXISTS.fresh()
        if not {url for member in members for url in member.peer_urls}.isdisjoint(peer_urls):
            raise PEER_URL_EXISTS.fresh()
        if learner and sum([member.is_learner for member in members]) >= server.config.max_learners:
            raise TOO_MANY_LEARNERS.fresh()
        return new

    def _check_remove(self, removed: int) -> None:
        server = self._server
        member = server.cluster.member(removed)
        voters = server.peers.voters()
        if server.config.strict_reconfig_check and not (member is not None and member.is_learner):
            others = [voter for voter in voters if voter.id != removed]
            if sum([bool(voter.name) for voter in others]) < len(others) // 2 + 1:
                self._reject("not enough members would be left that have started", NOT_ENOUGH_STARTED)
            away = removed != server.member_id and server.peers.connected_since(removed) is None
            # One that is down is no part of the quorum of today, so it may go.
            if not away and self._connected_voters() - 1 < 1 + (len(voters) - 1) // 2:
                self._reject("too few members have been connected for long enough", UNHEALTHY)
        if member is None:
            raise MEMBER_NOT_FOUND.fresh()
        if [voter.id for voter in voters] == [removed]:
            raise NOT_ENOUGH_STARTED.fresh()  # also without the strict checks: nobody would be left

    def _check_promote(self, promoted: int) -> None:
        server = self._server
        member = server.cluster.member(promoted)
        progress = server.status().progress
        if promoted in progress and member is not None:  # raft may have yet to forget who was removed
            lead = progress[server.member_id].match_index
            if progress[promoted].match_index * 100 < lead * READY_PERCENT:
                raise LEARNER_NOT_READY.fresh()
        voters = server.peers.voters()
        if server.config.strict_reconfig_check:
            started = 1 + sum([bool(voter.name) for voter in voters])
            if started < (len(voters) + 1) // 2 + 1:
                self._reject("not enough members have started", NOT_ENOUGH_STARTED)
        if member is None:
            raise MEMBER_NOT_FOUND.fresh()
        if not member.is_learner:
            raise NOT_A_LEARNER.fresh()

    def _is_ready_to_add(self) -> bool:
        """Would a quorum have started, the new one not among them?"""
        voters = self._server.peers.voters()
        started = sum([bool(voter.name) for voter in voters])
        if started == 1 and len(voters) == 1:
            return True  # how a cluster begins to grow, or is restored: there is no other way
        return started >= (len(voters) + 1) // 2 + 1

    def is_healthy(self) -> bool:
        """Every voter has been connected for long enough."""
        return self._connected_voters() == len(self._server.peers.voters())

    def _connected_voters(self) -> int:
        """Voters that we have been connected to for long enough, ourselves among them."""
        server = self._server
        latest = server.now() - self._health_seconds
        count = 0
        for voter in server.peers.voters():
            since = server.peers.connected_since(voter.id)
            count += voter.id == server.member_id or (since is not None and since <= latest)
        return count

    def _reject(self, reason: str, error: KvError) -> NoReturn:
        log.warning("refuses a change of members", reason=reason)
        raise error.fresh()


def _note_failed(done: "asyncio.Task[None]") -> None:
    """Who asked was answered before."""
    if not done.cancelled() and done.exception() is not None:
        log.warning("a second voter was not added", reason=str(done.exception()))


def good_peer_urls(urls: Iterable[str]) -> list[str]:
    """Sorted. As etcd: at least one, each http://host:port and nothing behind it. Raises MEMBER_BAD_URLS."""
    found = sorted([url.strip() for url in urls])
    if not found or any(url_problem(url) or url.endswith("/") for url in found):
        raise MEMBER_BAD_URLS.fresh()
    return found
