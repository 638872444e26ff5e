import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kvstore.kvctl.failures import Failure
from kvstore.kvctl.formats import write, write_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut

INDEX_MAX = 2**63 - 1


async def debug_log(
    session: Session,
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A data directory, or the log/ in it.")],
    first: Annotated[int, typer.Option("--from", metavar="INDEX", help="The first entry.")] = 0,
    last: Annotated[
        int, typer.Option("--to", metavar="INDEX", show_default="the end", help="The last entry.")
    ] = INDEX_MAX,
    records: Annotated[
        bool, typer.Option("--records", help="Every record as written: also votes, and entries overwritten since.")
    ] = False,
    show_values: Annotated[bool, typer.Option("--show-values", help="Print what users stored, not its size.")] = False,
) -> None:
    """Print a member's Raft log from its files: term, vote, positions, and each entry with its requests.

    Reads only. What is damaged or torn is told on stderr, and the exit code is 1. While a member runs on the
    directory, its newest records may be missing.

    Examples:

    kvctl debug log data/a

    kvctl debug log data/a --from 100 --to 120 -w json

    kvctl debug log data/a --records
    """
    from kvstore.debug import log
    from kvstore.debug.directory import NotThere, is_in_use

    try:
        image = log.open_log(path)
    except NotThere as error:
        raise Failure(str(error)) from None
    if is_in_use(image.path):
        print("a member is running on this directory: its newest records may be missing", file=sys.stderr)
    summary = log.summary(image)
    json = session.write_out is WriteOut.JSON
    if json:
        write_json(summary)
    else:
        _write_summary(summary)
    if records:
        for record in log.records(image, first, last):
            write_json(record) if json else _write_record(record)
    else:
        for entry in log.entries(image, first, last, show_values):
            write_json(entry) if json else _write_entry(entry)
    if image.problems:
        raise Failure("; ".join(image.problems))


def _write_summary(summary: dict[str, Any]) -> None:
    for name, value in summary.items():
        if name != "problems":
            write(f"# {name:<14} {_groups(value) if name == 'configuration' else value}")


def _groups(configuration: dict[str, list[str]]) -> str:
    return " ".join(f"{name}={','.join(ids)}" for name, ids in configuration.items())


def _write_record(record: dict[str, Any]) -> None:
    more = record.get("kind") or (f"vote {record['vote']}" if "vote" in record else "")
    position = f"{record['index']}@{record['term']}"
    write(f"{record['segment']}:{record['offset']:<9} {record['type']:<8} {position:<12} {record['bytes']:>7} B {more}")


def _write_entry(entry: dict[str, Any]) -> None:
    open_ = "" if entry["committed"] else "  (not known to be committed)"
    position = f"{entry['index']}@{entry['term']}"
    write(f"{position:<12} {entry['kind']:<13} {entry['bytes']:>7} B  {entry.get('time', '')}{open_}".rstrip())
    for request in entry.get("requests", ()):
        by = request.pop("by")
        origin = " ".join(f"{name}={value}" for name, value in by.items())
        fields = " ".join(f"{name}={_shown(value)}" for name, value in request.items() if name != "op")
        write(f"    {request['op']:<14} {fields}   [{origin}]")
    if "configuration" in entry:
        change = " ".join(f"{name}={_shown(value)}" for name, value in entry["change"].items())
        write(f"    {_groups(entry['configuration'])}   [{change}]")
    if "undecoded" in entry:
        write(f"    cannot be decoded: {entry['undecoded']}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + " ".join(f"{name}={_shown(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return f'"{value}"' if isinstance(value, str) and " " in value else str(value)
