import sys
from typing import Annotated

import typer

from kvstore.kvctl.failures import usage
from kvstore.kvctl.leases import lease_id
from kvstore.kvctl.printers import write_result
from kvstore.kvctl.session import Session


async def put(
    session: Session,
    key: str,
    value: Annotated[str | None, typer.Argument(help="Read from stdin when it is missing or -.")] = None,
    lease: Annotated[str, typer.Option(help="Lease id, in hexadecimal.")] = "0",
    prev_kv: Annotated[bool, typer.Option("--prev-kv", help="Print what the key was before.")] = False,
    ignore_value: Annotated[bool, typer.Option("--ignore-value", help="Keep the value the key has.")] = False,
    ignore_lease: Annotated[bool, typer.Option("--ignore-lease", help="Keep the lease the key has.")] = False,
) -> None:
    """Write a key.

    Examples:

    kvctl put config/color green

    kvctl put config/logo < logo.png

    kvctl put numbers/n -- -1
    """
    session.no_table("put")
    if ignore_value and value is not None:
        raise usage("put: give no value together with --ignore-value")
    bound_to = lease_id(lease)
    data = b"" if ignore_value else value_bytes(value)
    async with session.client() as client:
        result = await client.put(
            argument_bytes(key),
            data,
            lease=bound_to,
            prev_kv=prev_kv,
            ignore_value=ignore_value,
            ignore_lease=ignore_lease,
        )
    write_result(result, session.write_out)


def argument_bytes(text: str) -> bytes:
    """A command line argument as the bytes that were typed, UTF-8 or not."""
    return text.encode(errors="surrogateescape")


def value_bytes(value: str | None) -> bytes:
    return sys.stdin.buffer.read() if value in (None, "-") else argument_bytes(value)
