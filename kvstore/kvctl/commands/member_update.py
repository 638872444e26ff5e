from typing import Annotated

import typer

from kvstore.kvctl.commands.member_add import hex_id, split_urls
from kvstore.kvctl.formats import write
from kvstore.kvctl.printers import write_members_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut


async def member_update(
    session: Session,
    member: Annotated[str, typer.Argument(help="Its id, in hexadecimal.")],
    peer_urls: Annotated[str, typer.Option(help="Where the others reach it from now on: URL[,URL...].")],
) -> None:
    """Tell the others under which peer URLs a member is reached from now on.

    Example:

    kvctl member update 8e9e05c52164694d --peer-urls=http://10.0.0.9:2380
    """
    session.simple_or_json("member update")
    async with session.client() as client:
        result = await client.member_update(hex_id(member), split_urls(peer_urls))
    if session.write_out is WriteOut.JSON:
        write_members_json(result.header, result.members)
    else:
        write(f"Member {hex_id(member):16x} updated in cluster {result.header.cluster_id:16x}")
