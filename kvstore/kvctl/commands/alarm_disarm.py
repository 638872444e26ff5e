from kvstore.client.types import Alarm
from kvstore.kvctl.printers import write_alarms
from kvstore.kvctl.session import Session


async def alarm_disarm(session: Session) -> None:
    """Take back all alarms, so that writes are served again. First free space: kvctl compact, then kvctl defrag.

    Prints those that were taken back. A store that is still full raises its alarm again with the next write.

    Example:

    kvctl alarm disarm
    """
    ended: list[Alarm] = []
    async with session.client() as client:
        found = await client.alarms()
        header = found.header
        for alarm in found.alarms:
            answer = await client.alarm_disarm(alarm)
            header = answer.header
            ended += answer.alarms
    write_alarms(header, tuple(ended), session.write_out)
