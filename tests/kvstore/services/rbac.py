"""Who may call what, as a model of its own: cases over every RPC and nesting, callers, and what each pair must come to.

Nothing here uses the tables or the intervals of the code under test. A caller has what it may read and write as plain
intervals, a case has what it touches as plain intervals, and one is in the other or is not.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from kvstore.errors import Code, KvError
from kvstore.pb import history_pb2, history_pb2_grpc, rpc_pb2_grpc, v3election_pb2_grpc, v3lock_pb2_grpc
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb import v3election_pb2 as election
from kvstore.pb import v3lock_pb2 as lock
from kvstore.pb.auth_pb2 import Permission

END: Final = b"\xff" * 8  # above every key that is used
SECONDS: Final = 10.0

Touch = tuple[str, bytes, bytes]  # "r" or "w", [low, high); END: to the end


def point(kind: str, key: bytes) -> Touch:
    return kind, key, key + b"\0"


# -- callers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Caller:
    """proof: how it tells who it is. may: what it was granted, neighbours put together by hand."""

    name: str
    user: str = ""
    proof: str = "good"  # none, bad, expired, old, good
    is_root: bool = False
    may: tuple[Touch, ...] = ()

    def touches(self, touch: Touch) -> bool:
        kind, low, high = touch
        return self.is_root or any(kind == k and a <= low and high <= b for k, a, b in self.may)


def _rw(low: bytes, high: bytes) -> tuple[Touch, ...]:
    return ("r", low, high), ("w", low, high)


CALLERS: Final = [
    Caller("none", proof="none"),
    Caller("bad", proof="bad"),
    Caller("expired", user="ann", proof="expired", may=_rw(b"k", b"l")),
    Caller("old", user="ann", proof="old", may=_rw(b"k", b"l")),
    Caller("old root", user="root", proof="old", is_root=True),
    Caller("roleless", user="bob"),
    Caller("ann", user="ann", may=_rw(b"k", b"l")),
    Caller("reader", user="reader", may=(("r", b"k", b"l"),)),
    Caller("writer", user="writer", may=(("w", b"k", b"l"),)),
    Caller("neighbour", user="neighbour", may=(*_rw(b"j", b"k"), *_rw(b"l", b"m"))),
    Caller("halves", user="halves", may=_rw(b"k", b"l")),  # two roles, each a half
    Caller("one key", user="onekey", may=_rw(b"k1", b"k1\0")),
    Caller("from on", user="fromon", may=_rw(b"k", END)),
    Caller("root", user="root", is_root=True),
]

# user -> role -> permissions
GRANTS: Final[dict[str, dict[str, list[tuple[Any, bytes, bytes]]]]] = {
    "ann": {"own": [(Permission.READWRITE, b"k", b"l")]},
    "reader": {"reads": [(Permission.READ, b"k", b"l")]},
    "writer": {"writes": [(Permission.WRITE, b"k", b"l")]},
    "neighbour": {"around": [(Permission.READWRITE, b"j", b"k"), (Permission.READWRITE, b"l", b"m")]},
    "halves": {"low": [(Permission.READWRITE, b"k", b"k5")], "high": [(Permission.READWRITE, b"k5", b"l")]},
    "onekey": {"one": [(Permission.READWRITE, b"k1", b"")]},
    "fromon": {"on": [(Permission.READWRITE, b"k", b"\0")]},
    "bob": {},
}


# -- cases -------------------------------------------------------------------------------------------

ANY, ROOT, OPEN = "any", "root", "open"


@dataclass(frozen=True)
class Case:
    """needs: "open", "any" (a user), "root", or what it touches. call: (channel, metadata, side) -> an answer.

    own: whom a need of root does not bind. unknown: a recipe, whose refusals carry the code Unknown.
    """

    method: str
    name: str
    needs: Any
    call: Callable[[Any, Any, "Side"], Awaitable[Any]]
    own: Callable[[Caller], bool] = field(default=lambda caller: False)
    unknown: bool = False
    nesting: str = ""

    @property
    def changes(self) -> bool:
        """Whether what is allowed may leave something other than before."""
        if isinstance(self.needs, tuple) and not isinstance(self.needs, Touched):
            return any(kind == "w" for kind, _, _ in self.needs)
        return self.needs != OPEN and not self.method.endswith(_QUESTIONS)

    @property
    def id(self) -> str:
        return f"{self.method.rpartition('.')[2]} {self.name}"


_QUESTIONS = ("Status", "List", "Get", "Hash", "HashKV", "Snapshot", "TimeToLive", "Leases")


class Side:
    """The server: what a case needs of it as root."""

    def __init__(self, as_root: Callable[[Any, str, Any], Awaitable[Any]]) -> None:
        self._as_root = as_root
        self.numbers = count(1)
        self.lease = 0  # granted anew for each cell: free, with a key k1 on it, with a key zz on it
        self.own_lease = 0
        self.foreign_lease = 0
        self.name = ""  # of a user and role that is not there yet

    async def root(self, stub: Any, rpc: str, request: Any) -> Any:
        return await self._as_root(stub, rpc, request)


def outcome(case: Case, caller: Caller) -> tuple[Code, str] | None:
    """What the cell must come to: a refusal, or None: no refusal of authorisation."""
    if case.needs == OPEN:
        return None
    refusal = _refusal(case, caller)
    if refusal is None:
        return None
    code, text = refusal
    return Code.UNKNOWN if case.unknown else code, f"etcdserver: {text}"


def _refusal(case: Case, caller: Caller) -> tuple[Code, str] | None:
    by_keys = isinstance(case.needs, tuple)
    on_leases = isinstance(case.needs, Touched)
    if caller.proof == "none":
        return Code.INVALID_ARGUMENT, "user name is empty"
    if caller.proof in ("bad", "expired"):
        return Code.UNAUTHENTICATED, "invalid auth token"
    if caller.proof == "old" and by_keys and not (on_leases and caller.is_root):
        return Code.INVALID_ARGUMENT, "revision of auth store is old"
    if by_keys and all(caller.touches(touch) for touch in case.needs):
        return None
    if not by_keys and (case.needs == ANY or caller.is_root or case.own(caller)):
        return None
    return Code.PERMISSION_DENIED, "permission denied"


REFUSALS: Final = frozenset(
    f"etcdserver: {text}"
    for text in ("user name is empty", "invalid auth token", "revision of auth store is old", "permission denied")
)


def _unary(stub: Any, rpc: str, request: Any) -> Callable[[Any, Any, Side], Awaitable[Any]]:
    async def call(channel: Any, metadata: Any, side: Side) -> Any:
        made = request(side) if callable(request) else request
        return await getattr(stub(channel), rpc)(made, metadata=metadata, timeout=SECONDS)

    return call


def _first(stub: Any, rpc: str, request: Any) -> Callable[[Any, Any, Side], Awaitable[Any]]:
    """Of a stream of answers: the first one, or its end."""

    async def call(channel: Any, metadata: Any, side: Side) -> Any:
        made = request(side) if callable(request) else request
        stream = getattr(stub(channel), rpc)(made, metadata=metadata, timeout=SECONDS)
        try:
            async for answer in stream:
                return answer
        finally:
            stream.cancel()
        return None

    return call


def _asked(stub: Any, rpc: str, request: Any) -> Callable[[Any, Any, Side], Awaitable[Any]]:
    """Of a stream both ways: the answer to one message."""

    async def call(channel: Any, metadata: Any, side: Side) -> Any:
        made = request(side) if callable(request) else request

        async def requests() -> AsyncIterator[Any]:
            yield made

        stream = getattr(stub(channel), rpc)(requests(), metadata=metadata, timeout=SECONDS)
        try:
            async for answer in stream:
                if getattr(answer, "canceled", False):
                    raise refused_by_text(answer.cancel_reason)
                return answer
        finally:
            stream.cancel()
        return None

    return call


def refused_by_text(reason: str) -> KvError:
    """A watch's cancel reason, which is a gRPC error as Go prints it."""
    names = {code.name.title().replace("_", ""): code for code in Code}
    head, _, text = reason.partition(" desc = ")
    name = head.removeprefix("rpc error: code = ")
    return KvError(names.get(name, Code.UNKNOWN), text)


