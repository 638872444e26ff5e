from typing import Annotated, cast

import typer

from kvstore.kvctl.auth import write_done
from kvstore.kvctl.failures import usage
from kvstore.kvctl.session import Session

KINDS = ("read", "write", "readwrite")


async def role_grant_permission(
    session: Session,
    role: Annotated[str, typer.Argument(help="The role.")],
    kind: Annotated[str, typer.Argument(help="read, write or readwrite.")],
    key: Annotated[str, typer.Argument(help="The key, or where the range begins.")],
    range_end: Annotated[str | None, typer.Argument(help="Where the range ends; this key is not in it.")] = None,
    prefix: Annotated[bool, typer.Option("--prefix", help="All keys that begin with KEY.")] = False,
    from_key: Annotated[bool, typer.Option("--from-key", help="All keys from KEY on.")] = False,
) -> None:
    """Let a role read or write keys. Granted again, the same range gets the new kind.

    Example:

    kvctl role grant-permission web readwrite web/ --prefix
    """
    session.simple_or_json("role grant-permission")
    if kind.lower() not in KINDS:
        raise usage(f"{kind}: no such permission; want {', '.join(KINDS)}")
    from kvstore.client.auth import Kind

    async with session.client() as client:
        header = await client.auth.role_grant_permission(
            role, cast(Kind, kind.lower()), key, range_end, prefix=prefix, from_key=from_key
        )
    write_done(session, header, f"Role {role} updated")
