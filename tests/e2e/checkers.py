"""Was what the clients saw possible? Pure functions from a History, and the truth, to a list of complaints.

The truth is what kvstore.v1.History tells at the end: the changes of each revision (`Truth`). Two checkers look at
the same operations, because each trusts what the other doubts (RELIABILITY 2c, 2e):

    check_revisions     believes the revisions in the answers' headers: they are the order. Each write is the revision
                        it says, each read is the state of the revision it says, no order against the clock, nothing
                        twice, nothing from nowhere.
    check_linearizable  believes no header: for each key it searches an order that explains all answers
                        (Lowe's just-in-time linearization: step from return to return, with a set of
                        configurations (state, pending operations that have taken effect)).
    check_watches       each stream told exactly the truth from its start on, each revision at once.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from kvstore.pb import kv_pb2
from tests.e2e.history import HIGH, LOW, History, KeyState, Operation, Outcome, WatchSession

CONFIGURATIONS_MAX = 200_000


class Undecided(Exception):
    """The search for a linearization became too large. Never to be read as a pass."""


class Truth:
    """The states of all keys at all revisions, replayed from the changes."""

    def __init__(self, events: Iterable[kv_pb2.Event]) -> None:
        """events: of every key from the first revision on, oldest first."""
        self.complaints: list[str] = []
        self.compact_revision = 0  # at the end, where somebody has asked for it
        self.events: dict[int, list[kv_pb2.Event]] = defaultdict(list)
        self.wrote: dict[int, dict[bytes, bytes | None]] = defaultdict(dict)
        self._states: dict[bytes, tuple[list[int], list[KeyState | None]]] = {}
        self._kvs: dict[bytes, list[kv_pb2.KeyValue | None]] = defaultdict(list)  # beside them, as the events have it
        for event in events:
            self._add(event)
        self.last = max(self.wrote, default=1)
        missing = [revision for revision in range(2, self.last) if revision not in self.wrote]
        if missing:
            self.complaints.append(f"revisions without a change: {missing[:5]}")

    def _add(self, event: kv_pb2.Event) -> None:
        key, revision = event.kv.key, event.kv.mod_revision
        deleted = event.type == kv_pb2.Event.DELETE
        revisions, states = self._states.setdefault(key, ([], []))
        before = states[-1] if states else None
        if revisions and revision <= revisions[-1]:
            self.complaints.append(f"{key!r} changes at {revision} after {revisions[-1]}")
        state = None
        if not deleted:
            created, version = (before.create_revision, before.version) if before else (revision, 0)
            state = KeyState(event.kv.value, created, revision, version + 1)
            if state != KeyState.of(event.kv):
                self.complaints.append(f"{key!r} at {revision} is {KeyState.of(event.kv)}, replayed {state}")
        elif before is None:
            self.complaints.append(f"{key!r} is deleted at {revision}, where it is not")
        revisions.append(revision)
        states.append(state)
        self._kvs[key].append(None if deleted else event.kv)
        self.events[revision].append(event)
        self.wrote[revision][key] = None if deleted else event.kv.value

    def at(self, key: bytes, revision: int) -> KeyState | None:
        revisions, states = self._states.get(key, ([], []))
        number = bisect_right(revisions, revision)
        return states[number - 1] if number else None

    @property
    def last_revision(self) -> int:
        return self.last

    def events_of(self, revision: int) -> list[kv_pb2.Event]:
        return self.events.get(revision, [])

    def key_at(self, key: bytes, revision: int) -> kv_pb2.KeyValue | None:
        number = bisect_right(self.revisions_of(key), revision)
        return self._kvs[key][number - 1] if number else None

    def revisions_of(self, key: bytes) -> list[int]:
        """That changed it."""
        return self._states.get(key, ([], []))[0]

    def present(self, low: bytes, high: bytes, revision: int) -> set[bytes]:
        return {key for key in self._states if low <= key < high and self.at(key, revision) is not None}


# By the order of revisions


def check_revisions(history: History, truth: Truth) -> list[str]:
    complaints = list(truth.complaints)
    done = [one for one in history.operations if one.outcome is Outcome.OK]
    answers = _Answers(done)
    for operation in done:
        complaints += _content(operation, truth)
        newest = 0 if operation.stale else answers.newest_before(operation.invoked)
        # Lower than what was answered before it began; and a write needs a revision of its own.
        if operation.revision < newest or (operation.wrote and operation.revision == newest):
            complaints.append(f"revision {newest} was answered before this began: {operation}")
    return complaints + _acknowledged_once(done) + _origins(history.operations, truth, answers)


class _Answers:
    """The highest revision that anybody had been told at a time."""

    def __init__(self, done: list[Operation]) -> None:
        self._times: list[float] = []
        self._revisions: list[int] = []
        for operation in sorted(done, key=lambda one: one.returned):
            self._times.append(operation.returned)
            self._revisions.append(max(operation.revision, self._revisions[-1] if self._revisions else 0))

    def newest_before(self, time: float) -> int:
        number = bisect_left(self._times, time)
        return self._revisions[number - 1] if number else 0


def _content(operation: Operation, truth: Truth) -> list[str]:
    """What it wrote is its revision; what it saw is the state before, or, if it wrote nothing, of its revision."""
    revision = operation.revision
    if revision > truth.last:
        return [f"from a revision that is not there: {operation}"]
    if operation.wrote and truth.wrote.get(revision) != operation.wrote:
        return [f"acknowledged, but revision {revision} is {truth.wrote.get(revision)}: {operation}"]
    before = revision - 1 if operation.wrote else revision
    complaints = [
        f"saw {key!r} as {state}, at {before} it was {truth.at(key, before)}: {operation}"
        for key, state in operation.saw.items()
        if state != truth.at(key, before)
    ]
    if operation.whole is not None:
        there = truth.present(*operation.whole, before)
        if there != {key for key, state in operation.saw.items() if state is not None}:
            complaints.append(f"a range of other keys than {there}: {operation}")
    return complaints


def _acknowledged_once(done: list[Operation]) -> list[str]:
    given = Counter(one.revision for one in done if one.wrote)
    return [f"revision {revision} was given to {count} writes" for revision, count in given.items() if count > 1]


def _origins(operations: list[Operation], truth: Truth, answers: _Answers) -> list[str]:
    """Every revision that was acknowledged to nobody is of one write of unknown outcome, and done once."""
    complaints = []
    acknowledged = {one.revision for one in operations if one.outcome is Outcome.OK and one.wrote}
    by_value = {value: one for one in operations for value in one.wrote.values() if value is not None}
    maybe_deleted = Counter(
        key for one in operations if one.outcome is Outcome.UNKNOWN and one.kind == "delete" for key in one.wrote
    )
    used: set[int] = set()
    for revision, wrote in truth.wrote.items():
        if revision in acknowledged:
            continue  # _content compares it with its write
        key, value = next(iter(wrote.items()))
        if not LOW <= key < HIGH:
            continue  # not of the clients
        if value is None:
            maybe_deleted[key] -= 1
            if maybe_deleted[key] < 0:
                complaints.append(f"nobody can have deleted {key!r} at {revision}")
            continue
        origin = by_value.get(value)
        if origin is None or origin.outcome is not Outcome.UNKNOWN or origin.wrote != wrote:
            complaints.append(f"revision {revision} is {wrote}, which cannot come from {origin}")
            continue
        if id(origin) in used:
            complaints.append(f"done twice, again at {revision}: {origin}")
        used.add(id(origin))
        if revision <= answers.newest_before(origin.invoked):
            complaints.append(f"done at {revision}, before it began: {origin}")
        if any(_value(state) != _value(truth.at(seen, revision - 1)) for seen, state in origin.saw.items()):
            complaints.append(f"done at {revision} although the comparison fails: {origin}")
    return complaints


def _value(state: KeyState | None) -> bytes | None:
    return None if state is None else state.value


# By a search


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One operation as one key sees it: values only."""

    invoked: float
    returned: float | None  # None: it may take effect at any time from `invoked` on, or never
    compares: bool  # takes effect only where the value is `saw`
    saw: bytes | None
    writes: bool
    wrote: bytes | None
    operation: Operation

    def fits(self, state: bytes | None) -> bool:
        return not self.compares or state == self.saw

    def after(self, state: bytes | None) -> bytes | None:
        return self.wrote if self.writes else state


