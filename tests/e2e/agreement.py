"""What all members must agree on at the end of a run, and what none may have in its log."""

import json
from itertools import pairwise

from kvstore.pb import auth_pb2, history_pb2, history_pb2_grpc, kv_pb2, rpc_pb2, rpc_pb2_grpc
from tests.e2e.checkers import Truth
from tests.e2e.cluster import Cluster, Member, wait_for

EVERYTHING = b"\0"


def changes_of(member: Member) -> list[kv_pb2.Event]:
    stub = history_pb2_grpc.HistoryStub(member.channel)
    request = history_pb2.ReadHistoryRequest(key=EVERYTHING, range_end=EVERYTHING)
    return [change.event for answer in stub.Read(request, timeout=60) for change in answer.changes]


def check_members(cluster: Cluster) -> Truth:
    """All members tell the same history and hash alike. Returns that history."""

    def hashes() -> set[tuple[int, int, int]]:
        found = set()
        for member in cluster.members:
            answer = rpc_pb2_grpc.MaintenanceStub(member.channel).HashKV(rpc_pb2.HashKVRequest(), timeout=30)
            found.add((answer.hash, answer.hash_revision, answer.compact_revision))
        return found

    def same_index() -> bool:
        return len({status and status.raftAppliedIndex for status in map(Member.status, cluster.members)}) == 1

    def histories() -> list[list[kv_pb2.Event]] | None:
        """None: a write that nobody waits for any more came meanwhile, or is not everywhere yet."""
        before = hashes()
        found = [changes_of(member) for member in cluster.members]
        return found if len(before) == 1 and hashes() == before else None

    wait_for(same_index, "equal applied indexes")
    found = wait_for(histories, "equal hashes, before and after the histories are read")
    for one, other in pairwise(found):
        assert one == other, f"members tell different histories: {_first_difference(one, other)}"
    truth = Truth(found[0])
    truth.compact_revision = max(compacted for _, _, compacted in hashes())
    return truth


def fill_tables(member: Member) -> None:
    """A user with a role, so that there is something to compare."""
    auth = rpc_pb2_grpc.AuthStub(member.channel)
    permission = auth_pb2.Permission(permType=auth_pb2.Permission.READ, key=EVERYTHING, range_end=EVERYTHING)
    auth.RoleAdd(rpc_pb2.AuthRoleAddRequest(name="reader"), timeout=30)
    auth.RoleGrantPermission(rpc_pb2.AuthRoleGrantPermissionRequest(name="reader", perm=permission), timeout=30)
    auth.UserAdd(rpc_pb2.AuthUserAddRequest(name="somebody", password="a password"), timeout=30)
    auth.UserGrantRole(rpc_pb2.AuthUserGrantRoleRequest(user="somebody", role="reader"), timeout=30)


def tables_of(member: Member) -> dict[str, object]:
    """What no HashKV covers, as this member holds it itself."""
    auth = rpc_pb2_grpc.AuthStub(member.channel)
    cluster = rpc_pb2_grpc.ClusterStub(member.channel)
    members = cluster.MemberList(rpc_pb2.MemberListRequest(linearizable=False), timeout=30).members
    leases = rpc_pb2_grpc.LeaseStub(member.channel).LeaseLeases(rpc_pb2.LeaseLeasesRequest(), timeout=30).leases
    alarms = rpc_pb2_grpc.MaintenanceStub(member.channel).Alarm(rpc_pb2.AlarmRequest(), timeout=30).alarms
    status = auth.AuthStatus(rpc_pb2.AuthStatusRequest(), timeout=30)
    users = [
        rpc_pb2.AuthUserGetRequest(name=name) for name in auth.UserList(rpc_pb2.AuthUserListRequest(), timeout=30).users
    ]
    roles = [
        rpc_pb2.AuthRoleGetRequest(role=name) for name in auth.RoleList(rpc_pb2.AuthRoleListRequest(), timeout=30).roles
    ]
    return {
        "members": sorted(str(one) for one in members),
        "leases": sorted(one.ID for one in leases),
        "alarms": sorted(str(one) for one in alarms),
        "auth": (status.enabled, status.authRevision),
        "users": {one.name: sorted(auth.UserGet(one, timeout=30).roles) for one in users},
        "roles": {one.role: sorted(str(perm) for perm in auth.RoleGet(one, timeout=30).perm) for one in roles},
    }


def check_tables(cluster: Cluster) -> list[str]:
    """Members, leases, alarms, users and roles are the same everywhere."""
    found: dict[str, dict[str, object]] = {}

    def same() -> bool:
        found.update({member.name: tables_of(member) for member in cluster.members})
        return all(one == other for one, other in pairwise(found.values()))

    try:
        wait_for(same, "equal tables")
    except AssertionError:
        return [
            f"{table}: {one} has {found[one][table]}, {other} has {found[other][table]}"
            for one, other in pairwise(found)
            for table in found[one]
            if found[one][table] != found[other][table]
        ]
    return []


def _first_difference(one: list[kv_pb2.Event], other: list[kv_pb2.Event]) -> str:
    pairs = zip(one, other, strict=False)
    different = next((f"{left} and {right}" for left, right in pairs if left != right), None)
    return different or f"{len(one)} changes and {len(other)}, of which one goes on"


def check_log(member: Member) -> None:
    """Nothing in the log of any run of the member says that something went wrong inside."""
    for line in member.log_path.read_text(errors="replace").splitlines():
        if any(text in line for text in member.expected):
            continue
        level = json.loads(line)["level"] if line.startswith("{") else "not of the logger"
        assert level in {"debug", "info", "warning"}, f"{member.name}: {line}"
