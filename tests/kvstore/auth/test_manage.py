"""Users and roles: etcd's checks and its revisions (server/auth/store.go)."""

from base64 import b64encode
from typing import Any

import pytest

from kvstore import errors
from kvstore.auth import manage
from kvstore.auth.changes import AuthChanges, TokenChange
from kvstore.auth.table import AuthTable
from kvstore.errors import KvError
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.auth_pb2 import Permission

HASHED = b64encode(b"$2b$04$hash").decode()


def user(name: str, **more: Any) -> pb.AuthUserAddRequest:
    return pb.AuthUserAddRequest(name=name, hashedPassword=HASHED, **more)


@pytest.fixture
def changes() -> AuthChanges:
    """root, ann (web), the role web."""
    changes = AuthChanges(AuthTable())
    for refused in (
        manage.user_add(changes, user("root")),
        manage.user_add(changes, user("ann")),
        manage.role_add(changes, pb.AuthRoleAddRequest(name="web")),
        manage.role_add(changes, pb.AuthRoleAddRequest(name="root")),
        manage.user_grant_role(changes, pb.AuthUserGrantRoleRequest(user="root", role="root")),
        manage.user_grant_role(changes, pb.AuthUserGrantRoleRequest(user="ann", role="web")),
    ):
        assert refused is None
    assert changes.table.revision == 7
    return changes


def grant(key: bytes, range_end: bytes = b"", kind: Any = Permission.READ) -> pb.AuthRoleGrantPermissionRequest:
    return pb.AuthRoleGrantPermissionRequest(name="web", perm=Permission(permType=kind, key=key, range_end=range_end))


REFUSED: list[tuple[Any, Any, KvError]] = [
    (manage.user_add, user(""), errors.USER_EMPTY),
    (manage.user_add, user("ann"), errors.USER_EXISTS),
    (manage.user_delete, pb.AuthUserDeleteRequest(name="x"), errors.USER_NOT_FOUND),
    (manage.user_change_password, pb.AuthUserChangePasswordRequest(name="x"), errors.USER_NOT_FOUND),
    (manage.user_grant_role, pb.AuthUserGrantRoleRequest(user="x", role="web"), errors.USER_NOT_FOUND),
    (manage.user_grant_role, pb.AuthUserGrantRoleRequest(user="ann", role="x"), errors.ROLE_NOT_FOUND),
    (manage.user_revoke_role, pb.AuthUserRevokeRoleRequest(name="x", role="web"), errors.USER_NOT_FOUND),
    (manage.user_revoke_role, pb.AuthUserRevokeRoleRequest(name="ann", role="root"), errors.ROLE_NOT_GRANTED),
    (manage.role_add, pb.AuthRoleAddRequest(), errors.ROLE_EMPTY),
    (manage.role_add, pb.AuthRoleAddRequest(name="web"), errors.ROLE_EXISTS),
    (manage.role_delete, pb.AuthRoleDeleteRequest(role="x"), errors.ROLE_NOT_FOUND),
    (manage.role_grant_permission, pb.AuthRoleGrantPermissionRequest(name="web"), errors.PERMISSION_NOT_GIVEN),
    (manage.role_grant_permission, grant(b""), errors.INVALID_AUTH_MANAGEMENT),
    (manage.role_grant_permission, grant(b"b", b"a"), errors.INVALID_AUTH_MANAGEMENT),
    (manage.role_grant_permission, grant(b"b", b"b"), errors.INVALID_AUTH_MANAGEMENT),
    (
        manage.role_grant_permission,
        pb.AuthRoleGrantPermissionRequest(name="x", perm=Permission(key=b"a")),
        errors.ROLE_NOT_FOUND,
    ),
    (manage.role_revoke_permission, pb.AuthRoleRevokePermissionRequest(role="x"), errors.ROLE_NOT_FOUND),
    (
        manage.role_revoke_permission,
        pb.AuthRoleRevokePermissionRequest(role="web", key=b"a"),
        errors.PERMISSION_NOT_GRANTED,
    ),
]


@pytest.mark.parametrize(("do", "request_", "error"), REFUSED, ids=lambda value: getattr(value, "__name__", None))
def test_a_refused_request_changes_nothing(changes: AuthChanges, do: Any, request_: Any, error: KvError) -> None:
    before, rows = changes.table, dict(changes.rows)
    assert do(changes, request_) == error
    assert changes.table is before
    assert changes.rows == rows


