from typing import Any

from kvstore.client.errors import ClientError
from kvstore.client.types import Status
from kvstore.kvctl.endpoints import Cluster, ask_each, complain, targets
from kvstore.kvctl.failures import ExitCode, Failure
from kvstore.kvctl.formats import present, quote, size, write, write_json, write_table
from kvstore.kvctl.printers import header_fields, header_json
from kvstore.kvctl.session import Session
from kvstore.kvctl.settings import WriteOut

TITLES = (
    "ENDPOINT",
    "ID",
    "VERSION",
    "DB SIZE",
    "IS LEADER",
    "IS LEARNER",
    "RAFT TERM",
    "RAFT INDEX",
    "RAFT APPLIED INDEX",
    "ERRORS",
)


async def endpoint_status(session: Session, cluster: Cluster = False) -> None:
    """Print the state of each endpoint: version, size, leader, term and log positions.

    Example:

    kvctl endpoint status --cluster -w table
    """
    urls = await targets(session, cluster)
    answers = await ask_each(session, urls, lambda client, url: client.status(url))
    found = [(url, status) for url, status in answers if isinstance(status, Status)]
    if session.write_out is WriteOut.JSON:
        write_json([{"Endpoint": url, "Status": _json(status)} for url, status in found])
    elif session.write_out is WriteOut.TABLE:
        write_table(TITLES, [_row(url, status) for url, status in found])
    else:
        for url, status in found:
            if session.write_out is WriteOut.FIELDS:
                _fields(url, status)
            else:
                write(", ".join(_row(url, status)))
    for url, error in answers:
        if isinstance(error, ClientError):
            complain("status", url, error)
    if len(found) < len(answers):
        raise Failure(
            f"{len(answers) - len(found)} of {len(answers)} endpoints did not answer; start them or mend --endpoints",
            ExitCode.UNAVAILABLE,
        )


def _row(url: str, status: Status) -> tuple[str, ...]:
    return (
        url,
        f"{status.header.member_id:x}",
        status.version,
        size(status.db_size),
        str(status.is_leader).lower(),
        str(status.is_learner).lower(),
        str(status.raft_term),
        str(status.raft_index),
        str(status.raft_applied_index),
        ", ".join(status.errors),
    )


def _json(status: Status) -> dict[str, Any]:
    return {
        "header": header_json(status.header),
        **present(
            version=status.version,
            dbSize=status.db_size,
            leader=status.leader,
            raftIndex=status.raft_index,
            raftTerm=status.raft_term,
            raftAppliedIndex=status.raft_applied_index,
            errors=list(status.errors),
            dbSizeInUse=status.db_size_in_use,
            isLearner=status.is_learner,
            storageVersion=status.storage_version,
            dbSizeQuota=status.db_size_quota,
            downgradeInfo=status.downgrade and {"enabled": True, "targetVersion": status.downgrade},
        ),
    }


def _fields(url: str, status: Status) -> None:
    header_fields(status.header)
    write(f'"Version" : {quote(status.version.encode())}')
    write(f'"DBSize" : {status.db_size}')
    write(f'"Leader" : {status.leader}')
    write(f'"IsLearner" : {str(status.is_learner).lower()}')
    write(f'"RaftIndex" : {status.raft_index}')
    write(f'"RaftTerm" : {status.raft_term}')
    write(f'"RaftAppliedIndex" : {status.raft_applied_index}')
    write(f'"Errors" : [{" ".join(quote(error.encode()) for error in status.errors)}]')
    write(f'"Endpoint" : {quote(url.encode())}')
    write()
