from typing import Annotated

import typer

from kvstore.kvctl.auth import write_role
from kvstore.kvctl.session import Session


async def role_get(session: Session, name: Annotated[str, typer.Argument(help="The role.")]) -> None:
    """Print what a role allows.

    Example:

    kvctl role get web
    """
    async with session.client() as client:
        write_role(session, await client.auth.role_get(name))