KV, LEASE, WATCH = rpc_pb2_grpc.KVStub, rpc_pb2_grpc.LeaseStub, rpc_pb2_grpc.WatchStub
CLUSTER, MAINTENANCE, AUTH = rpc_pb2_grpc.ClusterStub, rpc_pb2_grpc.MaintenanceStub, rpc_pb2_grpc.AuthStub
LOCK, ELECTION, HISTORY = v3lock_pb2_grpc.LockStub, v3election_pb2_grpc.ElectionStub, history_pb2_grpc.HistoryStub

# name -> (operation, what it touches); a side where leases are needed.
RANGES: Final[dict[str, tuple[bytes, bytes, bytes]]] = {  # key, range end, the end as the model has it
    "point": (b"k1", b"", b"k1\0"),
    "range": (b"k2", b"k8", b"k8"),
    "all of it": (b"k", b"l", b"l"),
    "one key more": (b"k", b"l\0", b"l\0"),
    "from before": (b"jz", b"l", b"l"),
    "open end": (b"k1", b"\0", END),
    "everything": (b"\0", b"\0", END),
    "another's": (b"zz", b"", b"zz\0"),
}


def range_ops() -> dict[str, tuple[Any, tuple[Touch, ...]]]:
    return {
        name: (pb.RangeRequest(key=key, range_end=end), (("r", key, high),))
        for name, (key, end, high) in RANGES.items()
    }


