from typing import Annotated

import typer

from kvstore.kvctl.auth import write_names, write_permissions, write_role
from kvstore.kvctl.formats import present, write, write_json
from kvstore.kvctl.printers import header_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut


async def user_get(
    session: Session,
    name: Annotated[str, typer.Argument(help="The user.")],
    detail: Annotated[bool, typer.Option("--detail", help="And what the roles allow.")] = False,
) -> None:
    """Print a user's roles.

    Example:

    kvctl user get ann --detail
    """
    session.no_fields("user get")
    async with session.client() as client:
        found = await client.auth.user_get(name)
        if session.write_out is WriteOut.JSON:
            write_json({"header": header_json(found.header), **present(roles=list(found.names))})
            return
        if session.write_out is WriteOut.TABLE:
            if detail:
                write_permissions([await client.auth.role_get(role) for role in found.names])
            else:
                write_names(session, "roles", found)
            return
        write(f"User: {name}")
        if not detail:
            write(f"Roles: {' '.join(found.names)}")
            return
        for role in found.names:
            write()
            write_role(session, await client.auth.role_get(role))
