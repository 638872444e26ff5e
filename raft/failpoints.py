"""Failpoints: named places at which a test makes a running process fail (etcd's gofail, in one file).

    fail("walBeforeSync")                   anywhere
    await fail_async("applyBeforeCommit")   in a coroutine

A place does nothing until it is armed: by `arm_all` from the environment at start, or by `arm` while the process
runs. Off, a place costs one call and one comparison. The name is declared once, with what has just happened there,
so that a name with a slip in it is refused and never silently without effect.

    walBeforeSync=error                     an OSError (EIO) is raised there
    raftBeforeSave=sleep(1500)              milliseconds. `fail` blocks its thread, and on the loop the whole process:
                                            a stall. `fail_async` holds its own task only, all others go on
    applyBeforeCommit=panic                 the process is gone (os._exit), as after kill -9: nothing is flushed
    raftBeforeSave=3*sleep(10)              the first three times
    watchBeforeSend=10%error                each time with this chance
    raftAfterSave=99*off->1*panic           the hundredth time; terms are used up from left to right
    name=...;name=...                       several

A place that is armed with `off` only counts how often it was passed.
"""

import asyncio
import difflib
import errno
import os
import random
import re
import time
from dataclasses import dataclass, field
from typing import Final, NoReturn, final

PANIC_EXIT: Final = 77  # so that whoever waits for the process knows that it was a failpoint
_SLEEP_MS_MAX: Final = 3_600_000
_NEAR: Final = 3

_TERM: Final = re.compile(r"(?:(\d{1,9})\*)?(?:(\d{1,3}(?:\.\d{1,6})?)%)?(off|panic|error|sleep\((\d{1,7})\))")

POINTS: Final[dict[str, str]] = {}  # every declared name, and what has just happened, or is about to, when it is passed


class FailpointError(ValueError):
    """No such point, or an action that is none. The message says which are near."""


class InjectedError(OSError):
    """What `error` raises: to the code around a point it is a disk or a network that fails."""


@final
@dataclass(slots=True)
class _Term:
    """One action, with how often and how likely."""

    action: str  # off, panic, error, sleep
    milliseconds: int
    left: int | None  # times; None: for ever
    chance: float  # 0..1


@final
@dataclass(slots=True)
class _Armed:
    text: str  # as it was given
    terms: list[_Term]
    hits: int = 0
    fired: int = field(default=0)  # hits that did something

    def next_term(self) -> _Term | None:
        """What to do this time, if anything."""
        self.hits += 1
        for term in self.terms:
            if term.left == 0:
                continue
            if term.left is not None:
                term.left -= 1
            if term.action == "off" or (term.chance < 1 and random.random() >= term.chance):
                return None
            self.fired += 1
            return term
        return None


_armed: dict[str, _Armed] | None = None  # None: all off, the only thing that a place looks at


def fail(name: str) -> None:
    """A place in code. Raises InjectedError when armed with `error`."""
    if _armed is not None:
        _meet(name)


async def fail_async(name: str) -> None:
    """A place in a coroutine: a sleep holds this task and no other."""
    if _armed is not None:
        seconds = _decide(name)
        if seconds:
            await asyncio.sleep(seconds)


def is_armed(name: str) -> bool:
    """For a short cut that must not pass by a place."""
    return _armed is not None and name in _armed


def _meet(name: str) -> None:
    seconds = _decide(name)
    if seconds:
        time.sleep(seconds)


def _decide(name: str) -> float:
    """Panics, raises, or returns how long to sleep in seconds."""
    armed = _armed.get(name) if _armed is not None else None
    term = armed.next_term() if armed is not None else None
    if term is None:
        return 0.0
    if term.action == "panic":
        _panic(name)
    if term.action == "error":
        raise InjectedError(errno.EIO, f"failpoint {name}")
    return term.milliseconds / 1000


def _panic(name: str) -> NoReturn:
    os.write(2, f"failpoint {name}: panic\n".encode())
    os._exit(PANIC_EXIT)


# For whoever sets them


def declare(points: dict[str, str]) -> None:
    """Add names that the program has: name -> when it is passed."""
    POINTS.update(points)


def arm(name: str, actions: str) -> None:
    """Replace what happens at `name`. Raises FailpointError."""
    global _armed  # noqa: PLW0603  # the switch of the whole process is the point
    armed = _Armed(actions, _parse(name, actions))
    _armed = {**(_armed or {}), name: armed}


