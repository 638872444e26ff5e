from typing import Annotated

import typer

from kvstore.kvctl.auth import write_done
from kvstore.kvctl.session import Session


async def user_grant_role(
    session: Session,
    name: Annotated[str, typer.Argument(help="The user.")],
    role: Annotated[str, typer.Argument(help="The role; root allows everything.")],
) -> None:
    """Give a user a role.

    Example:

    kvctl user grant-role ann web
    """
    session.simple_or_json("user grant-role")
    async with session.client() as client:
        header = await client.auth.user_grant_role(name, role)
    write_done(session, header, f"Role {role} is granted to user {name}")
