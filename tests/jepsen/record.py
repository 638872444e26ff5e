"""The history of a run: one JSON object a line, in the order of time. docs/JEPSEN.md describes it.

    {"process": 3, "type": "invoke", "f": "write", "key": "chaos/0000/1", "value": "7", "time_ns": 81, "revision": 0}
    {"process": 3, "type": "ok", "f": "write", "key": "chaos/0000/1", "value": "7", "time_ns": 95, "revision": 12}

`fail` is said only when it is certain that nothing was done and nothing will be (RELIABILITY 2b); `info` when nobody
can know. A process that got an `info` never does anything again: its client goes on under a new number.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tests.e2e.history import LOW, History, KeyState, Operation, Outcome

NEVER = 2**62


class Writer:
    """Appends lines; a line is whole in the file before the next thing happens, whatever kills the process."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def line(self, process: int | str, kind: str, f: str, key: str, value: Any, revision: int = 0, **more: Any) -> None:
        entry = {"process": process, "type": kind, "f": f, "key": key, "value": value}
        entry |= {"time_ns": time.monotonic_ns(), "revision": revision, **more}
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()


@dataclass(slots=True)
class Call:
    """An invocation together with what became of it."""

    process: int
    f: str
    key: str
    asked: Any
    invoked: int  # ns
    type: str = "info"
    value: Any = None
    returned: int = NEVER
    noticed: int = 0  # when the client gave up, if nobody answered; else as `returned`
    revision: int = 0
    member: str = ""
    error: str = ""
    saw: list[Any] | None = None  # [value, create_revision, mod_revision, version] of the key, before the operation
    lost: bool = False  # of an unlock: its holder knows better than to believe that it had it all the time
    wrote: dict[str, str | None] | None = None  # all that the revision consists of; None for a deleted key

    @property
    def ok(self) -> bool:
        return self.type == "ok"


def read(path: Path) -> list[dict[str, Any]]:
    """None where there is no file; a last line that its writer did not finish is none."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def calls(lines: list[dict[str, Any]]) -> list[Call]:
    """Of the clients, by time of invocation. An invocation without an end is an `info`."""
    found: list[Call] = []
    pending: dict[int, Call] = {}
    for line in lines:
        process = line["process"]
        if not isinstance(process, int):
            continue
        if line["type"] == "invoke":
            call = Call(process, line["f"], line["key"], line["value"], line["time_ns"], member=line.get("member", ""))
            call.lost = line.get("lost", False)
            call.value = call.asked
            pending[process] = call
            found.append(call)
            continue
        call = pending.pop(process)
        call.type, call.value, call.revision = line["type"], line["value"], line["revision"]
        call.noticed = line["time_ns"]
        call.returned = line["time_ns"] if call.type != "info" else NEVER
        call.error, call.saw, call.wrote = line.get("error", ""), line.get("saw"), line.get("wrote")
    return found


def _state(saw: list[Any] | None) -> KeyState | None:
    return None if saw is None else KeyState(saw[0].encode(), *saw[1:])


def history(found: list[Call]) -> History:
    """The calls in the words of tests.e2e.history, for its checkers.

    A compare-and-set that was refused by the comparison is `fail` in the file, and to the checkers a read."""
    told = History()
    outcomes = {"ok": Outcome.OK, "fail": Outcome.FAILED, "info": Outcome.UNKNOWN}
    for call in found:
        key = call.key.encode()
        refused = call.error == "compare"
        outcome = Outcome.OK if refused else outcomes[call.type]
        if call.f in ("read", "stale", "at") and outcome is not Outcome.OK:
            continue  # a failed read says nothing
        returned = float("inf") if call.returned == NEVER else call.returned / 1e9
        operation = Operation(
            call.f, call.process, call.member, call.invoked / 1e9, returned, outcome, revision=call.revision
        )
        if call.ok and call.wrote:
            operation.wrote = {
                name.encode(): None if value is None else value.encode() for name, value in call.wrote.items()
            }
        elif call.f == "add":
            operation.wrote = {key + f"/{call.asked}".encode(): str(call.asked).encode()}
        elif call.f == "write":
            operation.wrote = {key: call.asked.encode()}
        elif call.f == "cas" and not refused:
            expected, new = call.asked
            operation.wrote = {key: new.encode()}
            # An answered one says all of what it has seen; of an unknown one only the value is known.
            operation.saw = {key: _state(call.saw) if call.ok else KeyState(expected.encode())}
        elif call.f == "delete":
            operation.saw = {key: _state(call.saw)} if call.ok else {}
            operation.wrote = {key: None} if call.saw is not None or not call.ok else {}
        elif call.f in ("keepalive", "unlock"):
            operation.stale = True  # whoever passes a keep-alive on puts its own revision into the header
        elif call.f in ("stale", "at"):
            operation.stale = True  # true of a revision, whichever
            operation.revision = call.asked if call.f == "at" else call.revision
            operation.saw = {key: _state(call.saw)}
        elif call.f == "cas" or (call.f == "read" and key.startswith(LOW)):
            operation.saw = {key: _state(call.saw)}
        told.operations.append(operation)
    return told
