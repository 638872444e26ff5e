from typing import Annotated

import typer

from kvstore.client.errors import ClientError
from kvstore.client.types import HashKv
from kvstore.kvctl.endpoints import Cluster, ask_each, complain, targets
from kvstore.kvctl.failures import ExitCode, Failure
from kvstore.kvctl.formats import present, quote, write, write_json, write_table
from kvstore.kvctl.printers import header_fields, header_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut


async def endpoint_hashkv(
    session: Session,
    cluster: Cluster = False,
    rev: Annotated[int, typer.Option(help="Hash up to this revision; 0: the newest.")] = 0,
) -> None:
    """Print the hash of all keys and revisions of each endpoint: equal hashes are equal contents.

    Example:

    kvctl endpoint hashkv --cluster
    """
    urls = await targets(session, cluster)
    answers = await ask_each(session, urls, lambda client, url: client.hash_kv(url, revision=rev))
    found = [(url, answer) for url, answer in answers if isinstance(answer, HashKv)]
    if session.write_out is WriteOut.JSON:
        write_json(
            [
                {
                    "Endpoint": url,
                    "HashKV": {
                        "header": header_json(answer.header),
                        **present(hash=answer.hash, compact_revision=answer.compact_revision),
                    },
                }
                for url, answer in found
            ]
        )
    elif session.write_out is WriteOut.TABLE:
        write_table(("ENDPOINT", "HASH"), [(url, str(answer.hash)) for url, answer in found])
    else:
        for url, answer in found:
            if session.write_out is WriteOut.FIELDS:
                header_fields(answer.header)
                write(f'"Endpoint" : {quote(url.encode())}')
                write(f'"Hash" : {answer.hash}')
                write()
            else:
                write(f"{url}, {answer.hash}")
    for url, error in answers:
        if isinstance(error, ClientError):
            complain("hash", url, error)
    if len(found) < len(answers):
        raise Failure(
            f"{len(answers) - len(found)} of {len(answers)} endpoints gave no hash; see `kvctl endpoint status`",
            ExitCode.UNAVAILABLE,
        )
