"""Locks, judged for what each kind promises.

fenced       strict: no acknowledged append is lost, none is there twice or though it failed, and each result is
             a beginning of the last read
bare         nothing is promised to who overslept its lease: lost appends are counted, and only what nobody has
             written may not be there
exclusion    nobody believes to hold a lock while another one does; who slept, or knows that it has lost it, does not
"""

from __future__ import annotations

from collections import defaultdict

from tests.jepsen.checkers.text import brief
from tests.jepsen.record import Call


def check_fenced(calls: list[Call]) -> list[str]:
    complaints: list[str] = []
    for name, (appends, last) in _lists(calls, "fenced").items():
        if last is None:
            complaints.append(f"{name} was never read")
            continue
        for call in appends:
            there = last.count(call.asked)
            if call.ok and last[: len(call.value)] != call.value:
                complaints.append(f"{name}: {brief(call.value)} is no beginning of {brief(last)}: {call}")
            if call.type == "fail" and there:
                complaints.append(f"{name}: {call.asked} is there, and has failed: {call}")
            if there > 1:
                complaints.append(f"{name}: {call.asked} is there {there} times")
        complaints += _strangers(name, appends, last)
    return complaints


def check_bare(calls: list[Call]) -> list[str]:
    return [
        complaint
        for name, (appends, last) in _lists(calls, "bare").items()
        if last is not None
        for complaint in _strangers(name, appends, last)
    ]


def lost_bare(calls: list[Call]) -> str:
    """What a lock without fencing has cost, for people."""
    acknowledged = lost = 0
    for appends, last in _lists(calls, "bare").values():
        sure = [call.asked for call in appends if call.ok]
        acknowledged += len(sure)
        lost += len(set(sure) - set(last or ()))
    return f"unsafe by design: {lost} of {acknowledged} acknowledged appends were overwritten"


def _strangers(name: str, appends: list[Call], last: list[int]) -> list[str]:
    strangers = set(last) - {call.asked for call in appends}
    return [f"{name}: nobody has appended {sorted(strangers)}"] if strangers else []


def _lists(calls: list[Call], kind: str) -> dict[str, tuple[list[Call], list[int] | None]]:
    """By name: the appends, and the last read."""
    found: dict[str, list[Call]] = defaultdict(list)
    reads: dict[str, list[int]] = {}
    for call in calls:
        if call.f == kind:
            found[call.key].append(call)
        elif call.f == "read" and call.ok:
            reads[call.key] = call.value
    return {name: (appends, reads.get(name)) for name, appends in found.items()}


def check_exclusion(calls: list[Call]) -> list[str]:
    holding: dict[int, Call] = {}
    spans: dict[str, list[tuple[int, int, Call]]] = defaultdict(list)
    for call in calls:
        if call.f == "lock" and call.ok:
            holding[call.process] = call
        elif call.f == "unlock" and call.process in holding:
            lock = holding.pop(call.process)
            until = min(call.invoked, lock.value[1] or call.invoked)
            if not call.lost and lock.returned < until:
                spans[lock.key].append((lock.returned, until, lock))
    complaints: list[str] = []
    for name, found in sorted(spans.items()):
        found.sort(key=lambda span: span[0])
        end, holder = 0, None
        for begin, until, lock in found:
            if begin < end:
                complaints.append(f"{name}: held until {end} by {holder}, from {begin} on by {lock}")
            if until > end:
                end, holder = until, lock
    return complaints if spans else ["nobody has ever held a lock"]
