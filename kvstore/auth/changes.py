"""AuthChanges: what a group of entries has done to users and roles, until its commit."""

from collections.abc import Mapping
from typing import NamedTuple, final

from kvstore.auth.table import STATE_ROW, AuthTable, role_row, user_row
from kvstore.pb.auth_pb2 import Role, User


class TokenChange(NamedTuple):
    """For whoever keeps tokens, which are no part of the state."""

    user: str | None  # None: everybody's tokens end
    token: bytes = b""  # what a new token of the user is known by; empty: all the user's tokens end
    time: int = 0  # the entry's, nanoseconds


@final
class AuthChanges:
    """`table` is what the next request meets, `rows` what the commit writes (None: deletes)."""

    __slots__ = ("rows", "table", "tokens")

    def __init__(self, table: AuthTable) -> None:
        self.table = table
        self.rows: dict[bytes, bytes | None] = {}
        self.tokens: list[TokenChange] = []

    # Each of these is one revision, but for `enable`, which changes nothing of who may do what.

    def put_user(self, user: User) -> None:
        self._show(users=self._with_users([user]))

    def delete_user(self, name: str) -> None:
        self.rows[user_row(name)] = None
        self._show(users={other: user for other, user in self.table.users.items() if other != name})

    def put_role(self, role: Role) -> None:
        self.rows[role_row(role.name.decode())] = role.SerializeToString(deterministic=True)
        self._show(roles={**self.table.roles, role.name.decode(): role})

    def delete_role(self, name: str, holders: list[User]) -> None:
        """holders: those who had it, as they are without it."""
        self.rows[role_row(name)] = None
        roles = {other: role for other, role in self.table.roles.items() if other != name}
        self._show(users=self._with_users(holders), roles=roles)

    def enable(self) -> None:
        self._show(enabled=True, grows=False)

    def disable(self) -> None:
        self.tokens.append(TokenChange(None))
        self._show(enabled=False)

    def end_tokens(self, user: str) -> None:
        self.tokens.append(TokenChange(user))

    def _with_users(self, users: list[User]) -> Mapping[str, User]:
        for user in users:
            self.rows[user_row(user.name.decode())] = user.SerializeToString(deterministic=True)
        return {**self.table.users, **{user.name.decode(): user for user in users}}

    def _show(
        self,
        users: Mapping[str, User] | None = None,
        roles: Mapping[str, Role] | None = None,
        enabled: bool | None = None,
        grows: bool = True,
    ) -> None:
        before = self.table
        self.table = AuthTable(
            before.enabled if enabled is None else enabled,
            before.revision + grows,
            before.users if users is None else users,
            before.roles if roles is None else roles,
        )
        self.rows[STATE_ROW] = self.table.state_row()
