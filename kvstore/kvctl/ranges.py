"""The way get, del, watch, history and the lines of a txn name a range of keys."""

from typing import Annotated, TypeAlias

import typer

from kvstore.client.types import key_range
from kvstore.kvctl.failures import usage

RangeEnd: TypeAlias = Annotated[str | None, typer.Argument(help="Take [KEY, RANGE_END).")]
RangeEndOption: TypeAlias = Annotated[str | None, typer.Option("--range-end", help="The same as the second argument.")]
Prefix: TypeAlias = Annotated[bool, typer.Option("--prefix", help="Take all keys that begin with KEY.")]
FromKey: TypeAlias = Annotated[bool, typer.Option("--from-key", help="Take all keys from KEY on.")]


def key_and_range(
    verb: str, key: str, range_end: str | None, range_end_option: str | None, prefix: bool, from_key: bool
) -> tuple[bytes, bytes | None]:
    """(key, range_end) for the client. What was typed need not be UTF-8: it reaches us surrogate-escaped."""
    if range_end is not None and range_end_option is not None:
        raise usage(f"{verb}: give the range end once, as argument or as --range-end")
    last = range_end if range_end is not None else range_end_option
    try:
        first, end = key_range(_bytes(key), None if last is None else _bytes(last), prefix, from_key)
    except ValueError:
        raise usage(f"{verb}: choose one of a range end, --prefix and --from-key") from None
    return first, end or None


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
