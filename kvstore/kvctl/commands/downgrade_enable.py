from kvstore.kvctl.commands.downgrade_validate import Version
from kvstore.kvctl.printers import write_downgrade
from kvstore.kvctl.session import Session


async def downgrade_enable(session: Session, version: Version) -> None:
    """Begin a downgrade: the members may then be replaced by older ones, one by one.

    It ends by itself when all members are of that version, and before by `kvctl downgrade cancel`.

    Example:

    kvctl downgrade enable 3.5
    """
    session.simple_or_json("downgrade enable")
    async with session.client() as client:
        result = await client.downgrade("enable", version)
    write_downgrade(result, "enable", session.write_out)
