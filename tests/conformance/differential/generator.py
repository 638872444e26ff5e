"""Random cases: from a seed to a list of steps.

Each case has a theme, which says what it does how often; so that what needs many steps of a kind to happen at all,
does happen. A theme leaves out what a server does not serve, or what must not be done to it.
"""

from collections.abc import Callable, Collection
from dataclasses import replace

from google.protobuf.message import Message

from kvstore.pb import rpc_pb2 as pb
from tests.conformance.differential.admin_requests import (
    SHORT_TTLS,
    ClusterRequests,
    LeaseRequests,
    MaintenanceRequests,
)
from tests.conformance.differential.auth_requests import (
    LOCK_RANGES,
    SIGNED_IN,
    USERS,
    WHO,
    WHO_ADMINISTERS,
    AuthRequests,
)
from tests.conformance.differential.cases import EXPIRE, SYNC, WATCH, Case, Draw, Step, sync
from tests.conformance.differential.kv_requests import KvRequests
from tests.conformance.differential.lock_requests import ONE_NAME, LockRequests
from tests.conformance.differential.waiting import WAITING
from tests.conformance.rpcs import RPCS

SIZE_MAX = 1536 * 1024  # --max-request-bytes
KV = {"Put": 22, "Range": 20, "DeleteRange": 10, "Txn": 26, "Compact": 3, WATCH: 12, SYNC: 2}
SEEN = {"HashKV": 2, "Status": 1, "MemberList": 1, "RangeStream": 2}
THEMES: dict[str, dict[str, float]] = {
    "kv": {**KV, **SEEN},
    "lease": {
        **{"LeaseGrant": 15, "LeaseRevoke": 8, "LeaseKeepAlive": 6, "LeaseTimeToLive": 8, "LeaseLeases": 3},
        **{"Put": 25, "Range": 5, "DeleteRange": 4, "Txn": 15, WATCH: 4, SYNC: 2},
    },
    "cluster": {
        **{"MemberAdd": 10, "MemberRemove": 8, "MemberUpdate": 6, "MemberPromote": 6, "MemberList": 8, "Put": 4},
        "Range": 3,
    },
    "maintenance": {
        **{"Alarm": 14, "Status": 6, "HashKV": 6, "Hash": 2, "MoveLeader": 3, "Snapshot": 0.3, "Defragment": 0.3},
        "Downgrade": 5,
        **{"Put": 10, "Range": 6, "DeleteRange": 6, "Txn": 10, "LeaseGrant": 4, "LeaseRevoke": 2, "Compact": 2},
    },
    "lock": {
        **{"Lock": 12, "Unlock": 12, "Campaign": 10, "Proclaim": 8, "Leader": 6, "Observe": 3, "Resign": 8},
        **{"Put": 2, "DeleteRange": 3, "LeaseRevoke": 2, "Range": 2, WATCH: 1, SYNC: 1},
    },
    "users' locks": {
        **{"Lock": 12, "Unlock": 12, "Campaign": 10, "Proclaim": 8, "Leader": 6, "Observe": 3, "Resign": 8},
        **{"Put": 2, "DeleteRange": 3, "LeaseRevoke": 2, "Range": 2, "Authenticate": 1, "RoleGrantPermission": 1},
    },
    "auth": {
        **{"Authenticate": 6, "AuthEnable": 1, "AuthDisable": 0.7, "AuthStatus": 2, "UserAdd": 4, "UserGet": 4},
        **{"UserList": 2, "UserDelete": 2, "UserChangePassword": 2, "UserGrantRole": 4, "UserRevokeRole": 3},
        **{"RoleAdd": 3, "RoleGet": 3, "RoleList": 2, "RoleDelete": 2, "RoleGrantPermission": 7},
        **{"RoleRevokePermission": 4, "Put": 20, "Range": 16, "DeleteRange": 8, "Txn": 20, WATCH: 8, SYNC: 1},
        **{"LeaseGrant": 4, "LeaseRevoke": 3, "LeaseKeepAlive": 3, "LeaseTimeToLive": 3, "LeaseLeases": 2},
        **{"Compact": 1, "MemberList": 1, "Status": 1, "HashKV": 1, "Hash": 0.5, "Alarm": 2, "RangeStream": 2},
        **{"MoveLeader": 0.5, "MemberAdd": 0.5, "MemberRemove": 0.5, "MemberPromote": 0.5, "MemberUpdate": 0.3},
        **{"Defragment": 0.1, "Snapshot": 0.1, "Downgrade": 0.3},
    },
}
ADMINISTERED = ("Auth", "User", "Role", "Member")  # how the names begin of what mostly root does
MOSTLY_SIGNED_IN = ("Lease", "Lock", "Unlock", "Campaign", "Proclaim", "Leader", "Observe", "Resign")
HOW_OFTEN = {
    **{"kv": 60, "big": 1.5, "lease": 20, "expiry": 0.7, "cluster": 4, "maintenance": 8},
    **{"lock": 10, "auth": 30, "users' locks": 8},
}
WAIT_FOR_NOTHING = ["", "?"]  # of all others only one in a case waits: "shared watches" in known.py
CHANGES_OF_MEMBERS = ("MemberAdd", "MemberRemove", "MemberUpdate", "MemberPromote")
ALONE = {
    "cluster",
    "MoveLeader",
    *CHANGES_OF_MEMBERS,
}  # for a cluster of one: a follower of three has other members, and does not lead
ODD_METADATA = [
    (("hasleader", "true"),),
    (("hasleader", "maybe"),),
    (("client-api-version", "3.6.0"),),
    (("client-api-version", "nonsense"), ("hasleader", "true")),
    (("other", "x" * 2000),),
]


