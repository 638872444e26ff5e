from kvstore.kvctl.formats import write
from kvstore.kvctl.leases import write_flat
from kvstore.kvctl.printers import header_fields
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut


async def lease_list(session: Session) -> None:
    """Print the ids of all leases, as the asked member knows them.

    Example:

    kvctl lease list
    """
    session.no_table("lease list")
    async with session.client() as client:
        result = await client.leases()
    if session.write_out is WriteOut.JSON:
        write_flat(result.header, leases=[{"id": lease} for lease in result.ids])
    elif session.write_out is WriteOut.FIELDS:
        header_fields(result.header)
        for lease in result.ids:
            write(f'"ID" : {lease}')
    else:
        write(f"found {len(result.ids)} leases")
        for lease in result.ids:
            write(f"{lease:016x}")
