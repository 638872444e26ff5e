from kvstore.kvctl.printers import write_alarms
from kvstore.kvctl.session import Session


async def alarm_list(session: Session) -> None:
    """Print what is wrong with the cluster: whose store is full (NOSPACE), and which member is damaged (CORRUPT).

    Example:

    kvctl alarm list -w table
    """
    async with session.client() as client:
        found = await client.alarms()
    write_alarms(found.header, found.alarms, session.write_out)
