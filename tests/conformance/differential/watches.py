"""The watch streams of a case, compared by their replies and by the sequence of events of each watch.

A watch over everything on etcd, the witness, tells which events each watch is owed: so a sync has a condition to
wait for, and an event that both sides lose is seen too.
"""

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.kv_pb2 import Event
from tests.conformance.differential.cases import Names, Step
from tests.conformance.differential.coverage import Coverage
from tests.conformance.differential.known import COMPACTED
from tests.conformance.differential.sides import Answer, Metadata, Side, WatchSide, text

REPLY_SECONDS = 10.0  # for something that must come: far above what it takes


class Difference(Exception):
    """What the two sides said, and to what."""


@dataclass
class Play:
    """What is known about both sides in the middle of a case."""

    sides: tuple[Side, Side]  # etcd, ours
    names: tuple[Names, Names]
    coverage: Coverage
    revision: int
    compact_revision: int
    lagging: bool = False  # a watch from the past may not have been looked at yet: it is owed nothing
    changed: threading.Condition = field(default_factory=threading.Condition)

    def open_watch(self, step: Step) -> list[WatchSide]:
        return [
            side.open_watch(self.changed, names, step.client, names.metadata(step))
            for side, names in zip(self.sides, self.names, strict=True)
        ]


class Witness:
    def __init__(self, play: Play) -> None:
        self._play = play
        side = play.sides[0]
        self._watch = side.open_watch(play.changed, play.names[0], metadata=side.admin)
        self._watch.send(everything_from(play.revision))

    @property
    def events(self) -> list[Event]:
        return self._watch.events[0]

    def wait(self) -> None:
        """Until it has seen the case's last revision."""
        play = self._play
        with play.changed:
            seen = play.changed.wait_for(
                lambda: self.events and self.events[-1].kv.mod_revision >= play.revision, REPLY_SECONDS
            )
        assert seen, f"etcd's own watch has not come to revision {play.revision}: {self._watch.replies}"

    def deletes_at(self, revision: int) -> bool:
        self.wait()
        return any(event.type and event.kv.mod_revision == revision for event in self.events)

    def close(self) -> None:
        self._watch.close()


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


class Stream:
    """One watch stream on each side, opened by the same client with the same metadata."""

    def __init__(self, play: Play, witness: Witness, opened_by: Step) -> None:
        self._play = play
        self._witness = witness
        self._opened_by = opened_by
        self._etcd, self._ours = play.open_watch(opened_by)
        self._replies = 0  # that each side owes until now
        self._live: dict[int, _Watcher] = {}
        self._owed: dict[int, int] = defaultdict(int)  # watch id -> events, of all watches that had the id
        self._ended: set[int] = set()  # ids of watches that compaction has ended

    def close(self) -> None:
        self._etcd.close()
        self._ours.close()

    def request(self, request: pb.WatchRequest) -> None:
        kind = request.WhichOneof("request_union")
        if kind == "create_request":
            self._create(request)
        elif kind == "cancel_request":
            self._cancel(request)
        elif kind == "progress_request":
            self.sync()
            if all(watcher.next_revision <= self._play.revision + 1 for watcher in self._live.values()):
                self._exchange(request, 1)
            else:
                self._play.coverage.excused["future progress"] += 1
        else:
            self._exchange(request, 0)

    def _create(self, request: pb.WatchRequest) -> None:
        create, play = request.create_request, self._play
        start = create.start_revision
        if create.watch_id in self._ended or (create.watch_id and 0 < start < play.compact_revision):
            play.coverage.excused["ended id"] += 1
            return
        if start == play.compact_revision and self._witness.deletes_at(start):
            play.coverage.excused["watch at delete"] += 1
            return
        if start < 0:
            if not self._opened_by.user:  # else permission is looked at first
                self._refuse_negative(request)
            return
        if create.range_end == b"\0" and self._opened_by.user and _is_refused(self._ours_alone(request)):
            play.coverage.excused["open watch"] += 1
            return
        self._exchange(request, 1)
        created = self._etcd.replies[self._replies - 1]
        if not isinstance(created, pb.WatchResponse) or created.canceled:
            return
        if 0 < start < play.compact_revision:
            self._replies += 1
            self._compare_replies(request)
            self._ended.add(created.watch_id)
        else:
            self._live[created.watch_id] = _Watcher(create, start or play.revision + 1)
            play.lagging = play.lagging or start > 0

    def _refuse_negative(self, request: pb.WatchRequest) -> None:
        self._play.coverage.excused["negative watch"] += 1
        reply = self._ours_alone(request)
        reason = reply.cancel_reason if isinstance(reply, pb.WatchResponse) and reply.canceled else ""
        if not reason or not COMPACTED.endswith(reason):
            raise Difference(f"asked {request}\n-- expected\n{COMPACTED}\n-- ours\n{reply}")

    def _ours_alone(self, request: pb.WatchRequest) -> Answer | None:
        """What we say first, on a stream of its own."""
        play, names = self._play, self._play.names[1]
        watch = play.sides[1].open_watch(play.changed, names, self._opened_by.client, names.metadata(self._opened_by))
        watch.send(request)
        with play.changed:
            play.changed.wait_for(lambda: watch.replies, REPLY_SECONDS)
        watch.close()
        return watch.replies[0] if watch.replies else None

    def _cancel(self, request: pb.WatchRequest) -> None:
        watch_id = request.cancel_request.watch_id
        if watch_id in self._ended:
            self._play.coverage.excused["ended id"] += 1
            return
        self.sync()  # events that are under way would or would not come
        self._exchange(request, 1 if self._live.pop(watch_id, None) is not None else 0)

    def _exchange(self, request: pb.WatchRequest, replies: int) -> None:
        self._etcd.send(request)
        self._ours.send(request)
        self._replies += replies
        self._compare_replies(request)
        kind = request.WhichOneof("request_union") or "nothing"
        self._play.coverage.count(f"Watch {kind.removesuffix('_request')}")

    def _compare_replies(self, request: object) -> None:
        owed, changed = self._replies, self._play.changed
        with changed:
            changed.wait_for(lambda: len(self._etcd.replies) >= owed and len(self._ours.replies) >= owed, REPLY_SECONDS)
            since = max(owed - 1, 0)
            expect(_texts(self._etcd.replies[since:owed]), _texts(self._ours.replies[since:owed]), request)
            for reply in self._etcd.replies[since:owed]:
                self._play.coverage.see(getattr(reply, "cancel_reason", ""))

    def sync(self) -> None:
        """Until every watch has what it is owed."""
        self._witness.wait()
        changed, sides = self._play.changed, (self._etcd, self._ours)
        with changed:
            for watch_id, watcher in self._live.items():
                self._owed[watch_id] += sum(watcher.wants(event) for event in self._witness.events)
                watcher.next_revision = max(watcher.next_revision, self._play.revision + 1)
            changed.wait_for(lambda: all(self._has_all(side) for side in sides), REPLY_SECONDS)
            for watch_id in sorted(self._etcd.events.keys() | self._ours.events.keys() | self._owed.keys()):
                events = [
                    sorted(map(names.seen, side.events[watch_id]), key=_order)
                    for side, names in zip(sides, self._play.names, strict=True)
                ]
                expect(_texts(events[0]), _texts(events[1]), f"watch {watch_id}")
                if len(events[0]) != self._owed[watch_id]:
                    got, there = _texts(events[0]), _texts(self._witness.events)
                    raise Difference(f"watch {watch_id} is owed {self._owed[watch_id]}\n-- got\n{got}\n-- of\n{there}")
            expect(_texts(self._etcd.replies), _texts(self._ours.replies), "the watch stream")
            for side in sides:
                if side.faults:
                    raise Difference(f"{side.faults} of {'etcd' if side is self._etcd else 'ours'}")

    def _has_all(self, side: WatchSide) -> bool:
        return all(len(side.events[watch_id]) >= owed for watch_id, owed in self._owed.items())


