"""Which path of the JSON gateway stands for which RPC: etcd's own table (annotations of its rpc.proto).

All are POST. What is in the table is what the messages' descriptors know of the RPC, so a path answers as soon as
somebody serves its method, and as gRPC would until then.
"""

from dataclasses import dataclass
from typing import Final

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kvstore.pb import rpc_pb2, v3election_pb2, v3lock_pb2

_PATHS: Final = {
    "etcdserverpb.KV": {
        "Range": "/v3/kv/range",
        "Put": "/v3/kv/put",
        "DeleteRange": "/v3/kv/deleterange",
        "Txn": "/v3/kv/txn",
        "Compact": "/v3/kv/compaction",
    },
    "etcdserverpb.Watch": {"Watch": "/v3/watch"},
    "etcdserverpb.Lease": {
        "LeaseGrant": "/v3/lease/grant",
        "LeaseRevoke": "/v3/lease/revoke /v3/kv/lease/revoke",
        "LeaseKeepAlive": "/v3/lease/keepalive",
        "LeaseTimeToLive": "/v3/lease/timetolive /v3/kv/lease/timetolive",
        "LeaseLeases": "/v3/lease/leases /v3/kv/lease/leases",
    },
    "etcdserverpb.Cluster": {
        "MemberAdd": "/v3/cluster/member/add",
        "MemberRemove": "/v3/cluster/member/remove",
        "MemberUpdate": "/v3/cluster/member/update",
        "MemberList": "/v3/cluster/member/list",
        "MemberPromote": "/v3/cluster/member/promote",
    },
    "etcdserverpb.Maintenance": {
        "Alarm": "/v3/maintenance/alarm",
        "Status": "/v3/maintenance/status",
        "Defragment": "/v3/maintenance/defragment",
        "Hash": "/v3/maintenance/hash",
        "HashKV": "/v3/maintenance/hashkv",
        "Snapshot": "/v3/maintenance/snapshot",
        "MoveLeader": "/v3/maintenance/transfer-leadership",
        "Downgrade": "/v3/maintenance/downgrade",
    },
    "etcdserverpb.Auth": {
        "AuthEnable": "/v3/auth/enable",
        "AuthDisable": "/v3/auth/disable",
        "AuthStatus": "/v3/auth/status",
        "Authenticate": "/v3/auth/authenticate",
        "UserAdd": "/v3/auth/user/add",
        "UserGet": "/v3/auth/user/get",
        "UserList": "/v3/auth/user/list",
        "UserDelete": "/v3/auth/user/delete",
        "UserChangePassword": "/v3/auth/user/changepw",
        "UserGrantRole": "/v3/auth/user/grant",
        "UserRevokeRole": "/v3/auth/user/revoke",
        "RoleAdd": "/v3/auth/role/add",
        "RoleGet": "/v3/auth/role/get",
        "RoleList": "/v3/auth/role/list",
        "RoleDelete": "/v3/auth/role/delete",
        "RoleGrantPermission": "/v3/auth/role/grant",
        "RoleRevokePermission": "/v3/auth/role/revoke",
    },
    "v3lockpb.Lock": {"Lock": "/v3/lock/lock", "Unlock": "/v3/lock/unlock"},
    "v3electionpb.Election": {
        "Campaign": "/v3/election/campaign",
        "Proclaim": "/v3/election/proclaim",
        "Leader": "/v3/election/leader",
        "Observe": "/v3/election/observe",
        "Resign": "/v3/election/resign",
    },
}


@dataclass(frozen=True, slots=True)
class Route:
    method: str  # "/etcdserverpb.KV/Put"
    request: type[Message]
    response: type[Message]
    asks_many: bool  # a stream of requests
    answers_many: bool


def _route(method: MethodDescriptor) -> Route:
    return Route(
        f"/{method.containing_service.full_name}/{method.name}",
        GetMessageClass(method.input_type),
        GetMessageClass(method.output_type),
        method.client_streaming,
        method.server_streaming,
    )


def _routes() -> dict[str, Route]:
    services = {
        service.full_name: service
        for module in (rpc_pb2, v3lock_pb2, v3election_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    }
    return {
        path: _route(services[service].methods_by_name[name])
        for service, methods in _PATHS.items()
        for name, paths in methods.items()
        for path in paths.split()
    }


ROUTES: Final = _routes()
