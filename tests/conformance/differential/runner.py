"""Plays a case on a real etcd and on us, step by step, and says where the answers part.

Both sides hold nothing but the case's own keys and stand at the same revision when it starts, with all before it
compacted: so a case is a function of its steps, and the shortest list that still differs can be looked for.

What may differ, because etcd 3.5.1 is the reference here and we follow the newer ones:

| what | etcd 3.5.1 | we |
|---|---|---|
| range with an unknown sort order or target | sorts as if there was none, or dies | refused, as etcd 3.6 |
| watch from a negative revision | reads on from there | refused as compacted, as etcd 3.7 |
| refusal of a txn, when several operations give reason | puts, then ranges | in their order, as etcd 3.6 |
| the same, when one put gives two reasons | key not found | lease not found, as etcd 3.7 |
| HashKV at the compact revision | refused as compacted | answered, as etcd 3.6 |
| hash and hash_revision of HashKV | a hash of its own rows | of ours; members of one kind are compared elsewhere |
| progress request with a watch that is not synced | answered at once (etcd#15220) | when synced, as etcd 3.6 |
| the same with a watch from a future revision | answered | not until it begins (etcd#20221) |
| Compact(0) before any other compaction | done, once | refused: 0 is where a store begins |
| version, sizes and indexes of Status, names and URLs of members | its own | ours |
| id of a watch that compaction has ended | still in use, can be cancelled | free |
| watch from the compact revision, which was a delete | forgets the delete (etcd#19179) | shows it |
"""

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.kv_pb2 import Event
from tests.conformance.differential.generator import SYNC, WATCH, Case, Step, resolved
from tests.conformance.differential.sides import Side, WatchSide, text

REPLY_SECONDS = 10.0  # for something that must come: far above what it takes
INVALID_SORT = "INVALID_ARGUMENT: etcdserver: invalid sort option"
COMPACTED = "etcdserver: mvcc: required revision has been compacted"
REFUSALS_OF_TXN = {  # that its operations give reason to; see above
    f"OUT_OF_RANGE: {COMPACTED}",
    "OUT_OF_RANGE: etcdserver: mvcc: required revision is a future revision",
    "INVALID_ARGUMENT: etcdserver: key not found",
    "NOT_FOUND: etcdserver: requested lease not found",
}


class Difference(Exception):
    """What the two sides said, and to what."""


class Pair:
    """etcd and us, with so many members. `compared` counts the requests that were sent to both."""

    def __init__(self, etcd: Side, ours: Side, members: int) -> None:
        self.etcd = etcd
        self.ours = ours
        self.members = members
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
        """Leave one key in both, at the same revision, and compact there. Returns the revision."""
        everything = pb.DeleteRangeRequest(key=b"\0", range_end=b"\0")
        for side in (self.etcd, self.ours):
            side.ask("DeleteRange", everything)
        revisions = {side: side.revision() for side in (self.etcd, self.ours)}
        target = max(revisions.values()) + 3
        for side, revision in revisions.items():
            for _ in range(target - revision - 2):
                side.ask("Put", pb.PutRequest(key=b"a"))
            side.ask("DeleteRange", everything)
            side.ask("Put", pb.PutRequest(key=b"base"))  # no delete at the base: see etcd#19179 above
            side.ask("Compact", pb.CompactionRequest(revision=target))
        return target


@dataclass
class _Watcher:
    """A live watch of the case: what it asked for, and from which revision on it is owed events."""

    request: pb.WatchCreateRequest
    next_revision: int

    def wants(self, event: Event) -> bool:
        low, high = self.request.key or b"\0", self.request.range_end
        key = event.kv.key
        inside = key == low if not high else key >= low and (high == b"\0" or key < high)
        return (
            inside
            and int(event.type) not in map(int, self.request.filters)
            and event.kv.mod_revision >= self.next_revision
        )


