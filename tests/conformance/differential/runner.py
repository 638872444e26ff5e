"""Plays a case on a real etcd and on us, step by step, and says where the answers part.

Both sides hold nothing but the case's own keys and stand at the same revision when it starts, with all before it
compacted, no leases, alarms, users and roles, and the members they began with: so a case is a function of its steps,
and the shortest list that still differs can be looked for. What may differ, and why, is the table of known.py.
"""

import time
from collections.abc import Collection

import grpc
from google.protobuf.message import Message

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.v3election_pb2 import CampaignResponse
from kvstore.pb.v3lock_pb2 import LockResponse
from tests.conformance.differential.cases import (
    EXPIRE,
    LEASE,
    MEMBER,
    PEER_URLS,
    SYNC,
    UNNAMED,
    WATCH,
    Case,
    Names,
    Step,
)
from tests.conformance.differential.coverage import Coverage
from tests.conformance.differential.known import KNOWN, Seen, by_auth, excuse, harmful, only_ours
from tests.conformance.differential.reset import Reset
from tests.conformance.differential.sides import UNANSWERED, Answer, Side, text
from tests.conformance.differential.waiting import WAITING, Waiting, learn_lock
from tests.conformance.differential.watches import REPLY_SECONDS, Difference, Play, Streams, expect

MEMBERS_LISTED = (
    *(pb.MemberAddResponse, pb.MemberListResponse, pb.MemberRemoveResponse),
    *(pb.MemberUpdateResponse, pb.MemberPromoteResponse),
)
EXPIRY_SECONDS = 30.0
TTL_TOLERANCE = 30  # seconds by which a lease may have aged since it was granted


class Pair:
    """A judge and us, with so many members."""

    def __init__(self, etcd: Side, ours: Side, judge: str, members: int, served: Collection[str]) -> None:
        self.etcd = etcd
        self.ours = ours
        self.judge = judge
        self.members = members
        self.served = served  # RPCs that both know
        self.coverage = Coverage()
        self._reset = Reset(etcd, ours)

    def play(self, case: Case) -> None:
        """Raises Difference."""
        base = self._reset.run(case)
        run = _Run(self, base)
        try:
            for number, step in enumerate(case):
                try:
                    if not run.step(step):
                        break
                except Difference as difference:
                    raise Difference(f"step {number}, base revision {base}, {difference}") from None
            run.end()
        finally:
            run.close()


class _Run:
    """One play of a case."""

    def __init__(self, pair: Pair, base: int) -> None:
        self._pair = pair
        sides = (pair.etcd, pair.ours)
        names = (pair.etcd.names(base), pair.ours.names(base))
        self._play = Play(sides, names, pair.coverage, base, base)
        self._streams = Streams(self._play)
        self._waiting = Waiting(self._play, self._compare)
        self._parted = False

    def close(self) -> None:
        self._streams.close()

    def end(self) -> None:
        self._waiting.end(self._parted)

    def step(self, step: Step) -> bool:
        """False when the two sides have parted, as they may."""
        self._do(step)
        self._waiting.settle()
        return not self._parted

    def _do(self, step: Step) -> None:
        if step.call in WAITING:
            self._waiting.start(step)
        elif step.call == SYNC:
            self._streams.sync()
        elif step.call == EXPIRE:
            self._expire(step)
        elif step.call == WATCH:
            self._streams.request(Step(WATCH, self._based(step.message), step.client, step.user, step.metadata))
        else:
            if step.call == "Compact":
                self._streams.sync()  # what is compacted while a watch reads it depends on the time
                self._streams.catch_up()
            self._call(step)

    def _based(self, message: Message) -> Message:
        """With revisions of this play; ids stay stand-ins."""
        return Names(self._play.names[0].base).sent(message)

    def _call(self, step: Step) -> None:
        if harmful(self._pair.judge, step.message):
            return
        row, expected = only_ours(step.message)
        if row:
            self._play.coverage.excused[row] += 1
            ours = text(self._pair.ours.start(step, self._play.names[1]).result())
            if ours not in expected and not by_auth(ours):
                raise Difference(f"asked {step.call}({step.message})\n-- expected\n{expected}\n-- ours\n{ours}")
            return
        futures = [side.start(step, names) for side, names in zip(self._play.sides, self._play.names, strict=True)]
        etcd, ours = [future.result() for future in futures]
        self._compare(step, etcd, ours)
        if isinstance(ours, pb.DowngradeResponse) and step.message.action in UNANSWERED:  # type: ignore[attr-defined]
            self._await_downgrade(step.message.action == pb.DowngradeRequest.ENABLE)  # type: ignore[attr-defined]

    def _await_downgrade(self, begins: bool) -> None:
        """What etcd does not answer is looked for; and the version of our cluster follows."""
        for side in self._play.sides:
            deadline = time.monotonic() + REPLY_SECONDS
            while side.is_downgrading() != begins:
                if time.monotonic() > deadline:
                    raise Difference(f"{side.name} has {'no' if begins else 'a'} downgrade under way")
                time.sleep(0.02)

    def _compare(self, step: Step, etcd: Answer, ours: Answer) -> None:
        play, coverage = self._play, self._play.coverage
        for answer, names in zip((etcd, ours), play.names, strict=True):
            if isinstance(answer, Message):
                _learn(step, answer, names)
        coverage.count(step.call)
        texts = [
            text(_comparable(answer, names, self._pair.members))
            for answer, names in zip((etcd, ours), play.names, strict=True)
        ]
        if texts[0] != texts[1]:
            row = excuse(self._pair.judge, Seen(step.call, self._based(step.message), *texts, play.compact_revision))
            if not row:
                expect(*texts, f"{step.call}({step.message}) {step.client} {step.user} {step.metadata}")
            coverage.excused[row] += 1
            self._parted = self._parted or KNOWN[row].ends
            return
        if isinstance(etcd, grpc.RpcError):
            coverage.see(texts[0])
            return
        if isinstance(step.message, pb.CompactionRequest):
            play.compact_revision = self._based(step.message).revision  # type: ignore[attr-defined]
        if step.call in ("AuthEnable", "AuthDisable"):
            for names in play.names:
                names.auth_is_on = step.call == "AuthEnable"
        header = getattr(etcd, "header", None)
        if header is not None:
            play.revision = max(play.revision, header.revision)

    def _expire(self, step: Step) -> None:
        """Time is not compared: what a lease's end does is."""
        deadline = time.monotonic() + EXPIRY_SECONDS
        for side, names in zip(self._play.sides, self._play.names, strict=True):
            ask = names.sent(step.message)
            while side.ask("LeaseTimeToLive", ask).TTL != -1:
                if time.monotonic() > deadline:
                    raise Difference(f"{side.name} keeps a lease: {ask}")
                time.sleep(0.05)
        revisions = [side.revision() for side in self._play.sides]
        expect(str(revisions[0]), str(revisions[1]), "the revision after a lease has expired")
        self._play.revision = revisions[0]
        self._play.coverage.count(EXPIRE)


