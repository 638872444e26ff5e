from typing import Annotated

import typer

from kvstore.kvctl.printers import write_result
from kvstore.kvctl.ranges import FromKey, Prefix, RangeEnd, RangeEndOption, key_and_range
from kvstore.kvctl.session import Session


async def del_(
    session: Session,
    key: str,
    range_end: RangeEnd = None,
    range_end_option: RangeEndOption = None,
    prefix: Prefix = False,
    from_key: FromKey = False,
    prev_kv: Annotated[bool, typer.Option("--prev-kv", help="Print what was deleted.")] = False,
) -> None:
    """Delete a key or a range of keys; prints how many there were.

    Examples:

    kvctl del config/color

    kvctl del config/ --prefix --prev-kv
    """
    session.no_table("del")
    first, end = key_and_range("del", key, range_end, range_end_option, prefix, from_key)
    async with session.client() as client:
        result = await client.delete(first, end, prev_kv=prev_kv)
    write_result(result, session.write_out)
