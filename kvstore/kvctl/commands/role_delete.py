from typing import Annotated

import typer

from kvstore.kvctl.auth import write_done
from kvstore.kvctl.session import Session


async def role_delete(session: Session, name: Annotated[str, typer.Argument(help="The role.")]) -> None:
    """Delete a role, and take it from all users.

    Example:

    kvctl role delete web
    """
    session.simple_or_json("role delete")
    async with session.client() as client:
        header = await client.auth.role_delete(name)
    write_done(session, header, f"Role {name} deleted")
