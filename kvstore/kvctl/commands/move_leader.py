from typing import Annotated

import typer

from kvstore.client.types import Status
from kvstore.kvctl.commands.member_add import hex_id
from kvstore.kvctl.endpoints import Cluster, ask_each, targets
from kvstore.kvctl.failures import Failure
from kvstore.kvctl.formats import write, write_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut


async def move_leader(
    session: Session,
    member: Annotated[str, typer.Argument(help="Who is to lead: its id, in hexadecimal.")],
    cluster: Cluster = False,
) -> None:
    """Hand leadership to another voter. The leader must be one of --endpoints, or give --cluster.

    Example:

    kvctl move-leader 8e9e05c52164694d --cluster
    """
    session.simple_or_json("move-leader")
    target = hex_id(member)
    urls = await targets(session, cluster)
    answers = await ask_each(session, urls, lambda client, url: client.status(url))
    leader = next(((url, one) for url, one in answers if isinstance(one, Status) and one.is_leader), None)
    if leader is None:
        raise Failure(f"no leader among {', '.join(urls)}; name its endpoint, or give --cluster")
    url, status = leader
    async with session.client((url,)) as client:
        await client.move_leader(target)
    if session.write_out is WriteOut.JSON:
        write_json({})
    else:
        write(f"Leadership transferred from {status.header.member_id:x} to {target:x}")
