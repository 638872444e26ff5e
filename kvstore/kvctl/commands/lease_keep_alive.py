from typing import Annotated

import typer

from kvstore.client.errors import NotFound
from kvstore.kvctl.formats import flush, write
from kvstore.kvctl.leases import LeaseId, lease_id, write_kept
from kvstore.kvctl.session import Session


async def lease_keep_alive(
    session: Session,
    lease: LeaseId,
    once: Annotated[bool, typer.Option("--once", help="Renew it once.")] = False,
) -> None:
    """Keep a lease alive, until Ctrl-C or until it is gone.

    Goes on by itself, on another member, when a member fails.

    Examples:

    kvctl lease keep-alive 32695410dcc0ca06

    kvctl lease keep-alive 32695410dcc0ca06 --once
    """
    session.no_table("lease keep-alive")
    number = lease_id(lease)
    async with session.client() as client:
        if once:
            write_kept(await client.lease_keep_alive_once(number), session.write_out)
            return
        try:
            async with client.lease_keep_alive(number) as kept:
                if kept.last is not None:
                    write_kept(kept.last, session.write_out)
                    flush()
                async for renewal in kept:
                    write_kept(renewal, session.write_out)
                    flush()
        except NotFound:
            pass  # it ended before the first renewal: told like any other end
    write(f"lease {number:016x} expired or revoked.")
