"""From a case that differs to the least that still does."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from google.protobuf.message import Message

from tests.conformance.differential.cases import BASE, LEASE, MEMBER, Case, Step
from tests.conformance.differential.runner import Pair
from tests.conformance.differential.watches import Difference

Fails = Callable[[Case], bool]


def shrink(case: Case, fails: Fails, tries_max: int = 400, seconds_max: float = 90.0) -> Case:
    """Leaves out steps, then parts of their messages, for as long as that helps. `fails` plays a case."""
    tries, end = 0, time.monotonic() + seconds_max

    def accepted(candidate: Case) -> bool:
        nonlocal tries
        tries += 1
        return tries <= tries_max and time.monotonic() < end and fails(candidate)

    changed = True
    while changed and tries < tries_max:
        changed = False
        for candidates in (_shorter, _simpler):
            found = _first(candidates(case), accepted)
            while found is not None:
                case, changed = found, True
                found = _first(candidates(case), accepted)
    return case


def _first(candidates: Iterator[Case], accepted: Callable[[Case], bool]) -> Case | None:
    return next((candidate for candidate in candidates if accepted(candidate)), None)


def _shorter(case: Case) -> Iterator[Case]:
    """Without half of the steps, a quarter, ... one."""
    size = len(case) // 2
    while size:
        for at in range(0, len(case), size):
            if len(case) > size:
                yield case[:at] + case[at + size :]
        size //= 2


def _simpler(case: Case) -> Iterator[Case]:
    """With one field less in one message, or asked in a plainer way."""
    for at, step in enumerate(case):
        for message in _reduced(step.message):
            yield [*case[:at], replace(step, message=message), *case[at + 1 :]]
        for fewer in ({"metadata": ()}, {"client": 0}, {"user": ""}):
            simpler = replace(step, **fewer)  # type: ignore[arg-type]
            if simpler != step:
                yield [*case[:at], simpler, *case[at + 1 :]]


def _reduced(message: Message) -> Iterator[Message]:
    for field, value in message.ListFields():
        if field.is_repeated:
            for at in range(len(value)):
                copy = _copy(message)
                del getattr(copy, field.name)[at]
                yield copy
        else:
            copy = _copy(message)
            copy.ClearField(field.name)
            yield copy
        if field.type == field.TYPE_MESSAGE:
            for at, child in enumerate(value if field.is_repeated else [value]):
                for smaller in _reduced(child):
                    copy = _copy(message)
                    target = getattr(copy, field.name)
                    (target[at] if field.is_repeated else target).CopyFrom(smaller)
                    yield copy


def _copy(message: Message) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def written(case: Case) -> str:
    """As Python, ready to be kept in test_differential.py."""
    return "\n".join(f"Step({_arguments(step)})," for step in case)


def _arguments(step: Step) -> str:
    found = [repr(step.call), _python(step.message)]
    found += [f"{name}={getattr(step, name)!r}" for name in ("client", "user", "metadata") if getattr(step, name)]
    return ", ".join(found)


def _python(value: object, name: str = "") -> str:
    if isinstance(value, Message):
        fields = ", ".join(f"{field.name}={_python(part, field.name)}" for field, part in value.ListFields())
        return f"pb.{type(value).__name__}({fields})"
    if isinstance(value, int):
        for stand_in, number, reach in (("BASE", BASE, BASE // 2), ("LEASE", LEASE, 99), ("MEMBER", MEMBER, 99)):
            if abs(value - number) < reach:
                return f"{stand_in} {'-' if value < number else '+'} {abs(value - number)}".removesuffix(" + 0")
    if isinstance(value, bytes) and len(value) > 100:
        return f"{value[:1]!r} * {len(value)}"
    if isinstance(value, (bytes, str, int)):
        return repr(value)
    return "[" + ", ".join(_python(part) for part in value) + "]"  # type: ignore[attr-defined]


def report(pair: Pair, case: Case) -> str:
    """Play a case. Empty when both sides say the same, else the shortest case found and where it differs."""
    difference = _difference(pair, case)
    if not difference:
        return ""
    print(f"differs: {difference}", file=sys.stderr, flush=True)
    short = shrink(case, lambda candidate: bool(_difference(pair, candidate)))
    last = _difference(pair, short)
    return f"{written(short)}\n{last or 'the shrunk case passes now; before that: ' + difference}"


def _difference(pair: Pair, case: Case) -> str:
    try:
        pair.play(case)
    except Difference as difference:
        return str(difference)
    return ""
