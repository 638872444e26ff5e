import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvstore.client.errors import ClientError, PermissionDenied
from kvstore.kvctl.endpoints import Cluster, ask_each, targets
from kvstore.kvctl.failures import Failure
from kvstore.kvctl.formats import duration, present, quote, write, write_json, write_table
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut

if TYPE_CHECKING:
    from kvstore.client import Client


@dataclass(frozen=True, slots=True)
class Health:
    took: str
    error: str  # empty: healthy


async def endpoint_health(session: Session, cluster: Cluster = False) -> None:
    """Say of each endpoint whether it answers a linearizable read and knows no alarm. Exit code 1 when one does not.

    Example:

    kvctl endpoint health --cluster
    """
    urls = await targets(session, cluster)

    async def probe(_: "Client", url: str) -> Health:
        began = time.monotonic()
        error = ""
        # A client of its own for each: what others answer says nothing of this one.
        async with session.client((url,)) as client:
            try:
                await client.get("health")
                error = ", ".join(f"{alarm.type} of {alarm.member_id:x}" for alarm in (await client.alarms()).alarms)
            except PermissionDenied:
                pass  # the answer took a round through the cluster, and that is the question
            except ClientError as failure:
                error = failure.message
        return Health(duration(time.monotonic() - began), error)

    answers = [(url, answer) for url, answer in await ask_each(session, urls, probe) if isinstance(answer, Health)]
    if session.write_out is WriteOut.JSON:
        write_json(
            [
                {"endpoint": url, "health": not health.error, "took": health.took, **present(error=health.error)}
                for url, health in answers
            ]
        )
    elif session.write_out is WriteOut.TABLE:
        rows = [(url, str(not health.error).lower(), health.took, health.error) for url, health in answers]
        write_table(("ENDPOINT", "HEALTH", "TOOK", "ERROR"), rows)
    else:
        for url, health in answers:
            if session.write_out is WriteOut.FIELDS:
                _fields(url, health)
            elif health.error:
                print(f"{url} is unhealthy: failed to commit proposal: {health.error}", file=sys.stderr)
            else:
                write(f"{url} is healthy: successfully committed proposal: took = {health.took}")
    if any(health.error for _, health in answers):
        raise Failure("unhealthy cluster; see `kvctl endpoint status --cluster`")


def _fields(url: str, health: Health) -> None:
    write(f'"Endpoint" : {quote(url.encode())}')
    write(f'"Health" : {str(not health.error).lower()}')
    write(f'"Took" : {health.took}')
    write(f'"Error" : {health.error}')
    write()