def test_enabling_needs_root_with_its_role_and_is_no_revision(changes: AuthChanges) -> None:
    empty = AuthChanges(AuthTable())
    assert manage.enable(empty) == errors.ROOT_USER_NOT_EXIST
    manage.user_add(empty, user("root"))
    assert manage.enable(empty) == errors.ROOT_ROLE_NOT_EXIST
    # The role root need not be there to be granted.
    assert manage.user_grant_role(empty, pb.AuthUserGrantRoleRequest(user="root", role="root")) is None
    revision = empty.table.revision
    assert manage.enable(empty) is None
    assert manage.enable(empty) is None
    assert (empty.table.enabled, empty.table.revision) == (True, revision)
    assert manage.disable(empty) is None
    assert (empty.table.enabled, empty.table.revision) == (False, revision + 1)
    assert manage.disable(empty) is None
    assert empty.table.revision == revision + 1


def test_nobody_is_locked_out(changes: AuthChanges) -> None:
    requests: list[tuple[Any, Any]] = [
        (manage.user_delete, pb.AuthUserDeleteRequest(name="root")),
        (manage.user_revoke_role, pb.AuthUserRevokeRoleRequest(name="root", role="root")),
        (manage.role_delete, pb.AuthRoleDeleteRequest(role="root")),
    ]
    assert manage.enable(changes) is None
    for do, request in requests:
        assert do(changes, request) == errors.INVALID_AUTH_MANAGEMENT
    assert manage.disable(changes) is None
    for do, request in reversed(requests):
        assert do(changes, request) in (None, errors.ROLE_NOT_GRANTED)


def test_a_role_that_goes_leaves_its_users_in_one_revision(changes: AuthChanges) -> None:
    revision = changes.table.revision
    assert manage.role_delete(changes, pb.AuthRoleDeleteRequest(role="web")) is None
    assert list(changes.table.users["ann"].roles) == []
    assert changes.table.revision == revision + 1


def test_permissions_are_sorted_and_one_of_each_range(changes: AuthChanges) -> None:
    for request in (
        grant(b"c", b"\0"),
        grant(b"a", b"b"),
        grant(b"a"),
        grant(b"a", b"b", Permission.READWRITE),
    ):
        assert manage.role_grant_permission(changes, request) is None
    permissions = changes.table.roles["web"].keyPermission
    assert [(one.key, one.range_end, one.permType) for one in permissions] == [
        (b"a", b"", Permission.READ),
        (b"a", b"b", Permission.READWRITE),
        (b"c", b"\0", Permission.READ),
    ]
    gone = pb.AuthRoleRevokePermissionRequest(role="web", key=b"a", range_end=b"b")
    assert manage.role_revoke_permission(changes, gone) is None
    assert manage.role_revoke_permission(changes, gone) == errors.PERMISSION_NOT_GRANTED


def test_a_granted_role_again_is_no_revision(changes: AuthChanges) -> None:
    before = changes.table
    assert manage.user_grant_role(changes, pb.AuthUserGrantRoleRequest(user="ann", role="web")) is None
    assert changes.table is before


def test_tokens_end_with_their_user_and_password(changes: AuthChanges) -> None:
    password = pb.AuthUserChangePasswordRequest(name="ann", hashedPassword=HASHED)
    assert manage.user_change_password(changes, password) is None
    assert manage.user_delete(changes, pb.AuthUserDeleteRequest(name="ann")) is None
    manage.enable(changes)
    manage.disable(changes)
    assert changes.tokens == [TokenChange("ann"), TokenChange("ann"), TokenChange(None)]


def test_a_user_without_a_password_never_gets_one(changes: AuthChanges) -> None:
    from kvstore.pb.auth_pb2 import UserAddOptions

    assert manage.user_add(changes, user("carl", options=UserAddOptions(no_password=True))) is None
    request = pb.AuthUserChangePasswordRequest(name="carl", hashedPassword=HASHED)
    assert manage.user_change_password(changes, request) is None
    assert changes.table.users["carl"].password == b""


@pytest.mark.parametrize("name", ["x" * 32769, "\u00e9" * 16385])
def test_a_name_that_no_snapshot_file_can_hold_is_refused(changes: AuthChanges, name: str) -> None:
    """Found by fuzzing: it was taken, and from then on no snapshot could be made."""
    assert manage.user_add(changes, user(name)) is errors.REQUEST_TOO_LARGE
    assert manage.role_add(changes, pb.AuthRoleAddRequest(name=name)) is errors.REQUEST_TOO_LARGE
    assert manage.role_add(changes, pb.AuthRoleAddRequest(name=name[: 32768 // len("\u00e9".encode())])) is None
