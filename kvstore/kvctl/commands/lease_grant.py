from typing import Annotated

import typer

from kvstore.kvctl.formats import write
from kvstore.kvctl.leases import lease_id, write_flat
from kvstore.kvctl.printers import header_fields
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut


async def lease_grant(
    session: Session,
    ttl: Annotated[int, typer.Argument(help="Seconds; what is too short is raised to the server's least.")],
    lease: Annotated[str, typer.Option("--id", help="Wanted id, in hexadecimal; 0: any.")] = "0",
) -> None:
    """Create a lease. Keys that are put with it go when it is over.

    Example:

    kvctl lease grant 60

    kvctl put services/web 10.0.0.1 --lease 32695410dcc0ca06
    """
    session.no_table("lease grant")
    wanted = lease_id(lease)
    async with session.client() as client:
        result = await client.lease_grant(ttl, wanted)
    if session.write_out is WriteOut.JSON:
        write_flat(result.header, ID=result.id, TTL=result.ttl, Error="")
    elif session.write_out is WriteOut.FIELDS:
        header_fields(result.header)
        write(f'"ID" : {result.id}')
        write(f'"TTL" : {result.ttl}')
    else:
        write(f"lease {result.id:016x} granted with TTL({result.ttl}s)")