def delete_ops() -> dict[str, tuple[Any, tuple[Touch, ...]]]:
    ops: dict[str, tuple[Any, tuple[Touch, ...]]] = {}
    for name, (key, end, high) in RANGES.items():
        ops[name] = pb.DeleteRangeRequest(key=key, range_end=end), (("w", key, high),)
        ops[f"{name} prev_kv"] = (
            pb.DeleteRangeRequest(key=key, range_end=end, prev_kv=True),
            (("w", key, high), ("r", key, high)),
        )
    return ops


def put_ops() -> dict[str, tuple[Any, tuple[Touch, ...]]]:
    write, read = point("w", b"k1"), point("r", b"k1")
    return {
        "plain": (pb.PutRequest(key=b"k1", value=b"v"), (write,)),
        "another's": (pb.PutRequest(key=b"zz", value=b"v"), (point("w", b"zz"),)),
        "prev_kv": (pb.PutRequest(key=b"k1", value=b"v", prev_kv=True), (write, read)),
        "ignore_value": (pb.PutRequest(key=b"k1", ignore_value=True), (write,)),
        "ignore_lease": (pb.PutRequest(key=b"k1", value=b"v", ignore_lease=True), (write,)),
        "ignore_value prev_kv": (pb.PutRequest(key=b"k1", ignore_value=True, prev_kv=True), (write, read)),
        "free lease": (lambda side: pb.PutRequest(key=b"k1", lease=side.lease), (write,)),
        "own lease": (lambda side: pb.PutRequest(key=b"k1", lease=side.own_lease), (write, point("w", b"k3"))),
        "another's lease": (
            lambda side: pb.PutRequest(key=b"k1", lease=side.foreign_lease),
            (write, point("w", b"zz")),
        ),
        "no such lease": (pb.PutRequest(key=b"k1", lease=1), (write,)),
    }


def _made(request: Any, side: Side) -> Any:
    return request(side) if callable(request) else request


NESTINGS: Final[dict[str, Callable[[Any], Any]]] = {
    "then": lambda op: pb.TxnRequest(success=[op]),
    "else": lambda op: pb.TxnRequest(failure=[op]),
    "not taken": lambda op: pb.TxnRequest(
        compare=[pb.Compare(key=b"k1", target=pb.Compare.VERSION, result=pb.Compare.LESS)], success=[op]
    ),
    "then then": lambda op: pb.TxnRequest(success=[pb.RequestOp(request_txn=pb.TxnRequest(success=[op]))]),
    "else else": lambda op: pb.TxnRequest(failure=[pb.RequestOp(request_txn=pb.TxnRequest(failure=[op]))]),
    "three deep": lambda op: pb.TxnRequest(
        success=[
            pb.RequestOp(request_txn=pb.TxnRequest(failure=[pb.RequestOp(request_txn=pb.TxnRequest(success=[op]))]))
        ]
    ),
}
_READS_K1: Final = (("r", b"k1", b"k1\0"),)  # the compare of "not taken"


