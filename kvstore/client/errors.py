"""What the client raises: one tree, made from the (code, text) pairs of the server's error table.

    ClientError                     code, message, outcome_unknown
      +- InvalidRequest             the request is wrong; sending it again cannot help
      |    +- RequestTooLarge, KeyNotFound
      +- RevisionError
      |    +- Compacted             compact_revision says from where on there is something
      |    +- FutureRevision
      +- NotFound, PreconditionFailed, PermissionDenied, Unauthenticated, Unimplemented
      +- Overloaded                 refused before anything was proposed
      |    +- NoSpace
      +- Unavailable                no answer; another member, or later, may have one
      |    +- NotConnected          no member was reached: the request was never sent
      |    +- DeadlineExceeded
      +- DataLoss                   what came is damaged, or the cluster says that its data are
      +- WatchCanceled              the server ended a watch and gave a reason
      +- SessionExpired             a lock or an election lost the lease that it hung on
      +- NotLeader

`outcome_unknown` is the question a writer must ask: True when the request left this process and no answer
proves that it was not applied. It is never True for a read, nor for NotConnected.
"""

from typing import Final

from kvstore import errors as table
from kvstore.errors import Code, KvError


class ClientError(Exception):
    """`code` is the gRPC status code, `message` the server's text (or ours where no server answered)."""

    code: Code = Code.UNKNOWN

    def __init__(self, message: str, code: Code | None = None, *, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.outcome_unknown = outcome_unknown
        if code is not None:
            self.code = code


class InvalidRequest(ClientError):
    code = Code.INVALID_ARGUMENT


class RequestTooLarge(InvalidRequest):
    """Over the server's --max-request-bytes (1.5 MiB by default)."""


class KeyNotFound(InvalidRequest):
    """`ignore_value` or `ignore_lease` on a key that does not exist."""


class RevisionError(ClientError):
    code = Code.OUT_OF_RANGE


class Compacted(RevisionError):
    """The revision is below the compaction point. `compact_revision` is 0 where the server did not say it."""

    def __init__(self, message: str, code: Code | None = None, *, compact_revision: int = 0) -> None:
        super().__init__(message, code)
        self.compact_revision = compact_revision


class FutureRevision(RevisionError):
    """The revision has not been written yet."""


class NotFound(ClientError):
    code = Code.NOT_FOUND


class PreconditionFailed(ClientError):
    code = Code.FAILED_PRECONDITION


class PermissionDenied(ClientError):
    code = Code.PERMISSION_DENIED


class Unauthenticated(ClientError):
    code = Code.UNAUTHENTICATED


class Unimplemented(ClientError):
    code = Code.UNIMPLEMENTED


class Overloaded(ClientError):
    """The server refused the request before it proposed anything: sending it again later is safe."""

    code = Code.RESOURCE_EXHAUSTED


class NoSpace(Overloaded):
    """The space quota is used up: compact, or raise the quota."""


class Unavailable(ClientError):
    code = Code.UNAVAILABLE


class NotConnected(Unavailable):
    """No member could be connected in time: the request was never sent."""


class DeadlineExceeded(Unavailable):
    code = Code.DEADLINE_EXCEEDED


class DataLoss(ClientError):
    code = Code.DATA_LOSS


class WatchCanceled(ClientError):
    code = Code.CANCELLED


class SessionExpired(ClientError):
    """No sign of life of ours reached the cluster in time: what was bound to the session is gone, or may be."""


class NotLeader(ClientError):
    """Another one leads by now, or nobody does."""


_BY_ERROR: Final[dict[KvError, type[ClientError]]] = {
    table.COMPACTED: Compacted,
    table.FUTURE_REVISION: FutureRevision,
    table.REQUEST_TOO_LARGE: RequestTooLarge,
    table.KEY_NOT_FOUND: KeyNotFound,
    table.NO_SPACE: NoSpace,
    table.TOO_MANY_REQUESTS: Overloaded,
}
_BY_CODE: Final[dict[Code, type[ClientError]]] = {
    Code.INVALID_ARGUMENT: InvalidRequest,
    Code.OUT_OF_RANGE: RevisionError,
    Code.NOT_FOUND: NotFound,
    Code.FAILED_PRECONDITION: PreconditionFailed,
    Code.PERMISSION_DENIED: PermissionDenied,
    Code.UNAUTHENTICATED: Unauthenticated,
    Code.UNIMPLEMENTED: Unimplemented,
    Code.UNAVAILABLE: Unavailable,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.DATA_LOSS: DataLoss,
}
# These codes are refusals: the server looked at the request and did not take it.
_REFUSALS: Final = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.OUT_OF_RANGE,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.FAILED_PRECONDITION,
        Code.PERMISSION_DENIED,
        Code.UNAUTHENTICATED,
        Code.UNIMPLEMENTED,
    }
)


def from_status(code: Code, message: str, *, mutation: bool) -> ClientError:
    """The error for an answer with this status. `mutation`: the request would have changed something."""
    cls = _BY_ERROR.get(KvError(code, message)) or _BY_CODE.get(code, ClientError)
    if issubclass(cls, Compacted):
        return cls(message, code)
    # RESOURCE_EXHAUSTED is also what grpc says of an answer that is too big to receive: by then it was applied.
    refused = code in _REFUSALS or issubclass(cls, Overloaded)
    return cls(message, code, outcome_unknown=mutation and not refused)
