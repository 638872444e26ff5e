"""A queue: what was put is taken at most once, in the order of coming, and is taken or there at the end, when it was
drained; nothing is taken that nobody has put."""

from __future__ import annotations

from heapq import heappop, heappush

from tests.jepsen.record import NEVER, Call


def check_queue(calls: list[Call]) -> list[str]:
    puts = {call.asked: call for call in calls if call.f == "enqueue"}
    takes = sorted((call for call in calls if call.f == "dequeue" and call.ok), key=lambda call: call.revision)
    maybe = {call.asked[0] for call in calls if call.f == "dequeue" and call.type == "info"}
    complaints: list[str] = []
    taken: dict[int, Call] = {}
    for call in takes:
        element, created = call.asked
        put = puts.get(element)
        if put is None or put.type == "fail" or put.invoked > call.returned:
            complaints.append(f"{element} was taken, its put: {put}")
        elif put.ok and put.revision != created:
            complaints.append(f"{element} was put at {put.revision}, and taken as of {created}")
        other = taken.setdefault(element, call)
        if other is not call:
            complaints.append(f"{element} was taken twice: {other} {call}")
    for element, put in puts.items():
        if put.ok and element not in taken and element not in maybe:
            complaints.append(f"{element} was acknowledged, and is lost: {put}")
    return complaints + _order(calls) + ([] if takes else ["nothing was taken"])


def _order(calls: list[Call]) -> list[str]:
    """A look at the oldest sees nothing that came after what was there before it began, and was there after it."""
    complaints = []
    ends: dict[int, int] = {}  # when somebody asked to take it first
    for call in calls:
        if call.f == "dequeue" and call.type != "fail":
            ends[call.asked[0]] = min(call.invoked, ends.get(call.asked[0], NEVER))
    coming = sorted(
        ((call.returned, call.revision, call.asked) for call in calls if call.f == "enqueue" and call.ok), reverse=True
    )
    there: list[tuple[int, int]] = []  # (create_revision, element), a heap
    for look in sorted((call for call in calls if call.f == "peek" and call.ok), key=lambda call: call.invoked):
        while coming and coming[-1][0] < look.invoked:
            heappush(there, coming.pop()[1:])
        aside = []  # may be gone for this look, and not for a later one
        while there and ends.get(there[0][1], NEVER) <= look.returned:
            oldest = heappop(there)
            if ends[oldest[1]] > look.invoked:
                aside.append(oldest)
        if there and (not look.value or there[0][0] < look.value[1]):
            complaints.append(f"{there[0][1]} of {there[0][0]} was there, seen: {look}")
        for one in aside:
            heappush(there, one)
    return complaints
