"""Plays a case on a real etcd and on us, step by step, and says where the answers part.

Both sides hold nothing but the case's own keys and stand at the same revision when it starts, with all before it
compacted: so a case is a function of its steps, and the shortest list that still differs can be looked for.

What may differ, because etcd 3.5.1 is the reference here and we follow the newer ones:

| what | etcd 3.5.1 | we |
|---|---|---|
| range with an unknown sort order or target | sorts as if there was none, or dies | refused, as etcd 3.6 |
| watch from a negative revision | reads on from there | refused as compacted, as etcd 3.6 |
| HashKV at the compact revision | refused as compacted | answered, as etcd 3.6 |
| hash and hash_revision of HashKV | a hash of its own rows | of ours; members of one kind are compared elsewhere |
| progress request with a watch that is not synced | answered at once (etcd#15220) | when synced, as etcd 3.6 |
| the same with a watch from a future revision | answered | not until it begins (etcd#20221) |
| version, sizes and indexes of Status, names and URLs of members | its own | ours |
| cancel of a watch that compaction has ended, or its id again | still known | gone with its last response |
"""

from collections.abc import Iterator

import grpc
from google.protobuf.message import Message

from kvstore.pb import rpc_pb2 as pb
from tests.conformance.differential.generator import SYNC, WATCH, Case, Step, resolved
from tests.conformance.differential.sides import Side, WatchSide, text

REPLY_SECONDS = 10.0  # for something that must come: far above what it takes
EVENTS_SECONDS = 3.0  # for the watches of both sides to show the same
INVALID_SORT = "INVALID_ARGUMENT: etcdserver: invalid sort option"
COMPACTED = "mvcc: required revision has been compacted"


class Difference(Exception):
    """What the two sides said, and to what."""


class Pair:
    """etcd and us, and what both have been through. `compared` counts requests that were sent to both."""

    def __init__(self, etcd: Side, ours: Side) -> None:
        self.etcd = etcd
        self.ours = ours
        self.compared = 0

    def play(self, case: Case) -> None:
        """Raises Difference."""
        base = self._reset()
        run = _Run(self, base)
        try:
            for number, step in enumerate(case):
                try:
                    run.step(Step(step.call, resolved(step.message, base)))
                except Difference as difference:
                    raise Difference(f"step {number}, base revision {base}, {difference}") from None
        finally:
            run.close()

    def _reset(self) -> int:
        """Empty both, bring them to one revision and compact there. Returns it."""
        everything = pb.DeleteRangeRequest(key=b"\0", range_end=b"\0")
        for side in (self.etcd, self.ours):
            side.ask("DeleteRange", everything)
        revisions = {side: side.revision() for side in (self.etcd, self.ours)}
        target = max(revisions.values()) + 2
        for side, revision in revisions.items():
            for _ in range(target - revision - 1):
                side.ask("Put", pb.PutRequest(key=b"a"))
            side.ask("DeleteRange", everything)
            side.ask("Compact", pb.CompactionRequest(revision=target))
        return target