def check_linearizable(history: History) -> list[str]:
    """Each key for itself; an operation on several keys is one on each. Raises Undecided."""
    complaints = []
    for key, steps in sorted(_steps(history.operations).items()):
        stuck = _search(steps)
        if stuck is not None:
            complaints.append(f"{key!r}: no order of operations explains {stuck}")
    return complaints


def _steps(operations: list[Operation]) -> dict[bytes, list[_Step]]:
    """By key, in order of invocation. Writes of unknown outcome whose value nobody saw explain nothing: left out."""
    seen = {state.value for one in operations for state in one.saw.values() if state is not None}
    steps: dict[bytes, list[_Step]] = defaultdict(list)
    for one in sorted(operations, key=lambda one: one.invoked):
        if one.stale or one.outcome is Outcome.FAILED:
            continue
        unknown = one.outcome is Outcome.UNKNOWN
        for key in one.saw.keys() | one.wrote.keys():
            wrote = one.wrote.get(key)
            if unknown and wrote is not None and wrote not in seen:
                continue
            returned = None if unknown else one.returned
            saw = _value(one.saw.get(key))
            steps[key].append(_Step(one.invoked, returned, key in one.saw, saw, key in one.wrote, wrote, one))
    return steps


_Configuration = tuple[bytes | None, frozenset[_Step]]  # a state, and the pending steps that led to it


