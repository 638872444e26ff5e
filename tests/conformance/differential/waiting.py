"""Calls that wait for others: Lock, Campaign and Observe.

Whether one must have been answered follows from the keys that are there, so nothing here depends on time: a call
that must wait is left alone until the step that ends its wait, and then both sides are waited for.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.kv_pb2 import KeyValue
from tests.conformance.differential.cases import LEASE, MEMBER, UNNAMED, Names, Step
from tests.conformance.differential.sides import Answer, Side, text
from tests.conformance.differential.watches import REPLY_SECONDS, Difference, Play

WAITING = {"Lock", "Campaign", "Observe"}


@dataclass
class _Pending:
    step: Step
    futures: list["Future[Answer]"]
    prefix: bytes
    revision: int  # of its own key at etcd; it waits for every key before

    @property
    def answered(self) -> bool:
        return any(future.done() for future in self.futures)


class Waiting:
    def __init__(self, play: Play, compare: Callable[[Step, Answer, Answer], None]) -> None:
        self._play = play
        self._compare = compare
        self._pending: list[_Pending] = []

    def start(self, step: Step) -> None:
        play = self._play
        message: Any = step.message
        prefix = message.name + b"/"
        before = [{pair.key: pair for pair in side.pairs(prefix)} for side in play.sides]
        if _waits_unseen(play.names[0].sent(message), before[0]):
            return
        futures = [side.start(step, names) for side, names in zip(play.sides, play.names, strict=True)]
        revisions = [0, 0]
        if step.call != "Observe":
            for number, (side, names) in enumerate(zip(play.sides, play.names, strict=True)):
                revisions[number] = self._own(side, names, step, futures[number], before[number])
                self._learn(step, futures[number], names)
        self._pending.append(_Pending(step, futures, prefix, revisions[0]))

    def _learn(self, step: Step, future: "Future[Answer]", names: Names) -> None:
        """At once: another that waited may be answered with this one's key."""
        answer: Any = future.result() if future.done() else None
        key = getattr(answer, "key", b"") or getattr(getattr(answer, "leader", None), "key", b"")
        if key:
            learn_lock(step, key, names)

    def _own(
        self, side: Side, names: Names, step: Step, future: "Future[Answer]", before: dict[bytes, KeyValue]
    ) -> int:
        """The revision at which the call's own key was created, once it is there; 0 when it is answered."""
        message: Any = names.sent(step.message)
        known = b"%b/%x" % (message.name, message.lease) if message.lease else b""
        old = before.get(known)
        # Who campaigns again with another value proclaims that before it waits.
        proclaims = old is not None and step.call == "Campaign" and old.value != message.value
        deadline = time.monotonic() + REPLY_SECONDS
        while not future.done():
            for pair in side.pairs(message.name + b"/"):
                if (pair.key == known and not (proclaims and pair == old)) or (not known and pair.key not in before):
                    if not known:
                        learn_lock(step, pair.key, names)
                    return pair.create_revision
            if time.monotonic() > deadline:
                raise Difference(f"{side.name} neither answers {step} nor waits")
        return 0

    def settle(self) -> None:
        """After each step: compare what must have been answered by now."""
        for pending in list(self._pending):
            if pending.answered or self._ends(pending):
                self._pending.remove(pending)
                self._finish(pending)
        if self._pending:
            self._play.revision = max(self._play.revision, self._play.sides[0].revision())

    def _ends(self, pending: _Pending) -> bool:
        pairs = self._play.sides[0].pairs(pending.prefix)
        if pending.step.call == "Observe":
            return bool(pairs)
        return all(pair.create_revision >= pending.revision for pair in pairs)

    def _finish(self, pending: _Pending) -> None:
        try:
            answers = [future.result(REPLY_SECONDS) for future in pending.futures]
        except TimeoutError:
            said = [
                f"{side.name}: {text(future.result()) if future.done() else 'still waits'}"
                for side, future in zip(self._play.sides, pending.futures, strict=True)
            ]
            raise Difference("\n-- ".join([str(pending.step), *said])) from None
        self._compare(pending.step, answers[0], answers[1])

    def end(self, parted: bool) -> None:
        """Let all of them go: without any keys nobody waits for a lock, and an observer is shown a leader.

        parted: what they say may differ.
        """
        if not self._pending:
            return
        if parted:
            self._compare = lambda *_: None
        for side in self._play.sides:
            side.ask("DeleteRange", pb.DeleteRangeRequest(key=b"\0", range_end=b"\0"))
        self.settle()
        for pending in list(self._pending):
            for side in self._play.sides:
                side.ask("Put", pb.PutRequest(key=pending.prefix + b"end"))
            self.settle()


def _waits_unseen(message: Any, before: dict[bytes, KeyValue]) -> bool:
    """It has a key already, behind others, and leaves it as it is: nothing tells when it has come so far."""
    own = before.get(b"%b/%x" % (message.name, getattr(message, "lease", 0)))
    if own is None or getattr(message, "value", own.value) != own.value:
        return False
    return any(pair.create_revision < own.create_revision for pair in before.values())


def learn_lock(step: Step, key: bytes, names: Names) -> None:
    """The lease that a server picked for a lock."""
    lease = getattr(step.message, "lease", 0) or UNNAMED
    if LEASE <= lease < MEMBER:
        names.learn(lease, int(key.rpartition(b"/")[2], 16))
