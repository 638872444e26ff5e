from kvstore.kvctl.printers import write_downgrade
from kvstore.kvctl.session import Session


async def downgrade_cancel(session: Session) -> None:
    """End a downgrade before all members are of the lower version.

    Example:

    kvctl downgrade cancel
    """
    session.simple_or_json("downgrade cancel")
    async with session.client() as client:
        result = await client.downgrade("cancel")
    write_downgrade(result, "cancel", session.write_out)
