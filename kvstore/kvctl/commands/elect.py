from typing import Annotated

import typer

from kvstore.kvctl.commands.put import argument_bytes
from kvstore.kvctl.failures import Failure, usage
from kvstore.kvctl.formats import flush
from kvstore.kvctl.printers import write_result
from kvstore.kvctl.session import Session
from kvstore.kvctl.signals import stopping, unless, until


async def elect(
    session: Session,
    name: Annotated[str, typer.Argument(help="Leader and candidates are the keys NAME/...")],
    proposal: Annotated[str | None, typer.Argument(help="What others see of us when we lead.")] = None,
    listen: Annotated[bool, typer.Option("--listen", "-l", help="Print each leader, and do not stand.")] = False,
) -> None:
    """Stand for election, and lead until Ctrl-C; or watch who leads.

    Meets `etcdctl elect` in one queue.

    Examples:

    kvctl elect scheduler 10.0.0.1:8080

    kvctl elect scheduler --listen
    """
    session.no_table("elect")
    if listen == (proposal is not None):
        raise usage("elect: give either a proposal or --listen")
    if proposal is None:
        await observe(session, argument_bytes(name))
    else:
        await campaign(session, argument_bytes(name), argument_bytes(proposal))


async def campaign(session: Session, name: bytes, proposal: bytes) -> None:
    with stopping() as stopped:
        async with session.client() as client, client.election(name) as election:
            await unless(stopped, election.campaign(proposal))
            write_result(await client.get(election.key), session.write_out)
            flush()
            if not await until(stopped, election.lost()):
                raise Failure("the session has expired: another one may lead by now")


async def observe(session: Session, name: bytes) -> None:
    from kvstore.client import claims

    async with session.client() as client:
        async for found in claims.observe(client, name):
            write_result(found, session.write_out)
            flush()
