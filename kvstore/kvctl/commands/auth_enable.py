from kvstore.client.errors import PreconditionFailed
from kvstore.errors import ROLE_EXISTS, ROOT_ROLE_NOT_EXIST
from kvstore.kvctl.auth import write_done
from kvstore.kvctl.session import Session


async def auth_enable(session: Session) -> None:
    """Ask everybody who it is from now on. Needs the user root; gives it the role root where it has not got it.

    Example:

    kvctl user add root

    kvctl auth enable
    """
    session.simple_or_json("auth enable")
    async with session.client() as client:
        try:
            header = await client.auth.enable()
        except PreconditionFailed as error:
            if error.message != ROOT_ROLE_NOT_EXIST.message:
                raise
            try:
                await client.auth.role_add("root")
            except PreconditionFailed as exists:
                if exists.message != ROLE_EXISTS.message:
                    raise
            await client.auth.user_grant_role("root", "root")
            header = await client.auth.enable()
    write_done(session, header, "Authentication Enabled")
