"""Readers of the core's facts: one tracer port (raft/core/ports.py), three ways to look at it.

The core never logs. It emits one fact at each state change, and whoever wants to see it gives a tracer.
"""

import json
from collections.abc import Callable
from typing import Protocol

from raft.core.ports import Tracer
from raft.runtime import Clock
from raft.types import NodeId, Term


class Log(Protocol):
    """A method of a structured logger: an event, and what belongs to it."""

    def __call__(self, event: str, *, node: str, term: int) -> object: ...


class ListTracer(Tracer):
    """Keeps every fact as one line: what tests and scripts compare."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def emit(self, node_id: NodeId, term: Term, fact: str) -> None:
        self.lines.append(f"n{node_id:x} t{term} {fact}")


class LogTracer(Tracer):
    """Hands every fact to a logger: `LogTracer(structlog.get_logger().info)`."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def emit(self, node_id: NodeId, term: Term, fact: str) -> None:
        self._log(fact, node=f"{node_id:x}", term=term)


class JsonlTracer(Tracer):
    """Writes every fact as one line of JSON with its time: {"ns":..,"node":"1","term":3,"fact":".."}."""

    def __init__(self, write: Callable[[str], object], clock: Clock) -> None:
        """write: takes one line with its newline, as a file's `write` does. clock: Runtime.clock."""
        self._write = write
        self._clock = clock

    def emit(self, node_id: NodeId, term: Term, fact: str) -> None:
        record = {"ns": self._clock(), "node": f"{node_id:x}", "term": term, "fact": fact}
        self._write(json.dumps(record, separators=(",", ":")) + "\n")
