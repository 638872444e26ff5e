"""Exit codes, and errors as one line that ends in a next step."""

from enum import IntEnum
from typing import Final

from kvstore import errors as table
from kvstore.client import errors
from kvstore.errors import KvError


class ExitCode(IntEnum):
    OK = 0
    ERROR = 1
    USAGE = 2
    UNAVAILABLE = 3  # no answer in time: the outcome of a write is unknown
    PARTIAL = 5  # import or export left something out
    INTERRUPTED = 130


EXIT_CODES_HELP: Final = (
    "Exit codes: 0 ok; 1 error; 2 wrong usage; 3 no member answered in time (a write may or may not have been "
    "applied); 5 import or export left something out; 130 interrupted."
)


class Failure(Exception):
    """Ends the command with this line on stderr and this code."""

    def __init__(self, message: str, code: ExitCode = ExitCode.ERROR) -> None:
        super().__init__(message)
        self.code = code


def usage(message: str) -> Failure:
    return Failure(message, ExitCode.USAGE)


_NEXT_STEPS: Final[dict[type[errors.ClientError], str]] = {
    errors.NotConnected: "nothing was sent; check --endpoints, or start a cluster with `kvstore local`",
    errors.DeadlineExceeded: "raise --command-timeout, or see `kvctl endpoint health --cluster`",
    errors.Unavailable: "try again, or see `kvctl endpoint health --cluster`",
    errors.RequestTooLarge: "the limit is the server's --max-request-bytes (1.5 MiB by default)",
    errors.FutureRevision: "`kvctl get KEY -w json` prints the newest revision",
    errors.NoSpace: "free space with `kvctl compact` and `kvctl defrag`, then `kvctl alarm disarm`",
    errors.Unimplemented: "this server does not serve it; see `kvctl endpoint status`",
    errors.KeyNotFound: "put the key with a value first",
}


_NEXT_STEPS_BY_TEXT: Final = {
    table.MEMBER_NOT_FOUND: "`kvctl member list` prints the members that there are",
    table.MEMBER_BAD_URLS: "want http://host:port[,http://host:port...]",
    table.PEER_URL_EXISTS: "`kvctl member list` prints whose it is",
    table.UNHEALTHY: "all voting members must have been connected for 5 s; see `kvctl endpoint health --cluster`",
    table.NOT_ENOUGH_STARTED: "start the members that were added, or remove them first",
    table.LEARNER_NOT_READY: "start it, or wait until it has caught up: `kvctl endpoint status --cluster`",
    table.TOO_MANY_LEARNERS: "promote or remove the one that there is, or raise --experimental-max-learners",
    table.CORRUPT: "`kvctl alarm list` names the damaged member: remove it, and add it anew with an empty directory",
    table.INVALID_DOWNGRADE_TARGET: "only to the minor version below the cluster's: `kvctl endpoint status -w json`",
    table.WRONG_DOWNGRADE_FORMAT: "want MAJOR.MINOR, such as 3.5",
    table.DOWNGRADE_IN_PROCESS: "`kvctl downgrade cancel` ends it",
    table.NO_INFLIGHT_DOWNGRADE: "there is none to end",
    table.BAD_LEADER_TRANSFEREE: "`kvctl member list` prints the members; a learner cannot lead",
    table.USER_EMPTY: "say who you are: --user NAME[:PASSWORD]",
    table.AUTH_FAILED: "check --user and --password",
    table.INVALID_AUTH_TOKEN: "try again",
    table.PERMISSION_DENIED: "`kvctl user get NAME --detail` prints what a user may do",
    table.ROOT_USER_NOT_EXIST: "`kvctl user add root` first",
    table.AUTH_NOT_ENABLED: "leave out --user, or `kvctl auth enable` first",
    table.INVALID_AUTH_MANAGEMENT: "root and its role stay while authentication is on; a range ends behind its begin",
    table.USER_NOT_FOUND: "`kvctl user list` prints the users that there are",
    table.ROLE_NOT_FOUND: "`kvctl role list` prints the roles that there are",
    table.ROLE_NOT_GRANTED: "`kvctl user get NAME` prints the user's roles",
    table.PERMISSION_NOT_GRANTED: "want the very range of `kvctl role get ROLE`",
    table.NOT_SUPPORTED_FOR_LEARNER: "ask a voting member; a learner answers `get --consistency=s` only",
}


def explain(error: errors.ClientError) -> Failure:
    """What the user reads of a client error."""
    if isinstance(error, errors.Compacted):
        since = f"from revision {error.compact_revision}" if error.compact_revision else "a newer revision"
        return Failure(f"{error.message}; read {since} on, or see `kvctl history`")
    step = _NEXT_STEPS_BY_TEXT.get(KvError(error.code, error.message), "") or next(
        (_NEXT_STEPS[cls] for cls in type(error).__mro__ if cls in _NEXT_STEPS), ""
    )
    if error.outcome_unknown:
        step = "the outcome is unknown: read the key before you send it again"
    code = ExitCode.UNAVAILABLE if isinstance(error, errors.Unavailable) or error.outcome_unknown else ExitCode.ERROR
    return Failure("; ".join(filter(None, (error.message or error.code.name, step))), code)