class Generator:
    """`served`: the RPCs that there are; `members` of ours; `theme`: all cases are of this one."""

    def __init__(
        self, seed: int, served: Collection[str] = tuple(RPCS), members: int = 1, theme: str | None = None
    ) -> None:
        draw = self._draw = Draw(seed)
        self._served = served
        self._theme = theme
        self._members = members
        self._kv = kv = KvRequests(draw)
        self._leased = leased = KvRequests(draw, leases=0.5)
        self._auth, self._lock_auth = AuthRequests(draw), AuthRequests(draw, LOCK_RANGES)
        self._locks, self._users_locks = LockRequests(draw), LockRequests(draw, ONE_NAME)
        lease, cluster, maintenance = LeaseRequests(draw), ClusterRequests(draw), MaintenanceRequests(draw)
        self._makers: dict[str, Callable[[], Message]] = {
            **{"Range": kv.range, "RangeStream": kv.streamed, "Put": kv.put, "DeleteRange": kv.delete, "Txn": kv.txn},
            **{"Compact": kv.compact, WATCH: kv.watch, SYNC: pb.WatchProgressRequest},
            **{"LeaseGrant": lease.grant, "LeaseRevoke": lease.revoke, "LeaseKeepAlive": lease.keep_alive},
            **{"LeaseTimeToLive": lease.time_to_live, "LeaseLeases": pb.LeaseLeasesRequest},
            **{"MemberAdd": cluster.add, "MemberRemove": cluster.remove, "MemberUpdate": cluster.update},
            **{"MemberPromote": cluster.promote, "MemberList": cluster.list_},
            **{"Alarm": maintenance.alarm, "Status": pb.StatusRequest, "HashKV": maintenance.hash_kv},
            **{"Hash": pb.HashRequest, "MoveLeader": maintenance.move_leader, "Snapshot": pb.SnapshotRequest},
            **{"Defragment": pb.DefragmentRequest, "Downgrade": maintenance.downgrade},
        }
        self._leasing = {**self._makers, "Put": leased.put, "Txn": leased.txn}
        self._locking = {**self._makers, **_of_locks(self._locks)}
        self._users_locking = {**self._makers, **_of_auth(self._lock_auth), **_of_locks(self._users_locks)}
        self._signed_in = {**self._leasing, **_of_auth(self._auth)}

    def case(self, length: int = 40) -> Case:
        draw = self._draw
        themes = {name: weight for name, weight in HOW_OFTEN.items() if self._may_theme(name)}
        theme = self._theme or draw.weighted(themes)
        if theme == "big":
            return self._big_case()
        if theme == "expiry":
            return self._expiry_case()
        makers = {
            "lease": self._leasing,
            "lock": self._locking,
            "users' locks": self._users_locking,
            "auth": self._signed_in,
        }.get(theme, self._makers)
        weights = {call: weight for call, weight in THEMES[theme].items() if self._may(call)}
        steps = [self._step(weights, makers) for _ in range(draw.number(length // 2, length))]
        if theme == "auth":
            steps = [*self._auth.prologue(), *(self._by_somebody(step) for step in steps)]
        elif theme == "lock":
            steps = [*self._locks.prologue(), *steps]
        elif theme == "users' locks":
            waits = [draw.pick(["root", *USERS])] * 9 + WAIT_FOR_NOTHING
            steps = [
                *(self._users_locks.prologue() + self._lock_auth.prologue()),
                *(self._by_somebody(step, waits if step.call in WAITING else None) for step in steps),
            ]
        return [*steps, sync()]

    def _by_somebody(self, step: Step, who: list[str] | None = None) -> Step:
        administers = step.call.startswith(ADMINISTERED) and step.call != "Authenticate"
        usual = WHO_ADMINISTERS if administers else SIGNED_IN if step.call.startswith(MOSTLY_SIGNED_IN) else WHO
        return replace(step, user=self._draw.pick(who or usual), metadata=())

    def _may_theme(self, theme: str) -> bool:
        needed = {"auth": "AuthEnable", "lock": "Lock", "users' locks": "Lock"}.get(theme, "Put")
        return needed in self._served and (self._members == 1 or theme not in ALONE)

    def _may(self, call: str) -> bool:
        return call == SYNC or (call in self._served and (self._members == 1 or call not in ALONE))

    def _step(self, weights: dict[str, float], makers: dict[str, Callable[[], Message]]) -> Step:
        draw = self._draw
        call = draw.weighted(weights)
        step = Step(call, makers[call](), client=draw.pick([0, 0, 0, 1, 2]))
        return replace(step, metadata=draw.pick(ODD_METADATA)) if draw.chance(0.03) else step

    def _big_case(self) -> Case:
        """Requests near the size limit, and watches that must split what they bring."""
        draw, kv = self._draw, self._kv
        steps = [Step(WATCH, kv.create(b"\0", b"\0", fragment=True)), Step(WATCH, kv.create(b"\0", b"\0"))]
        for _ in range(draw.number(2, 5)):
            size = draw.pick([SIZE_MAX // 3, SIZE_MAX // 2, SIZE_MAX - 4096, SIZE_MAX + 1, SIZE_MAX + 4096])
            put = pb.PutRequest(key=kv.key(), value=b"v" * size, prev_kv=draw.chance(0.5))
            if draw.chance(0.3):
                ops = [pb.RequestOp(request_put=put), pb.RequestOp(request_put=kv.put())]
                steps.append(Step("Txn", pb.TxnRequest(success=ops)))
            else:
                steps.append(Step("Put", put))
        steps.append(Step("Range", kv.range()))
        steps.append(Step("DeleteRange", pb.DeleteRangeRequest(key=b"\0", range_end=b"\0", prev_kv=True)))
        return [*steps, sync()]

    def _expiry_case(self) -> Case:
        """One lease that ends by itself: it is waited for, so that nothing depends on when."""
        draw, lease = self._draw, draw_lease(self._draw)
        steps = [
            Step(WATCH, self._kv.create(b"\0", b"\0")),
            Step("LeaseGrant", pb.LeaseGrantRequest(ID=lease, TTL=draw.pick(SHORT_TTLS))),
        ]
        for _ in range(draw.number(0, 4)):
            steps.append(Step("Put", pb.PutRequest(key=self._kv.key(), lease=lease)))
        steps.append(Step(EXPIRE, pb.LeaseTimeToLiveRequest(ID=lease)))
        after = {"Put": 4, "LeaseKeepAlive": 4, "LeaseRevoke": 2, "LeaseTimeToLive": 4, "LeaseGrant": 3, "Range": 3}
        steps += [self._step(after, self._leasing) for _ in range(draw.number(1, 6))]
        return [*steps, sync()]


def _of_locks(locks: LockRequests) -> dict[str, Callable[[], Message]]:
    return {
        **{"Lock": locks.lock, "Unlock": locks.unlock, "Campaign": locks.campaign, "Proclaim": locks.proclaim},
        **{"Leader": locks.leader, "Observe": locks.leader, "Resign": locks.resign, "LeaseRevoke": locks.revoke},
        **{"Put": locks.put, "DeleteRange": locks.delete, "Range": locks.range},
    }


def _of_auth(auth: AuthRequests) -> dict[str, Callable[[], Message]]:
    return {
        **{"Authenticate": auth.authenticate, "AuthEnable": pb.AuthEnableRequest},
        **{"AuthDisable": pb.AuthDisableRequest, "AuthStatus": pb.AuthStatusRequest},
        **{"UserAdd": auth.user_add, "UserGet": auth.user_get, "UserList": pb.AuthUserListRequest},
        **{"UserDelete": auth.user_delete, "UserChangePassword": auth.user_change_password},
        **{"UserGrantRole": auth.user_grant_role, "UserRevokeRole": auth.user_revoke_role},
        **{"RoleAdd": auth.role_add, "RoleGet": auth.role_get, "RoleList": pb.AuthRoleListRequest},
        **{"RoleDelete": auth.role_delete, "RoleGrantPermission": auth.role_grant_permission},
        **{"RoleRevokePermission": auth.role_revoke_permission, "Alarm": pb.AlarmRequest},
    }


def draw_lease(draw: Draw) -> int:
    return draw.pick([1, 77, (1 << 63) - 1, -1])