class Streams:
    """Of all clients of a case."""

    def __init__(self, play: Play) -> None:
        self._play = play
        self.witness = Witness(play)
        self._streams: dict[tuple[int, str, Metadata, bool], Stream] = {}

    def request(self, step: Step) -> None:
        """On the client's stream with these credentials, which is opened the first time."""
        who = (step.client, step.user, step.metadata, self._play.names[0].auth_is_on)  # see "old stream" in known.py
        if who not in self._streams:
            self._streams[who] = Stream(self._play, self.witness, step)
        assert isinstance(step.message, pb.WatchRequest)
        self._streams[who].request(step.message)

    def sync(self) -> None:
        self.witness.wait()
        for stream in self._streams.values():
            stream.sync()

    def catch_up(self) -> None:
        """Until no watch lags: a later one, which is owed an event, is not served before those that came earlier."""
        play = self._play
        if not play.lagging or play.revision == play.compact_revision:
            return
        for side in play.sides:
            side.sign_in()
        probes = [
            side.open_watch(play.changed, names, metadata=side.admin)
            for side, names in zip(play.sides, play.names, strict=True)
        ]
        for probe in probes:
            probe.send(everything_from(play.revision))
        with play.changed:
            seen = play.changed.wait_for(lambda: all(probe.events[0] for probe in probes), REPLY_SECONDS)
        for probe in probes:
            probe.close()
        if not seen:
            raise Difference(f"no event of revision {play.revision} at etcd or at ours")
        play.lagging = False

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self.witness.close()


def everything_from(revision: int) -> pb.WatchRequest:
    create = pb.WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=revision)
    return pb.WatchRequest(create_request=create)


def _order(event: Any) -> tuple[int, bytes]:
    """As they came; but which key of a lock comes first within a revision depends on ids that a server picked."""
    return event.kv.mod_revision, event.kv.key if b"/" in event.kv.key else b""


def _texts(answers: Sequence[Any]) -> str:
    return "\n".join(text(_refused(answer)) for answer in answers)


def _is_refused(answer: Any) -> bool:
    reason = answer.cancel_reason if isinstance(answer, pb.WatchResponse) else ""
    return reason.startswith("rpc error: ") or reason == "mvcc: watcher range is empty"


def _refused(answer: Any) -> Any:
    """See "watch refusal" in known.py; which of two reasons is given is "auth first" there."""
    if not _is_refused(answer):
        return answer
    refusal = pb.WatchResponse(watch_id=-1, created=answer.created, canceled=answer.canceled, cancel_reason="refused")
    refusal.header.CopyFrom(answer.header)
    return refusal


def expect(etcd: str, ours: str, request: object) -> None:
    if etcd != ours:
        raise Difference(f"asked {type(request).__name__} {request}\n-- etcd\n{etcd}\n-- ours\n{ours}")
