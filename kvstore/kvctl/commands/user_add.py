from typing import Annotated

import typer

from kvstore.kvctl.auth import Interactive, new_password, write_done
from kvstore.kvctl.failures import usage
from kvstore.kvctl.session import Session


async def user_add(
    session: Session,
    wanted: Annotated[str, typer.Argument(metavar="NAME[:PASSWORD]", help="Without a password you are asked for it.")],
    no_password: Annotated[
        bool, typer.Option("--no-password", help="Known by the common name of its certificate only.")
    ] = False,
    new_user_password: Annotated[str, typer.Option(help="The password, instead of asking for it.")] = "",
    interactive: Interactive = "true",
) -> None:
    """Add a user.

    Example:

    kvctl user add ann

    kvctl user add ann --interactive=false < password.txt
    """
    session.simple_or_json("user add")
    name, colon, given = wanted.partition(":")
    if not name:
        raise usage("a user needs a name; want NAME or NAME:PASSWORD")
    password = None if no_password else given if colon else new_user_password or new_password(interactive)
    if password == "":
        raise usage("an empty password is not allowed; --no-password makes a user that has none")
    async with session.client() as client:
        header = await client.auth.user_add(name, password)
    write_done(session, header, f"User {name} created")