def kv_cases() -> list[Case]:
    cases = []
    for rpc, name, ops in (
        ("Range", "request_range", range_ops()),
        ("Put", "request_put", put_ops()),
        ("DeleteRange", "request_delete_range", delete_ops()),
    ):
        for variant, (request, needs) in ops.items():
            cases.append(Case(f"/etcdserverpb.KV/{rpc}", variant, needs, _unary(KV, rpc, request)))
            for nesting, nest in NESTINGS.items():

                def txn(side: Side, request: Any = request, nest: Any = nest, name: str = name) -> Any:
                    return nest(pb.RequestOp(**{name: _made(request, side)}))

                more = _READS_K1 if nesting == "not taken" else ()
                name_ = f"{rpc} {variant}, {nesting}"
                call = _unary(KV, "Txn", txn)
                cases.append(Case("/etcdserverpb.KV/Txn", name_, (*needs, *more), call, nesting=nesting))
    for variant, (request, needs) in range_ops().items():
        local = pb.RangeRequest(key=request.key, range_end=request.range_end, serializable=True)
        cases.append(Case("/etcdserverpb.KV/Range", f"{variant} serializable", needs, _unary(KV, "Range", local)))
        stream = _first(KV, "RangeStream", request)
        cases.append(Case("/etcdserverpb.KV/RangeStream", variant, needs, stream))
        compare = pb.Compare(key=request.key, range_end=request.range_end, target=pb.Compare.VERSION)
        for where, made in (
            ("compare", pb.TxnRequest(compare=[compare])),
            (
                "nested compare",
                pb.TxnRequest(success=[pb.RequestOp(request_txn=pb.TxnRequest(compare=[compare]))]),
            ),
        ):
            cases.append(Case("/etcdserverpb.KV/Txn", f"{where} {variant}", needs, _unary(KV, "Txn", made)))
        history = history_pb2.ReadHistoryRequest(key=request.key, range_end=request.range_end)
        cases.append(Case("/kvstore.v1.History/Read", variant, needs, _first(HISTORY, "Read", history)))
        watch = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=request.key, range_end=request.range_end))
        cases.append(Case("/etcdserverpb.Watch/Watch", variant, needs, _asked(WATCH, "Watch", watch)))
    empty = pb.WatchRequest(create_request=pb.WatchCreateRequest())
    needs = (("r", b"\0", b"\0\0"),)
    cases.append(Case("/etcdserverpb.Watch/Watch", "no key", needs, _asked(WATCH, "Watch", empty)))
    compact = _unary(KV, "Compact", pb.CompactionRequest(revision=1))
    cases.append(Case("/etcdserverpb.KV/Compact", "", ROOT, compact))
    physical = _unary(KV, "Compact", pb.CompactionRequest(revision=1, physical=True))
    cases.append(Case("/etcdserverpb.KV/Compact", "physical", ROOT, physical))
    return cases


def lease_cases() -> list[Case]:
    def case(rpc: str, name: str, needs: Any, request: Any, call: Any = _unary) -> Case:
        return Case(f"/etcdserverpb.Lease/{rpc}", name, needs, call(LEASE, rpc, request))

    def of(message: Any, which: str, **more: Any) -> Callable[[Side], Any]:
        return lambda side: message(ID=getattr(side, which), **more)

    cases = [case("LeaseGrant", "", ANY, pb.LeaseGrantRequest(TTL=100))]
    for which, needs in (("lease", ANY), ("own_lease", "k3"), ("foreign_lease", "zz")):
        writes = ANY if needs == ANY else Touched(point("w", needs.encode()))
        reads = ANY if needs == ANY else Touched(point("r", needs.encode()))
        cases += [
            case("LeaseRevoke", which, writes, of(pb.LeaseRevokeRequest, which)),
            case("LeaseKeepAlive", which, writes, of(pb.LeaseKeepAliveRequest, which), _asked),
            case("LeaseTimeToLive", which, ANY, of(pb.LeaseTimeToLiveRequest, which)),
            case("LeaseTimeToLive", f"{which} keys", reads, of(pb.LeaseTimeToLiveRequest, which, keys=True)),
        ]
    everything = Touched(point("r", b"k3"), point("r", b"zz"))
    cases.append(case("LeaseLeases", "", everything, pb.LeaseLeasesRequest()))
    cases.append(case("LeaseRevoke", "unknown", ANY, pb.LeaseRevokeRequest(ID=1)))
    return cases


class Touched(tuple):  # type: ignore[type-arg]
    """Touches of keys on leases."""

    def __new__(cls, *touches: Touch) -> "Touched":
        return super().__new__(cls, touches)


