from typing import Annotated

import typer

from kvstore.kvctl.auth import range_text, write_done
from kvstore.kvctl.session import Session


async def role_revoke_permission(
    session: Session,
    role: Annotated[str, typer.Argument(help="The role.")],
    key: Annotated[str, typer.Argument(help="The key, or where the range begins.")],
    range_end: Annotated[str | None, typer.Argument(help="Where the range ends.")] = None,
    prefix: Annotated[bool, typer.Option("--prefix", help="All keys that begin with KEY.")] = False,
    from_key: Annotated[bool, typer.Option("--from-key", help="All keys from KEY on.")] = False,
) -> None:
    """Take a permission from a role: the very range that was granted.

    Example:

    kvctl role revoke-permission web web/ --prefix
    """
    session.simple_or_json("role revoke-permission")
    from kvstore.client.types import key_range

    first, end = key_range(key, range_end, prefix, from_key)
    async with session.client() as client:
        header = await client.auth.role_revoke_permission(role, key, range_end, prefix=prefix, from_key=from_key)
    what = f"range {range_text(first, end).decode(errors='surrogateescape')}" if end else f"key {key}"
    write_done(session, header, f"Permission of {what} is revoked from role {role}")
