from typing import Annotated

import typer

from kvstore.client.types import LeaseTtl
from kvstore.kvctl.formats import base64_text, quote, write
from kvstore.kvctl.leases import LeaseId, lease_id, write_flat
from kvstore.kvctl.printers import header_fields
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut


async def lease_timetolive(
    session: Session,
    lease: LeaseId,
    keys: Annotated[bool, typer.Option("--keys", help="Print the keys that are bound to it, too.")] = False,
) -> None:
    """Print what is left of a lease.

    Examples:

    kvctl lease timetolive 32695410dcc0ca06

    kvctl lease timetolive 32695410dcc0ca06 --keys
    """
    session.no_table("lease timetolive")
    number = lease_id(lease)
    async with session.client() as client:
        result = await client.lease_time_to_live(number, keys=keys)
    if session.write_out is WriteOut.JSON:
        found = [base64_text(key) for key in result.keys] or None
        write_flat(result.header, id=result.id, ttl=result.ttl, **{"granted-ttl": result.granted_ttl}, keys=found)
    elif session.write_out is WriteOut.FIELDS:
        header_fields(result.header)
        write(f'"ID" : {result.id}')
        write(f'"TTL" : {result.ttl}')
        write(f'"GrantedTTL" : {result.granted_ttl}')
        for key in result.keys:
            write(f'"Key" : {quote(key)}')
    else:
        _simple(result, keys)


def _simple(result: LeaseTtl, keys: bool) -> None:
    if result.ttl < 0:
        write(f"lease {result.id:016x} already expired")
        return
    line = f"lease {result.id:016x} granted with TTL({result.granted_ttl}s), remaining({result.ttl}s)"
    if keys:
        write(f"{line}, attached keys([", b" ".join(result.keys), "])")
    else:
        write(line)