def arm_all(text: str) -> None:
    """`name=actions;name=actions`: all of them, or, when one is wrong, none. Raises FailpointError."""
    found = []
    for part in filter(None, [part.strip() for part in text.split(";")]):
        name, equals, actions = part.partition("=")
        if not equals:
            raise FailpointError(f"{part!r}: name=action is needed")
        _parse(name, actions)
        found.append((name, actions))
    for name, actions in found:
        arm(name, actions)


def disarm(name: str) -> None:
    """Nothing happens at `name` any more. Raises FailpointError when there is no such point."""
    global _armed  # noqa: PLW0603
    _known(name)
    _armed = {other: armed for other, armed in (_armed or {}).items() if other != name} or None


@dataclass(frozen=True, slots=True)
class PointState:
    """One point, for a listing."""

    name: str
    when: str
    actions: str  # "" when it is off
    hits: int  # how often it was passed since it was armed
    fired: int  # and did something


def listing() -> list[PointState]:
    """All points, by name."""
    armed = _armed or {}
    off = _Armed("", [])
    return [
        PointState(name, when, state.text, state.hits, state.fired)
        for name, when in sorted(POINTS.items())
        for state in (armed.get(name, off),)
    ]


def _known(name: str) -> None:
    if name not in POINTS:
        by_lower = {point.lower(): point for point in POINTS}
        near = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=_NEAR, cutoff=0.4)]
        hint = f"; near are {', '.join(near)}" if near else ""
        raise FailpointError(f"there is no failpoint {name!r}{hint}")


def _parse(name: str, actions: str) -> list[_Term]:
    _known(name)
    terms = []
    for text in actions.split("->"):
        found = _TERM.fullmatch(text.strip())
        percent = float(found[2]) if found is not None and found[2] else 100.0
        milliseconds = int(found[4]) if found is not None and found[4] else 0
        if found is None or percent > 100 or milliseconds > _SLEEP_MS_MAX:
            raise FailpointError(
                f"{name}={text.strip()}: panic, error, sleep(MILLISECONDS) or off is needed, "
                "with N* or P% before it, such as 1*panic or 10%sleep(5)"
            )
        action = found[3].partition("(")[0]
        terms.append(_Term(action, milliseconds, int(found[1]) if found[1] else None, percent / 100))
    return terms


declare(
    {
        # The driver
        "raftBeforeLeaderSend": "a leader's messages are about to leave, beside its own fsync",
        "raftBeforeSave": "term, vote or entries are about to be stored",
        "raftAfterSave": "they are durable; nothing that promises them has left yet",
        "raftBeforeFollowerSend": "votes and acknowledgements of what is durable are about to leave",
        "raftBeforeReads": "a quorum has confirmed a read round; its readers do not know yet",
        "raftBeforeApply": "committed entries are about to be given to the state machine",
        "raftAfterApply": "they are applied; the core does not know yet",
        "raftBeforeCompact": "the log is about to forget what is durable in the state",
        # The log on disk
        "walBeforeWrite": "a batch of records is about to be written",
        "walBeforeSync": "a batch is written, its fsync is to come",
        "walAfterSync": "a batch is durable",
        "walBeforeSegment": "a new segment's origin is durable under a temporary name",
        "walAfterSegment": "a new segment has its name; nothing is in it yet",
        "walBeforeRemove": "old segments are not needed any more, and still there",
        "walAfterReset": "a reset is durable; the segments before it are still there",
        # The streams of the peers
        "peerBeforeWrite": "a frame is about to be written to a peer",
        "peerAfterRead": "a frame of a peer has come and is not stepped yet",
        # Snapshots
        "snapshotBeforeSendPiece": "a piece of a snapshot is about to be read and sent",
        "snapshotBeforeWrite": "a piece has arrived and is about to be written",
        "snapshotBeforeFinish": "all pieces have arrived; nothing is verified yet",
        "raftBeforeSnapshotInstall": "a whole, verified snapshot is about to become the state",
        "raftBeforeLogReset": "the state is the snapshot's, the log is still the old one",
        "raftAfterSnapshotInstall": "state and log are the snapshot's; the leader does not know yet",
    }
)
