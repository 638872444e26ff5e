from typing import Annotated

import typer

from kvstore.kvctl.auth import write_done
from kvstore.kvctl.session import Session


async def role_add(session: Session, name: Annotated[str, typer.Argument(help="The role.")]) -> None:
    """Add a role, which allows nothing yet.

    Example:

    kvctl role add web
    """
    session.simple_or_json("role add")
    async with session.client() as client:
        header = await client.auth.role_add(name)
    write_done(session, header, f"Role {name} created")