def admin_cases() -> list[Case]:
    def case(service: str, stub: Any, rpc: str, request: Any, needs: Any = ROOT, **more: Any) -> Case:
        call = more.pop("call", _unary)
        return Case(f"/etcdserverpb.{service}/{rpc}", more.pop("name", ""), needs, call(stub, rpc, request), **more)

    alarm = pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, alarm=pb.NOSPACE)
    user, role = (
        (lambda side: pb.AuthUserAddRequest(name=side.name)),
        (lambda side: pb.AuthRoleAddRequest(name=side.name)),
    )
    perm = Permission(key=b"q")
    own = {"own": lambda caller: caller.user == "ann"}
    return [
        case("Cluster", CLUSTER, "MemberList", pb.MemberListRequest(), ANY),
        case("Cluster", CLUSTER, "MemberList", pb.MemberListRequest(linearizable=True), ANY, name="linearizable"),
        case("Cluster", CLUSTER, "MemberAdd", pb.MemberAddRequest(peerURLs=["http://p:1"])),
        case("Cluster", CLUSTER, "MemberRemove", pb.MemberRemoveRequest(ID=1)),
        case("Cluster", CLUSTER, "MemberUpdate", pb.MemberUpdateRequest(ID=1, peerURLs=["nonsense"])),
        case("Cluster", CLUSTER, "MemberPromote", pb.MemberPromoteRequest(ID=1)),
        case("Maintenance", MAINTENANCE, "Alarm", pb.AlarmRequest(), ANY, name="get"),
        case("Maintenance", MAINTENANCE, "Alarm", alarm, name="deactivate"),
        case("Maintenance", MAINTENANCE, "Status", pb.StatusRequest(), ANY),
        case("Maintenance", MAINTENANCE, "Defragment", pb.DefragmentRequest()),
        case("Maintenance", MAINTENANCE, "Hash", pb.HashRequest()),
        case("Maintenance", MAINTENANCE, "HashKV", pb.HashKVRequest()),
        case("Maintenance", MAINTENANCE, "Snapshot", pb.SnapshotRequest(), call=_first),
        case("Maintenance", MAINTENANCE, "MoveLeader", pb.MoveLeaderRequest(targetID=1)),
        case("Maintenance", MAINTENANCE, "Downgrade", pb.DowngradeRequest(version="3.5.0")),
        case("Auth", AUTH, "AuthStatus", pb.AuthStatusRequest(), OPEN),
        case("Auth", AUTH, "Authenticate", pb.AuthenticateRequest(name="ann", password="wrong"), OPEN),
        case("Auth", AUTH, "AuthEnable", pb.AuthEnableRequest()),
        case("Auth", AUTH, "AuthDisable", pb.AuthDisableRequest()),
        case("Auth", AUTH, "UserAdd", user),
        case("Auth", AUTH, "UserGet", pb.AuthUserGetRequest(name="ann"), name="ann", **own),
        case("Auth", AUTH, "UserGet", pb.AuthUserGetRequest(name="root"), name="root"),
        case("Auth", AUTH, "UserGet", pb.AuthUserGetRequest(), name="nobody"),
        case("Auth", AUTH, "UserList", pb.AuthUserListRequest()),
        case("Auth", AUTH, "UserDelete", pb.AuthUserDeleteRequest(name="missing")),
        case("Auth", AUTH, "UserChangePassword", pb.AuthUserChangePasswordRequest(name="missing", password="x")),
        case("Auth", AUTH, "UserGrantRole", pb.AuthUserGrantRoleRequest(user="missing", role="own")),
        case("Auth", AUTH, "UserRevokeRole", pb.AuthUserRevokeRoleRequest(name="missing", role="own")),
        case("Auth", AUTH, "RoleAdd", role),
        case("Auth", AUTH, "RoleGet", pb.AuthRoleGetRequest(role="own"), name="ann's", **own),
        case("Auth", AUTH, "RoleGet", pb.AuthRoleGetRequest(role="root"), name="root"),
        case("Auth", AUTH, "RoleList", pb.AuthRoleListRequest()),
        case("Auth", AUTH, "RoleDelete", pb.AuthRoleDeleteRequest(role="missing")),
        case("Auth", AUTH, "RoleGrantPermission", pb.AuthRoleGrantPermissionRequest(name="missing", perm=perm)),
        case("Auth", AUTH, "RoleRevokePermission", pb.AuthRoleRevokePermissionRequest(role="missing", key=b"q")),
    ]


