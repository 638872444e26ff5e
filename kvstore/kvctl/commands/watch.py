from collections.abc import Callable
from typing import Annotated, Final

import typer

from kvstore.client.types import WatchResponse
from kvstore.kvctl import printers
from kvstore.kvctl.formats import flush
from kvstore.kvctl.ranges import FromKey, Prefix, RangeEnd, RangeEndOption, key_and_range
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut

PRINTERS: Final[dict[WriteOut, Callable[[WatchResponse], None]]] = {
    WriteOut.SIMPLE: printers.watch_simple,
    WriteOut.JSON: printers.watch_json,
    WriteOut.FIELDS: printers.watch_fields,
}


async def watch(
    session: Session,
    key: str,
    range_end: RangeEnd = None,
    range_end_option: RangeEndOption = None,
    prefix: Prefix = False,
    from_key: FromKey = False,
    rev: Annotated[int, typer.Option(help="Begin with the events of this revision; 0: from now on.")] = 0,
    prev_kv: Annotated[bool, typer.Option("--prev-kv", help="Print what the key was before, too.")] = False,
    progress_notify: Annotated[
        bool, typer.Option("--progress-notify", help="Print now and then how far the watch has come.")
    ] = False,
) -> None:
    """Print every change of a key or a range of keys, until Ctrl-C.

    Goes on by itself, on another member, when a member fails.

    Examples:

    kvctl watch config/ --prefix

    kvctl watch config/color --rev 1 --prev-kv
    """
    session.no_table("watch")
    first, end = key_and_range("watch", key, range_end, range_end_option, prefix, from_key)
    show = PRINTERS[session.write_out]
    async with (
        session.client() as client,
        client.watch(first, end, start_revision=rev, prev_kv=prev_kv, progress_notify=progress_notify) as watched,
    ):
        async for response in watched:
            show(response)
            flush()
