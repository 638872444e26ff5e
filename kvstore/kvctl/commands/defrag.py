from kvstore.client.errors import ClientError
from kvstore.kvctl.endpoints import Cluster, targets
from kvstore.kvctl.failures import ExitCode, Failure
from kvstore.kvctl.formats import write, write_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut


async def defrag(session: Session, cluster: Cluster = False) -> None:
    """Let the members of the endpoints give back the disk space that they have freed, one after the other.

    Members go on serving meanwhile; an etcd does not. It takes seconds for some gigabytes.

    Example:

    kvctl defrag --cluster --command-timeout=60s
    """
    session.simple_or_json("defrag")
    failed = []
    urls = await targets(session, cluster)
    for url in urls:
        async with session.client((url,)) as client:
            try:
                await client.defragment(url, timeout=session.settings.command_timeout)
            except ClientError as error:
                failed.append(f"{url}: {error.message}")
                continue
        if session.write_out is WriteOut.SIMPLE:
            write(f"Finished defragmenting etcd member[{url}]")
    if failed:
        text = f"{len(failed)} of {len(urls)} members were not defragmented ({'; '.join(failed)})"
        raise Failure(f"{text}; try again, with a longer --command-timeout", ExitCode.ERROR)
    if session.write_out is WriteOut.JSON:
        write_json({})
