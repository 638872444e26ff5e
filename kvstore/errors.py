"""Every error that leaves the server: etcd's code and etcd's exact text, in one table.

Clients match on the text (etcd's rpctypes map, Patroni, npm's etcd3), so a text here is wire contract
(etcd api/v3rpc/rpctypes/error.go). An error is a value: apply returns it in a result, a service hands
it to the front, the client raises it. Compare with `is` or by `==` on code and text.
"""

from enum import IntEnum
from typing import Final, final


class Code(IntEnum):
    """gRPC status codes, by number, so that no layer below the front needs grpc."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    @property
    def go_name(self) -> str:
        """As Go's gRPC prints it: PermissionDenied."""
        return self.name.title().replace("_", "")


@final
class KvError(Exception):
    """An answer that is not a result. `code` and `message` are what the client sees."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def fresh(self) -> "KvError":
        """A copy, to be raised. Python adds the frames of every raise to those that an exception has already: an
        error of the table that was raised itself would keep all of them, and what they hold, for ever."""
        return KvError(self.code, self.message)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KvError) and self.code == other.code and self.message == other.message

    def __hash__(self) -> int:
        return hash((self.code, self.message))

    def __repr__(self) -> str:
        return f"KvError({self.code.name}, {self.message!r})"


def _error(code: Code, text: str) -> KvError:
    return KvError(code, "etcdserver: " + text)


KEY_NOT_PROVIDED: Final = _error(Code.INVALID_ARGUMENT, "key is not provided")
KEY_NOT_FOUND: Final = _error(Code.INVALID_ARGUMENT, "key not found")
VALUE_PROVIDED: Final = _error(Code.INVALID_ARGUMENT, "value is provided")
LEASE_PROVIDED: Final = _error(Code.INVALID_ARGUMENT, "lease is provided")
TOO_MANY_OPS: Final = _error(Code.INVALID_ARGUMENT, "too many operations in txn request")
DUPLICATE_KEY: Final = _error(Code.INVALID_ARGUMENT, "duplicate key given in txn request")
INVALID_CLIENT_API_VERSION: Final = _error(Code.INVALID_ARGUMENT, "invalid client api version")
INVALID_SORT_OPTION: Final = _error(Code.INVALID_ARGUMENT, "invalid sort option")
MEMBER_BAD_URLS: Final = _error(Code.INVALID_ARGUMENT, "given member URLs are invalid")
REQUEST_TOO_LARGE: Final = _error(Code.INVALID_ARGUMENT, "request is too large")
USER_EMPTY: Final = _error(Code.INVALID_ARGUMENT, "user name is empty")
ROLE_EMPTY: Final = _error(Code.INVALID_ARGUMENT, "role name is empty")
AUTH_FAILED: Final = _error(Code.INVALID_ARGUMENT, "authentication failed, invalid user ID or password")
PERMISSION_NOT_GIVEN: Final = _error(Code.INVALID_ARGUMENT, "permission not given")
INVALID_AUTH_MANAGEMENT: Final = _error(Code.INVALID_ARGUMENT, "invalid auth management")
AUTH_OLD_REVISION: Final = _error(Code.INVALID_ARGUMENT, "revision of auth store is old")

WRONG_DOWNGRADE_FORMAT: Final = _error(Code.INVALID_ARGUMENT, "wrong downgrade target version format")
INVALID_DOWNGRADE_TARGET: Final = _error(Code.INVALID_ARGUMENT, "invalid downgrade target version")

COMPACTED: Final = _error(Code.OUT_OF_RANGE, "mvcc: required revision has been compacted")
FUTURE_REVISION: Final = _error(Code.OUT_OF_RANGE, "mvcc: required revision is a future revision")
LEASE_TTL_TOO_LARGE: Final = _error(Code.OUT_OF_RANGE, "too large lease TTL")

NO_SPACE: Final = _error(Code.RESOURCE_EXHAUSTED, "mvcc: database space exceeded")
TOO_MANY_REQUESTS: Final = _error(Code.RESOURCE_EXHAUSTED, "too many requests")

LEASE_NOT_FOUND: Final = _error(Code.NOT_FOUND, "requested lease not found")
MEMBER_NOT_FOUND: Final = _error(Code.NOT_FOUND, "member not found")

MEMBER_ID_EXISTS: Final = _error(Code.FAILED_PRECONDITION, "member ID already exist")
PEER_URL_EXISTS: Final = _error(Code.FAILED_PRECONDITION, "Peer URLs already exists")
# etcd's table has a code for it that its servers, all versions, do not send: they say Unknown.
NOT_ENOUGH_STARTED: Final = _error(Code.UNKNOWN, "re-configuration failed due to not enough started members")
NOT_A_LEARNER: Final = _error(Code.FAILED_PRECONDITION, "can only promote a learner member")
LEARNER_NOT_READY: Final = _error(
    Code.FAILED_PRECONDITION, "can only promote a learner member which is in sync with leader"
)
TOO_MANY_LEARNERS: Final = _error(Code.FAILED_PRECONDITION, "too many learner members in cluster")
LEASE_EXISTS: Final = _error(Code.FAILED_PRECONDITION, "lease already exists")
NOT_LEADER: Final = _error(Code.FAILED_PRECONDITION, "not leader")
BAD_LEADER_TRANSFEREE: Final = _error(Code.FAILED_PRECONDITION, "bad leader transferee")
NOT_SUPPORTED_FOR_LEARNER: Final = _error(Code.FAILED_PRECONDITION, "rpc not supported for learner")
ROOT_USER_NOT_EXIST: Final = _error(Code.FAILED_PRECONDITION, "root user does not exist")
ROOT_ROLE_NOT_EXIST: Final = _error(Code.FAILED_PRECONDITION, "root user does not have root role")
USER_EXISTS: Final = _error(Code.FAILED_PRECONDITION, "user name already exists")
USER_NOT_FOUND: Final = _error(Code.FAILED_PRECONDITION, "user name not found")
ROLE_EXISTS: Final = _error(Code.FAILED_PRECONDITION, "role name already exists")
ROLE_NOT_FOUND: Final = _error(Code.FAILED_PRECONDITION, "role name not found")
ROLE_NOT_GRANTED: Final = _error(Code.FAILED_PRECONDITION, "role is not granted to the user")
PERMISSION_NOT_GRANTED: Final = _error(Code.FAILED_PRECONDITION, "permission is not granted to the role")
AUTH_NOT_ENABLED: Final = _error(Code.FAILED_PRECONDITION, "authentication is not enabled")

NOT_CAPABLE: Final = _error(Code.FAILED_PRECONDITION, "not capable")
CLUSTER_VERSION_UNAVAILABLE: Final = _error(Code.FAILED_PRECONDITION, "cluster version not found during downgrade")
DOWNGRADE_IN_PROCESS: Final = _error(Code.FAILED_PRECONDITION, "cluster has a downgrade job in progress")
NO_INFLIGHT_DOWNGRADE: Final = _error(Code.FAILED_PRECONDITION, "no inflight downgrade job")

PERMISSION_DENIED: Final = _error(Code.PERMISSION_DENIED, "permission denied")
INVALID_AUTH_TOKEN: Final = _error(Code.UNAUTHENTICATED, "invalid auth token")
CORRUPT: Final = _error(Code.DATA_LOSS, "corrupt cluster")

NO_LEADER: Final = _error(Code.UNAVAILABLE, "no leader")
LEADER_CHANGED: Final = _error(Code.UNAVAILABLE, "leader changed")
STOPPED: Final = _error(Code.UNAVAILABLE, "server stopped")
TIMEOUT: Final = _error(Code.UNAVAILABLE, "request timed out")
TIMEOUT_LEADER_FAIL: Final = _error(Code.UNAVAILABLE, "request timed out, possibly due to previous leader failure")
TIMEOUT_CONNECTION_LOST: Final = _error(Code.UNAVAILABLE, "request timed out, possibly due to connection lost")
TIMEOUT_APPLY: Final = _error(Code.UNAVAILABLE, "request timed out, waiting for the applied index took too long")
UNHEALTHY: Final = _error(Code.UNAVAILABLE, "unhealthy cluster")

UNKNOWN_METHOD: Final = _error(Code.UNKNOWN, "unknown method")

WATCH_CANCELED: Final = _error(Code.CANCELLED, "watch canceled")
REQUEST_CANCELED: Final = _error(Code.CANCELLED, "request canceled")

# What etcd never mapped to a code of its own, with the texts of its packages.
NO_PASSWORD_USER: Final = KvError(Code.UNKNOWN, "auth: authentication failed, password was given for no password user")
PASSWORD_TOO_LONG: Final = KvError(Code.UNKNOWN, "bcrypt: password length exceeds 72 bytes")
VERIFY_ONLY: Final = KvError(Code.UNKNOWN, "auth: token signing attempted with verify-only key")

# A codec's answer to bytes that are not the message they should be: etcd's Go front says the same.
MALFORMED: Final = KvError(Code.INTERNAL, "grpc: error unmarshalling request: malformed message")


def unimplemented(method: str) -> KvError:
    """For an RPC that this version does not serve yet."""
    return KvError(Code.UNIMPLEMENTED, f"{method} is not served by this version")
