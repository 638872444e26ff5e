"""Alarms: what is wrong with the cluster, as the log orders it, and what apply refuses for as long as it is.

    c alarm/ TYPE MEMBER -> ""

An alarm is raised by whoever finds the trouble and stays until somebody takes it back by its member and type. It is
part of the state, so all members refuse the same requests: NOSPACE those that cost space, CORRUPT all that change
keys or leases (reads are served, as by etcd: whoever repairs must be able to look).
"""

from struct import Struct
from typing import Final, Protocol

from kvstore import errors
from kvstore.errors import Code, KvError
from kvstore.mvcc import schema
from kvstore.mvcc.transaction import WriteGroup
from kvstore.pb.command_pb2 import Request
from kvstore.pb.rpc_pb2 import AlarmMember, AlarmRequest, AlarmResponse, AlarmType
from kvstore.state.quota import txn_cost
from kvstore.state.txn import AppliedResult

Raised = frozenset[int]  # the types of all alarms there are

# etcd ends itself, with all its members, when it is asked for one of these.
UNKNOWN_ALARM: Final = KvError(Code.INVALID_ARGUMENT, "etcdserver: unknown type of alarm, or of what to do with it")

_ROWS: Final = schema.CLUSTER + b"alarm/"
_ROWS_END: Final = schema.CLUSTER + b"alarm0"
_ROW: Final = Struct(">iQ")

_WRITES: Final = frozenset(("put", "delete_range", "txn", "compaction", "lease_grant", "lease_revoke"))


class Rows(Protocol):
    """A store, or a group that is being applied."""

    def cluster_rows(self, low: bytes, high: bytes) -> list[tuple[bytes, bytes]]: ...


def read_alarms(rows: Rows) -> list[AlarmMember]:
    """By type, then by member."""
    found = [_ROW.unpack_from(row, len(_ROWS)) for row, _ in rows.cluster_rows(_ROWS, _ROWS_END)]
    return [AlarmMember(memberID=member, alarm=kind) for kind, member in found]


def alarm_row(alarm: AlarmMember) -> bytes:
    """Its value is empty."""
    return _ROWS + _ROW.pack(alarm.alarm, alarm.memberID)


def raised(rows: Rows) -> Raised:
    return frozenset([alarm.alarm for alarm in read_alarms(rows)])


def of_type(alarms: list[AlarmMember], kind: int) -> list[AlarmMember]:
    """What a GET answers; NONE: all."""
    return [alarm for alarm in alarms if kind in (AlarmType.NONE, alarm.alarm)]


def check_alarm(request: AlarmRequest) -> None:
    if request.action not in AlarmRequest.AlarmAction.values() or request.alarm not in AlarmType.values():
        raise UNKNOWN_ALARM.fresh()


def apply_alarm(group: WriteGroup, request: AlarmRequest) -> AppliedResult:
    """The body is an AlarmResponse without a header, with the alarm that was meant, if there is one."""
    check_alarm(request)
    row = alarm_row(AlarmMember(memberID=request.memberID, alarm=request.alarm))
    if request.action == AlarmRequest.GET:
        answer = of_type(read_alarms(group), request.alarm)
    else:
        wanted = request.action == AlarmRequest.ACTIVATE
        known = group.get_cluster_row(row) is not None
        answer = [AlarmMember(memberID=request.memberID, alarm=request.alarm)]
        if request.alarm == AlarmType.NONE or not (wanted or known):
            answer = []
        elif wanted and not known:
            group.put_cluster_row(row, b"")
        elif not wanted:
            group.delete_cluster_row(row)
    return AppliedResult(group.current_revision, AlarmResponse(alarms=answer).SerializeToString())


def refusal(alarms: Raised, request: Request) -> KvError | None:
    """Why a request is not carried out. A function of the request and the alarms: no member's quota counts here."""
    op = request.WhichOneof("op")
    if AlarmType.CORRUPT in alarms and op in _WRITES:
        return errors.CORRUPT
    if AlarmType.NOSPACE in alarms and (op in ("put", "lease_grant") or (op == "txn" and txn_cost(request.txn) > 0)):
        return errors.NO_SPACE
    return None
