from typing import Annotated

import typer

from kvstore.kvctl.formats import write
from kvstore.kvctl.session import Session


async def compact(
    session: Session,
    revision: int,
    physical: Annotated[bool, typer.Option("--physical", help="Return when the space is free, too.")] = False,
) -> None:
    """Give up all revisions below REVISION for get and watch; the history keeps them.

    Example:

    kvctl compact 1200
    """
    async with session.client() as client:
        await client.compact(revision, physical=physical)
    write(f"compacted revision {revision}")
