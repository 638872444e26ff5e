"""Every element: there from its acknowledgement on, never before it was asked for, never when refused."""

from __future__ import annotations

from collections import defaultdict

from tests.jepsen.checkers.text import brief
from tests.jepsen.record import NEVER, Call


def check_set(calls: list[Call]) -> list[str]:
    adds = {call.asked: call for call in calls if call.f == "add"}
    by_set: dict[str, list[Call]] = defaultdict(list)
    for call in adds.values():
        by_set[call.key].append(call)
    complaints: list[str] = []
    seen_by: dict[int, int] = {}  # element -> when a read that has it returned first
    for read in sorted((one for one in calls if one.f == "read" and one.ok), key=lambda one: one.returned):
        there = set(read.value)
        if len(there) != len(read.value):
            complaints.append(f"{read.key}: an element twice in {brief(read.value)}")
        for element in there:
            add = adds.get(element)
            if add is None or add.key != read.key:
                complaints.append(f"{read.key}: {element} was never added to it")
            elif add.type == "fail" or add.invoked > read.returned:
                complaints.append(f"{read.key}: {element} is there, its add {add.type} and began at {add.invoked}")
            seen_by.setdefault(element, read.returned)
        for add in by_set[read.key]:
            known = min(add.returned if add.ok else NEVER, seen_by.get(add.asked, NEVER))
            if known < read.invoked and add.asked not in there:
                complaints.append(f"{read.key}: {add.asked} was there at {known}, not read at {read.invoked}")
    unread = by_set.keys() - {call.key for call in calls if call.f == "read" and call.ok}
    return complaints + [f"{key} was never read" for key in sorted(unread)]
