from typing import Annotated

import typer

from kvstore.kvctl.printers import write_downgrade
from kvstore.kvctl.session import Session

Version = Annotated[str, typer.Argument(help="The version to go down to, such as 3.5.")]


async def downgrade_validate(session: Session, version: Version) -> None:
    """Say whether the cluster can go down to a version: the minor version below its own.

    Example:

    kvctl downgrade validate 3.5
    """
    session.simple_or_json("downgrade validate")
    async with session.client() as client:
        result = await client.downgrade("validate", version)
    write_downgrade(result, "validate", session.write_out)