def _learn(step: Step, answer: Message, names: Names) -> None:
    """The numbers that a server has picked."""
    asked = step.message
    if isinstance(answer, pb.LeaseGrantResponse) and isinstance(asked, pb.LeaseGrantRequest):
        if LEASE <= (stand_in := asked.ID or UNNAMED) < MEMBER:
            names.learn(stand_in, answer.ID)
    elif isinstance(answer, pb.MemberAddResponse) and isinstance(asked, pb.MemberAddRequest):
        names.learn(MEMBER + 1 + PEER_URLS.index(asked.peerURLs[0]), answer.member.ID)
    elif isinstance(answer, pb.AuthenticateResponse) and isinstance(asked, pb.AuthenticateRequest):
        names.learn_token(asked.name, answer.token)
    elif isinstance(answer, LockResponse):
        learn_lock(step, answer.key, names)
    elif isinstance(answer, CampaignResponse):
        learn_lock(step, answer.leader.key, names)
        names.learn_leader(answer.leader.rev)


def _comparable(answer: Answer, names: Names, members: int) -> Answer:
    """Without what differs between two servers that do the same."""
    if not isinstance(answer, Message):
        return answer
    seen = names.seen(answer)
    if isinstance(seen, pb.StatusResponse):
        leads = 1 if seen.leader else 0
        return pb.StatusResponse(header=seen.header, leader=leads, errors=sorted(seen.errors), isLearner=seen.isLearner)
    if isinstance(seen, pb.HashKVResponse):
        return pb.HashKVResponse(header=seen.header, compact_revision=seen.compact_revision)
    if isinstance(seen, pb.HashResponse):
        return pb.HashResponse(header=seen.header)
    if isinstance(seen, pb.MemberListResponse) and members > 1:
        return pb.MemberListResponse(header=seen.header)
    if isinstance(seen, pb.LeaseTimeToLiveResponse):
        if 0 <= seen.grantedTTL - seen.TTL <= TTL_TOLERANCE:
            seen.TTL = seen.grantedTTL
        seen.keys.sort()
    elif isinstance(seen, pb.LeaseLeasesResponse):
        seen.leases.sort(key=lambda lease: lease.ID)
    elif isinstance(seen, pb.AlarmResponse):
        seen.alarms.sort(key=lambda alarm: (alarm.memberID, alarm.alarm))
    elif isinstance(seen, pb.DowngradeResponse):
        seen.version = "its own" if seen.version else ""
    elif isinstance(seen, pb.AuthStatusResponse):
        seen.authRevision = seen.authRevision - names.auth_base
    elif isinstance(seen, MEMBERS_LISTED):
        seen.members.sort(key=lambda member: member.ID)
    return seen
