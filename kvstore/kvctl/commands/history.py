from datetime import UTC, datetime
from typing import Annotated

import typer

from kvstore.client.types import Change
from kvstore.kvctl import printers
from kvstore.kvctl.failures import usage
from kvstore.kvctl.formats import flush, quote, write, write_json, write_table
from kvstore.kvctl.ranges import Prefix
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut

TITLES = ("REVISION", "TIME", "MEMBER", "TYPE", "KEY", "VALUE")


async def history(
    session: Session,
    key: Annotated[str, typer.Argument(help="All keys when it is missing.", show_default=False)] = "",
    prefix: Prefix = False,
    from_revision: Annotated[int, typer.Option("--from", metavar="REV", help="The first revision.")] = 0,
    to_revision: Annotated[int, typer.Option("--to", metavar="REV", help="The last revision.")] = 0,
    limit: Annotated[int, typer.Option(help="At most so many changes; 0: all.")] = 0,
) -> None:
    """Print every change of a key, a prefix or everything, oldest first, with its time.

    Also changes from before the compaction point.

    Examples:

    kvctl history config/color

    kvctl history config/ --prefix --from 3 --to 9 -w table
    """
    if prefix and not key:
        raise usage("history: --prefix needs a KEY; without both you get every key")
    rows: list[tuple[str, ...]] = []
    async with session.client() as client:
        changes = client.history(
            key.encode(errors="surrogateescape"),
            prefix=prefix,
            from_revision=from_revision,
            to_revision=to_revision,
            limit=limit,
        )
        async for change in changes:
            if session.write_out is WriteOut.JSON:
                write_json(printers.change_json(change))
            elif session.write_out is WriteOut.FIELDS:
                write_fields(change)
            elif session.write_out is WriteOut.SIMPLE:
                write("\t".join(columns(change)))
            else:
                rows.append(columns(change))
            flush()
    if session.write_out is WriteOut.TABLE:
        write_table(TITLES, rows)


def columns(change: Change) -> tuple[str, ...]:
    kv = change.event.kv
    return (
        str(change.revision),
        iso_time(change.time_ns),
        f"{change.member_id:x}",
        change.event.type,
        quote(kv.key)[1:-1],
        quote(kv.value)[1:-1],
    )


def iso_time(time_ns: int) -> str:
    """UTC, to the microsecond."""
    moment = datetime.fromtimestamp(time_ns // 10**9, UTC).replace(microsecond=time_ns // 1000 % 10**6)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def write_fields(change: Change) -> None:
    write(f'"Type" : {change.event.type}')
    write(f'"Time" : {iso_time(change.time_ns)}')
    write(f'"Member" : {change.member_id}')
    write(f'"Index" : {change.index}')
    write(f'"Term" : {change.term}')
    write(f'"User" : {quote(change.user.encode())}')
    write(f'"RequestID" : {quote(change.request_id.encode())}')
    printers.kv_fields(change.event.kv)
    write()
