from typing import Annotated

import typer

from kvstore.kvctl.auth import write_done
from kvstore.kvctl.session import Session


async def user_delete(session: Session, name: Annotated[str, typer.Argument(help="The user.")]) -> None:
    """Delete a user. What it has logged in with is void at once.

    Example:

    kvctl user delete ann
    """
    session.simple_or_json("user delete")
    async with session.client() as client:
        header = await client.auth.user_delete(name)
    write_done(session, header, f"User {name} deleted")
