"""AuthTable: users and roles at one moment of the log, and what follows from them.

A table never changes. Apply makes another one (changes.py), and the store shows it with the batch that holds its rows;
so whoever reads the store decides by the table of the very state that is read.

    a state        -> enabled, revision
    a role/ NAME   -> authpb.Role
    a user/ NAME   -> authpb.User, the password as its bcrypt string

The revision begins at 1 and grows with each change. A caller's identity carries the one that it was proved at: where
the table has moved on, requests about keys are refused, and the client proves itself again (etcd's rule).

Every `refuse_*` returns why not, or None. While authentication is off, nothing is refused.
"""

from collections.abc import Mapping
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, final

from kvstore.auth.ranges import Interval, Ranges
from kvstore.errors import AUTH_OLD_REVISION, PERMISSION_DENIED, USER_EMPTY, KvError
from kvstore.mvcc import schema
from kvstore.pb.auth_pb2 import Permission, Role, User

if TYPE_CHECKING:
    from kvstore.mvcc.engine import Engine

ROOT: Final = "root"  # the user without whom nothing is enabled, and the role that may do everything

STATE_ROW: Final = schema.AUTH + b"state"
_ROLE: Final = schema.AUTH + b"role/"
_USER: Final = schema.AUTH + b"user/"
_STATE: Final = Struct(">?Q")

READS: Final = frozenset((Permission.READ, Permission.READWRITE))
WRITES: Final = frozenset((Permission.WRITE, Permission.READWRITE))


def user_row(name: str) -> bytes:
    return _USER + name.encode()


def role_row(name: str) -> bytes:
    return _ROLE + name.encode()


class Identity(NamedTuple):
    """Who a request is of, as far as it was proved."""

    user: str = ""
    revision: int = 0  # of the table, when it was proved; 0: it was not


NOBODY: Final = Identity()


class _Allowed(NamedTuple):
    is_root: bool
    read: Ranges
    write: Ranges


@final
class AuthTable:
    __slots__ = ("_allowed", "enabled", "revision", "roles", "users")

    def __init__(
        self,
        enabled: bool = False,
        revision: int = 1,
        users: Mapping[str, User] | None = None,
        roles: Mapping[str, Role] | None = None,
    ) -> None:
        self.enabled = enabled
        self.revision = revision
        self.users = users or {}
        self.roles = roles or {}
        self._allowed: dict[str, _Allowed] = {}  # by user, once it has asked for something

    def __repr__(self) -> str:
        return f"AuthTable(enabled={self.enabled}, revision={self.revision}, {len(self.users)} users)"

    @classmethod
    def load(cls, engine: "Engine") -> "AuthTable":
        """Raises struct.error or DecodeError on a damaged row."""
        enabled, revision = False, 1
        users: dict[str, User] = {}
        roles: dict[str, Role] = {}
        for row, value in engine.scan(schema.AUTH, schema.after(schema.AUTH)).rest():
            if row == STATE_ROW:
                enabled, revision = _STATE.unpack(value)
            elif row.startswith(_USER):
                users[row[len(_USER) :].decode()] = User.FromString(value)
            elif row.startswith(_ROLE):
                roles[row[len(_ROLE) :].decode()] = Role.FromString(value)
        return cls(enabled, revision, users, roles)

    def state_row(self) -> bytes:
        return _STATE.pack(self.enabled, self.revision)

    # What is allowed

    def is_root(self, name: str) -> bool:
        user = self.users.get(name)
        return user is not None and ROOT in user.roles

    def refuse_user(self, who: Identity) -> KvError | None:
        """Anybody who is somebody."""
        if not self.enabled:
            return None
        if not who.user:
            return USER_EMPTY
        return None if who.user in self.users else PERMISSION_DENIED

    def refuse_root(self, who: Identity) -> KvError | None:
        """As etcd, it does not ask for the newest revision: an administrator's commands follow upon each other."""
        refused = self.refuse_user(who)
        if refused is not None or not self.enabled:
            return refused
        return None if self.is_root(who.user) else PERMISSION_DENIED

    def refuse_read(self, who: Identity, key: bytes, range_end: bytes = b"") -> KvError | None:
        return self._refuse_keys(who, key, range_end, False)

    def refuse_write(self, who: Identity, key: bytes, range_end: bytes = b"") -> KvError | None:
        return self._refuse_keys(who, key, range_end, True)

    def refuse_stale(self, who: Identity) -> KvError | None:
        """What stands before every question about keys."""
        if not self.enabled:
            return None
        if not who.revision or not who.user:
            return USER_EMPTY
        if who.revision < self.revision:
            return AUTH_OLD_REVISION
        return None if who.user in self.users else PERMISSION_DENIED

    def may_write_everything(self, name: str) -> bool:
        allowed = self._allowed_of(name)
        return allowed is not None and (allowed.is_root or allowed.write.is_everything)

    def _refuse_keys(self, who: Identity, key: bytes, range_end: bytes, write: bool) -> KvError | None:
        refused = self.refuse_stale(who)
        if refused is not None or not self.enabled:
            return refused
        allowed = self._allowed_of(who.user)
        assert allowed is not None, "refuse_stale lets known users pass only"
        if allowed.is_root:
            return None
        ranges = allowed.write if write else allowed.read
        return None if ranges.covers(*schema.range_bounds(key, range_end)) else PERMISSION_DENIED

    def _allowed_of(self, name: str) -> _Allowed | None:
        allowed = self._allowed.get(name)
        if allowed is None:
            user = self.users.get(name)
            if user is None:
                return None
            granted = [
                permission for role in user.roles if role in self.roles for permission in self.roles[role].keyPermission
            ]
            allowed = _Allowed(
                ROOT in user.roles,
                Ranges([_interval(one) for one in granted if one.permType in READS]),
                Ranges([_interval(one) for one in granted if one.permType in WRITES]),
            )
            self._allowed[name] = allowed
        return allowed


def _interval(permission: Permission) -> Interval:
    return schema.range_bounds(permission.key, permission.range_end)
