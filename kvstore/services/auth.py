"""etcdserverpb.Auth: users, roles, permissions, logging in.

Changes go through the log, with the bcrypt hash in the place of a password; a message that held one is cleared before
anything else is done, so that nothing that prints requests can print it (CVE-2021-28235). Questions are answered from
the state, behind a read barrier. Who may ask what is in kvstore/auth/methods.py and kvstore/state/auth.py.
"""

from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import Message

from kvstore import errors
from kvstore.auth.table import ROOT
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.auth_pb2 import Permission
from kvstore.pb.rpc_pb2_grpc import AuthServicer
from kvstore.services.permissions import check, identify
from kvstore.state.command import Op

if TYPE_CHECKING:
    from kvstore.server.server import KvServer

# What RoleGet shows of the role root: everything.
ROOT_PERMISSION: Final = Permission(permType=Permission.READWRITE, key=b"", range_end=b"\0")


class AuthService(AuthServicer):
    def __init__(self, server: "KvServer") -> None:
        self._server = server

    async def _change(self, op: Op, request: Message, context: Any) -> pb.ResponseHeader:
        who = identify(self._server, context)
        result = await self._server.propose_one(op, request.SerializeToString(), who.user, who.revision)
        return self._server.header_message(result.revision)

    async def _read(self) -> pb.ResponseHeader:
        await self._server.linearizable()
        return self._server.header_message(self._server.store.current_revision)

    # The whole of it

    async def AuthEnable(self, request: pb.AuthEnableRequest, context: Any) -> pb.AuthEnableResponse:
        return pb.AuthEnableResponse(header=await self._change(Op.AUTH_ENABLE, request, context))

    async def AuthDisable(self, request: pb.AuthDisableRequest, context: Any) -> pb.AuthDisableResponse:
        return pb.AuthDisableResponse(header=await self._change(Op.AUTH_DISABLE, request, context))

    async def AuthStatus(self, request: pb.AuthStatusRequest, context: Any) -> pb.AuthStatusResponse:
        header = await self._read()
        table = self._server.auth.table
        return pb.AuthStatusResponse(header=header, enabled=table.enabled, authRevision=table.revision)

    async def Authenticate(self, request: pb.AuthenticateRequest, context: Any) -> pb.AuthenticateResponse:
        name, password = request.name, request.password
        request.ClearField("password")
        await self._server.linearizable()
        token = await self._server.auth.log_in(name, password)
        header = self._server.header_message(self._server.store.current_revision)
        return pb.AuthenticateResponse(header=header, token=token)

    # Users

    async def UserAdd(self, request: pb.AuthUserAddRequest, context: Any) -> pb.AuthUserAddResponse:
        password = request.password
        request.ClearField("password")
        request.ClearField("hashedPassword")
        if not request.options.no_password:
            request.hashedPassword = await self._server.auth.passwords.hash(password)
        return pb.AuthUserAddResponse(header=await self._change(Op.AUTH_USER_ADD, request, context))

    async def UserGet(self, request: pb.AuthUserGetRequest, context: Any) -> pb.AuthUserGetResponse:
        header = await self._read()
        table, who = self._server.auth.table, identify(self._server, context)
        if not who.user or who.user != request.name:
            check(table.refuse_root(who))
        user = table.users.get(request.name)
        if user is None:
            raise errors.USER_NOT_FOUND.fresh()
        return pb.AuthUserGetResponse(header=header, roles=user.roles)

    async def UserList(self, request: pb.AuthUserListRequest, context: Any) -> pb.AuthUserListResponse:
        header = await self._read()
        table = self._server.auth.table
        check(table.refuse_root(identify(self._server, context)))
        return pb.AuthUserListResponse(header=header, users=sorted(table.users, key=str.encode))

    async def UserDelete(self, request: pb.AuthUserDeleteRequest, context: Any) -> pb.AuthUserDeleteResponse:
        return pb.AuthUserDeleteResponse(header=await self._change(Op.AUTH_USER_DELETE, request, context))

    async def UserChangePassword(
        self, request: pb.AuthUserChangePasswordRequest, context: Any
    ) -> pb.AuthUserChangePasswordResponse:
        password = request.password
        request.ClearField("password")
        # As etcd: an empty one takes the password away, and nobody can log in by any.
        request.hashedPassword = await self._server.auth.passwords.hash(password) if password else ""
        header = await self._change(Op.AUTH_USER_CHANGE_PASSWORD, request, context)
        return pb.AuthUserChangePasswordResponse(header=header)

    async def UserGrantRole(self, request: pb.AuthUserGrantRoleRequest, context: Any) -> pb.AuthUserGrantRoleResponse:
        return pb.AuthUserGrantRoleResponse(header=await self._change(Op.AUTH_USER_GRANT_ROLE, request, context))

    async def UserRevokeRole(
        self, request: pb.AuthUserRevokeRoleRequest, context: Any
    ) -> pb.AuthUserRevokeRoleResponse:
        return pb.AuthUserRevokeRoleResponse(header=await self._change(Op.AUTH_USER_REVOKE_ROLE, request, context))

    # Roles

    async def RoleAdd(self, request: pb.AuthRoleAddRequest, context: Any) -> pb.AuthRoleAddResponse:
        return pb.AuthRoleAddResponse(header=await self._change(Op.AUTH_ROLE_ADD, request, context))

    async def RoleGet(self, request: pb.AuthRoleGetRequest, context: Any) -> pb.AuthRoleGetResponse:
        header = await self._read()
        table, who = self._server.auth.table, identify(self._server, context)
        user = table.users.get(who.user)
        if user is None or request.role not in user.roles:
            check(table.refuse_root(who))
        role = table.roles.get(request.role)
        if role is None:
            raise errors.ROLE_NOT_FOUND.fresh()
        shown = [ROOT_PERMISSION] if request.role == ROOT else role.keyPermission
        return pb.AuthRoleGetResponse(header=header, perm=shown)

    async def RoleList(self, request: pb.AuthRoleListRequest, context: Any) -> pb.AuthRoleListResponse:
        header = await self._read()
        table = self._server.auth.table
        check(table.refuse_root(identify(self._server, context)))
        return pb.AuthRoleListResponse(header=header, roles=sorted(table.roles, key=str.encode))

    async def RoleDelete(self, request: pb.AuthRoleDeleteRequest, context: Any) -> pb.AuthRoleDeleteResponse:
        return pb.AuthRoleDeleteResponse(header=await self._change(Op.AUTH_ROLE_DELETE, request, context))

    async def RoleGrantPermission(
        self, request: pb.AuthRoleGrantPermissionRequest, context: Any
    ) -> pb.AuthRoleGrantPermissionResponse:
        header = await self._change(Op.AUTH_ROLE_GRANT_PERMISSION, request, context)
        return pb.AuthRoleGrantPermissionResponse(header=header)

    async def RoleRevokePermission(
        self, request: pb.AuthRoleRevokePermissionRequest, context: Any
    ) -> pb.AuthRoleRevokePermissionResponse:
        header = await self._change(Op.AUTH_ROLE_REVOKE_PERMISSION, request, context)
        return pb.AuthRoleRevokePermissionResponse(header=header)
