from kvstore.client.types import Member, MemberList
from kvstore.kvctl.formats import quote, write, write_table
from kvstore.kvctl.printers import header_fields, write_members_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut

TITLES = ("ID", "STATUS", "NAME", "PEER ADDRS", "CLIENT ADDRS", "IS LEARNER")


async def member_list(session: Session) -> None:
    """Print the members of the cluster.

    Example:

    kvctl member list -w table
    """
    async with session.client() as client:
        result = await client.member_list()
    if session.write_out is WriteOut.JSON:
        write_members_json(result.header, result.members)
    elif session.write_out is WriteOut.FIELDS:
        _fields(result)
    elif session.write_out is WriteOut.TABLE:
        write_table(TITLES, [_row(member) for member in result.members])
    else:
        for member in result.members:
            write(", ".join(_row(member)))


def _row(member: Member) -> tuple[str, ...]:
    return (
        f"{member.id:x}",
        "started" if member.name else "unstarted",
        member.name,
        ",".join(member.peer_urls),
        ",".join(member.client_urls),
        str(member.is_learner).lower(),
    )


def _fields(result: MemberList) -> None:
    header_fields(result.header)
    for member in result.members:
        write(f'"ID" : {member.id}')
        write(f'"Name" : {quote(member.name.encode())}')
        for url in member.peer_urls:
            write(f'"PeerURL" : {quote(url.encode())}')
        for url in member.client_urls:
            write(f'"ClientURL" : {quote(url.encode())}')
        write(f'"IsLearner" : {str(member.is_learner).lower()}')
        write()
