from typing import Annotated

import typer

from kvstore.kvctl.commands.member_add import hex_id
from kvstore.kvctl.formats import write
from kvstore.kvctl.printers import write_members_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut


async def member_remove(
    session: Session,
    member: Annotated[str, typer.Argument(help="Its id, in hexadecimal.")],
) -> None:
    """Remove a member, for ever: its process ends, and its id never comes back.

    Example:

    kvctl member remove 8e9e05c52164694d
    """
    session.simple_or_json("member remove")
    async with session.client() as client:
        result = await client.member_remove(hex_id(member))
    if session.write_out is WriteOut.JSON:
        write_members_json(result.header, result.members)
    else:
        write(f"Member {hex_id(member):16x} removed from cluster {result.header.cluster_id:16x}")
