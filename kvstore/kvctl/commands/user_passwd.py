from typing import Annotated

import typer

from kvstore.kvctl.auth import Interactive, new_password, write_done
from kvstore.kvctl.failures import usage
from kvstore.kvctl.session import Session


async def user_passwd(
    session: Session,
    name: Annotated[str, typer.Argument(help="The user.")],
    interactive: Interactive = "true",
) -> None:
    """Change a user's password. What it has logged in with before is void at once.

    Example:

    kvctl user passwd ann
    """
    session.simple_or_json("user passwd")
    password = new_password(interactive)
    if not password:
        raise usage("an empty password is not allowed")
    async with session.client() as client:
        header = await client.auth.user_change_password(name, password)
    write_done(session, header, "Password updated")
