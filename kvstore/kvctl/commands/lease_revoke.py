from kvstore.kvctl.formats import write, write_json
from kvstore.kvctl.leases import LeaseId, lease_id
from kvstore.kvctl.printers import header_fields, header_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut


async def lease_revoke(session: Session, lease: LeaseId) -> None:
    """End a lease, and delete all its keys at once.

    Example:

    kvctl lease revoke 32695410dcc0ca06
    """
    session.no_table("lease revoke")
    number = lease_id(lease)
    async with session.client() as client:
        result = await client.lease_revoke(number)
    if session.write_out is WriteOut.JSON:
        write_json({"header": header_json(result.header)})
    elif session.write_out is WriteOut.FIELDS:
        header_fields(result.header)
    else:
        write(f"lease {number:016x} revoked")
