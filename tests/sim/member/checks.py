"""Was what clients and watchers saw possible? Compared with the log that the members applied.

The truth is the merged log (any two members that applied an index applied the same entry: world.py), replayed through
the reference model of the store's tests. It says what each named request did and must have answered, and what every
key was at every revision. Then (RELIABILITY 2c, 2e):

    check_requests      acknowledged: exactly once in the truth, with this answer. Unknown: at most once. Refused: never
    check_reads         an answer is the model's at its header's revision
    check_order         revisions do not contradict the clock
    check_linearizable  (tests/e2e) blind to headers, key by key
    check_watch_logs    (tests/e2e) the nine properties, watch by watch
"""

from collections import defaultdict
from contextlib import suppress
from typing import Any, Final

from kvstore.errors import COMPACTED, FUTURE_REVISION, KvError
from kvstore.pb import history_pb2, kv_pb2
from kvstore.pb import rpc_pb2 as pb
from kvstore.state.command import decode_batch
from raft.types import Entry, EntryKind
from tests.e2e.checkers import _Answers
from tests.e2e.history import Outcome
from tests.kvstore.state.model import Keys, Model
from tests.sim.member.clients import Asked

_WRITES: Final = ("Put", "DeleteRange", "Compact")


class Truth:
    """The committed log, replayed."""

    def __init__(self, log: dict[int, Entry]) -> None:
        self.complaints: list[str] = []
        self.model = Model()
        self.done: dict[str, list[Any]] = defaultdict(list)  # request id -> what it answered, each time it took effect
        self.origin: dict[int, str] = {}  # revision -> request id
        self.granted: set[int] = set()
        self.lease_ends: dict[int, list[tuple[int, bool]]] = defaultdict(list)  # index, whether it expired
        self.requests = 0
        self.repeated = 0
        self.stale_revokes = 0
        seen: dict[int, tuple[int, int]] = {}
        indexes = sorted(log)
        missing = [index for index in range(1, len(indexes)) if index not in log]
        if missing:
            self.complaints.append(f"nobody applied the entries {missing[:5]}")
        for index in indexes:
            if log[index].kind == EntryKind.COMMAND:
                for request in decode_batch(log[index].data).requests:
                    self._add(request, seen, log[index])

    def _add(self, request: Any, seen: dict[int, tuple[int, int]], entry: Entry) -> None:
        self.requests += 1
        identity = (request.boot, request.sequence)
        if identity <= seen.get(request.member, (0, 0)):
            self.repeated += 1
            return
        seen[request.member] = identity
        op = request.WhichOneof("op")
        if op == "lease_grant":
            self._grant(request.lease_grant)
        elif op == "lease_revoke":
            self._revoke(request.lease_revoke, entry)
        if op not in ("put", "delete_range", "txn", "compaction"):
            return
        before = self.model.revision
        answer: Any
        try:
            answer = self.model.apply(getattr(request, op))
        except KvError as error:
            answer = error
        self.done[request.request_id].append(answer)
        if self.model.revision > before:
            self.origin[self.model.revision] = request.request_id

    def _grant(self, request: pb.LeaseGrantRequest) -> None:
        with suppress(KvError):
            self.model.apply(request)
            self.granted.add(request.ID)

    def _revoke(self, revoke: Any, entry: Entry) -> None:
        """What a lessor found expired counts only in the term in which it led (S-58)."""
        if revoke.term and revoke.term != entry.term:
            self.stale_revokes += 1
            return
        for lease in revoke.ids:
            with suppress(KvError):
                self.model.apply(pb.LeaseRevokeRequest(ID=lease))
                self.lease_ends[lease].append((entry.index, bool(revoke.term)))

    @property
    def last_revision(self) -> int:
        return self.model.revision

    def events_of(self, revision: int) -> list[kv_pb2.Event]:
        return self.model.events.get(revision, [])

    def key_at(self, key: bytes, revision: int) -> kv_pb2.KeyValue | None:
        return self.at(revision).get(key)

    def at(self, revision: int) -> Keys:
        return self.model.past[min(revision, self.model.revision)]


def check_requests(operations: list[Asked], truth: Truth) -> list[str]:
    complaints = list(truth.complaints)
    for asked in operations:
        done = truth.done.get(asked.request_id, [])
        if len(done) > 1:
            complaints.append(f"took effect {len(done)} times: {asked}")
        if asked.outcome is Outcome.FAILED:
            if done and done[-1] != asked.error:
                complaints.append(f"refused, but the log has it with {done[-1]}: {asked}")
        elif asked.outcome is Outcome.OK and _is_write(asked):
            if not done:
                complaints.append(f"acknowledged, but not in the log: {asked}")
            elif isinstance(done[-1], KvError) or _bare(done[-1]) != _bare(asked.response):
                complaints.append(f"answered {asked.response}, the model {done[-1]}: {asked}")
            elif not isinstance(done[-1], pb.CompactionResponse) and done[-1].header.revision != asked.revision:
                complaints.append(f"the model says revision {done[-1].header.revision}: {asked}")
    known = {asked.request_id for asked in operations}
    strangers = [request_id for request_id in truth.done if request_id not in known]
    if strangers:
        complaints.append(f"nobody asked for {strangers[:5]}")
    return complaints