class _Run:
    """One play of a case. A watch over everything on etcd, the witness, tells which events each watch is owed."""

    def __init__(self, pair: Pair, base: int) -> None:
        self._pair = pair
        self._compact_revision = base
        self._revision = base
        self._changed = threading.Condition()
        self._witness = pair.etcd.open_watch(self._changed)
        self._witness.send(_everything_from(base))
        self._etcd = pair.etcd.open_watch(self._changed)
        self._ours = pair.ours.open_watch(self._changed)
        self._replies = 0  # that each side owes until now
        self._live: dict[int, _Watcher] = {}
        self._owed: dict[int, int] = defaultdict(int)  # watch id -> events, of all watches that had the id
        self._lagging = False  # a watch from the past may not have been looked at yet: it is owed nothing
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
                self._catch_up()
            self._call(step)

    def close(self) -> None:
        for watch in (self._witness, self._etcd, self._ours):
            watch.close()

    # Calls

    def _call(self, step: Step) -> None:
        if isinstance(step.message, pb.RangeRequest) and _unknown_sort(step.message):
            _expect(INVALID_SORT, text(self._pair.ours.start(step.call, step.message)()), step.message)
            return
        answers = [side.start(step.call, step.message) for side in (self._pair.etcd, self._pair.ours)]
        etcd, ours = [answer() for answer in answers]
        self._pair.compared += 1
        if isinstance(step.message, pb.HashKVRequest) and step.message.revision == self._compact_revision:
            return
        if isinstance(step.message, pb.TxnRequest) and {text(etcd), text(ours)} <= REFUSALS_OF_TXN:
            return
        _expect(text(_comparable(etcd)), text(_comparable(ours)), step.message)
        if isinstance(etcd, grpc.RpcError):
            return
        if isinstance(step.message, pb.CompactionRequest):
            self._compact_revision = step.message.revision
        self._revision = max(self._revision, etcd.header.revision)  # type: ignore[attr-defined]

    # Watches

    def _watch(self, request: pb.WatchRequest) -> None:
        kind = request.WhichOneof("request_union")
        if kind == "create_request":
            self._create(request)
        elif kind == "cancel_request":
            self._cancel(request)
        elif kind == "progress_request":
            self._sync()
            if all(watcher.next_revision <= self._revision + 1 for watcher in self._live.values()):
                self._exchange(request, 1)
        else:
            self._exchange(request, 0)

    def _create(self, request: pb.WatchRequest) -> None:
        create = request.create_request
        start = create.start_revision
        if create.watch_id in self._ended or (start == self._compact_revision and self._deletes_at(start)):
            return
        if create.watch_id and 0 < start < self._compact_revision:
            return  # etcd goes on to know the id, and does not give it to others
        if start < 0:
            self._refuse_negative(request)
            return
        self._exchange(request, 1)
        created = self._etcd.replies[self._replies - 1]
        assert isinstance(created, pb.WatchResponse)
        if created.canceled:
            return
        if 0 < start < self._compact_revision:
            self._replies += 1
            self._compare_replies(request)
            self._ended.add(created.watch_id)
        else:
            self._live[created.watch_id] = _Watcher(create, start or self._revision + 1)
            self._lagging = self._lagging or start > 0

    def _refuse_negative(self, request: pb.WatchRequest) -> None:
        """On a stream of its own: the case's streams get the same replies on both sides."""
        watch = self._pair.ours.open_watch(self._changed)
        watch.send(request)
        with self._changed:
            self._changed.wait_for(lambda: watch.replies, REPLY_SECONDS)
        watch.close()
        reply = watch.replies[0] if watch.replies else None
        refused = isinstance(reply, pb.WatchResponse) and reply.canceled and reply.cancel_reason == COMPACTED
        if not refused:
            raise Difference(f"asked {request}\n-- expected\n{COMPACTED}\n-- ours\n{reply}")

    def _deletes_at(self, revision: int) -> bool:
        self._sync()
        return any(event.type and event.kv.mod_revision == revision for event in self._witness.events[0])

    def _cancel(self, request: pb.WatchRequest) -> None:
        watch_id = request.cancel_request.watch_id
        if watch_id in self._ended:
            return
        self._sync()  # events that are under way would or would not come
        self._exchange(request, 1 if self._live.pop(watch_id, None) is not None else 0)

    def _exchange(self, request: pb.WatchRequest, replies: int) -> None:
        self._etcd.send(request)
        self._ours.send(request)
        self._pair.compared += 1
        self._replies += replies
        self._compare_replies(request)

    def _compare_replies(self, request: object) -> None:
        owed = self._replies
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._etcd.replies) >= owed and len(self._ours.replies) >= owed, REPLY_SECONDS
            )
            since = max(owed - 1, 0)
            _expect(_texts(self._etcd.replies[since:owed]), _texts(self._ours.replies[since:owed]), request)

    def _sync(self) -> None:
        """Until every watch has what it is owed."""
        with self._changed:
            seen = self._changed.wait_for(self._witness_is_there, REPLY_SECONDS)
            assert seen, f"etcd's own watch has not come to revision {self._revision}"
            for watch_id, watcher in self._live.items():
                self._owed[watch_id] += sum(watcher.wants(event) for event in self._witness.events[0])
                watcher.next_revision = max(watcher.next_revision, self._revision + 1)
            sides = (self._etcd, self._ours)
            self._changed.wait_for(lambda: all(self._has_all(side) for side in sides), REPLY_SECONDS)
            for watch_id in sorted(self._etcd.events.keys() | self._ours.events.keys() | self._owed.keys()):
                events = [side.events[watch_id] for side in sides]
                _expect(_texts(events[0]), _texts(events[1]), f"watch {watch_id}")
                if len(events[0]) != self._owed[watch_id]:
                    got, there = _texts(events[0]), _texts(self._witness.events[0])
                    raise Difference(f"watch {watch_id} is owed {self._owed[watch_id]}\n-- got\n{got}\n-- of\n{there}")
            _expect(_texts(self._etcd.replies), _texts(self._ours.replies), "the watch stream")
            for side in sides:
                if side.faults:
                    raise Difference(f"{side.faults} of {'etcd' if side is self._etcd else 'ours'}")

    def _catch_up(self) -> None:
        """Until no watch lags: a later one, which is owed an event, is not served before those that came earlier."""
        if not self._lagging or self._revision == self._compact_revision:
            return
        probes = [side.open_watch(self._changed) for side in (self._pair.etcd, self._pair.ours)]
        for probe in probes:
            probe.send(_everything_from(self._revision))
        with self._changed:
            seen = self._changed.wait_for(lambda: all(probe.events[0] for probe in probes), REPLY_SECONDS)
        for probe in probes:
            probe.close()
        if not seen:
            raise Difference(f"no event of revision {self._revision} at etcd or at ours")
        self._lagging = False

    def _witness_is_there(self) -> bool:
        events = self._witness.events[0]
        return bool(events and events[-1].kv.mod_revision >= self._revision)

    def _has_all(self, side: WatchSide) -> bool:
        return all(len(side.events[watch_id]) >= owed for watch_id, owed in self._owed.items())


def _everything_from(revision: int) -> pb.WatchRequest:
    create = pb.WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=revision)
    return pb.WatchRequest(create_request=create)


def _texts(answers: Sequence[Message | grpc.RpcError]) -> str:
    return "\n".join(map(text, answers))


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
