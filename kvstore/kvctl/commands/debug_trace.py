import sys
from pathlib import Path
from typing import Annotated

import typer

from kvstore.kvctl.failures import Failure
from kvstore.kvctl.formats import write, write_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut


async def debug_trace(
    session: Session,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Written with --raft-trace, or by `make trace`.")
    ],
    node: Annotated[
        list[str] | None, typer.Option(help="Only of this node: its id, or how it begins. May be repeated.")
    ] = None,
    from_ms: Annotated[float, typer.Option("--from", metavar="MS", help="Not before.")] = 0.0,
    to_ms: Annotated[float | None, typer.Option("--to", metavar="MS", help="Not after.")] = None,
    event: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Only events with this text in them. May be repeated.")
    ] = None,
) -> None:
    """Print what happened in raft, from one or several traces, in the order of time.

    Members of one machine share a clock, so their traces may be read together. Times are milliseconds.

    Examples:

    kvctl debug trace data/*/raft.jsonl --event leader

    make -s trace SEED=7 > seven.txt; kvctl debug trace seven.txt --node n2 --from 1000 --to 2500
    """
    from kvstore.debug import trace

    events, strange = trace.read_trace(files)
    if strange:
        print(f"{strange} lines are no events", file=sys.stderr)
    if not events:
        raise Failure("no events; start a member with --raft-trace FILE, or see `make trace`")
    for one in trace.chosen(events, node or [], from_ms, to_ms, event or []):
        if session.write_out is WriteOut.JSON:
            write_json({"ms": round(one.ms, 3), "node": one.node, "text": one.text})
        else:
            write(f"{one.ms:11.3f} {one.node:>5} {one.text}")
