"""Traces as one list of events in the order of time: those of members (--raft-trace) and of the simulator.

    {"ns":12442681706703,"node":"ec13","term":1,"fact":"became leader"}      a member; JSON, one fact a line
         10.101   n3 vote   C  t4 0/0/0/0/0   asks n1 n2 ...                 the simulator; virtual milliseconds

Several members of one machine share its monotonic clock, so their files make one story. That clock's zero means
nothing: times of members count from the first event of all.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

_SIMULATED: Final = re.compile(r"\s*(\d+\.\d+)\s+(\S+)\s+(\S.*)")


@dataclass(frozen=True, slots=True)
class Event:
    ms: float
    node: str  # n and the id
    text: str


def read_trace(paths: Iterable[Path]) -> tuple[list[Event], int]:
    """All events in time order, and how many lines were none. Raises OSError."""
    members: list[Event] = []
    simulated: list[Event] = []
    strange = 0
    for path in paths:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                event = _fact(line) if line.startswith("{") else _line(line)
                if event is not None:
                    (members if line.startswith("{") else simulated).append(event)
                elif line.strip():
                    strange += 1
    start = min([event.ms for event in members], default=0.0)
    events = simulated + [replace(event, ms=event.ms - start) for event in members]
    return sorted(events, key=lambda event: event.ms), strange


def chosen(
    events: list[Event], nodes: list[str], first_ms: float, last_ms: float | None, words: list[str]
) -> list[Event]:
    """Within first_ms..last_ms, of one of `nodes` (an id, or how it begins; all when empty), with every word in it."""
    known = {event.node for event in events}
    wanted = {
        one for node in nodes for one in known if _means(node if node.startswith("n") else f"n{node}", one, known)
    }
    return [
        event
        for event in events
        if first_ms <= event.ms
        and (last_ms is None or event.ms <= last_ms)
        and (not nodes or event.node in wanted)
        and all(word in event.text for word in words)
    ]


def _means(name: str, node: str, known: set[str]) -> bool:
    return node == name if name in known else node.startswith(name)


def _fact(line: str) -> Event | None:
    try:
        fact = json.loads(line)
        return Event(fact["ns"] / 1e6, f"n{fact['node']}", f"t{fact['term']} {fact['fact']}")
    except (ValueError, KeyError, TypeError):
        return None  # cut off by the end of its process


def _line(line: str) -> Event | None:
    found = _SIMULATED.match(line)
    return Event(float(found[1]), found[2], found[3].rstrip()) if found else None