class _Run:
    def __init__(self, pair: Pair, base: int) -> None:
        self._pair = pair
        self._compact_revision = base
        self._revision = base
        self._watches: tuple[WatchSide, WatchSide] | None = None
        self._replies = 0  # that each side owes until now
        self._live: dict[int, int] = {}  # watch id -> start revision
        self._ended: set[int] = set()  # ids of watches that compaction has ended

    def step(self, step: Step) -> None:
        if step.call == SYNC:
            self._sync()
        elif step.call == WATCH:
            assert isinstance(step.message, pb.WatchRequest)
            self._watch(step.message)
        else:
            if step.call == "Compact":
                self._sync()  # what is compacted while a watch reads it depends on the time
            self._call(step)

    def close(self) -> None:
        for watch in self._watches or ():
            watch.close()

    # Calls

    def _call(self, step: Step) -> None:
        if isinstance(step.message, pb.RangeRequest) and _unknown_sort(step.message):
            ours = text(self._pair.ours.start(step.call, step.message)())
            _expect(INVALID_SORT, ours, step.message)
            return
        answers = [side.start(step.call, step.message) for side in (self._pair.etcd, self._pair.ours)]
        etcd, ours = [answer() for answer in answers]
        self._pair.compared += 1
        if isinstance(step.message, pb.HashKVRequest) and step.message.revision == self._compact_revision:
            return
        _expect(text(_comparable(etcd)), text(_comparable(ours)), step.message)
        if isinstance(step.message, pb.CompactionRequest) and not isinstance(etcd, grpc.RpcError):
            self._compact_revision = step.message.revision
        if hasattr(etcd, "header") and etcd.header.revision:
            self._revision = etcd.header.revision

    # Watches

    def _both(self) -> tuple[WatchSide, WatchSide]:
        if self._watches is None:
            self._watches = (self._pair.etcd.open_watch(), self._pair.ours.open_watch())
        return self._watches

    def _watch(self, request: pb.WatchRequest) -> None:
        kind = request.WhichOneof("request_union")
        if kind == "create_request":
            self._create(request)
        elif kind == "cancel_request":
            self._cancel(request)
        elif kind == "progress_request":
            self._sync()
            if all(start <= self._revision + 1 for start in self._live.values()):
                self._exchange(request, 1)
        else:
            self._exchange(request, 0)

    def _create(self, request: pb.WatchRequest) -> None:
        create = request.create_request
        if create.watch_id in self._ended or create.start_revision < 0:
            return
        before = self._replies
        self._exchange(request, 1)
        reply = _reply(self._both()[0], before)
        if "canceled: true" in reply:
            return
        watch_id = create.watch_id or next(_numbers(reply, "watch_id"), 0)
        self._live[watch_id] = create.start_revision
        if 0 < create.start_revision < self._compact_revision:
            self._replies += 1
            self._wait_replies(request)
            self._ended.add(watch_id)
            del self._live[watch_id]

    def _cancel(self, request: pb.WatchRequest) -> None:
        watch_id = request.cancel_request.watch_id
        if watch_id in self._ended:
            return
        self._sync()  # events that are under way would or would not come
        self._exchange(request, 1 if self._live.pop(watch_id, None) is not None else 0)

    def _exchange(self, request: pb.WatchRequest, replies: int) -> None:
        for watch in self._both():
            watch.send(request)
        self._pair.compared += 1
        self._replies += replies
        self._wait_replies(request)

    def _wait_replies(self, request: Message) -> None:
        owed = self._replies
        for watch in self._both():
            watch.wait(lambda watch: len(watch.replies) >= owed, REPLY_SECONDS)
        etcd, ours = self._both()
        _expect("\n".join(etcd.replies[owed - 1 :]), "\n".join(ours.replies[owed - 1 :]), request)

    def _sync(self) -> None:
        """Until both have shown the same. A mark that every watch's stream sees tells when to give up waiting."""
        if self._watches is None:
            return
        etcd, ours = self._watches
        for _ in range(2):  # the second look is for what came after the first
            if ours.wait(lambda ours: ours.events == etcd.events, EVENTS_SECONDS):
                continue
            if etcd.wait(lambda etcd: ours.events == etcd.events, EVENTS_SECONDS):
                continue
        for watch_id in sorted(etcd.events.keys() | ours.events.keys()):
            _expect("\n".join(etcd.events[watch_id]), "\n".join(ours.events[watch_id]), f"watch {watch_id}")
        _expect("\n".join(etcd.replies), "\n".join(ours.replies), "replies of the watch stream")
        for side, watch in (("etcd", etcd), ("ours", ours)):
            if watch.faults:
                raise Difference(f"{side}: {watch.faults}")


def _expect(etcd: str, ours: str, request: object) -> None:
    if etcd != ours:
        raise Difference(f"asked {type(request).__name__} {request}\n-- etcd\n{etcd}\n-- ours\n{ours}")


def _unknown_sort(request: pb.RangeRequest) -> bool:
    return request.sort_order not in (0, 1, 2) or request.sort_target not in (0, 1, 2, 3, 4)


def _comparable(answer: Message | grpc.RpcError) -> Message | grpc.RpcError:
    """Without what differs between two servers that do the same."""
    if isinstance(answer, pb.StatusResponse):
        leads = 1 if answer.leader else 0
        return pb.StatusResponse(header=answer.header, leader=leads, errors=answer.errors, isLearner=answer.isLearner)
    if isinstance(answer, pb.HashKVResponse):
        return pb.HashKVResponse(header=answer.header, compact_revision=answer.compact_revision)
    if isinstance(answer, pb.MemberListResponse):
        return pb.MemberListResponse(header=answer.header)
    return answer


def _reply(watch: WatchSide, number: int) -> str:
    return watch.replies[number]


def _numbers(reply: str, field: str) -> Iterator[int]:
    for line in reply.splitlines():
        name, _, value = line.strip().partition(": ")
        if name == field:
            yield int(value)
