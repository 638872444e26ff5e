"""What the Auth requests do, with etcd's checks in etcd's order (server/auth/store.go).

Each function takes the changes so far and a request, and returns why it was refused, or None. Nothing is changed by a
refused request. Who may ask is not looked at here.
"""

import binascii
from base64 import b64decode
from typing import Final

from kvstore import errors
from kvstore.auth.changes import AuthChanges
from kvstore.auth.table import ROOT
from kvstore.errors import KvError
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.auth_pb2 import Permission, Role, User, UserAddOptions

OPEN_END: Final = b"\0"
NAME_BYTES_MAX: Final = 32768  # a longer one is no key of a snapshot file; etcd dies of it


def enable(changes: AuthChanges) -> KvError | None:
    table = changes.table
    if table.enabled:
        return None
    if ROOT not in table.users:
        return errors.ROOT_USER_NOT_EXIST
    if not table.is_root(ROOT):
        return errors.ROOT_ROLE_NOT_EXIST
    changes.enable()
    return None


def disable(changes: AuthChanges) -> KvError | None:
    if changes.table.enabled:
        changes.disable()
    return None


# -- users -------------------------------------------------------------------------------------------


def user_add(changes: AuthChanges, request: pb.AuthUserAddRequest) -> KvError | None:
    if not request.name:
        return errors.USER_EMPTY
    if len(request.name.encode()) > NAME_BYTES_MAX:
        return errors.REQUEST_TOO_LARGE
    if request.name in changes.table.users:
        return errors.USER_EXISTS
    no_password = request.options.no_password
    password = b"" if no_password else _password(request.hashedPassword)
    if password is None:
        return errors.NO_PASSWORD_USER
    options = UserAddOptions(no_password=no_password)
    changes.put_user(User(name=request.name.encode(), password=password, options=options))
    return None


def user_delete(changes: AuthChanges, request: pb.AuthUserDeleteRequest) -> KvError | None:
    if changes.table.enabled and request.name == ROOT:
        return errors.INVALID_AUTH_MANAGEMENT
    if request.name not in changes.table.users:
        return errors.USER_NOT_FOUND
    changes.delete_user(request.name)
    changes.end_tokens(request.name)
    return None


def user_change_password(changes: AuthChanges, request: pb.AuthUserChangePasswordRequest) -> KvError | None:
    user = changes.table.users.get(request.name)
    if user is None:
        return errors.USER_NOT_FOUND
    password = b"" if user.options.no_password else _password(request.hashedPassword)
    if password is None:
        return errors.NO_PASSWORD_USER
    changes.put_user(User(name=user.name, password=password, roles=user.roles, options=user.options))
    changes.end_tokens(request.name)
    return None


def user_grant_role(changes: AuthChanges, request: pb.AuthUserGrantRoleRequest) -> KvError | None:
    user = changes.table.users.get(request.user)
    if user is None:
        return errors.USER_NOT_FOUND
    # The role root need not be there: its name alone is what counts.
    if request.role != ROOT and request.role not in changes.table.roles:
        return errors.ROLE_NOT_FOUND
    if request.role not in user.roles:
        changes.put_user(_with_roles(user, [*user.roles, request.role]))
    return None


def user_revoke_role(changes: AuthChanges, request: pb.AuthUserRevokeRoleRequest) -> KvError | None:
    if changes.table.enabled and request.name == ROOT and request.role == ROOT:
        return errors.INVALID_AUTH_MANAGEMENT
    user = changes.table.users.get(request.name)
    if user is None:
        return errors.USER_NOT_FOUND
    if request.role not in user.roles:
        return errors.ROLE_NOT_GRANTED
    changes.put_user(_without_role(user, request.role))
    return None


# -- roles -------------------------------------------------------------------------------------------


def role_add(changes: AuthChanges, request: pb.AuthRoleAddRequest) -> KvError | None:
    if not request.name:
        return errors.ROLE_EMPTY
    if len(request.name.encode()) > NAME_BYTES_MAX:
        return errors.REQUEST_TOO_LARGE
    if request.name in changes.table.roles:
        return errors.ROLE_EXISTS
    changes.put_role(Role(name=request.name.encode()))
    return None


def role_delete(changes: AuthChanges, request: pb.AuthRoleDeleteRequest) -> KvError | None:
    table = changes.table
    if table.enabled and request.role == ROOT:
        return errors.INVALID_AUTH_MANAGEMENT
    if request.role not in table.roles:
        return errors.ROLE_NOT_FOUND
    holders = [user for user in table.users.values() if request.role in user.roles]
    changes.delete_role(request.role, [_without_role(user, request.role) for user in holders])
    return None


def role_grant_permission(changes: AuthChanges, request: pb.AuthRoleGrantPermissionRequest) -> KvError | None:
    if not request.HasField("perm"):
        return errors.PERMISSION_NOT_GIVEN
    wanted = request.perm
    if not is_valid_range(wanted.key, wanted.range_end):
        return errors.INVALID_AUTH_MANAGEMENT
    role = changes.table.roles.get(request.name)
    if role is None:
        return errors.ROLE_NOT_FOUND
    others = [one for one in role.keyPermission if not _is_of(one, wanted.key, wanted.range_end)]
    changes.put_role(Role(name=role.name, keyPermission=sorted([*others, wanted], key=lambda one: one.key)))
    return None


def role_revoke_permission(changes: AuthChanges, request: pb.AuthRoleRevokePermissionRequest) -> KvError | None:
    role = changes.table.roles.get(request.role)
    if role is None:
        return errors.ROLE_NOT_FOUND
    left = [one for one in role.keyPermission if not _is_of(one, request.key, request.range_end)]
    if len(left) == len(role.keyPermission):
        return errors.PERMISSION_NOT_GRANTED
    changes.put_role(Role(name=role.name, keyPermission=left))
    return None


def is_valid_range(key: bytes, range_end: bytes) -> bool:
    return bool(key) and (not range_end or range_end == OPEN_END or key < range_end)


def _is_of(permission: Permission, key: bytes, range_end: bytes) -> bool:
    return permission.key == key and permission.range_end == range_end


def _with_roles(user: User, roles: list[str]) -> User:
    return User(name=user.name, password=user.password, roles=sorted(roles), options=user.options)


def _without_role(user: User, role: str) -> User:
    return _with_roles(user, [other for other in user.roles if other != role])


def _password(hashed: str) -> bytes | None:
    """The bcrypt string of a request, which has it in base64 as etcd's log does."""
    try:
        return b64decode(hashed, validate=True)
    except (binascii.Error, ValueError):
        return None
