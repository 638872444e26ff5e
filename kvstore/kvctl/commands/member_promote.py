from typing import Annotated

import typer

from kvstore.kvctl.commands.member_add import hex_id
from kvstore.kvctl.formats import write
from kvstore.kvctl.printers import write_members_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut


async def member_promote(
    session: Session,
    member: Annotated[str, typer.Argument(help="Its id, in hexadecimal.")],
) -> None:
    """Make a voter of a learner that has caught up with the leader.

    Example:

    kvctl member promote 8e9e05c52164694d
    """
    session.simple_or_json("member promote")
    async with session.client() as client:
        result = await client.member_promote(hex_id(member))
    if session.write_out is WriteOut.JSON:
        write_members_json(result.header, result.members)
    else:
        write(f"Member {hex_id(member):16x} promoted in cluster {result.header.cluster_id:16x}")