def recipe_cases() -> list[Case]:
    """Lock and Election: under kq/ nobody waits, under kp/ somebody leads."""
    prefix, key = ("r", b"kp/", b"kp0"), b"kp/1"
    both = (("r", b"kq/", b"kq0"), ("w", b"kq/", b"kq0"))
    leader = election.LeaderKey(name=b"kp", key=key, rev=1, lease=0)

    def case(service: str, stub: Any, rpc: str, request: Any, needs: Any, call: Any = _unary) -> Case:
        return Case(f"/{service}/{rpc}", "", needs, call(stub, rpc, request), unknown=True)

    queue, one = "v3lockpb.Lock", "v3electionpb.Election"
    return [
        case(queue, LOCK, "Lock", lambda side: lock.LockRequest(name=b"kq", lease=side.lease), both),
        case(queue, LOCK, "Unlock", lock.UnlockRequest(key=key), (point("w", key),)),
        case(one, ELECTION, "Campaign", lambda side: election.CampaignRequest(name=b"kq", lease=side.lease), both),
        case(
            one,
            ELECTION,
            "Proclaim",
            lambda side: election.ProclaimRequest(
                leader=election.LeaderKey(name=b"kp", key=key, rev=1, lease=side.lease), value=b"v"
            ),
            (point("r", key), point("w", key)),
        ),
        case(one, ELECTION, "Leader", election.LeaderRequest(name=b"kp"), (prefix,)),
        case(one, ELECTION, "Observe", election.LeaderRequest(name=b"kp"), (prefix,), _first),
        case(one, ELECTION, "Resign", election.ResignRequest(leader=leader), (point("r", key), point("w", key))),
    ]


def health_cases() -> list[Case]:
    def health(rpc: str) -> str:
        return f"/grpc.health.v1.Health/{rpc}"

    from grpc_health.v1.health_pb2 import HealthListRequest

    return [
        Case(health("Check"), "", OPEN, _unary(HealthStub, "Check", HealthCheckRequest())),
        Case(health("List"), "", OPEN, _unary(HealthStub, "List", HealthListRequest())),
        Case(health("Watch"), "", OPEN, _first(HealthStub, "Watch", HealthCheckRequest())),
    ]


CASES: Final = [*kv_cases(), *lease_cases(), *admin_cases(), *recipe_cases(), *health_cases()]


async def set_up(root: Callable[[Any, str, Any], Awaitable[Any]], password: str) -> None:
    """Users and roles of GRANTS, and root; keys to be found. `root` is asked while authentication is off."""
    await root(AUTH, "UserAdd", pb.AuthUserAddRequest(name="root", password=password))
    await root(AUTH, "RoleAdd", pb.AuthRoleAddRequest(name="root"))
    await root(AUTH, "UserGrantRole", pb.AuthUserGrantRoleRequest(user="root", role="root"))
    for user, roles in GRANTS.items():
        await root(AUTH, "UserAdd", pb.AuthUserAddRequest(name=user, password=password))
        for role, permissions in roles.items():
            await root(AUTH, "RoleAdd", pb.AuthRoleAddRequest(name=role))
            for kind, key, end in permissions:
                perm = Permission(permType=kind, key=key, range_end=end)
                await root(AUTH, "RoleGrantPermission", pb.AuthRoleGrantPermissionRequest(name=role, perm=perm))
            await root(AUTH, "UserGrantRole", pb.AuthUserGrantRoleRequest(user=user, role=role))
    await root(AUTH, "AuthEnable", pb.AuthEnableRequest())


async def before_cell(side: Side) -> None:
    """What the cell before may have taken away."""
    await side.root(AUTH, "AuthEnable", pb.AuthEnableRequest())
    for old in (side.lease, side.own_lease, side.foreign_lease):
        if old:
            with contextlib.suppress(KvError):  # the cell has revoked it
                await side.root(LEASE, "LeaseRevoke", pb.LeaseRevokeRequest(ID=old))
    granted = [await side.root(LEASE, "LeaseGrant", pb.LeaseGrantRequest(TTL=1000)) for _ in range(3)]
    side.lease, side.own_lease, side.foreign_lease = (one.ID for one in granted)
    side.name = f"new{next(side.numbers)}"
    for key, lease in ((b"k1", 0), (b"k3", side.own_lease), (b"zz", side.foreign_lease), (b"kp/1", 0)):
        await side.root(KV, "Put", pb.PutRequest(key=key, value=b"v", lease=lease))
