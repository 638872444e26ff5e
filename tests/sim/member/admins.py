"""Users and roles: an administrator who adds, grants and removes them while everything else goes on.

Authentication stays off, so nobody is refused, but its table is replicated state like any other: it must survive kills,
come with snapshots, and be the same everywhere. The log, replayed here as sets, says what it has to be at the end.
"""

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, final

from kvstore.auth.table import AuthTable
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.auth_pb2 import Permission
from kvstore.state.command import decode_batch
from raft.types import Entry, EntryKind
from tests.sim.member.clients import Client
from tests.sim.member.loop import SECOND

if TYPE_CHECKING:
    from tests.sim.member.world import World

_EVERY_SECONDS: Final = 0.5  # a change, on average
_NAMES: Final = 3  # so few that changes meet


@final
class Administrator:
    def __init__(self, world: "World") -> None:
        self._world = world
        self._rng = world.options.stream("administrator")
        self._client = Client(world, 950)
        self._count = 0

    async def run(self) -> None:
        world = self._world
        while not world.stopping:
            await asyncio.sleep(self._rng.exponential(_EVERY_SECONDS * SECOND) / SECOND)
            if not world.stopping:
                await self._one()

    async def _one(self) -> None:
        rng = self._rng
        user, role = f"user{rng.below(_NAMES)}", f"role{rng.below(_NAMES)}"
        key = f"key{rng.below(_NAMES)}".encode()
        self._count += 1
        request: Any = rng.choice(
            [
                # Under a name of its own, so that an answer and what is in the log are told to belong together.
                pb.AuthUserAddRequest(name=f"new{self._count}", options={"no_password": True}),
                pb.AuthUserAddRequest(name=user, options={"no_password": True}),
                pb.AuthUserDeleteRequest(name=user),
                pb.AuthUserGrantRoleRequest(user=user, role=role),
                pb.AuthUserGrantRoleRequest(user=user, role=role),
                pb.AuthUserRevokeRoleRequest(name=user, role=role),
                pb.AuthRoleAddRequest(name=role),
                pb.AuthRoleAddRequest(name=role),
                pb.AuthRoleDeleteRequest(role=role),
                pb.AuthRoleGrantPermissionRequest(name=role, perm=Permission(permType=rng.below(3), key=key)),  # type: ignore[arg-type]
                pb.AuthRoleRevokePermissionRequest(role=role, key=key),
            ]
        )
        method = type(request).__name__.removeprefix("Auth").removesuffix("Request")
        answer = getattr(pb, type(request).__name__.replace("Request", "Response"))
        asked = self._client.ask("auth", rng.choice(self._world.members), request)
        asked.stale = True  # a change of users is no revision
        if await self._client.finish(asked, method, answer, service="Auth") is not None:
            self._world.mark("auth_changed")
            if method == "UserAdd":
                self._world.users_added.add(request.name)


class Users:
    """The log's changes of users and roles, replayed."""

    def __init__(self, log: dict[int, Entry]) -> None:
        self.users: dict[str, set[str]] = {}
        self.roles: dict[str, dict[bytes, int]] = {}
        self.ever: set[str] = set()
        seen: dict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
        for index in sorted(log):
            if log[index].kind == EntryKind.COMMAND:
                for request in decode_batch(log[index].data).requests:
                    identity = (request.boot, request.sequence)
                    if identity > seen[request.member]:
                        seen[request.member] = identity
                        self._add(request)

    def _add(self, request: Any) -> None:
        op = request.WhichOneof("op")
        change = getattr(request, op)
        if op == "auth_user_add":
            self.users.setdefault(change.name, set())
            self.ever.add(change.name)
        elif op == "auth_user_delete":
            self.users.pop(change.name, None)
        elif op == "auth_user_grant_role":
            if change.user in self.users and change.role in self.roles:
                self.users[change.user].add(change.role)
        elif op == "auth_user_revoke_role":
            self.users.get(change.name, set()).discard(change.role)
        elif op == "auth_role_add":
            self.roles.setdefault(change.name, {})
        elif op == "auth_role_delete":
            if self.roles.pop(change.role, None) is not None:
                for roles in self.users.values():
                    roles.discard(change.role)
        elif op == "auth_role_grant_permission":
            if change.name in self.roles:
                self.roles[change.name][change.perm.key] = change.perm.permType
        elif op == "auth_role_revoke_permission":
            self.roles.get(change.role, {}).pop(change.key, None)


def check_users(world: "World") -> list[str]:
    """Every member decides by the table of its rows, and that is the log's; no acknowledged addition is lost."""
    truth = Users(world.log)
    lost = sorted(world.users_added - truth.ever)
    found = [f"the addition of {user} was acknowledged and is not in the log" for user in lost]
    for member in world.members:
        assert member.server is not None
        store = member.server.store
        kept = AuthTable.load(store.engine)
        for what, table in (("shows", store.auth), ("has rows of", kept)):
            users = {user: set(one.roles) for user, one in table.users.items()}
            roles = {role: {one.key: one.permType for one in of.keyPermission} for role, of in table.roles.items()}
            if (users, roles) != (truth.users, truth.roles):
                found.append(f"{member.name} {what} {users} and {roles}, the log {truth.users} and {truth.roles}")
        if store.auth.revision != kept.revision:
            found.append(f"{member.name} shows auth revision {store.auth.revision}, its row says {kept.revision}")
    return found
