from kvstore.kvctl.auth import write_done
from kvstore.kvctl.session import Session


async def auth_disable(session: Session) -> None:
    """Let everybody do everything again. Users and roles stay.

    Example:

    kvctl --user root auth disable
    """
    session.simple_or_json("auth disable")
    async with session.client() as client:
        header = await client.auth.disable()
    write_done(session, header, "Authentication Disabled")
