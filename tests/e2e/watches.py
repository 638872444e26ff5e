"""One watch from its creation to the end of its stream, and whether it was told the truth: nine properties, for the
simulator and for real members (RELIABILITY 2e).

    filter          only events of its keys and kinds
    ordered         revisions never go back
    unique          no event twice
    atomic          a revision is in one response, or in fragments that were asked for
    bookmarkable    progress says a revision only when everything up to it has been told
    reliable        everything between the first and the last event that belongs to it
    resumable       from its start revision on
    previous        prev_kv is what the key was, when it was asked for and is not compacted
    created         an event creates a key only where there was none

All but two are one comparison: what is told after revision r, up to revision s, are the truth's events of (r, s].
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvstore.pb import kv_pb2
from kvstore.pb import rpc_pb2 as pb


class Told(Protocol):
    """What really happened."""

    @property
    def last_revision(self) -> int: ...
    def events_of(self, revision: int) -> Sequence[kv_pb2.Event]: ...
    def key_at(self, key: bytes, revision: int) -> kv_pb2.KeyValue | None: ...


@dataclass(slots=True)
class WatchLog:
    """One watch from its creation to the end of its stream."""

    member: str
    request: pb.WatchCreateRequest
    responses: list[pb.WatchResponse] = field(default_factory=list)  # `created` is the first
    told: int = 0  # everything up to here has been told; counted as a client would, checked later

    def took(self, response: pb.WatchResponse) -> None:
        self.responses.append(response)
        if response.created:
            self.told = (self.request.start_revision or response.header.revision + 1) - 1
        elif response.events:
            if not response.fragment:
                self.told = max(self.told, response.events[-1].kv.mod_revision)
        elif not response.canceled:
            self.told = max(self.told, response.header.revision)


def check_watch_logs(watches: list[WatchLog], truth: Told, compacted: int) -> list[str]:
    complaints = []
    for log in watches:
        complaints += check_watch_log(log, truth, compacted)
    return complaints


def check_watch_log(log: WatchLog, truth: Told, compacted: int) -> list[str]:
    who = f"a watch at {log.member} from {log.request.start_revision}"
    complaints: list[str] = []
    if not log.responses:
        return []
    created = log.responses[0]
    if not created.created:
        return [f"{who}: its first response is not `created`: {created}"]
    told = (log.request.start_revision or created.header.revision + 1) - 1
    gathered: list[kv_pb2.Event] = []
    ended = created.canceled
    for response in log.responses[1:]:
        if ended:
            complaints.append(f"{who}: told something after its end: {_brief(response)}")
        if response.created:
            complaints.append(f"{who}: created twice")
        if response.canceled:
            ended = True
            if response.compact_revision and not told + 1 < response.compact_revision <= compacted:
                complaints.append(f"{who}: ended at {told} by compaction {response.compact_revision} of {compacted}")
            continue
        if not response.events:
            if gathered:
                complaints.append(f"{who}: progress in the middle of fragments")
            missed = _expected(log, truth, told + 1, response.header.revision)
            if missed:
                complaints.append(f"{who}: progress {response.header.revision} after {told}, not told: {len(missed)}")
            told = max(told, response.header.revision)
            continue
        if response.fragment and not log.request.fragment:
            complaints.append(f"{who}: a fragment that nobody asked for")
        gathered += response.events
        if response.fragment:
            continue
        events, gathered = gathered, []
        first, last = events[0].kv.mod_revision, events[-1].kv.mod_revision
        if first <= told:
            complaints.append(f"{who}: {first} after {told}")
        if response.header.revision < last:
            complaints.append(f"{who}: a header of {response.header.revision} over an event of {last}")
        expected = _expected(log, truth, told + 1, last)
        if not _same(log, events, expected, truth, compacted):
            complaints.append(f"{who}: {_names(events)} after {told}, the truth is {_names(expected)}")
        told = max(told, last)
    return complaints


def _expected(log: WatchLog, truth: Told, first: int, last: int) -> list[kv_pb2.Event]:
    request = log.request
    low, high = request.key, request.range_end or request.key + b"\0"
    no_put = pb.WatchCreateRequest.NOPUT in request.filters
    no_delete = pb.WatchCreateRequest.NODELETE in request.filters
    return [
        event
        for revision in range(first, min(last, truth.last_revision) + 1)
        for event in truth.events_of(revision)
        if low <= event.kv.key < high and not (no_delete if event.type == kv_pb2.Event.DELETE else no_put)
    ]


def _same(log: WatchLog, told: list[kv_pb2.Event], expected: list[kv_pb2.Event], truth: Told, compacted: int) -> bool:
    if len(told) != len(expected):
        return False
    for one, other in zip(told, expected, strict=True):
        revision = other.kv.mod_revision
        if (one.type, one.kv) != (other.type, other.kv):
            return False
        previous = truth.key_at(other.kv.key, revision - 1) if log.request.prev_kv else None
        if one.HasField("prev_kv"):
            if previous is None or one.prev_kv != previous:
                return False
        elif previous is not None and revision > compacted:
            return False
    return True


def _names(events: list[kv_pb2.Event]) -> str:
    return " ".join(f"{event.kv.mod_revision}:{event.kv.key.decode()}" for event in events[:20])


def _brief(response: pb.WatchResponse) -> str:
    return f"header {response.header.revision}, {_names(list(response.events))}"
