"""Random requests of Auth, and the steps that turn it on.

Root always has one of ROOT_PASSWORDS, so that auth can be turned off again, whatever a case did.
"""

from google.protobuf.message import Message

from kvstore.pb import auth_pb2
from kvstore.pb import rpc_pb2 as pb
from tests.conformance.differential.cases import Draw, Step

ROOT_PASSWORDS = ["r", "r2"]
PASSWORDS = ["p", "p2", "", "p" * 72]
USERS = ["alice", "bob", "carol"]
ROLES = ["r1", "r2", "r3"]
WHO = ["", "?", "root", "root", "alice", "alice", "alice", "bob", "bob", "carol", "nobody"]
SIGNED_IN = ["root", "alice", "alice", "bob", "bob", "carol"] * 4 + ["", "?"]
WHO_ADMINISTERS = ["root"] * 8 + ["alice", "bob", "", "?"]
RANGES = [
    *[(b"a", b""), (b"a", b"c"), (b"a", b"b"), (b"aa", b"ab"), (b"b", b"c"), (b"b", b"\0"), (b"a", b"\0")],
    *[(b"\0", b"\0"), (b"\0", b""), (b"\xff", b"\0"), (b"\0", b"a"), (b"a\0", b"b")],
]
LOCK_RANGES = [*[(b"l/", b"l0")] * 4, (b"m/", b"m0"), (b"l", b"n"), (b"\0", b"\0"), (b"a", b"c")]
BAD_RANGES = [(b"b", b"a"), (b"a", b"a"), (b"", b""), (b"", b"\0"), (b"", b"a"), (b"\0\0", b"\0")]


class AuthRequests:
    def __init__(self, draw: Draw, ranges: list[tuple[bytes, bytes]] = RANGES) -> None:
        self._draw = draw
        self._ranges = ranges

    def prologue(self) -> list[Step]:
        """Three users with a role each and some ranges, auth on, tokens taken; now and then a step is missing."""
        draw = self._draw
        steps = [
            self._add("root"),
            Step("UserGrantRole", pb.AuthUserGrantRoleRequest(user="root", role="root")),
            *(self._add(user) for user in USERS),
            *(Step("RoleAdd", pb.AuthRoleAddRequest(name=role)) for role in ROLES),
        ]
        for role in ROLES:
            steps += [Step("RoleGrantPermission", self._granted(role)) for _ in range(draw.pick([0, 1, 1, 2]))]
        for user, role in zip(USERS, ROLES, strict=True):
            steps.append(Step("UserGrantRole", pb.AuthUserGrantRoleRequest(user=user, role=role)))
        steps.append(Step("AuthEnable", pb.AuthEnableRequest()))
        steps += [Step("Authenticate", pb.AuthenticateRequest(name="root", password="r"))]
        steps += [Step("Authenticate", pb.AuthenticateRequest(name=user, password="p")) for user in USERS]
        return [step for step in steps if not draw.chance(0.03)]

    def _add(self, user: str) -> Step:
        return Step("UserAdd", pb.AuthUserAddRequest(name=user, password="r" if user == "root" else "p"))

    def _granted(self, role: str) -> pb.AuthRoleGrantPermissionRequest:
        key, range_end = self._draw.pick(self._ranges)
        kind = self._draw.enum([0, 1, 2, 2, 2])
        return pb.AuthRoleGrantPermissionRequest(
            name=role, perm=auth_pb2.Permission(permType=kind, key=key, range_end=range_end)
        )

    # Each RPC

    def authenticate(self) -> Message:
        user = self._user()
        return pb.AuthenticateRequest(name=user, password=self._password(user))

    def user_add(self) -> Message:
        user = self._user()
        request = pb.AuthUserAddRequest(name=user, password=self._password(user))
        if user != "root" and self._draw.chance(0.2):
            request.options.no_password = True
        return request

    def user_get(self) -> Message:
        return pb.AuthUserGetRequest(name=self._user())

    def user_delete(self) -> Message:
        return pb.AuthUserDeleteRequest(name=self._user())

    def user_change_password(self) -> Message:
        user = self._user()
        return pb.AuthUserChangePasswordRequest(name=user, password=self._password(user))

    def user_grant_role(self) -> Message:
        return pb.AuthUserGrantRoleRequest(user=self._user(), role=self._role())

    def user_revoke_role(self) -> Message:
        return pb.AuthUserRevokeRoleRequest(name=self._user(), role=self._role())

    def role_add(self) -> Message:
        return pb.AuthRoleAddRequest(name=self._role())

    def role_get(self) -> Message:
        return pb.AuthRoleGetRequest(role=self._role())

    def role_delete(self) -> Message:
        return pb.AuthRoleDeleteRequest(role=self._role())

    def role_grant_permission(self) -> Message:
        draw, role = self._draw, self._role()
        if draw.chance(0.05):
            return pb.AuthRoleGrantPermissionRequest(name=role)
        request = self._granted(role)
        if draw.chance(0.15):
            request.perm.key, request.perm.range_end = draw.pick(BAD_RANGES)
        if draw.chance(0.03):
            request.perm.permType = draw.enum([3, -1])
        return request

    def role_revoke_permission(self) -> Message:
        key, range_end = self._draw.pick([*self._ranges, *BAD_RANGES])
        return pb.AuthRoleRevokePermissionRequest(role=self._role(), key=key, range_end=range_end)

    def _user(self) -> str:
        return self._draw.pick(["root", *USERS, *USERS, "nobody", ""])

    def _role(self) -> str:
        return self._draw.pick(["root", *ROLES, *ROLES, "no role", ""])

    def _password(self, user: str) -> str:
        return self._draw.pick(ROOT_PASSWORDS) if user == "root" else self._draw.pick(["p", "p", *PASSWORDS])
