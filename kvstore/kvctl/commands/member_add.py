from typing import Annotated

import typer

from kvstore.kvctl.failures import usage
from kvstore.kvctl.formats import quote, write
from kvstore.kvctl.printers import member_json, write_members_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut


async def member_add(
    session: Session,
    name: Annotated[str, typer.Argument(help="What the new member will be called.")],
    peer_urls: Annotated[str, typer.Option(help="Where the others reach it: URL[,URL...].")],
    learner: Annotated[bool, typer.Option("--learner", help="It does not vote until it is promoted.")] = False,
) -> None:
    """Let a new member join. Prints the settings to start it with.

    Example:

    kvctl member add m4 --peer-urls=http://10.0.0.4:2380 --learner
    """
    session.simple_or_json("member add")
    urls = split_urls(peer_urls)
    async with session.client() as client:
        result = await client.member_add(urls, learner=learner)
    if session.write_out is WriteOut.JSON:
        write_members_json(result.header, result.members, member=member_json(result.member))
        return
    write(f"Member {result.member.id:16x} added to cluster {result.header.cluster_id:16x}")
    cluster = [
        f"{name if member.id == result.member.id else member.name}={url}"
        for member in result.members
        for url in member.peer_urls
    ]
    write()
    write(f"ETCD_NAME={quote(name.encode())}")
    write(f"ETCD_INITIAL_CLUSTER={quote(','.join(cluster).encode())}")
    write(f"ETCD_INITIAL_ADVERTISE_PEER_URLS={quote(peer_urls.encode())}")
    write('ETCD_INITIAL_CLUSTER_STATE="existing"')


def split_urls(text: str) -> list[str]:
    urls = [url for url in text.split(",") if url]
    if not urls:
        raise usage("--peer-urls names no URL; want for example http://10.0.0.4:2380")
    return urls


def hex_id(text: str) -> int:
    """A member's id as it is printed."""
    try:
        return int(text, 16)
    except ValueError:
        raise usage(f"{text!r} is no member id; `kvctl member list` prints them, in hexadecimal") from None
