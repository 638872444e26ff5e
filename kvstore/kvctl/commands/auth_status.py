from kvstore.kvctl.formats import present, write, write_json
from kvstore.kvctl.printers import header_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut


async def auth_status(session: Session) -> None:
    """Print whether users are asked for, and the revision of users and roles. Everybody may ask.

    Example:

    kvctl auth status -w json
    """
    session.simple_or_json("auth status")
    async with session.client() as client:
        status = await client.auth.status()
    if session.write_out is WriteOut.JSON:
        fields = present(enabled=status.enabled or None, authRevision=status.revision)
        write_json({"header": header_json(status.header), **fields})
    else:
        write(f"Authentication Status: {str(status.enabled).lower()}")
        write(f"AuthRevision: {status.revision}")
