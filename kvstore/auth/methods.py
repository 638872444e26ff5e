"""What each RPC needs: the table of the whole surface. A method that is not in it is refused (RELIABILITY 4b).

A rule looks at the table, the caller and the request's bytes, and returns why not, or None. It is asked before the
method's handler, while authentication is on, and fails fast: what goes through the log is decided again in apply, and a
read again on the state that it reads.

    anybody       no token needed
    by_message    a stream whose messages are checked one by one, by its service
    inside        a recipe, made of ordinary requests in the name of its caller (services/inner.py): those are checked
    any_user      whoever has proved to be a user that exists
    keys          a user whose identity is of the newest revision; which keys, the service and apply look at
    root          the role root
"""

from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from kvstore.auth.table import AuthTable, Identity
from kvstore.errors import MALFORMED, KvError
from kvstore.pb.history_pb2 import ReadHistoryRequest
from kvstore.pb.rpc_pb2 import AlarmRequest, AuthRoleGetRequest, AuthUserGetRequest, RangeRequest

Rule = Callable[[AuthTable, Identity, bytes], KvError | None]


def anybody(table: AuthTable, who: Identity, request: bytes) -> None:
    return None


def by_message(table: AuthTable, who: Identity, request: bytes) -> None:
    return None


def inside(table: AuthTable, who: Identity, request: bytes) -> None:
    return None


def any_user(table: AuthTable, who: Identity, request: bytes) -> KvError | None:
    return table.refuse_user(who)


def keys(table: AuthTable, who: Identity, request: bytes) -> KvError | None:
    return table.refuse_stale(who)


def root(table: AuthTable, who: Identity, request: bytes) -> KvError | None:
    return table.refuse_root(who)


def _alarm(table: AuthTable, who: Identity, request: bytes) -> KvError | None:
    """Everybody may see alarms."""
    is_get = AlarmRequest.FromString(request).action == AlarmRequest.GET
    return table.refuse_user(who) if is_get else table.refuse_root(who)


def _user_get(table: AuthTable, who: Identity, request: bytes) -> KvError | None:
    """Everybody may see their own roles ..."""
    if who.user and who.user == AuthUserGetRequest.FromString(request).name:
        return table.refuse_user(who)
    return table.refuse_root(who)


def _role_get(table: AuthTable, who: Identity, request: bytes) -> KvError | None:
    """... and what these allow."""
    user = table.users.get(who.user)
    if user is not None and AuthRoleGetRequest.FromString(request).role in user.roles:
        return None
    return table.refuse_root(who)


def _range_stream(table: AuthTable, who: Identity, request: bytes) -> KvError | None:
    wanted = RangeRequest.FromString(request)
    return table.refuse_read(who, wanted.key, wanted.range_end)


def _history(table: AuthTable, who: Identity, request: bytes) -> KvError | None:
    wanted = ReadHistoryRequest.FromString(request)
    return table.refuse_read(who, wanted.key, wanted.range_end)


METHODS: Final[dict[str, Rule]] = {
    "/etcdserverpb.KV/Range": keys,
    "/etcdserverpb.KV/RangeStream": _range_stream,
    "/etcdserverpb.KV/Put": keys,
    "/etcdserverpb.KV/DeleteRange": keys,
    "/etcdserverpb.KV/Txn": keys,
    "/etcdserverpb.KV/Compact": root,
    "/etcdserverpb.Watch/Watch": by_message,
    "/etcdserverpb.Lease/LeaseGrant": any_user,
    "/etcdserverpb.Lease/LeaseRevoke": any_user,
    "/etcdserverpb.Lease/LeaseKeepAlive": by_message,
    "/etcdserverpb.Lease/LeaseTimeToLive": any_user,
    "/etcdserverpb.Lease/LeaseLeases": any_user,
    "/etcdserverpb.Cluster/MemberList": any_user,
    "/etcdserverpb.Cluster/MemberAdd": root,
    "/etcdserverpb.Cluster/MemberRemove": root,
    "/etcdserverpb.Cluster/MemberUpdate": root,
    "/etcdserverpb.Cluster/MemberPromote": root,
    "/etcdserverpb.Maintenance/Alarm": _alarm,
    "/etcdserverpb.Maintenance/Status": any_user,
    "/etcdserverpb.Maintenance/Defragment": root,
    "/etcdserverpb.Maintenance/Hash": root,
    "/etcdserverpb.Maintenance/HashKV": root,
    "/etcdserverpb.Maintenance/Snapshot": root,
    "/etcdserverpb.Maintenance/MoveLeader": root,
    "/etcdserverpb.Maintenance/Downgrade": root,
    "/etcdserverpb.Auth/AuthEnable": root,
    "/etcdserverpb.Auth/AuthDisable": root,
    "/etcdserverpb.Auth/AuthStatus": anybody,
    "/etcdserverpb.Auth/Authenticate": anybody,
    "/etcdserverpb.Auth/UserAdd": root,
    "/etcdserverpb.Auth/UserGet": _user_get,
    "/etcdserverpb.Auth/UserList": root,
    "/etcdserverpb.Auth/UserDelete": root,
    "/etcdserverpb.Auth/UserChangePassword": root,
    "/etcdserverpb.Auth/UserGrantRole": root,
    "/etcdserverpb.Auth/UserRevokeRole": root,
    "/etcdserverpb.Auth/RoleAdd": root,
    "/etcdserverpb.Auth/RoleGet": _role_get,
    "/etcdserverpb.Auth/RoleList": root,
    "/etcdserverpb.Auth/RoleDelete": root,
    "/etcdserverpb.Auth/RoleGrantPermission": root,
    "/etcdserverpb.Auth/RoleRevokePermission": root,
    "/v3lockpb.Lock/Lock": inside,
    "/v3lockpb.Lock/Unlock": inside,
    "/v3electionpb.Election/Campaign": inside,
    "/v3electionpb.Election/Proclaim": inside,
    "/v3electionpb.Election/Leader": inside,
    "/v3electionpb.Election/Observe": inside,
    "/v3electionpb.Election/Resign": inside,
    "/kvstore.v1.History/Read": _history,
    "/grpc.health.v1.Health/Check": anybody,
    "/grpc.health.v1.Health/List": anybody,
    "/grpc.health.v1.Health/Watch": anybody,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": anybody,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": anybody,
}


WITHOUT_TOKEN: Final = frozenset((anybody, by_message, inside))


def refusal(method: str, table: AuthTable, who: Identity, request: bytes) -> KvError | None:
    try:
        return METHODS[method](table, who, request)
    except DecodeError:
        return MALFORMED
