from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kvstore.kvctl import formats, printers
from kvstore.kvctl.failures import usage
from kvstore.kvctl.ranges import FromKey, Prefix, RangeEnd, RangeEndOption, key_and_range
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut

if TYPE_CHECKING:
    from kvstore.client.txn import Order, SortBy


class Consistency(StrEnum):
    LINEARIZABLE = "l"
    SERIALIZABLE = "s"


SORT_BY: "Final[dict[str, SortBy]]" = {
    "": "key",
    "key": "key",
    "version": "version",
    "create": "create",
    "modify": "mod",
    "value": "value",
}
ORDERS: "Final[dict[str, Order]]" = {"": "none", "ascend": "ascend", "descend": "descend"}


async def get(
    session: Session,
    key: str,
    range_end: RangeEnd = None,
    range_end_option: RangeEndOption = None,
    prefix: Prefix = False,
    from_key: FromKey = False,
    rev: Annotated[int, typer.Option(help="Read at this revision.")] = 0,
    limit: Annotated[int, typer.Option(help="At most so many keys; 0: all.")] = 0,
    sort_by: Annotated[str, typer.Option(help="CREATE, KEY, MODIFY, VALUE or VERSION.")] = "",
    order: Annotated[str, typer.Option(help="ASCEND or DESCEND.")] = "",
    keys_only: Annotated[bool, typer.Option("--keys-only", help="Without the values.")] = False,
    count_only: Annotated[bool, typer.Option("--count-only", help="How many keys there are.")] = False,
    consistency: Annotated[
        Consistency, typer.Option(help="l: linearizable; s: what the asked member has.")
    ] = Consistency.LINEARIZABLE,
    print_value_only: Annotated[bool, typer.Option("--print-value-only", help="Without the keys.")] = False,
) -> None:
    """Read a key or a range of keys.

    A key that does not exist prints nothing and is no error.

    Examples:

    kvctl get config/color

    kvctl get config/ --prefix --keys-only

    kvctl get a m --limit 10

    kvctl get config/color --rev 7
    """
    if sort_by.lower() not in SORT_BY:
        raise usage(f"get: --sort-by {sort_by}: want CREATE, KEY, MODIFY, VALUE or VERSION")
    if order.lower() not in ORDERS:
        raise usage(f"get: --order {order}: want ASCEND or DESCEND")
    if print_value_only and session.write_out is not WriteOut.SIMPLE:
        raise usage("get: --print-value-only is for -w simple only")
    first, end = key_and_range("get", key, range_end, range_end_option, prefix, from_key)
    async with session.client() as client:
        result = await client.get(
            first,
            end,
            revision=rev,
            limit=limit,
            sort_by=SORT_BY[sort_by.lower()],
            order=ORDERS[order.lower()],
            keys_only=keys_only,
            count_only=count_only,
            serializable=consistency is Consistency.SERIALIZABLE,
        )
    if session.write_out is WriteOut.TABLE:
        printers.kvs_table(result)
    elif session.write_out is WriteOut.SIMPLE and count_only:
        formats.write(str(result.count))
    elif print_value_only:
        for kv in result.kvs:
            formats.write(kv.value)
    else:
        printers.write_result(result, session.write_out)
