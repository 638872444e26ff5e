from kvstore.kvctl.auth import write_names
from kvstore.kvctl.session import Session


async def role_list(session: Session) -> None:
    """Print the names of all roles.

    Example:

    kvctl role list
    """
    session.no_fields("role list")
    async with session.client() as client:
        write_names(session, "roles", await client.auth.role_list())
