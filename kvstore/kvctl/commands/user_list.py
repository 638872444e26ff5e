from kvstore.kvctl.auth import write_names
from kvstore.kvctl.session import Session


async def user_list(session: Session) -> None:
    """Print the names of all users.

    Example:

    kvctl user list
    """
    session.no_fields("user list")
    async with session.client() as client:
        write_names(session, "users", await client.auth.user_list())
