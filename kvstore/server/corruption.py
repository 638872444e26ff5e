"""Do all members hold the same? Looked at before a member serves, and now and then by the leader.

    leader: own hash at revision R --> HashKV(R) of every other --> the members that differ are named in CORRUPT alarms
    each member, asked for its hash: first, whether its own rows agree with each other (mvcc/hash.py: damaged_key)

Hashes are compared at one revision and one compact revision; who is at another one is looked at next time. What most
members have is right. Where there is no such majority nobody can tell who is damaged, and the alarm names member 0.

A member whose rows contradict each other knows that it is the damaged one, and says so: it is named without a vote.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, final

import structlog
from google.protobuf.message import DecodeError

from kvstore.errors import CORRUPT, MALFORMED, KvError
from kvstore.measure import HASHES_BY_REVISION
from kvstore.mvcc.hash import damaged_key, hash_kv
from kvstore.mvcc.store import StoreDamaged
from kvstore.pb.rpc_pb2 import AlarmType, HashKVRequest, HashKVResponse
from kvstore.server.leader_calls import HASH_KV

if TYPE_CHECKING:
    from kvstore.server.server import KvServer

log = structlog.get_logger(__name__)

ANSWER_SECONDS: Final = 600.0  # for a member to walk over all it has
START_SECONDS: Final = 60.0  # the same, while nobody is served
NOBODY: Final = 0  # named by an alarm when nobody can tell who


@final
class Corruption:
    def __init__(self, server: "KvServer") -> None:
        self._server = server
        self._one = asyncio.Lock()  # walk at a time
        self._compared_compact_revision = 0
        server.leader_methods[HASH_KV] = self.answer

    async def start(self, spawn: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        """As the settings say. Raises StoreDamaged when this member must not serve."""
        config = self._server.config
        if config.initial_corrupt_check:
            await self.check_at_start()
        if config.corrupt_check_time:
            spawn(self._run(config.corrupt_check_time, lambda: True))
        if config.compact_hash_check:
            spawn(self._run(config.compact_hash_check_time, self._was_compacted))

    # What every member answers

    async def answer(self, request: bytes) -> bytes:
        """`HashKV`, for another member. Raises KvError: CORRUPT when this member is damaged."""
        try:
            revision = HashKVRequest.FromString(request).revision
        except DecodeError:
            raise MALFORMED.fresh() from None
        if revision > self._server.store.current_revision:
            await self._server.linearizable()  # whoever asks had it: it is on its way here
        return (await self._own(revision)).SerializeToString()

    async def _own(self, revision: int) -> HashKVResponse:
        async with self._one:
            with self._server.store.view() as view:
                key = await damaged_key(view)
                if key is not None:
                    log.error("the store contradicts itself", key_bytes=len(key), revision=view.current_revision)
                    raise CORRUPT.fresh()
                with HASHES_BY_REVISION.time():
                    value, compact, at = await hash_kv(view, revision)
                return HashKVResponse(
                    header=self._server.header_message(view.current_revision),
                    hash=value,
                    compact_revision=compact,
                    hash_revision=at,
                )

    async def _ask(self, member: int, revision: int, timeout: float) -> HashKVResponse | KvError:
        request = HashKVRequest(revision=revision).SerializeToString()
        try:
            return HashKVResponse.FromString(await self._server.leader_calls.ask(member, HASH_KV, request, timeout))
        except DecodeError:
            return MALFORMED
        except KvError as error:
            return error

    async def _others(self, revision: int, timeout: float) -> dict[int, HashKVResponse | KvError]:
        members = [member.id for member in self._server.peers.table() if member.id != self._server.member_id]
        answers = await asyncio.gather(*[self._ask(member, revision, timeout) for member in members])
        return dict(zip(members, answers, strict=True))

    # At the start

    async def check_at_start(self) -> None:
        """Raises StoreDamaged when this member must not serve. Who does not answer is not waited for."""
        server = self._server
        try:
            own = await self._own(0)
        except KvError as error:
            raise self._damaged("its rows contradict each other") from error
        answers = await self._others(own.hash_revision, START_SECONDS)
        found = _comparable(own, answers)
        differing = [server.peers.name_of(member) for member, value in found.items() if value != own.hash]
        agreeing = 1 + len(found) - len(differing)
        log.info("compared the store with other members", revision=own.hash_revision, members=len(found))
        if differing and agreeing <= len(server.peers.table()) // 2:
            names = ", ".join(sorted(differing))
            raise self._damaged(f"at revision {own.hash_revision} it differs from that of {names}")

    def _damaged(self, what: str) -> StoreDamaged:
        return StoreDamaged(
            f"found data inconsistency with peers: the store in {self._server.store.engine.path}: {what}. Move this "
            "member's data directory away, remove it from the cluster and add it as a new one"
        )

    # While it serves

    async def _run(self, seconds: float, is_due: Callable[[], bool]) -> None:
        """Compare all so often while this member leads."""
        server = self._server
        while True:
            await asyncio.sleep(seconds)
            if server.leader_id == server.member_id and is_due():
                await self.compare()

    def _was_compacted(self) -> bool:
        """Since the last comparison."""
        return self._server.store.compact_revision > self._compared_compact_revision

    async def compare(self) -> None:
        """Raise an alarm for each member that differs from the others."""
        server = self._server
        damaged: set[int] = set()
        revision, own = server.store.current_revision, None
        self._compared_compact_revision = server.store.compact_revision
        try:
            own = await self._own(revision)
        except KvError as error:
            if error != CORRUPT:
                log.warning("could not compare the members", reason=error.message)  # compacted meanwhile
                return
            damaged.add(server.member_id)
        answers = await self._others(revision, ANSWER_SECONDS)
        damaged |= {member for member, answer in answers.items() if answer == CORRUPT}
        if own is not None:
            hashes = _comparable(own, answers) | {server.member_id: own.hash}
            damaged |= _differing(hashes, len(server.peers.table()))
            log.info("compared the members", revision=revision, members=len(hashes), damaged=len(damaged))
        for member in sorted(damaged):
            log.error("a member is damaged", member=server.peers.name_of(member) if member else "one of them")
            server.alarms.raise_alarm(AlarmType.CORRUPT, member)


def _comparable(own: HashKVResponse, answers: dict[int, HashKVResponse | KvError]) -> dict[int, int]:
    """The hashes of those that answered for the same."""
    return {
        member: answer.hash
        for member, answer in answers.items()
        if isinstance(answer, HashKVResponse)
        and (answer.hash_revision, answer.compact_revision) == (own.hash_revision, own.compact_revision)
    }


def _differing(hashes: dict[int, int], members: int) -> set[int]:
    """Those that are not what most of all members have; NOBODY where no hash has a majority."""
    [(most, count)] = Counter(hashes.values()).most_common(1)
    if count == len(hashes):
        return set()
    return {member for member, value in hashes.items() if value != most} if count > members // 2 else {NOBODY}
