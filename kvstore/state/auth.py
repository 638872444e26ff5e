"""Authorisation in apply: who may do what is decided by the state that the request meets, alike on every member.

A request carries its user and the auth revision at which the user was known (ARCHITECTURE decision 8). What the front
has checked before was on another state: a user that was deleted, a role that was revoked or a permission that was
granted in between is seen here, and only here for certain.

`_RULES` says for every type of request what it needs. One that is not in it is refused: to forget one is to deny it.
"""

from collections.abc import Callable, Iterator
from typing import Final

from kvstore import errors
from kvstore.auth import manage, requests
from kvstore.auth.changes import AuthChanges, TokenChange
from kvstore.auth.table import AuthTable, Identity
from kvstore.errors import KvError
from kvstore.mvcc.leases import lease_of
from kvstore.mvcc.transaction import WriteGroup
from kvstore.pb.command_pb2 import Request
from kvstore.state.txn import AppliedResult

Rule = Callable[[AuthTable, Identity, Request], KvError | None]


def _root(table: AuthTable, who: Identity, _: Request) -> KvError | None:
    return table.refuse_root(who)


def _user(table: AuthTable, who: Identity, _: Request) -> KvError | None:
    return table.refuse_user(who)


def _members(_: AuthTable, __: Identity, ___: Request) -> None:
    """Members ask for it on behalf of nobody; what a client wants of it, the services have checked."""


def _lease_revoke(table: AuthTable, who: Identity, request: Request) -> KvError | None:
    return None if request.lease_revoke.term else table.refuse_user(who)


_RULES: Final[dict[str, Rule]] = {
    "put": lambda table, who, request: requests.refuse_put(table, who, request.put),
    "delete_range": lambda table, who, request: requests.refuse_delete_range(table, who, request.delete_range),
    "txn": lambda table, who, request: requests.refuse_txn(table, who, request.txn),
    "compaction": _root,
    "lease_grant": _user,
    "lease_revoke": _lease_revoke,
    "lease_checkpoint": _members,
    "member_publish": _members,
    "member_update": _members,
    "alarm": _members,
    "downgrade": _members,
    "cluster_version": _members,
    "auth_enable": _root,
    "auth_disable": _root,
    "auth_user_add": _root,
    "auth_user_delete": _root,
    "auth_user_change_password": _root,
    "auth_user_grant_role": _root,
    "auth_user_revoke_role": _root,
    "auth_role_add": _root,
    "auth_role_delete": _root,
    "auth_role_grant_permission": _root,
    "auth_role_revoke_permission": _root,
    "authenticate": _members,  # a member has checked a password; there is no identity before it
}


async def refuse(group: WriteGroup, request: Request, op: str | None) -> KvError | None:
    """Why the request may not be carried out. Call only where authentication is on. In slices."""
    table, who = group.auth.table, Identity(request.user, request.auth_revision)
    if op is None:
        return None  # of a newer version, which apply refuses to pass over
    rule = _RULES.get(op)
    if rule is None:
        return errors.PERMISSION_DENIED
    refused = rule(table, who, request)
    if refused is not None or table.may_write_everything(who.user):
        return refused
    for lease in _leases(request, op):
        refused = await _refuse_lease(group, table, who, lease)
        if refused is not None:
            return refused
    return None


def _leases(request: Request, op: str | None) -> Iterator[int]:
    """Whoever may not delete all keys of a lease may neither end it nor put more on it."""
    if op == "put" and request.put.lease:
        yield request.put.lease
    elif op == "txn":
        yield from dict.fromkeys(requests.leases_of(request.txn))
    elif op == "lease_revoke" and not request.lease_revoke.term:
        yield from request.lease_revoke.ids


async def _refuse_lease(group: WriteGroup, table: AuthTable, who: Identity, lease: int) -> KvError | None:
    if not group.has_lease(lease):
        return None
    budget = group.budget()
    for key in group.leases.keys(lease):
        kv = group.get_latest(key)
        if kv is not None and lease_of(kv) == lease:
            refused = table.refuse_write(who, key)
            if refused is not None:
                return refused
        await budget.pause_if_spent()
    return None


# -- the requests of the Auth service ----------------------------------------------------------------

_MANAGE: Final[dict[str, Callable[[AuthChanges, Request], KvError | None]]] = {
    "auth_enable": lambda changes, _: manage.enable(changes),
    "auth_disable": lambda changes, _: manage.disable(changes),
    "auth_user_add": lambda changes, r: manage.user_add(changes, r.auth_user_add),
    "auth_user_delete": lambda changes, r: manage.user_delete(changes, r.auth_user_delete),
    "auth_user_change_password": lambda changes, r: manage.user_change_password(changes, r.auth_user_change_password),
    "auth_user_grant_role": lambda changes, r: manage.user_grant_role(changes, r.auth_user_grant_role),
    "auth_user_revoke_role": lambda changes, r: manage.user_revoke_role(changes, r.auth_user_revoke_role),
    "auth_role_add": lambda changes, r: manage.role_add(changes, r.auth_role_add),
    "auth_role_delete": lambda changes, r: manage.role_delete(changes, r.auth_role_delete),
    "auth_role_grant_permission": lambda changes, r: manage.role_grant_permission(
        changes, r.auth_role_grant_permission
    ),
    "auth_role_revoke_permission": lambda changes, r: manage.role_revoke_permission(
        changes, r.auth_role_revoke_permission
    ),
}
AUTH_OPS: Final = frozenset((*_MANAGE, "authenticate"))


def apply_auth(group: WriteGroup, request: Request) -> AppliedResult | KvError:
    op = request.WhichOneof("op") or ""
    refused = _authenticate(group, request) if op == "authenticate" else _MANAGE[op](group.auth, request)
    return AppliedResult(group.current_revision, b"") if refused is None else refused


def _authenticate(group: WriteGroup, request: Request) -> KvError | None:
    table, wanted = group.auth.table, request.authenticate
    if not table.enabled:
        return errors.AUTH_NOT_ENABLED
    user = table.users.get(wanted.user)
    if user is None or user.options.no_password:
        return errors.AUTH_FAILED
    if request.auth_revision != table.revision:
        # The password may have been changed since it was checked; the member checks it again.
        return errors.AUTH_OLD_REVISION
    if wanted.token:
        group.auth.tokens.append(TokenChange(wanted.user, wanted.token, group.entry_time))
    return None
