"""Users, roles and permissions: `client.auth`.

    await client.auth.user_add("ann", "secret")
    await client.auth.role_add("web")
    await client.auth.role_grant_permission("web", "readwrite", "web/", prefix=True)
    await client.auth.user_grant_role("ann", "web")

The first user must be `root`, with the role `root`; then `enable`. From then on every client needs `user` and
`password`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, final

from kvstore.client.types import Bytes, Header, key_range
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.auth_pb2 import Permission as PermissionMessage
from kvstore.pb.auth_pb2 import UserAddOptions

Kind = Literal["read", "write", "readwrite"]
Ask = Callable[[Callable[[Any], Any], Any, float | None], Awaitable[Any]]  # (endpoint -> method, request, timeout)

_KINDS: Final[dict[Kind, PermissionMessage.Type.ValueType]] = {
    "read": PermissionMessage.READ,
    "write": PermissionMessage.WRITE,
    "readwrite": PermissionMessage.READWRITE,
}
_NAMES: Final[dict[int, Kind]] = {value: name for name, value in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class AuthStatus:
    header: Header
    enabled: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Names:
    """Of users or of roles."""

    header: Header
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Permission:
    kind: Kind
    key: bytes
    range_end: bytes  # b"": the key alone; b"\\0": to the end

    @staticmethod
    def of(message: PermissionMessage) -> "Permission":
        return Permission(_NAMES.get(message.permType, "read"), message.key, message.range_end)


@dataclass(frozen=True, slots=True)
class Role:
    header: Header
    name: str
    permissions: tuple[Permission, ...]


@final
class AuthCalls:
    """Every method takes `timeout` seconds. Questions are asked again where that may help, changes are not."""

    def __init__(self, read: Ask, mutate: Ask) -> None:
        self._read_by = read
        self._mutate = mutate

    async def _read(self, rpc: str, request: Any, timeout: float | None) -> Any:
        return await self._read_by(lambda endpoint: getattr(endpoint.auth, rpc), request, timeout)

    async def _change(self, rpc: str, request: Any, timeout: float | None) -> Header:
        answer = await self._mutate(lambda endpoint: getattr(endpoint.auth, rpc), request, timeout)
        return Header.of(answer.header)

    async def enable(self, *, timeout: float | None = None) -> Header:
        """Ask everybody who it is from now on. Needs the user root with the role root."""
        return await self._change("AuthEnable", pb.AuthEnableRequest(), timeout)

    async def disable(self, *, timeout: float | None = None) -> Header:
        return await self._change("AuthDisable", pb.AuthDisableRequest(), timeout)

    async def status(self, *, timeout: float | None = None) -> AuthStatus:
        answer = await self._read("AuthStatus", pb.AuthStatusRequest(), timeout)
        return AuthStatus(Header.of(answer.header), answer.enabled, answer.authRevision)

    # Users

    async def user_add(self, name: str, password: str | None, *, timeout: float | None = None) -> Header:
        """password None: the user is known by the common name of its certificate only."""
        request = pb.AuthUserAddRequest(name=name, password=password or "")
        if password is None:
            request.options.CopyFrom(UserAddOptions(no_password=True))
        return await self._change("UserAdd", request, timeout)

    async def user_get(self, name: str, *, timeout: float | None = None) -> Names:
        """The user's roles."""
        answer = await self._read("UserGet", pb.AuthUserGetRequest(name=name), timeout)
        return Names(Header.of(answer.header), tuple(answer.roles))

    async def user_list(self, *, timeout: float | None = None) -> Names:
        answer = await self._read("UserList", pb.AuthUserListRequest(), timeout)
        return Names(Header.of(answer.header), tuple(answer.users))

    async def user_delete(self, name: str, *, timeout: float | None = None) -> Header:
        return await self._change("UserDelete", pb.AuthUserDeleteRequest(name=name), timeout)

    async def user_change_password(self, name: str, password: str, *, timeout: float | None = None) -> Header:
        request = pb.AuthUserChangePasswordRequest(name=name, password=password)
        return await self._change("UserChangePassword", request, timeout)

    async def user_grant_role(self, name: str, role: str, *, timeout: float | None = None) -> Header:
        return await self._change("UserGrantRole", pb.AuthUserGrantRoleRequest(user=name, role=role), timeout)

    async def user_revoke_role(self, name: str, role: str, *, timeout: float | None = None) -> Header:
        return await self._change("UserRevokeRole", pb.AuthUserRevokeRoleRequest(name=name, role=role), timeout)

    # Roles

    async def role_add(self, name: str, *, timeout: float | None = None) -> Header:
        return await self._change("RoleAdd", pb.AuthRoleAddRequest(name=name), timeout)

    async def role_get(self, name: str, *, timeout: float | None = None) -> Role:
        answer = await self._read("RoleGet", pb.AuthRoleGetRequest(role=name), timeout)
        return Role(Header.of(answer.header), name, tuple(map(Permission.of, answer.perm)))

    async def role_list(self, *, timeout: float | None = None) -> Names:
        answer = await self._read("RoleList", pb.AuthRoleListRequest(), timeout)
        return Names(Header.of(answer.header), tuple(answer.roles))

    async def role_delete(self, name: str, *, timeout: float | None = None) -> Header:
        return await self._change("RoleDelete", pb.AuthRoleDeleteRequest(role=name), timeout)

    async def role_grant_permission(
        self,
        role: str,
        kind: Kind,
        key: Bytes,
        range_end: Bytes | None = None,
        *,
        prefix: bool = False,
        from_key: bool = False,
        timeout: float | None = None,
    ) -> Header:
        first, end = key_range(key, range_end, prefix, from_key)
        perm = PermissionMessage(permType=_KINDS[kind], key=first, range_end=end)
        request = pb.AuthRoleGrantPermissionRequest(name=role, perm=perm)
        return await self._change("RoleGrantPermission", request, timeout)

    async def role_revoke_permission(
        self,
        role: str,
        key: Bytes,
        range_end: Bytes | None = None,
        *,
        prefix: bool = False,
        from_key: bool = False,
        timeout: float | None = None,
    ) -> Header:
        """The very range that was granted."""
        first, end = key_range(key, range_end, prefix, from_key)
        request = pb.AuthRoleRevokePermissionRequest(role=role, key=first, range_end=end)
        return await self._change("RoleRevokePermission", request, timeout)