def _search(steps: list[_Step]) -> Operation | None:
    """None, or the operation at whose return no configuration is left."""
    calls = [(step.invoked, 0, step) for step in steps]
    returns = [(step.returned, 1, step) for step in steps if step.returned is not None]
    pending: list[_Step] = []
    configurations: set[_Configuration] = {(None, frozenset())}
    for _, is_return, step in sorted(calls + returns, key=lambda event: event[:2]):
        if not is_return:
            pending.append(step)
            continue
        reached = _until(step, pending, configurations)
        configurations = {(state, effective - {step}) for state, effective in reached}
        pending.remove(step)
        if not configurations:
            return step.operation
    return None


def _until(target: _Step, pending: list[_Step], configurations: set[_Configuration]) -> set[_Configuration]:
    """All configurations in which `target` has taken effect, that follow from those given."""
    reached: set[_Configuration] = set()
    known = set(configurations)
    waiting = list(configurations)
    while waiting:
        state, effective = waiting.pop()
        if target in effective:
            reached.add((state, effective))
            continue
        for step in _candidates(pending, effective):
            if step.fits(state):
                after = (step.after(state), effective | {step})
                if after not in known:
                    known.add(after)
                    waiting.append(after)
        if len(known) > CONFIGURATIONS_MAX:
            raise Undecided(f"more than {CONFIGURATIONS_MAX} configurations at {target.operation}")
    return reached


def _candidates(pending: list[_Step], effective: frozenset[_Step]) -> Iterable[_Step]:
    """Of deletes with an unknown outcome the first will do: it may take effect whenever a later one may."""
    deleting = False
    for step in pending:
        if step in effective:
            continue
        if step.returned is None and step.wrote is None:
            if deleting:
                continue
            deleting = True
        yield step


# Watches


def check_watches(history: History, truth: Truth) -> list[str]:
    return [
        complaint for session in history.watches for complaint in _check_watch(session, truth, history.compact_revision)
    ]


def _check_watch(session: WatchSession, truth: Truth, compacted: int) -> list[str]:
    """The events are the truth's from start_revision up to the last one told, and a revision is never in two
    responses. A response without events (progress) says that everything up to its revision has been told."""
    who = f"a watch on {session.member} from {session.start_revision}"
    complaints = []
    told = session.start_revision - 1
    for response in session.responses:
        if not response.events:
            if missed := _expected(session, truth, told + 1, response.revision):
                complaints.append(f"{who}: progress {response.revision} after {told}, {len(missed)} events not told")
            told = max(told, response.revision)
            continue
        first, last = response.events[0].kv.mod_revision, response.events[-1].kv.mod_revision
        if first <= told:
            complaints.append(f"{who}: {first} after {told}")
        if response.revision < last:
            complaints.append(f"{who}: a header of {response.revision} over an event of {last}")
        expected = _expected(session, truth, told + 1, last)
        if not _same(response.events, expected, truth, compacted):
            complaints.append(f"{who}: {_brief(response.events)} after {told}, the truth is {_brief(expected)}")
        told = max(told, last)
    if session.compact_revision and not told + 1 < session.compact_revision <= compacted:
        complaints.append(f"{who}: ended at {told} by compaction {session.compact_revision}, asked for: {compacted}")
    return complaints


def _same(told: list[kv_pb2.Event], expected: list[kv_pb2.Event], truth: Truth, compacted: int) -> bool:
    """A previous value may be missing only where it may have been compacted."""
    return len(told) == len(expected) and all(
        one == _with_previous(other, truth)
        or (not one.HasField("prev_kv") and one == other and other.kv.mod_revision <= compacted)
        for one, other in zip(told, expected, strict=True)
    )


def _expected(session: WatchSession, truth: Truth, first: int, last: int) -> list[kv_pb2.Event]:
    return [
        event
        for revision in range(first, last + 1)
        for event in truth.events.get(revision, ())
        if session.low <= event.kv.key < session.high
    ]


def _with_previous(event: kv_pb2.Event, truth: Truth) -> kv_pb2.Event:
    state = truth.at(event.kv.key, event.kv.mod_revision - 1)
    copy = kv_pb2.Event()
    copy.CopyFrom(event)
    copy.ClearField("prev_kv")
    if state is not None:
        copy.prev_kv.CopyFrom(
            kv_pb2.KeyValue(
                key=event.kv.key,
                value=state.value,
                create_revision=state.create_revision,
                mod_revision=state.mod_revision,
                version=state.version,
            )
        )
    return copy


def _brief(events: list[kv_pb2.Event]) -> str:
    return " ".join(f"{event.kv.mod_revision}:{event.kv.key.decode()}" for event in events[:20])
