from typing import Annotated

import typer

from kvstore.kvctl.auth import new_password, write_done
from kvstore.kvctl.failures import usage
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import flag


async def user_passwd(
    session: Session,
    name: Annotated[str, typer.Argument(help="The user.")],
    interactive: Annotated[
        str, typer.Option("--interactive", metavar="true|false", help="false: the password is a line of input.")
    ] = "true",
) -> None:
    """Change a user's password. What it has logged in with before is void at once.

    Example:

    kvctl user passwd ann
    """
    session.simple_or_json("user passwd")
    password = new_password(flag("interactive", interactive))
    if not password:
        raise usage("an empty password is not allowed")
    async with session.client() as client:
        header = await client.auth.user_change_password(name, password)
    write_done(session, header, "Password updated")
