"""A Raft log, with the requests in its entries decoded."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from kvstore.debug.directory import log_directory
from kvstore.debug.messages import plain
from kvstore.pb.command_pb2 import MemberChange
from kvstore.state.command import CommandError, decode_batch
from raft.core import membership
from raft.errors import MalformedMessage
from raft.storage.dump import LogImage, Record, read_log
from raft.storage.record import VOTE, RecordType
from raft.types import Configuration, Entry, EntryKind


def open_log(path: Path) -> LogImage:
    """Raises NotThere, OSError."""
    return read_log(log_directory(path))


def summary(image: LogImage) -> dict[str, Any]:
    """What a member that started on this log would begin with."""
    state = image.hard_state
    return {
        "path": str(image.path),
        "segments": len(image.segments),
        "term": state.term,
        "vote": f"{state.vote:x}",
        "commit": state.commit,
        "compacted": f"{image.compacted_index}@{image.compacted_term}",
        "first": image.first_index,
        "last": f"{image.last_index}@{image.last_term}",
        "configuration": _configuration(image.configuration),
        "problems": image.problems,
    }


def entries(image: LogImage, low: int, high: int, show_values: bool) -> Iterator[dict[str, Any]]:
    """Each live entry of low..high."""
    for entry in image.entries(low, high):
        head = {
            "index": entry.index,
            "term": entry.term,
            "kind": entry.kind.name.lower(),
            "bytes": len(entry.data),
            "committed": entry.index <= image.hard_state.commit,
        }
        yield head | contents(entry, show_values)


def records(image: LogImage, low: int, high: int) -> Iterator[dict[str, Any]]:
    """Each record as it was written, whose index is in low..high."""
    for record in image.records():
        if low <= record.index <= high:
            yield _record(record)


def contents(entry: Entry, show_values: bool) -> dict[str, Any]:
    """What the entry's data says. An entry that cannot be decoded says so, and how."""
    if not entry.data:
        return {}
    try:
        if entry.kind is EntryKind.COMMAND:
            return _batch(entry.data, show_values)
        if entry.kind is EntryKind.CONFIGURATION:
            configuration, context = membership.decode_configuration(entry.data)
            return {"configuration": _configuration(configuration), "change": _change(context) if context else {}}
    except (CommandError, MalformedMessage, DecodeError) as error:
        return {"undecoded": str(error)}
    return {}


def _change(context: bytes) -> dict[str, Any]:
    change = MemberChange.FromString(context)
    return {"op": MemberChange.Op.Name(change.op), **plain(change, True)}


def _batch(data: bytes, show_values: bool) -> dict[str, Any]:
    batch = decode_batch(data)
    requests = []
    for request in batch.requests:
        op = str(request.WhichOneof("op"))
        fields = plain(request, show_values)
        requests.append({"op": op, **fields.pop(op, {}), "by": fields})
    time = datetime.fromtimestamp(batch.time / 1e9, UTC)
    return {"time": time.isoformat(timespec="microseconds").replace("+00:00", "Z"), "requests": requests}


def _configuration(configuration: Configuration) -> dict[str, list[str]]:
    groups = {
        "voters": configuration.voters,
        "learners": configuration.learners,
        "outgoing": configuration.voters_outgoing,
    }
    return {name: [f"{one:x}" for one in group] for name, group in groups.items() if group}


def _record(record: Record) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "segment": record.path.name,
        "offset": record.offset,
        "type": record.type.name.lower(),
        "index": record.index,
        "term": record.term,
        "bytes": len(record.body),
    }
    if record.type is RecordType.ENTRY:
        shown["kind"] = record.kind.name.lower()
    elif record.type is RecordType.STATE:
        shown["vote"] = f"{VOTE.unpack(record.body)[0]:x}"
    return shown