def _is_write(asked: Asked) -> bool:
    if asked.method == "Txn":
        return asked.kind != "read txn"
    return asked.method in _WRITES


def _bare(response: Any) -> Any:
    """Without headers: of the members, and of parts of a transaction."""
    copy = type(response)()
    copy.CopyFrom(response)
    copy.ClearField("header")
    if isinstance(copy, pb.TxnResponse):
        for part in copy.responses:
            kind = part.WhichOneof("response")
            bare = _bare(getattr(part, kind))
            getattr(part, kind).CopyFrom(bare)
    return copy


def check_reads(operations: list[Asked], truth: Truth) -> list[str]:
    complaints = []
    model = truth.model
    compacted, model.compacted = model.compacted, 0
    hashes: dict[tuple[int, int], Asked] = {}
    for asked in operations:
        if asked.outcome is not Outcome.OK:
            continue
        revision = asked.revision
        if revision > model.revision:
            complaints.append(f"a revision that is not there, the last is {model.revision}: {asked}")
        elif asked.method == "Range":
            request = pb.RangeRequest()
            request.CopyFrom(asked.request)
            if request.revision > revision:
                complaints.append(f"a header older than what it tells: {asked}")
                continue
            request.revision = request.revision or revision
            expected = model.range(request)
            if _bare(expected) != _bare(asked.response):
                complaints.append(f"read {asked.response}, the model {expected}: {asked}")
        elif asked.kind == "read txn":
            expected_txn = _txn_at(model, asked.request, revision)
            if _bare(expected_txn) != _bare(asked.response):
                complaints.append(f"read {asked.response}, the model {expected_txn}: {asked}")
        elif asked.method == "HashKV":
            key = (asked.response.hash_revision, asked.response.compact_revision)
            other = hashes.setdefault(key, asked)
            if other.response.hash != asked.response.hash:
                complaints.append(f"hashes of {key} differ: {other} {asked}")
    model.compacted = compacted
    return complaints + _read_errors(operations)


def _txn_at(model: Model, request: pb.TxnRequest, revision: int) -> pb.TxnResponse:
    keys, newest, model.keys, model.revision = model.keys, model.revision, model.past[revision], revision
    model.changes = []
    try:
        return model.txn(request)
    finally:
        model.keys, model.revision = keys, newest


def _read_errors(operations: list[Asked]) -> list[str]:
    """`compacted` only where somebody had asked for it, `future` only where nobody had been told of it."""
    complaints = []
    answers = _Answers([one for one in operations if one.outcome is Outcome.OK])
    compactions = [one for one in operations if one.method == "Compact"]
    for asked in operations:
        if asked.method != "Range" or asked.error is None:
            continue
        revision = asked.request.revision
        if asked.error == COMPACTED and not any(
            one.request.revision > revision and one.invoked <= asked.returned for one in compactions
        ):
            complaints.append(f"compacted by nobody: {asked}")
        newest = answers.newest_before(asked.invoked)
        if asked.error == FUTURE_REVISION and not asked.request.serializable and revision <= newest:
            complaints.append(f"{newest} had been answered: {asked}")
    return complaints


def check_order(operations: list[Asked], truth: Truth) -> list[str]:
    complaints = []
    done = [one for one in operations if one.outcome is Outcome.OK and one.revision]
    answers = _Answers(done)
    by_id = {one.request_id: one for one in operations}
    for asked in done:
        newest = 0 if asked.stale else answers.newest_before(asked.invoked)
        own = truth.origin.get(asked.revision) == asked.request_id
        if asked.revision < newest or (own and asked.revision == newest):
            complaints.append(f"revision {newest} was answered before this began: {asked}")
        origin = by_id.get(truth.origin.get(asked.revision, ""))
        if origin is not None and origin.invoked > asked.returned:
            complaints.append(f"told of revision {asked.revision} before it was asked for: {asked}")
    return complaints


def history_changes(data: bytes) -> list[history_pb2.Change]:
    """Of the messages that answer a History/Read."""
    changes: list[history_pb2.Change] = []
    while data:
        size = int.from_bytes(data[:4], "big")
        changes += history_pb2.ReadHistoryResponse.FromString(data[4 : 4 + size]).changes
        data = data[4 + size :]
    return changes
