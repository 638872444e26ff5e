"""A counter is at least what was added for certain before it was looked at, and at most what may have been added by
then; it never goes back; and of two additions none begins where the other did."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from itertools import accumulate

from tests.jepsen.record import Call


def check_counter(calls: list[Call]) -> list[str]:
    by_key: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_key[call.key].append(call)
    return [complaint for key, found in sorted(by_key.items()) for complaint in _check(key, found)]


class _Sum:
    """What had been added by a time."""

    def __init__(self, amounts: list[tuple[int, int]]) -> None:
        amounts.sort()
        self._times = [time for time, _ in amounts]
        self._sums = [0, *accumulate(amount for _, amount in amounts)]

    def before(self, time: int) -> int:
        return self._sums[bisect_left(self._times, time)]

    def until(self, time: int) -> int:
        return self._sums[bisect_right(self._times, time)]


def _check(key: str, calls: list[Call]) -> list[str]:
    adds = [call for call in calls if call.f == "increment"]
    certain = _Sum([(call.returned, call.asked) for call in adds if call.ok])
    possible = _Sum([(call.invoked, call.asked) for call in adds if call.type != "fail"])
    complaints: list[str] = []
    begins: dict[int, Call] = {}
    for call in adds:
        if call.ok:
            other = begins.setdefault(call.value - call.asked, call)
            if other is not call:
                complaints.append(f"{key}: two additions to {call.value - call.asked}: {other} {call}")
    told = sorted((call for call in calls if call.ok), key=lambda call: call.returned)
    for call in told:
        low, high = certain.before(call.invoked), possible.until(call.returned)
        if not low <= call.value <= high:
            complaints.append(f"{key}: {call.value} is not in {low}..{high}: {call}")
    highest = list(accumulate((call.value for call in told), max))
    times = [call.returned for call in told]
    for call in told:
        number = bisect_left(times, call.invoked)
        if number and call.value < highest[number - 1]:
            complaints.append(f"{key}: {highest[number - 1]} had been told before: {call}")
    return complaints
