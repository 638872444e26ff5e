from typing import Annotated

import typer

from kvstore.kvctl.auth import write_done
from kvstore.kvctl.session import Session


async def user_revoke_role(
    session: Session,
    name: Annotated[str, typer.Argument(help="The user.")],
    role: Annotated[str, typer.Argument(help="The role.")],
) -> None:
    """Take a role from a user.

    Example:

    kvctl user revoke-role ann web
    """
    session.simple_or_json("user revoke-role")
    async with session.client() as client:
        header = await client.auth.user_revoke_role(name, role)
    write_done(session, header, f"Role {role} is revoked from user {name}")
